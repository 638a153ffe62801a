"""Reading and writing the files of a tiny checkpoint, without torch and without the safetensors package.

The safetensors layout (https://github.com/huggingface/safetensors#format): 8 bytes of little-endian header
length, a JSON header ``{name: {dtype, shape, data_offsets}}``, then the raw little-endian tensors.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Dtype = Literal["float16", "bfloat16", "float32"]
Shapes = Mapping[str, Sequence[int]]

_TAGS = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


def random_weights(shapes: Shapes, *, seed: int, gain: float = 1.4) -> dict[str, Array]:
    """Large random weights, so that different texts get clearly different vectors.

    One-dimensional ``*.weight`` (norms) are around 1, biases around 0, embeddings and latents have variance
    1, and a matrix maps variance 1 to ``gain**2``.
    """
    generator = np.random.default_rng(seed)
    return {name: _random_tensor(generator, name, tuple(shape), gain) for name, shape in shapes.items()}


def _random_tensor(generator: np.random.Generator, name: str, shape: tuple[int, ...], gain: float) -> Array:
    noise = generator.standard_normal(shape)
    if len(shape) == 1:
        return 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
    if "token_type" in name:  # shared by all tokens: small, or every token and text would look alike
        return 0.1 * noise
    if "embed" in name or name.endswith("latents"):
        return noise
    return noise * gain / math.sqrt(shape[-1])


def write_weights(
    folder: Path, tensors: Mapping[str, Array], dtype: Dtype, *, shards: int = 1, fp32: tuple[str, ...] = ()
) -> None:
    """Write ``model.safetensors``, or ``shards`` files with an index. Names ending in ``fp32`` keep it."""
    encoded = {name: _encode(tensor, "float32" if name.endswith(fp32) else dtype) for name, tensor in tensors.items()}
    if shards == 1:
        _write_safetensors(folder / "model.safetensors", encoded)
        return
    names = sorted(encoded)
    weight_map = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        _write_safetensors(folder / file, {name: encoded[name] for name in names if weight_map[name] == file})
    size = sum(len(data) for _, _, data in encoded.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def read_weights(folder: Path) -> dict[str, Array]:
    """Every tensor of every safetensors file of the folder, its stored value upcast to float64."""
    weights: dict[str, Array] = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            weights[name] = _decode(data[start + begin : start + end], entry["dtype"]).reshape(entry["shape"])
    return weights


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` as it is."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def write_json(path: Path, content: object) -> None:
    """Write UTF-8 JSON, creating the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


def write_sentence_transformers_files(
    folder: Path,
    *,
    dim: int,
    pooling: Literal["cls", "mean"],
    normalize: bool = True,
    prompts: Mapping[str, str] | None = None,
    max_seq_length: int = 8192,
) -> None:
    """``modules.json`` (Transformer, Pooling, Normalize) and the files it points to, with the legacy keys."""
    kinds = ["Transformer", "Pooling", "Normalize"][: 3 if normalize else 2]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": "" if i == 0 else f"{i}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})
    pool: dict[str, object] = {"word_embedding_dimension": dim, "include_prompt": True}
    pool |= {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
    pool |= {"pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False}
    write_json(folder / "1_Pooling" / "config.json", pool)
    if normalize:
        (folder / "2_Normalize").mkdir(exist_ok=True)
    settings = {"prompts": dict(prompts or {}), "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", settings)


def _write_safetensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (tag, shape, data) in tensors.items():
        header[name] = {"dtype": tag, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(data for _, _, data in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def _encode(tensor: Array, dtype: Dtype) -> tuple[str, tuple[int, ...], bytes]:
    if dtype == "bfloat16":  # round to nearest even on the upper half of the float32
        bits = tensor.astype("<f4").view("<u4").astype(np.uint64)
        data = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    else:
        data = tensor.astype("<f2" if dtype == "float16" else "<f4").tobytes()
    return _TAGS[dtype], tensor.shape, data


def _decode(data: bytes, tag: str) -> Array:
    if tag == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    return np.frombuffer(data, {"F16": "<f2", "F32": "<f4"}[tag]).astype(np.float64)
