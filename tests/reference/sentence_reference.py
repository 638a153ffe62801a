"""Reference vectors of any tiny checkpoint in a sentence-transformers layout, and of bge-m3 and SPLADE.

One unpadded text at a time goes through the native transformers class (float64, eager attention); everything
behind it (pooling, Dense, normalise, sparse weights) is numpy float64, from the formulas.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from . import formulas as f
from .checkpoint_files import Array, read_config, read_weights

LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

# Rows are the pooled tokens, weights their positions from 1, counted from the text's first token.
POOLINGS: dict[str, Callable[[Array, Array], Array]] = {
    "cls": lambda rows, _: rows[0],
    "max": lambda rows, _: rows.max(axis=0),
    "mean": lambda rows, _: rows.sum(axis=0) / len(rows),
    "mean_sqrt_len_tokens": lambda rows, _: rows.sum(axis=0) / np.sqrt(len(rows)),
    "weightedmean": lambda rows, weights: weights @ rows / weights.sum(),
    "lasttoken": lambda rows, _: rows[-1],
}

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "Tanh": np.tanh,
    "ReLU": lambda vector: np.maximum(vector, 0.0),
    "Identity": lambda vector: vector,
}


def reference_vectors(folder: Path, texts: Iterable[str], prompt: str = "", *, max_tokens: int | None = None) -> Array:
    """Dense vectors ``[n, dim]`` of each text alone; ``max_tokens`` truncates, special tokens included."""
    model = _load_model(folder)
    modules = [(entry["type"].rsplit(".", 1)[-1], folder / entry["path"]) for entry in _modules(folder)[1:]]
    prompt_tokens = _prompt_length(folder, prompt)
    truncate_dim = read_json(folder / "config_sentence_transformers.json").get("truncate_dim")
    vectors = []
    for text in texts:
        vector = _run(model, token_ids(folder, prompt + text, max_tokens), "last_hidden_state")
        for name, module in modules:
            vector = _apply_module(name, module, vector, prompt_tokens)
        if truncate_dim is not None:
            vector = vector[:truncate_dim]
            vector = f.unit(vector) if modules[-1][0] == "Normalize" else vector
        vectors.append(vector)
    return np.stack(vectors)


def reference_sparse(folder: Path, texts: Iterable[str]) -> list[dict[int, float]]:
    """Sparse weights of each text alone: bge-m3's where ``sparse_linear.pt`` is there, else SPLADE's."""
    weigh = _bge_m3_weights(folder) if (folder / "sparse_linear.pt").exists() else _splade_weights(folder)
    return [weigh(token_ids(folder, text)) for text in texts]


def token_ids(folder: Path, text: str, max_tokens: int | None = None) -> list[int]:
    """Ids by ``tokenizer.json``, and the eos that ``add_eos_token`` asks for where that file adds none."""
    tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config = read_json(folder / "tokenizer_config.json")
    eos = tokenizer.token_to_id(config["eos_token"]) if config.get("add_eos_token") else None
    appended = [] if eos is None or eos in tokenizer.encode("").ids else [eos]
    if max_tokens is not None:
        tokenizer.enable_truncation(max_tokens - len(appended))
    lower = read_json(folder / "sentence_bert_config.json").get("do_lower_case", False)
    return [*tokenizer.encode(text.lower() if lower else text).ids, *appended]


def read_json(file: Path) -> Any:
    """The content of a file that may be absent; ``{}`` if it is."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _prompt_length(folder: Path, prompt: str) -> int:
    """Tokens of the prompt, leading special tokens included and a trailing one not."""
    if not prompt:
        return 0
    ids = token_ids(folder, prompt)
    return len(ids) - (ids[-1] in _special_ids(folder))


def _load_model(folder: Path, model_class: str | None = None) -> PreTrainedModel:
    encoder = "T5EncoderModel" if read_config(folder)["model_type"] == "t5" else "AutoModel"
    model, info = getattr(transformers, model_class or encoder).from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", output_loading_info=True
    )
    problems = {kind: keys for kind, keys in info.items() if keys}
    if problems:
        raise ValueError(f"the checkpoint in {folder} does not fit its class: {problems}")
    loaded: PreTrainedModel = model.eval()
    return loaded


@torch.no_grad()
def _run(model: PreTrainedModel, ids: list[int], output: str) -> Array:
    """The named output ``[tokens, width]`` of one unpadded sequence."""
    rows: Array = getattr(model(input_ids=torch.tensor([ids])), output)[0].numpy()
    return rows


def _modules(folder: Path) -> list[dict[str, str]]:
    return sorted(read_json(folder / "modules.json"), key=lambda entry: entry["idx"])


def _apply_module(name: str, folder: Path, vector: Array, prompt_tokens: int) -> Array:
    if name == "Normalize":
        return f.unit(vector)
    config = read_config(folder)
    if name == "Pooling":
        return _pool(config, vector, prompt_tokens)
    weights = read_weights(folder)
    linear = f.linear(vector, weights["linear.weight"], weights.get("linear.bias"))
    return ACTIVATIONS[config["activation_function"].rsplit(".", 1)[-1]](linear)


def _pool(config: dict[str, Any], states: Array, prompt_tokens: int) -> Array:
    modes = config.get("pooling_mode") or [mode for key, mode in LEGACY_POOLING.items() if config.get(key)]
    start = 0 if config.get("include_prompt", True) else prompt_tokens
    rows, weights = states[start:], np.arange(start + 1.0, len(states) + 1.0)
    return np.concatenate([POOLINGS[mode](rows, weights) for mode in np.atleast_1d(modes)])


def _special_ids(folder: Path) -> set[int]:
    added = read_json(folder / "tokenizer.json")["added_tokens"]
    return {token["id"] for token in added if token["special"]}


def _bge_m3_weights(folder: Path) -> Callable[[list[int]], dict[int, float]]:
    """w = relu(linear(h)) per token; the maximum per id; cls, eos, pad and unk dropped."""
    model = _load_model(folder)
    head = torch.load(folder / "sparse_linear.pt", weights_only=True)
    weight, bias = (head[name].double().numpy() for name in ("weight", "bias"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = read_json(folder / "tokenizer_config.json")
    unused = {tokenizer.token_to_id(config[f"{name}_token"]) for name in ("cls", "eos", "pad", "unk")}

    def weigh(ids: list[int]) -> dict[int, float]:
        logits = _run(model, ids, "last_hidden_state") @ weight[0] + bias[0]
        sparse: dict[int, float] = {}
        for token, value in zip(ids, logits.tolist(), strict=True):
            if token not in unused and value > 0.0:
                sparse[token] = max(value, sparse.get(token, 0.0))
        return sparse

    return weigh


def _splade_weights(folder: Path) -> Callable[[list[int]], dict[int, float]]:
    """w = max over the tokens of log(1 + relu(logits)); special ids dropped."""
    model = _load_model(folder, "AutoModelForMaskedLM")
    special = _special_ids(folder)

    def weigh(ids: list[int]) -> dict[int, float]:
        values = np.log1p(np.maximum(_run(model, ids, "logits"), 0.0)).max(axis=0).tolist()
        return {token: value for token, value in enumerate(values) if value > 0.0 and token not in special}

    return weigh
