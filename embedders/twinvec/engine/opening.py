"""From a ModelSpec to a loadable checkpoint: found, identified, and checked against everything the spec asks for."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from twinvec.cache.rows import Namespaces
from twinvec.checkpoints.files import Checkpoint
from twinvec.checkpoints.hub import open_checkpoint
from twinvec.checkpoints.identity import Identity, identify
from twinvec.errors import CheckpointError, CheckpointNotFoundError, ConfigurationError, ModelKindError
from twinvec.families import Description, Family, find_family
from twinvec.spec import ModelSpec

_HEAD_FILES = (".safetensors", ".pt")
_SAMPLED = 32  # hex digits of the digests of early versions


@dataclass(frozen=True)
class Source:
    """How to access checkpoints; does not affect vectors."""

    cache_dir: str | None
    token: str | None
    offline: bool


@dataclass(frozen=True)
class Opened:
    """A loadable checkpoint and its fully resolved spec; the weights are not loaded yet."""

    spec: ModelSpec
    checkpoint: Checkpoint
    family: Family
    description: Description
    devices: tuple[torch.device, ...]
    dtype: torch.dtype
    head_file: Path | None
    identity: Identity
    head_identity: Identity | None

    @property
    def key(self) -> Hashable:
        """Return what determines the forward pass and where it runs: callers with equal keys share one model.

        Files are compared by path and stat: an identical copy elsewhere is a different model, which may change
            independently.
        """
        files = self.identity, self.head_identity
        return files, self.dtype, self.devices, self.spec.reproducible, self.spec.quantization

    @property
    def namespaces(self) -> Namespaces:
        """Return what determines the halves of cached rows, before a caller's dims, keys and lengths are applied.

        A head file, or doing without the sparse half, does not affect dense vectors.
        """
        row = replace(self.spec, dim=None, max_length=None, sparse=None, sparse_keys="surface")
        dense = replace(row, digest=self.identity.digest)
        return Namespaces(f"dense {dense.fingerprint}", f"sparse {row.fingerprint}")

    def check_unchanged(self) -> None:
        """Raise if the loaded bytes differ from the spec's: files may be rewritten in the meantime."""
        identities = (self.identity, self.head_identity)
        if not all(identity is None or identity.holds() for identity in identities):
            _check_digest(self.spec, _digest(*_identify(self.checkpoint, self.family, self.head_file)))


def open_model(spec: ModelSpec, device: str, source: Source, *, scores: bool = False) -> Opened:
    """Open and describe a checkpoint, and check everything the spec asks for.

    ``spec.sparse`` must not name another checkpoint here.

    Raises:
        CheckpointError: the checkpoint cannot be found or read, or its content does not match the spec.
        ConfigurationError: it does not support the dim, length, device or sparse source.
    """
    checkpoint = open_checkpoint(
        spec.model,
        revision=spec.revision,
        cache_dir=source.cache_dir,
        token=source.token,
        offline=source.offline,
        trust_remote_code=spec.trust_remote_code,
    )
    family = find_family(checkpoint)
    description = family.describe(checkpoint)
    if description.scores is not scores:
        is_one, use = ("a reranker", "Reranker") if description.scores else ("not a reranker", "Embedder")
        raise ModelKindError(f"{checkpoint.name}: this is {is_one}: use twinvec.{use}")
    devices = tuple(choose_device(name.strip()) for name in device.split(","))
    dtype = choose_dtype(spec.dtype, devices[0])
    head_file = _head_file(spec)
    identities = _identify(checkpoint, family, head_file)
    resolved = replace(
        spec,
        revision=checkpoint.revision,
        dtype=str(dtype).removeprefix("torch."),
        dim=check_dim(spec.dim, description, checkpoint.name),
        max_length=check_max_length(spec.max_length, description, checkpoint.name),
        sparse=_check_sparse(spec, description, head_file),
        digest=_digest(*identities),
    )
    _check_digest(spec, str(resolved.digest))
    return Opened(resolved, checkpoint, family, description, devices, dtype, head_file, *identities)


def names_other_checkpoint(sparse: str | None) -> bool:
    """Return whether ``sparse`` names a second checkpoint (SPLADE) rather than a head."""
    return sparse not in (None, "auto", "head") and Path(str(sparse)).suffix not in _HEAD_FILES


def choose_device(name: str) -> torch.device:
    """Return the device: "auto" picks CUDA if available.

    Raises:
        ConfigurationError: the device is unknown or not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f'device={name!r} is not a device; use "auto", "cpu", "cuda" or "cuda:1"') from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigurationError(f"device={name!r} is not available: torch sees {count} CUDA devices")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype: "auto" picks bfloat16 where the device multiplies it natively."""
    if name != "auto":
        dtype = getattr(torch, name)
        assert isinstance(dtype, torch.dtype)
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    native = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
    return torch.bfloat16 if native else torch.float32


def check_dim(dim: int | None, description: Description, where: str) -> int | None:
    """Return the number of dense dimensions.

    Raises:
        ConfigurationError: more than the model has, fewer than it was trained for, or fewer without Matryoshka
            training.
    """
    if dim is None or dim == description.dim:
        return description.dim
    if description.dim is None:
        raise ConfigurationError(f"dim={dim}: {where} has sparse vectors only")
    if description.min_dim is None:
        raise ConfigurationError(
            f"dim={dim}: {where} was not trained for fewer dimensions (Matryoshka), so the first {dim} are meaningless "
            f"by themselves; it has {description.dim}"
        )
    if not description.min_dim <= dim <= description.dim:
        raise ConfigurationError(f"dim={dim}: {where} supports {description.min_dim} to {description.dim} dimensions")
    return dim


def check_max_length(max_length: int | None, description: Description, where: str) -> int:
    """Return the maximum number of tokens per text.

    Raises:
        ConfigurationError: more than the position encoding supports.
    """
    if max_length is not None and max_length > description.position_limit:
        raise ConfigurationError(
            f"max_length={max_length}: {where} has positions for {description.position_limit} tokens"
        )
    return max_length or description.max_length


def _head_file(spec: ModelSpec) -> Path | None:
    if spec.sparse in (None, "auto", "head") or names_other_checkpoint(spec.sparse):
        return None
    path = Path(str(spec.sparse)).expanduser()
    if not path.is_file():
        raise CheckpointNotFoundError(f"sparse={spec.sparse!r}: no such head file")
    return path


def _check_sparse(spec: ModelSpec, description: Description, head_file: Path | None) -> str | None:
    if head_file is not None:
        if description.dim is None:
            raise ConfigurationError(f"sparse={spec.sparse!r}: {spec.model} is already a sparse model")
        return spec.sparse
    if spec.sparse == "head" and description.sparse is None:
        raise ConfigurationError(
            f'sparse="head": {spec.model} has no lexical head. Pass a head file or a SPLADE checkpoint as sparse=, '
            "or omit sparse"
        )
    if spec.sparse is None and description.dim is None and description.multi is None:
        raise ConfigurationError(f"sparse=None: {spec.model} only has sparse vectors")
    return "head" if spec.sparse is not None and description.sparse is not None else None


def _identify(checkpoint: Checkpoint, family: Family, head_file: Path | None) -> tuple[Identity, Identity | None]:
    model = checkpoint.identify(own_code=family.runs_own_code(checkpoint))
    if head_file is None:
        return model, None
    try:
        return model, identify({"head": head_file}, checkpoint.memory)
    except OSError as error:
        raise CheckpointError(f"{head_file}: cannot be read ({error})") from error


def _digest(model: Identity, head: Identity | None) -> str:
    return model.digest if head is None else hashlib.sha256((model.digest + head.digest).encode()).hexdigest()


def _check_digest(spec: ModelSpec, found: str) -> None:
    if spec.digest in (None, found):
        return
    if len(str(spec.digest)) == _SAMPLED:
        raise CheckpointError(
            f"{spec.model}: digest={spec.digest} comes from an early version of TwinVec, which sampled the weights, "
            "so that two models could share one. Create the Embedder from the model's name instead of this spec."
        )
    raise CheckpointError(f"{spec.model}: the content has changed: its digest is {found}, the spec's is {spec.digest}")
