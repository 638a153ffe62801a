"""Tiny random rerankers in the official layouts, and their scores by transformers' own classes in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GteForSequenceClassification,
    PreTrainedTokenizerFast,
)

from .checkpoint_files import Array, write_json
from .gte_native import gte_config
from .sentence_layouts import BACKBONES, randomise
from .sentence_reference import read_json
from .tokenizers_ import write_bpe_tokenizer

Pair = tuple[str, str]
Scorer = Callable[[Sequence[Pair]], Array]

ENCODERS = ("bert", "electra", "albert", "nomic_bert", "distilbert", "modernbert", "deberta-v2", "xlm-roberta",
            "roberta", "jina_embeddings_v3", "mpnet", "eurobert")  # fmt: skip


def build_cross_encoder(folder: Path, backbone: str, *, labels: int = 1, seed: int = 0, **config: Any) -> Path:
    """``*ForSequenceClassification`` as transformers saves it, with BERT's own template for pairs where it has one."""
    spec = BACKBONES[backbone]
    spec.write_tokenizer(folder)
    if Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("[CLS]") is not None:
        _write_bert_template(folder)
    made = AutoConfig.for_model(backbone, **(spec.config | {"num_labels": labels} | config))
    randomise(AutoModelForSequenceClassification.from_config(made), seed).save_pretrained(folder)
    return folder


def build_qwen3_reranker(folder: Path, *, tied: bool = True, seed: int = 0) -> Path:
    """Qwen3-Reranker: a causal language model whose tokenizer has "yes" and "no"."""
    write_bpe_tokenizer(folder, bos="<|im_start|>", eos="<|im_end|>", pad="<|im_end|>", add_bos=False, add_eos=False,
                        vocab_size=560)  # fmt: skip
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = AutoConfig.for_model("qwen3", **(BACKBONES["qwen3"].config | {"tie_word_embeddings": tied}))
    randomise(AutoModelForCausalLM.from_config(config), seed).save_pretrained(folder)
    return folder


def reference_cross_encoder(folder: Path, max_length: int | None = None) -> Scorer:
    """The logits of transformers' own class, each pair by itself; only the text is cut."""
    return _scorer(folder, AutoModelForSequenceClassification.from_pretrained(folder), max_length)


def reference_gte_reranker(folder: Path, max_length: int | None = None) -> Scorer:
    """The logits of GteForSequenceClassification over the original layout."""
    config = gte_config(folder)
    load: Any = GteForSequenceClassification.from_pretrained
    model, info = load(folder, config=config, output_loading_info=True)
    assert not any(info.values()), info
    return _scorer(folder, model, max_length)


def reference_qwen3_reranker(folder: Path, instruction: str) -> Scorer:
    """The log-odds of "yes", from the code on the model's card."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double().eval()
    prefix = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])

    @torch.no_grad()
    def score(pairs: Sequence[Pair]) -> Array:
        scores = []
        for query, text in pairs:
            body = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {text}"
            ids = [i for part in (prefix, body, suffix) for i in tokenizer(part, add_special_tokens=False).input_ids]
            last = model(input_ids=torch.tensor([ids])).logits[0, -1]
            chosen = torch.log_softmax(torch.stack([last[no], last[yes]]), dim=0)[1]  # as on the card
            scores.append(float(torch.logit(chosen.exp())))
        return np.array(scores)

    return score


def _scorer(folder: Path, model: Any, max_length: int | None) -> Scorer:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model.config._attn_implementation = "eager"
    model = model.double().eval()
    typed = getattr(model.config, "type_vocab_size", None) or 0

    @torch.no_grad()
    def score(pairs: Sequence[Pair]) -> Array:
        scores = []
        for query, text in pairs:
            cut = {"truncation": "only_second", "max_length": max_length} if max_length else {}
            inputs = dict(tokenizer([query], [text], return_tensors="pt", return_token_type_ids=typed > 1, **cut))
            scores.append(float(model(**inputs).logits[0, 0]))
        return np.array(scores)

    return score


def _write_bert_template(folder: Path) -> None:
    file = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    special = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    tokenizer.save(str(file))


def update_json(file: Path, **values: Any) -> None:
    """Lay values over those of a JSON file."""
    write_json(file, read_json(file) | values)
