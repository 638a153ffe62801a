"""From a ModelSpec to a tokenizer and an encoder on a device."""

from __future__ import annotations

import functools
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from twinvec.cache.rows import Namespaces
from twinvec.checkpoints.files import Checkpoint
from twinvec.checkpoints.hub import open_checkpoint
from twinvec.checkpoints.identity import Identity, identify
from twinvec.checkpoints.tensors import load_tensors
from twinvec.compute.encoder import Encoder
from twinvec.errors import CheckpointError, CheckpointFieldError, CheckpointNotFoundError, ConfigurationError
from twinvec.families import Description, Family, find_family
from twinvec.families.modules import build_dense_layers
from twinvec.spec import ModelSpec
from twinvec.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from twinvec.compute.backbone import Backbone
    from twinvec.compute.heads import TokenWeightHead

logger = logging.getLogger(__name__)

_HEAD_FILES = (".safetensors", ".pt")
_SAMPLED = 32  # hex digits of digests that early versions made


@dataclass(frozen=True)
class Source:
    """How to get at checkpoints; decides no vector."""

    cache_dir: str | None
    token: str | None
    offline: bool


@dataclass(frozen=True)
class Opened:
    """A checkpoint that can be loaded, and the spec with everything resolved; no weights yet."""

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
        """Return what decides the forward pass, and where: callers that agree in it share one model.

        The very same files, by path and stat: equal content elsewhere is another model that may go another way.
        """
        files = self.identity, self.head_identity
        return files, self.dtype, self.devices, self.spec.reproducible, self.spec.quantization

    @property
    def namespaces(self) -> Namespaces:
        """Return what decides the halves of cached rows, before a caller's dims, keys and lengths are applied.

        A head file or the want of a sparse half changes no dense vector.
        """
        row = replace(self.spec, dim=None, max_length=None, sparse=None, sparse_keys="surface")
        dense = replace(row, digest=self.identity.digest)
        return Namespaces(f"dense {dense.fingerprint}", f"sparse {row.fingerprint}")


@dataclass(frozen=True)
class Model:
    """A model in memory: one encoder per device, and the way to build it again.

    Attributes:
        seconds: that loading took.
    """

    family: Family
    description: Description
    tokenizer: TextTokenizer
    encoders: tuple[Encoder, ...]
    seconds: float
    rebuild: Callable[[], Model]

    @property
    def encoder(self) -> Encoder:
        """Return the first encoder."""
        return self.encoders[0]


def open_model(spec: ModelSpec, device: str, source: Source) -> Opened:
    """Open and describe a checkpoint, and check all that the spec asks of it.

    ``spec.sparse`` must not name another checkpoint here.

    Raises:
        CheckpointError: it cannot be found or read, or its content is not the spec's.
        ConfigurationError: a dim, length, device or sparse source that it cannot have.
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


def build_model(opened: Opened, token_budget: int | None) -> Model:
    """Load the weights, once per distinct device; replicas on one device share them.

    The work is done on a thread of its own, which ends: OpenMP keeps workers for every thread that has computed
    anything, and where they are more than the cores, all of them sleep between steps. A single query was twice as slow.

    Raises:
        CheckpointError: they cannot be read or do not fit.
    """
    built: Future[Model] = Future()

    def build() -> None:
        try:
            built.set_result(_build_model(opened, token_budget))
        except BaseException as error:
            built.set_exception(error)

    thread = threading.Thread(target=build, name="twinvec-loading", daemon=True)
    thread.start()
    model = built.result()
    thread.join()
    return model


def _build_model(opened: Opened, token_budget: int | None) -> Model:
    start = time.perf_counter()
    checkpoint, description = opened.checkpoint, opened.description
    if description.experimental:
        logger.warning(
            "%s: support is experimental, nothing published has confirmed its vectors yet; run `twinvec verify`",
            checkpoint.name,
        )
    tokenizer = TextTokenizer(checkpoint, description.max_length, lower_case=description.lower_case)
    _check_tokenizer(tokenizer, description, checkpoint)
    parts: dict[torch.device, tuple[Backbone, torch.nn.Module, TokenWeightHead | None]] = {}
    encoders = []
    for device in opened.devices:
        if device not in parts:
            parts[device] = (
                _build_backbone(opened, device),
                build_dense_layers(description.dense_layers),
                _build_head(opened),
            )
            for module in parts[device][1:]:
                if module is not None and device.type == "cpu":
                    _own_memory(module)
        backbone, dense_layers, head = parts[device]
        encoders.append(
            Encoder(
                backbone,
                description,
                device=device,
                dtype=opened.dtype,
                dense_layers=dense_layers,
                head=head,
                token_budget=1 if opened.spec.reproducible else token_budget,
                id_keys=tokenizer.id_keys,
            )
        )
    _check_unchanged(opened)
    rebuild = functools.partial(build_model, opened, token_budget)
    seconds = time.perf_counter() - start
    return Model(opened.family, description, tokenizer, tuple(encoders), seconds, rebuild)


def _check_tokenizer(tokenizer: TextTokenizer, description: Description, checkpoint: Checkpoint) -> None:
    file, most = checkpoint.folder / "tokenizer.json", tokenizer.vocabulary_size - 1
    if description.vocabulary is not None and most >= description.vocabulary:
        raise CheckpointError(
            f"{file}: has ids up to {most}, but the model embeds {description.vocabulary} tokens (vocab_size): it is "
            "another model's, or tokens were added to it"
        )
    if description.padding_idx is not None and tokenizer.pad_id not in (None, description.padding_idx):
        raise CheckpointFieldError(
            checkpoint.folder / "config.json",
            "pad_token_id",
            description.padding_idx,
            f"decides all positions and is not the tokenizer's, which is {tokenizer.pad_id}",
        )


def _build_backbone(opened: Opened, device: torch.device) -> Backbone:
    quantized = opened.spec.quantization is not None
    # what is quantised need not fit as it is
    place = torch.device("cpu") if quantized else device
    backbone = opened.family.build(opened.checkpoint, opened.description, opened.dtype, place)
    backbone.fuse(device)
    if quantized:
        from twinvec.compute.quantization import quantize

        quantize(backbone)
    if device.type == "cpu":
        _own_memory(backbone)
        backbone.pack()
    return backbone


def names_other_checkpoint(sparse: str | None) -> bool:
    """Return whether ``sparse`` means a second checkpoint (SPLADE), not a head."""
    return sparse not in (None, "auto", "head") and Path(str(sparse)).suffix not in _HEAD_FILES


def choose_device(name: str) -> torch.device:
    """Return the device: "auto" takes CUDA where there is one.

    Raises:
        ConfigurationError: unknown or absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f'device={name!r} is not a device; use "auto", "cpu", "cuda" or "cuda:1"') from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigurationError(f"device={name!r} is not there: torch sees {count} CUDA devices")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype: "auto" takes bfloat16 where the device multiplies it natively."""
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
    """Return the dense dimensions to give.

    Raises:
        ConfigurationError: more than there are, fewer than trained for, or fewer from a model without Matryoshka.
    """
    if dim is None or dim == description.dim:
        return description.dim
    if description.dim is None:
        raise ConfigurationError(f"dim={dim}: {where} gives sparse vectors only")
    if description.min_dim is None:
        raise ConfigurationError(
            f"dim={dim}: {where} was not trained for fewer dimensions (Matryoshka), its first {dim} mean nothing by "
            f"themselves; it gives {description.dim}"
        )
    if not description.min_dim <= dim <= description.dim:
        raise ConfigurationError(f"dim={dim}: {where} gives {description.min_dim} to {description.dim} dimensions")
    return dim


def check_max_length(max_length: int | None, description: Description, where: str) -> int:
    """Return the tokens per text.

    Raises:
        ConfigurationError: more than the position encoding can take.
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
            raise ConfigurationError(f"sparse={spec.sparse!r}: {spec.model} is a sparse model already")
        return spec.sparse
    if spec.sparse == "head" and description.sparse is None:
        raise ConfigurationError(
            f'sparse="head": {spec.model} has no lexical head. Pass a head file or a SPLADE checkpoint as sparse=, '
            "or leave sparse out"
        )
    if spec.sparse is None and description.dim is None:
        raise ConfigurationError(f"sparse=None: {spec.model} gives nothing but sparse vectors")
    return "head" if spec.sparse is not None and description.sparse is not None else None


def _build_head(opened: Opened) -> TokenWeightHead | None:
    """Build the lexical head even for callers without a sparse half: it costs next to nothing, and all may share."""
    from twinvec.compute.heads import TokenWeightHead

    if opened.head_file is not None:
        tensors = load_tensors(opened.head_file)
        return TokenWeightHead(opened.description.hidden, tensors, str(opened.head_file))
    if opened.description.sparse == "token_weights":
        return opened.family.build_head(opened.checkpoint, opened.description)
    return None


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
            f"{spec.model}: digest={spec.digest} is of an early TwinVec, which read samples of the weights only: two "
            "models could have one. Make the Embedder from the model's name instead of this spec."
        )
    raise CheckpointError(f"{spec.model}: its content has changed: digest {found}, the spec has {spec.digest}")


def _check_unchanged(opened: Opened) -> None:
    """Refuse what was loaded from other bytes than those that the spec is about: files may be rewritten meanwhile."""
    identities = (opened.identity, opened.head_identity)
    if not all(identity is None or identity.holds() for identity in identities):
        _check_digest(opened.spec, _digest(*_identify(opened.checkpoint, opened.family, opened.head_file)))


def _own_memory(module: torch.nn.Module) -> None:
    """Copy what may be mapped from a file: rewriting the file would change an open model."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()
