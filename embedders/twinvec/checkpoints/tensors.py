"""Reading checkpoint files without trusting them: JSON, tensor headers, tensors; and strict loading."""

from __future__ import annotations

import json
import operator
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinvec.errors import CheckpointError, CheckpointMismatchError, CheckpointNotFoundError

if TYPE_CHECKING:
    import torch

_FLOATS = ("F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16")
_COUNTER = re.compile(r"(^|\.)(position_ids|token_type_ids|num_batches_tracked)$")  # integer buffers
_MAX_HEADER = 100 * 2**20


@dataclass(frozen=True)
class Tensor:
    """An entry of a tensor listing: dtype name and shape."""

    dtype: str
    shape: tuple[int, ...]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is unreadable, not JSON or not an object; names the file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}). Download it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: contains a {type(value).__name__}, expected an object")
    return value


def read_tensor_headers(path: Path) -> dict[str, Tensor]:
    """List the tensors of a safetensors file, or of a pickle that contains nothing but tensors.

    Raises:
        CheckpointError: the file is truncated or corrupt, or a pickle with anything else in it.
    """
    if path.suffix != ".safetensors":
        import torch

        found = load_tensors(path, device=torch.device("meta"))
        return {k: Tensor(str(v.dtype).removeprefix("torch."), tuple(v.shape)) for k, v in found.items()}
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _MAX_HEADER):
                raise ValueError(f"its header claims {length:,} bytes, but the file has {size:,}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = {k: Tensor(str(v["dtype"]), tuple(map(operator.index, v["shape"]))) for k, v in header.items()}
        end = 8 + length + max((v["data_offsets"][1] for v in header.values()), default=0)
    except (struct.error, ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}). Download it again.") from error
    if end != size:
        raise CheckpointError(f"{path}: has {size:,} bytes but its header describes {end:,}. Download it again.")
    return tensors


def load_tensors(path: Path, prefix: str = "", device: torch.device | None = None) -> dict[str, torch.Tensor]:
    """Load the tensors whose names start with ``prefix``, without running anything from the file.

    Args:
        path: a safetensors file, or one written by ``torch.save``.
        prefix: see above.
        device: where to load them, straight from a safetensors file; None for the CPU.

    Raises:
        CheckpointError: the file is unreadable, or a pickle with anything but tensors.
    """
    import torch

    if not path.is_file():
        raise CheckpointNotFoundError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt", device=str(device or "cpu")) as file:
                return {k: file.get_tensor(k) for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a readable safetensors file ({error}). Download it again.") from error
    try:
        loaded = torch.load(path, map_location=device or "cpu", weights_only=True)
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
    check_types({k: Tensor(str(v.dtype), ()) for k, v in tensors.items() if wanted[k].is_floating_point()}, where)
    kept = {
        k: v.to(dtype or wanted[k].dtype if wanted[k].is_floating_point() else wanted[k].dtype)
        for k, v in tensors.items()
    }
    module.load_state_dict(kept, strict=True, assign=True)


def check_types(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that are integers, booleans or complex: without scales they cannot be weights.

    Raises:
        CheckpointError: naming them and their types.
    """
    odd = {
        k: v.dtype
        for k, v in tensors.items()
        if v.dtype.removeprefix("torch.") not in _FLOATS and not _COUNTER.search(k)
    }
    if odd:
        name, dtype = next(iter(odd.items()))
        raise CheckpointError(
            f"{where}: {len(odd)} tensors are not floating-point weights (first: {name}, {dtype}). TwinVec reads "
            'unquantised weights and quantises them itself (quantization="int8"): use the original checkpoint.'
        )


def check_tensors(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Compare two listings of name -> shape.

    Raises:
        CheckpointMismatchError: when they differ.
    """
    mismatched = {k: (found[k], wanted[k]) for k in found.keys() & wanted.keys() if found[k] != wanted[k]}
    missing, unexpected = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    if missing or unexpected or mismatched:
        raise CheckpointMismatchError(where, missing=list(missing), unexpected=list(unexpected), mismatched=mismatched)
