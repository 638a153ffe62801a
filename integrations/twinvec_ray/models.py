"""How a model reaches workers: by its hub id, by a path that they share, or packed into Ray's object store."""

from __future__ import annotations

import io
import tarfile
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from twinvec import BaseEmbedder, Embedder, ModelSpec
from twinvec.errors import CheckpointNotFoundError, ConfigurationError
from twinvec.options import EmbedderOptions
from twinvec_ray.workers import Workers


@dataclass(frozen=True)
class Model:
    """What a worker needs to make its Embedder.

    Attributes:
        spec: of a model that is loaded by each worker.
        options: for its Embedder.
        embedder: what goes to the workers as it is, such as a RemoteEmbedder.
        packed: the folder as an archive in Ray's object store.
    """

    spec: ModelSpec | None
    options: EmbedderOptions
    embedder: BaseEmbedder | None = None
    packed: Any = None

    @classmethod
    def of(cls, model: str | ModelSpec | BaseEmbedder, options: EmbedderOptions | None, workers: Workers) -> Model:
        """Describe a model.

        Raises:
            ConfigurationError: what was asked for contradicts itself.
            CheckpointNotFoundError: a folder that is to be packed is not here.
        """
        if isinstance(model, BaseEmbedder):
            if options is not None:
                raise ConfigurationError("options= is for a model by name: an Embedder has its own")
            options = model.options
            if not isinstance(model, Embedder):
                if workers.pack:
                    raise ConfigurationError(f"pack=True is for a model's folder, which a {type(model).__name__} lacks")
                return cls(None, options, model)
        options = options or EmbedderOptions()
        if options.device == "auto" and not workers.gpus:
            options = replace(options, device="cpu")
        spec = model.spec if isinstance(model, Embedder) else model
        spec = spec if isinstance(spec, ModelSpec) else ModelSpec(model=spec)
        if Path(spec.model).is_dir():
            spec = replace(spec, model=str(Path(spec.model).resolve()))
        return cls(spec, options, packed=ray.put(_pack(spec)) if workers.pack else None)

    def load(self) -> BaseEmbedder:
        """Return the Embedder, in a worker.

        Raises:
            CheckpointError: the model cannot be found, read or loaded there, or is another than here.
        """
        if self.embedder is not None:
            return self.embedder
        assert self.spec is not None
        keywords: dict[str, Any] = {name: getattr(self.options, name) for name in vars(self.options)}
        if self.packed is None:
            return Embedder(self.spec, **keywords)
        with tempfile.TemporaryDirectory(prefix="twinvec-model-") as folder:
            with tarfile.open(fileobj=io.BytesIO(ray.get(self.packed)), mode="r:") as archive:
                archive.extractall(folder, filter="data")
            embedder = Embedder(replace(self.spec, model=folder), **keywords)
        embedder.spec = replace(embedder.spec, model=self.spec.model)
        return embedder


def _pack(spec: ModelSpec) -> np.ndarray[Any, Any]:
    """Return a model's folder as an archive, uint8 [bytes]."""
    folder = Path(spec.model)
    if not folder.is_dir():
        raise CheckpointNotFoundError(f"pack=True sends a folder to the workers, and {spec.model} is none here")
    if spec.sparse is not None and Path(spec.sparse).exists():
        raise ConfigurationError(f"pack=True sends the folder {folder} alone, not {spec.sparse}: share that path")
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:", dereference=True) as archive:  # a hub's snapshot consists of links
        archive.add(folder, arcname=".")
    return np.frombuffer(content.getbuffer(), dtype=np.uint8)
