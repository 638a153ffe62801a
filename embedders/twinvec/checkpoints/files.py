"""A checkpoint on disk and its own description: raw config, tensor headers, modules, digest.

No model is built and no code from the checkpoint is run here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from twinvec.checkpoints.fields import CONFIG, OBJECT, Field, check_config, check_fields
from twinvec.checkpoints.identity import Identity, identify, memory_folder
from twinvec.checkpoints.tensors import Tensor, check_types, read_json, read_tensor_headers
from twinvec.errors import CheckpointError, CheckpointNotFoundError

BGE_HEAD = "sparse_linear.pt"
BGE_MULTI_HEAD = "colbert_linear.pt"


@dataclass(frozen=True)
class Module:
    """An entry of ``modules.json``: the last part of the class name, and the module's folder."""

    kind: str
    folder: Path
    config: Mapping[str, Any]

    @property
    def weights(self) -> Path:
        """Return the weight file, preferring safetensors to a pickle.

        Raises:
            CheckpointNotFoundError: neither exists.
        """
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (self.folder / name).is_file():
                return self.folder / name
        raise CheckpointNotFoundError(f"{self.folder}: {self.kind} has no weights. Download the checkpoint again.")


@dataclass(frozen=True)
class Checkpoint:
    """A folder on disk with a readable ``config.json``.

    Attributes:
        name: as the caller wrote it; used in messages.
        root: folder of the whole checkpoint (the one containing ``modules.json``).
        folder: folder of the transformer, often the same.
        config: raw ``config.json``.
        modules: sentence-transformers modules; empty without a ``modules.json``.
        revision: the hub commit; None for a folder.
        trusted: whether the caller opted in to the checkpoint's own code, at a pinned revision.
        memory: folder in which the digests of large files are remembered.
    """

    name: str
    root: Path
    folder: Path
    config: Mapping[str, Any]
    modules: tuple[Module, ...]
    revision: str | None = None
    trusted: bool = False
    memory: Path = field(default_factory=lambda: memory_folder(None), compare=False)

    @property
    def model_type(self) -> str:
        """Return ``config["model_type"]``; "" if it is missing."""
        return str(self.config.get("model_type", ""))

    @property
    def architectures(self) -> tuple[str, ...]:
        """Return ``config["architectures"]``."""
        return tuple(self.config.get("architectures") or ())

    @cached_property
    def weight_files(self) -> tuple[Path, ...]:
        """Return the weight files, preferring safetensors; all shards named by the index."""
        for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
            index, single = self.folder / f"{stem}{suffix}.index.json", self.folder / f"{stem}{suffix}"
            if single.is_file():
                return (single,)
            if index.is_file():
                return _shards(index)
        raise CheckpointNotFoundError(
            f"{self.folder}: no weights (model.safetensors, pytorch_model.bin or their sharded forms). "
            "Download the checkpoint again, or save it with safe_serialization=True."
        )

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Return name -> dtype and shape, from the headers of all weight files."""
        found: dict[str, Tensor] = {}
        for file in self.weight_files:
            found.update(read_tensor_headers(file))
        return found

    @cached_property
    def digest(self) -> str:
        """Return a digest of every byte that decides a vector, except the checkpoint's own code."""
        return self.identify().digest

    def identify(self, *, own_code: bool = False) -> Identity:
        """Read the files, or recall their digests; with ``own_code`` the checkpoint's Python files count, too.

        Raises:
            CheckpointError: a file is missing or cannot be read.
        """
        folders = {self.root, self.folder, *(m.folder for m in self.modules)}
        files = [file for folder in folders for file in folder.glob("*.json") if file.is_file()]
        files += [*self.weight_files, *(m.weights for m in self.modules if m.kind == "Dense")]
        files += [head for name in (BGE_HEAD, BGE_MULTI_HEAD) if (head := self.root / name).is_file()]
        files += self.folder.rglob("*.py") if own_code else []
        try:
            return identify({file.relative_to(self.root).as_posix(): file for file in files}, self.memory)
        except OSError as error:
            raise CheckpointError(f"{self.name}: cannot be read ({error})") from error

    def json(self, relative: str, fields: Mapping[str, Field] = MappingProxyType({})) -> dict[str, Any]:
        """Return a JSON file of the checkpoint; {} if it does not exist.

        Raises:
            CheckpointFieldError: ``fields`` rejects a value.
        """
        for base in (self.folder, self.root):
            if (base / relative).is_file():
                values = read_json(base / relative)
                check_fields(base / relative, values, fields)
                return values
        return {}

    def check(
        self, *required: str, part: str | None = None, fields: Mapping[str, Field] = MappingProxyType({})
    ) -> None:
        """Check ``config.json`` and the dtypes of the weights before anything is built from them.

        Args:
            required: fields that TwinVec never guesses.
            part: a nested object to check instead of the whole configuration.
            fields: the family's additions to the common table.

        Raises:
            CheckpointFieldError: the first invalid field, or all missing ones.
            CheckpointError: the weights are not numbers.
        """
        file, config = self.folder / "config.json", self.config
        if part is not None:
            check_fields(file, config, {part: OBJECT})
            config = config.get(part) or {}
        check_config(file, config, self.tensors, required, fields, prefix="" if part is None else f"{part}.")
        check_types(self.tensors, self.name)


def read_checkpoint(name: str, root: Path, revision: str | None, *, trusted: bool, cache_dir: str | None) -> Checkpoint:
    """Read the configuration of a folder.

    Raises:
        CheckpointError: the configuration is missing or unreadable.
    """
    root = root.resolve()
    modules = _read_modules(root)
    folder = modules[0].folder if modules else root
    if not (folder / "config.json").is_file():
        raise CheckpointNotFoundError(f"{name}: no config.json in {folder}; pass the folder of a checkpoint")
    config = read_json(folder / "config.json")
    check_fields(folder / "config.json", config, {n: CONFIG[n] for n in ("model_type", "architectures", "auto_map")})
    return Checkpoint(name, root, folder, config, modules, revision, trusted, memory_folder(cache_dir))


def _shards(index: Path) -> tuple[Path, ...]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise CheckpointError(f"{index}: names no weight files. Download it again.")
    files = tuple(index.parent / name for name in sorted(set(names.values())))
    if outside := [f for f in files if f.parent != index.parent or f.name in ("", "..")]:
        raise CheckpointError(f"{index}: points outside the checkpoint ({outside[0]})")
    if lost := [f.name for f in files if not f.is_file()]:
        raise CheckpointNotFoundError(
            f"{index.parent}: {index.name} names {', '.join(lost)}, which is missing. Download the checkpoint again."
        )
    return files


def _read_modules(root: Path) -> tuple[Module, ...]:
    path = root / "modules.json"
    if not path.is_file():
        return ()
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        listed = [(str(e["type"]).rsplit(".", 1)[-1], (root / str(e["path"])).resolve()) for e in entries]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a readable module list ({error}). Download it again.") from error
    if not listed:
        raise CheckpointError(f"{path}: lists no modules")
    for kind, folder in listed:
        if not folder.is_relative_to(root):
            raise CheckpointError(f"{path}: module {kind} points outside the checkpoint ({folder})")
    return tuple(
        Module(kind, folder, read_json(folder / "config.json") if (folder / "config.json").is_file() else {})
        for kind, folder in listed
    )
