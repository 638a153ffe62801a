"""What tests of checkpoints share."""

import struct
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from reference.checkpoint_files import write_json
from twinvec.checkpoints.files import Checkpoint
from twinvec.checkpoints.hub import open_checkpoint
from twinvec.checkpoints.tensors import load_tensors


def open_folder(folder: Path, **options: Any) -> Checkpoint:
    return open_checkpoint(str(folder), **options)


NESTED = "[" * 100_000


def shard(folder: Path) -> list[str]:
    """Split model.safetensors into two files and an index, as transformers does."""
    tensors = load_tensors(folder / "model.safetensors")
    names = sorted(tensors)
    files = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(files.values())):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": files})
    return sorted(set(files.values()))


def header_length(file: Path) -> int:
    return 8 + int(struct.unpack("<Q", file.read_bytes()[:8])[0])
