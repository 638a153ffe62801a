"""Rows of spans, late chunking: against the model of transformers in float64, token by token."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModel

from reference.sentence_layouts import build_bge_m3, build_sentence_transformer
from support import TEXTS, dense_of, sparse_of
from twinvec import Embedder
from twinvec.errors import ConfigurationError, InvalidTextError, TextTooLongError
from twinvec.joined import DenseSource, JoinedEmbedder
from twinvec.text.bm25 import Bm25
from twinvec.text.prompts import Role, Task

PROMPT = "passage: "
WORDS = " ".join(TEXTS).replace("\x00", "").split()
LONG = " ".join(WORDS)
LAYOUTS = ("bert", "xlm-roberta", "llama")
Pairs = list[tuple[int, int]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("spans")
    prompts = {"document": PROMPT, "query": "query: "}
    folders = {name: build_sentence_transformer(parent / name, name, prompts=prompts) for name in LAYOUTS}
    weight = torch.randn(1, 64, generator=torch.Generator().manual_seed(1))
    save_file({"weight": weight, "bias": torch.ones(1)}, parent / "head.safetensors")
    return folders


@pytest.fixture(scope="module")
def embedders(folders: dict[str, Path]) -> Iterator[dict[str, Embedder]]:
    head = str(folders["bert"].parent / "head.safetensors")
    opened = {
        name: Embedder(folder, dtype="float32", sparse=head, sparse_keys="ids") for name, folder in folders.items()
    }
    yield opened
    for embedder in opened.values():
        embedder.close()


class Reference:
    """A checkpoint's model in float64 and its tokenizer, without a line of ours."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        model: Any = AutoModel.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
        self.model = model.eval()
        self.head = {name: t.double().numpy() for name, t in load_file(folder.parent / "head.safetensors").items()}

    def rows(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[Any], list[dict[int, float]]]:
        """Each span's mean over its own tokens' states, from one pass over prompt and text; its tokens' weights."""
        encoded = self.tokenizer.encode(PROMPT + text)
        with torch.no_grad():
            states = self.model(input_ids=torch.tensor([encoded.ids])).last_hidden_state[0].numpy()
        weights = np.maximum(states @ self.head["weight"][0] + self.head["bias"], 0)
        dense, sparse = [], []
        for start, end in spans:
            own = [
                i
                for i, (a, b) in enumerate(encoded.offsets)
                if b > a and start <= b - 1 - len(PROMPT) < end and not encoded.special_tokens_mask[i]
            ]
            row = states[own].mean(axis=0)
            dense.append(row / np.linalg.norm(row))
            found: dict[int, float] = {}
            for i in own:
                if weights[i] > 0 and encoded.tokens[i] not in ("<unk>", "[UNK]"):
                    found[encoded.ids[i]] = max(found.get(encoded.ids[i], 0.0), float(weights[i]))
            sparse.append(found)
        return dense, sparse


@pytest.fixture(scope="module")
def references(folders: dict[str, Path]) -> dict[str, Reference]:
    return {name: Reference(folder) for name, folder in folders.items()}


def word_spans(text: str, words: int) -> Pairs:
    """Cut a text before every so many words; together they are the whole of it."""
    starts = [0] + [i + 1 for i, character in enumerate(text) if character == " " and text[i + 1 : i + 2] != " "]
    cuts = [*starts[::words], len(text)]
    return list(itertools.pairwise(cuts))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_span_is_the_mean_of_its_own_tokens_in_one_pass_over_the_text(
    layout: str, embedders: dict[str, Embedder], references: dict[str, Reference]
) -> None:
    texts = [LONG[:400].strip(), LONG[-250:].strip(), "hello world"]
    overlapping = [(0, 5), (0, 11), (6, 11)]
    spans = [word_spans(texts[0], 5), word_spans(texts[1], 1), overlapping]
    before = embedders[layout].stats()
    batch = embedders[layout].embed_documents(texts, spans=spans)
    after = embedders[layout].stats()
    expected = [references[layout].rows(text, own) for text, own in zip(texts, spans, strict=True)]
    np.testing.assert_allclose(dense_of(batch), [row for dense, _ in expected for row in dense], atol=2e-5)
    found, wanted = sparse_of(batch).to_dicts(), [row for _, sparse in expected for row in sparse]
    for row, other in zip(found, wanted, strict=True):
        assert row == pytest.approx(other, abs=1e-4)
    assert after["texts"] - before["texts"] == 3  # one pass gives all
    assert not batch.truncated.any()


@given(st.data())
@settings(max_examples=15)
def test_spans_beside_whole_texts_are_what_they_are_alone(embedders: dict[str, Embedder], data: st.DataObject) -> None:
    embedder = embedders["bert"]
    texts = data.draw(st.lists(st.sampled_from([LONG[:200], LONG[100:400], "a b c", "hello"]), min_size=1, max_size=4))
    spans = [word_spans(text, data.draw(st.integers(1, 9))) for text in texts]

    async def together() -> Any:
        whole = embedder.aembed_documents([f"{text} {i}" for i, text in enumerate(texts)])
        return await asyncio.gather(embedder.aembed_documents(texts, spans=spans), whole)

    both, _ = asyncio.run(together())
    start = 0
    for text, own in zip(texts, spans, strict=True):
        alone = embedder.embed_documents([text], spans=[own])
        np.testing.assert_allclose(dense_of(both)[start : start + len(own)], dense_of(alone), atol=1e-5)
        start += len(own)
    assert start == len(both)


def test_texts_with_and_without_spans_share_no_rows(embedders: dict[str, Embedder]) -> None:
    embedder, text = embedders["bert"], "the capital of China"
    whole = dense_of(embedder.embed_documents([text]))
    words = embedder.embed_documents([text], spans=[[(0, 3), (4, 11)]])
    assert words.token_counts.tolist() == [1, 1]
    np.testing.assert_array_equal(dense_of(embedder.embed_documents([text])), whole)
    assert len(embedder.embed_documents([text], spans=[[(4, 11)]])) == 1


def test_bm25_sees_the_spans_alone(folders: dict[str, Path]) -> None:
    with Embedder(folders["bert"], dtype="float32", sparse="bm25") as embedder:
        batch = embedder.embed_documents(["the capital of China", "sort a list"], spans=[[(0, 11), (12, 20)], [(0, 4)]])
    bm25 = Bm25.parse("bm25")
    assert bm25 is not None
    rows, _ = bm25.weigh(Role.DOCUMENT, ["the capital", "of China", "sort"])
    assert sparse_of(batch).to_dicts() == rows.to_dicts()
    assert dense_of(batch).shape == (3, 64)


def test_what_has_no_vector_is_refused(embedders: dict[str, Embedder], tmp_path: Path) -> None:
    embedder = embedders["bert"]
    with pytest.raises(InvalidTextError, match="span without a token") as empty:
        embedder.embed_documents(["a", "a   b"], spans=[[(0, 1)], [(0, 1), (2, 3)]])
    assert empty.value.position == 1
    with pytest.raises(TextTooLongError, match="limit is 512") as long:
        embedder.embed_documents(["a", "word " * 600], spans=[[(0, 1)], [(0, 4)]])
    assert long.value.position == 1
    for spans in ([[(0, 1)]], [[(0, 1)], []], [[(0, 1)], [(1, 1)]], [[(0, 1)], [(0, 3)]], [[(0, 1)], [(-1, 1)]]):
        with pytest.raises(ConfigurationError, match="spans"):
            embedder.embed_documents(["ab", "ab"], spans=spans)
    with (
        Embedder(build_bge_m3(tmp_path, weights="safetensors"), dtype="float32") as cls,
        pytest.raises(ConfigurationError, match="pools by cls"),
    ):
        cls.embed_documents(["ab"], spans=[[(0, 1)]])


def test_somebody_elses_model_is_refused() -> None:
    class Elsewhere(DenseSource):
        name = "elsewhere"

        def documents(self, texts: list[str], task: Task | str | None) -> list[list[float]]:
            return [[1.0, 0.0] for _ in texts]

        async def adocuments(self, texts: list[str], task: Task | str | None) -> list[list[float]]:
            return self.documents(texts, task)

        def query(self, text: str, task: Task | str | None) -> list[float]:
            return [1.0, 0.0]

        async def aquery(self, text: str, task: Task | str | None) -> list[float]:
            return self.query(text, task)

    with pytest.raises(ConfigurationError, match="JoinedEmbedder"):
        JoinedEmbedder(Elsewhere(), "bm25").embed_documents(["ab"], spans=[[(0, 1)]])
