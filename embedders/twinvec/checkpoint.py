"""Find a checkpoint and read what it says about itself: raw config, tensor headers, modules, digest.

Nothing here builds a model or runs code from the checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinvec.errors import (
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigurationError,
)

if TYPE_CHECKING:
    import torch

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_MODELSCOPE = "modelscope:"
_SMALL_FILES = ["*.json", "*.txt", "*.jinja"]
BGE_HEAD = "sparse_linear.pt"
_WEIGHT_FILES = ["*.safetensors", BGE_HEAD, "colbert_linear.pt", "*_Dense/pytorch_model.bin"]
_PICKLES = ["pytorch_model*.bin", "*/pytorch_model.bin"]
_NOT_NEEDED = ["onnx/*", "openvino/*", "original/*", "*.onnx", "*/optimizer*"]
_MAX_HEADER = 100 * 2**20


@dataclass(frozen=True)
class Tensor:
    """A line of a tensor listing: name of the dtype and shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Module:
    """A line of ``modules.json``: the last part of the class name and the folder it lies in."""

    kind: str
    folder: Path
    config: Mapping[str, Any]

    @property
    def weights(self) -> Path:
        """Return the weight file, safetensors before a pickle.

        Raises:
            CheckpointNotFoundError: there is neither.
        """
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (self.folder / name).is_file():
                return self.folder / name
        raise CheckpointNotFoundError(f"{self.folder}: {self.kind} has no weights. Download the checkpoint again.")


@dataclass(frozen=True)
class Checkpoint:
    """A folder on disk with a readable ``config.json``.

    Attributes:
        name: as the caller wrote it, for messages.
        root: folder of the whole checkpoint (``modules.json`` lies here).
        folder: folder of the transformer, often the same.
        config: raw ``config.json``.
        modules: sentence-transformers modules, empty where there is no ``modules.json``.
        revision: the hub commit, None for a folder.
        trusted: the caller opted in to the checkpoint's own code, at a pinned revision.
    """

    name: str
    root: Path
    folder: Path
    config: Mapping[str, Any]
    modules: tuple[Module, ...]
    revision: str | None = None
    trusted: bool = False

    @property
    def model_type(self) -> str:
        """Return ``config["model_type"]``, "" where it is missing."""
        return str(self.config.get("model_type", ""))

    @property
    def architectures(self) -> tuple[str, ...]:
        """Return ``config["architectures"]``."""
        return tuple(self.config.get("architectures") or ())

    @cached_property
    def weight_files(self) -> tuple[Path, ...]:
        """Return the weight files, safetensors before pickles; every shard that the index names."""
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
        """Return name -> dtype and shape, read from the headers of all weight files."""
        found: dict[str, Tensor] = {}
        for file in self.weight_files:
            found.update(read_tensor_headers(file))
        return found

    @cached_property
    def digest(self) -> str:
        """Return a digest of the content: small files whole, weights by header, size and 64 spread samples."""
        digest = hashlib.sha256()
        folders = {self.root, self.folder, *(m.folder for m in self.modules)}
        for file in sorted({f for folder in folders for f in folder.glob("*.json")}):
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
        heads = [p for p in (self.root / BGE_HEAD,) if p.is_file()]
        dense = [m.weights for m in self.modules if m.kind == "Dense"]
        for file in sorted({*self.weight_files, *heads, *dense}):
            digest.update(sample_digest(file))
        return digest.hexdigest()[:32]

    def json(self, relative: str) -> dict[str, Any]:
        """Return a JSON file of the checkpoint, {} where it does not exist."""
        for base in (self.folder, self.root):
            if (base / relative).is_file():
                return read_json(base / relative)
        return {}

    def require(self, *fields: str) -> None:
        """Check that ``config.json`` has these fields.

        Raises:
            CheckpointError: naming all that are missing.
        """
        if missing := [f for f in fields if self.config.get(f) is None]:
            raise CheckpointError(
                f"{self.folder / 'config.json'}: {', '.join(missing)} missing for model_type {self.model_type!r}; "
                "TwinVec never guesses them. Download config.json again."
            )


def open_checkpoint(
    model: str,
    *,
    revision: str | None = None,
    cache_dir: str | None = None,
    token: str | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Resolve a folder or hub id and read its configuration.

    Args:
        model: a folder; a hub id ("owner/name", or a bare name of the sentence-transformers organisation);
            or "modelscope:owner/name".
        revision: branch, tag or commit; not for folders.
        cache_dir: where downloads are kept.
        token: access token of the hub, for private and gated repositories.
        offline: use only what is cached.
        trust_remote_code: download the checkpoint's Python files too and allow them to be run; a hub id then needs
            a full commit as revision.

    Raises:
        CheckpointNotFoundError: no such folder, no such repository, or no access, with what to do.
        CheckpointError: unreadable configuration.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ConfigurationError(f"revision={revision!r} is for hub ids, but {model} is a folder")
        return _read(model, path, None, trust_remote_code)
    if path.exists():
        raise CheckpointNotFoundError(f"{model} is a file; give the folder that holds config.json and the weights")
    if trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise ConfigurationError(
            f"{model}: trust_remote_code=True runs the repository's code, so it needs revision= with the full commit "
            "(40 hex digits) that you have read"
        )
    patterns = _SMALL_FILES + _WEIGHT_FILES + (["*.py"] if trust_remote_code else [])
    if model.startswith(_MODELSCOPE):
        root = _from_modelscope(model.removeprefix(_MODELSCOPE), revision, cache_dir, offline, patterns)
        return _read(model, root, revision, trust_remote_code)
    if not _HUB_ID.fullmatch(model):
        raise CheckpointNotFoundError(f"{model}: no such folder, and not a hub id of the form owner/name")
    repo = model if "/" in model else f"sentence-transformers/{model}"
    root = _from_hub(repo, revision, cache_dir, token, offline, patterns)
    if not any(root.rglob("*.safetensors")):
        root = _from_hub(repo, revision, cache_dir, token, offline, patterns + _PICKLES)
    return _read(model, root, root.name, trust_remote_code)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: not readable, not JSON or not an object; names the file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}). Download it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, expected an object")
    return value


def read_tensor_headers(path: Path) -> dict[str, Tensor]:
    """List the tensors of a safetensors file or of a pickle that holds nothing but tensors.

    Raises:
        CheckpointError: truncated or corrupt file, or a pickle with anything else in it.
    """
    if path.suffix != ".safetensors":
        return {k: Tensor(str(v.dtype).removeprefix("torch."), tuple(v.shape)) for k, v in load_tensors(path).items()}
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _MAX_HEADER):
                raise ValueError(f"its header claims {length:,} bytes, the file has {size:,}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = {k: Tensor(v["dtype"], tuple(v["shape"])) for k, v in header.items()}
        end = 8 + length + max((v["data_offsets"][1] for v in header.values()), default=0)
    except (struct.error, ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}). Download it again.") from error
    if end != size:
        raise CheckpointError(f"{path}: has {size:,} bytes but its header describes {end:,}. Download it again.")
    return tensors


def load_tensors(path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """Load the tensors whose names start with ``prefix`` onto the CPU, without running anything in the file.

    Raises:
        CheckpointError: unreadable, or a pickle with anything but tensors.
    """
    import torch

    if not path.is_file():
        raise CheckpointNotFoundError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                return {k: file.get_tensor(k) for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a readable safetensors file ({error}). Download it again.") from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler fails with many types; each means that the file is not used
        raise CheckpointError(
            f"{path}: refused: it is not a file of plain tensors ({type(error).__name__}). TwinVec never unpickles "
            "anything else; convert the checkpoint to safetensors."
        ) from error
    if not isinstance(loaded, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in loaded.items()
    ):
        raise CheckpointError(f"{path}: refused: expected a dictionary of tensors")
    return {k: v for k, v in loaded.items() if k.startswith(prefix)}


def load_strict(
    module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], where: str, dtype: torch.dtype | None = None
) -> None:
    """Put tensors into a module, which may be on the meta device; names and shapes must match exactly.

    Raises:
        CheckpointMismatchError: with every missing, unexpected and mismatched tensor.
    """
    wanted = module.state_dict()
    check_tensors(
        {k: tuple(v.shape) for k, v in tensors.items()}, {k: tuple(v.shape) for k, v in wanted.items()}, where
    )
    kept = {k: v.to(dtype or wanted[k].dtype) for k, v in tensors.items()}
    module.load_state_dict(kept, strict=True, assign=True)


def check_tensors(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Compare two listings of name -> shape.

    Raises:
        CheckpointMismatchError: when they differ.
    """
    mismatched = {k: (found[k], wanted[k]) for k in found.keys() & wanted.keys() if found[k] != wanted[k]}
    missing, unexpected = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    if missing or unexpected or mismatched:
        raise CheckpointMismatchError(where, missing=list(missing), unexpected=list(unexpected), mismatched=mismatched)


def sample_digest(path: Path, samples: int = 64, block: int = 16384) -> bytes:
    """Return a digest of a file's size and of blocks spread evenly over it, the first and last included."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{path.name}:{size}".encode())
    step = max((size - block) // max(samples - 1, 1), 1)
    with path.open("rb") as file:
        for offset in range(0, max(size - block, 0) + 1, step):
            file.seek(offset)
            digest.update(file.read(block))
        file.seek(max(size - block, 0))
        digest.update(file.read(block))
    return digest.digest()


def _read(name: str, root: Path, revision: str | None, trusted: bool) -> Checkpoint:
    root = root.resolve()
    modules = _read_modules(root)
    folder = modules[0].folder if modules else root
    if not (folder / "config.json").is_file():
        raise CheckpointNotFoundError(f"{name}: no config.json in {folder}; give the folder of a checkpoint")
    return Checkpoint(name, root, folder, read_json(folder / "config.json"), modules, revision, trusted)


def _shards(index: Path) -> tuple[Path, ...]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise CheckpointError(f"{index}: names no weight files. Download it again.")
    files = tuple(index.parent / name for name in sorted(set(names.values())))
    if outside := [f for f in files if f.parent != index.parent or f.name in ("", "..")]:
        raise CheckpointError(f"{index}: points outside the checkpoint ({outside[0]})")
    if lost := [f.name for f in files if not f.is_file()]:
        raise CheckpointNotFoundError(
            f"{index.parent}: {index.name} names {', '.join(lost)}, which is not there. Download the checkpoint again."
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


def _from_hub(
    repo: str,
    revision: str | None,
    cache_dir: str | None,
    token: str | None,
    offline: bool,
    patterns: list[str],
) -> Path:
    import httpx
    from huggingface_hub import errors, snapshot_download

    unreachable = (
        errors.HfHubHTTPError,
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        httpx.HTTPError,
        OSError,
    )

    def download(local_files_only: bool) -> Path:
        path = snapshot_download(
            repo,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            allow_patterns=patterns,
            ignore_patterns=_NOT_NEEDED,
        )
        return Path(path)

    try:
        return download(offline)
    except errors.GatedRepoError as error:
        raise CheckpointNotFoundError(
            f"{repo}: access must be granted by its owners; ask on its hub page, then pass token=..."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise CheckpointNotFoundError(
            f"{repo}{'' if revision is None else '@' + revision}: the hub has no such repository or revision, or it is "
            "private: check the spelling, or pass token=..."
        ) from error
    except errors.HFValidationError as error:
        raise CheckpointNotFoundError(f"{repo}: no such folder, and not a valid hub id ({error})") from error
    except unreachable as error:
        if not offline:
            with contextlib.suppress(*unreachable):
                return download(local_files_only=True)
        raise CheckpointNotFoundError(
            f"{repo}: config.json and weights are not in the cache ({cache_dir or 'the default one'}) and the hub "
            f"{'was not asked (offline)' if offline else 'cannot be reached'}. Connect and try again, or copy the "
            f"repository to a folder and pass that folder. ({type(error).__name__})"
        ) from error


def _from_modelscope(
    repo: str, revision: str | None, cache_dir: str | None, offline: bool, patterns: list[str]
) -> Path:
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise ConfigurationError(
            f"{_MODELSCOPE}{repo} needs an optional package: pip install 'twinvec[modelscope]'"
        ) from error
    try:
        path = snapshot_download(
            repo,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=offline,
            allow_patterns=patterns + _PICKLES,
        )
    except Exception as error:  # modelscope has no common base for its errors
        raise CheckpointNotFoundError(
            f"{_MODELSCOPE}{repo}: cannot be downloaded ({type(error).__name__}: {error}). Connect and try again, or "
            "pass a local folder."
        ) from error
    return Path(path)
