"""Chunking: nothing is lost, nothing is too long, and cuts are where a reader would make them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twinvec import Embedder
from twinvec.errors import ConfigurationError
from twinvec_stores import MemoryStore, StoreConfig
from twinvec_stores.ingestion import ingest
from twinvec_stores.ingestion.chunking import Chunker
from twinvec_stores.ingestion.spans import Span

KINDS = ("unigram", "wordpiece", "bytes", "prompted")
ACCENTS, FAMILY, FLAGS = "e\u0301\u0301", "👨\u200d👩\u200d👧", "🇷🇺🇺🇸"
ALPHABET = [*"ab c.!\n\t。中国й½ﷺ", " ", "\r\n", "\n\n", "the ", "capital ", ACCENTS, FAMILY, FLAGS, "\x00", "👍🏽"]
TEXTS = st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=120).map("".join) | st.text(min_size=1, max_size=60)
PROSE = "The capital of Russia is Moscow. Gravity is a force.\nHow to sort a list?\n\nА столица Китая это Пекин. "


def tokens_of(embedder: Embedder, text: str) -> int:
    """What the text itself adds to the prompt."""
    prompt = embedder.prompt_for("document")
    with_text, without = embedder.token_offsets([prompt + text, prompt])
    return len(with_text) - len(without)


def can_be_cut(embedder: Embedder, text: str, span: Span) -> bool:
    """Whether a place lies within the span that has tokens on both sides, and none across it."""
    (offsets,) = embedder.token_offsets([text])
    starts, ends = offsets[(offsets[:, 0] >= span.start) & (offsets[:, 1] <= span.end)].T
    inner = range(span.start + 1, span.end)
    return any((starts == at).any() and (ends <= at).any() and ((ends <= at) | (starts >= at)).all() for at in inner)


def joined(text: str, spans: list[Span]) -> str:
    ends = [0, *(span.end for span in spans)]
    return "".join(text[end : span.end] for end, span in zip(ends, spans, strict=False))


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS, chunk=st.integers(1, 40), overlap=st.integers(0, 39))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chunks_cover_the_text_and_fit(
    tokenizers: dict[str, Embedder], kind: str, text: str, chunk: int, overlap: int
) -> None:
    embedder = tokenizers[kind]
    (spans,) = Chunker(embedder, chunk, min(overlap, chunk - 1)).split([text])
    ends, starts = [0, *(span.end for span in spans)], [*(span.start for span in spans), len(text)]
    assert not "".join(text[end:start] for end, start in zip(ends, starts, strict=True)).strip()  # what is left out
    assert len(spans) == 1 or all(text[span.start : span.end].strip() for span in spans)
    for before, after in itertools.pairwise(spans):
        assert before.start < after.start
        assert before.end < after.end
    for span in spans:
        if tokens_of(embedder, text[span.start : span.end]) > chunk:  # only what cannot be divided
            assert not can_be_cut(embedder, text, span)


@pytest.mark.parametrize("kind", KINDS)
def test_overlap_is_at_most_what_was_asked_for(tokenizers: dict[str, Embedder], kind: str) -> None:
    embedder, text = tokenizers[kind], PROSE * 20
    (spans,) = Chunker(embedder, 60, 15).split([text])
    shared = [(after.start, before.end) for before, after in itertools.pairwise(spans)]
    counts = [len(embedder.token_offsets([text[start:end]])[0]) for start, end in shared]
    assert max(counts) <= 15 + 1  # a cut within a word may cost a token more
    assert min(counts) >= 5
    (apart,) = Chunker(embedder, 60).split([text])
    assert all(before.end == after.start for before, after in itertools.pairwise(apart))


@pytest.mark.parametrize("kind", KINDS)
def test_cuts_prefer_the_end_of_paragraphs_sentences_lines_words(tokenizers: dict[str, Embedder], kind: str) -> None:
    chunker = Chunker(tokenizers[kind], 40)
    words = "the capital of the query "
    for mark in (".\n\n", ". ", "\n", " "):
        # the best mark comes early in the last quarter, and lesser ones after it
        lesser = {".\n\n": "a. a\n a ", ". ": "a\n a a ", "\n": "a a a ", " ": ""}[mark]
        (all_tokens,) = tokenizers[kind].token_offsets([words * 20])
        body = (words * 20)[: all_tokens[31][0]].rstrip()
        text = body + mark + lesser + "c" * 90
        (spans,) = chunker.split([text])
        end = text[: spans[0].end]
        assert end.rstrip() == (body + mark).rstrip(), mark


def test_chinese_sentences_end_without_spaces(embedder: Embedder) -> None:
    text = "中国的首都在哪儿北京。" * 12
    (spans,) = Chunker(embedder, 30).split([text])
    assert len(spans) > 2
    assert all(text[span.end - 1] == "。" for span in spans)


@pytest.mark.parametrize("character", [ACCENTS, FAMILY, "🇷🇺", "👍🏽", "각"])
def test_characters_of_several_code_points_stay_whole(tokenizers: dict[str, Embedder], character: str) -> None:
    text = character * 60
    (spans,) = Chunker(tokenizers["bytes"], 32).split([text])
    assert len(spans) > 1
    assert all((span.end - span.start) % len(character) == 0 for span in spans)


def test_a_million_characters(tokenizers: dict[str, Embedder]) -> None:
    for text in ("the capital of Russia is Moscow. " * 30_000, "中国的首都在哪儿" * 25_000):
        (spans,) = Chunker(tokenizers["unigram"], 500, 50).split([text])
        assert joined(text, spans) == text
        assert max(len(t) for t in tokenizers["unigram"].token_offsets([text[a:b] for a, b in spans])) <= 500


def test_short_texts_are_one_chunk_each(embedder: Embedder) -> None:
    assert Chunker(embedder, 100).split(["a", "the capital", " "]) == [[Span(0, 1)], [Span(0, 11)], [Span(0, 1)]]


@pytest.mark.parametrize(
    ("chunk", "overlap", "message"),
    [
        (0, 0, "chunk_tokens=0 must be"),
        (True, 0, "chunk_tokens=True must be"),
        (5, 5, "overlap_tokens=5 must be less"),
        (5, -1, "overlap_tokens=-1 must be"),
        (15, 0, "16 tokens, and 14 of them are left"),
    ],
)
def test_numbers_that_make_no_sense(short: Embedder, chunk: int, overlap: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Chunker(short, chunk, overlap)


def test_the_longest_allowed_chunks_are_not_cut(short: Embedder) -> None:
    store = MemoryStore(StoreConfig.for_embedder(short))
    report = ingest([PROSE * 5, "中国的首都在哪儿" * 20], short, store, chunk_tokens=14, overlap_tokens=3)
    assert report.truncated == 0
    assert report.records == store.count() > 20


@given(text=st.text("abİIΣς Я\u0130", max_size=20))
@settings(max_examples=40, deadline=None)
def test_offsets_of_a_lower_casing_tokenizer_are_those_of_the_text(text: str) -> None:
    from twinvec.text.tokenizer import _unlowered

    lower = text.lower()
    offsets = np.array([(i, i + 1) for i in range(len(lower))], dtype=np.int64).reshape(-1, 2)
    for (start, end), character in zip(_unlowered(offsets, text).tolist(), lower, strict=True):
        assert end == start + 1
        assert character in text[start].lower() or text[start] == "Σ"


def test_offsets_are_refused_for_what_is_no_text(embedder: Embedder) -> None:
    with pytest.raises(ValueError, match="lone surrogate"):
        embedder.token_offsets(["\ud800"])
    assert [o.shape for o in embedder.token_offsets(["", "the capital"])] == [(0, 2), (2, 2)]
    assert embedder.token_room("document") == embedder.max_length - 2
