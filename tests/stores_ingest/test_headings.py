"""Chunks that keep their subject: headings, where they cut, and what stands before a chunk."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from twinvec import Embedder
from twinvec.errors import ConfigurationError
from twinvec_stores import Document, MemoryStore, Record, ingest
from twinvec_stores.ingestion.headings import headings

LINES = [
    "# One",
    "## *Two* `b`",
    "###### Six ##",
    "#none",
    "    # code",
    "word",
    "",
    "```",
    "```py",
    "~~~",
    "####### 7",
]
GUIDE = """Some words before.

# Fruit

## Apples

Apples are red and round and they keep for a long time when it is cold.

## Pears

Pears are green and long and they do not keep for a long time at all.

```
# no heading
```

Vegetables
==========

Leeks are neither of them and nobody has ever asked for a longer text on them.
"""


@given(st.lists(st.sampled_from(LINES), max_size=12).map("\n".join))
def test_headings_are_those_of_a_parser_of_markdown(text: str) -> None:
    tokens = MarkdownIt("commonmark").parse(text)
    expected = [
        (token.map[0], int(token.tag[1]), " ".join(child.content for child in inline.children if child.content))
        for token, inline in itertools.pairwise(tokens)
        if token.type == "heading_open" and token.map is not None and inline.children is not None
    ]
    found = [(text[: heading.start].count("\n"), heading.level, heading.title) for heading in headings(text)]
    assert [(line, level, title.split()) for line, level, title in found] == [
        (line, level, title.split()) for line, level, title in expected
    ]


def test_underlined_headings() -> None:
    text = "One\n===\n\nTwo\r\n---\r\n\n- item\n---\n\na\nb\n===\n\n| a | b |\n---\n"
    assert [(heading.level, heading.title) for heading in headings(text)] == [(1, "One"), (2, "Two")]


def chunks(embedder: Embedder, store: MemoryStore, text: str, metadata: dict[str, Any], **options: Any) -> list[Record]:
    ingest([Document("d", text, metadata)], embedder, store, **{"chunk_tokens": 40, **options})
    count = store.count()
    return store.get([f"d#{i}" for i in range(count)], with_vectors=True)


def test_a_chunk_is_embedded_under_its_headings_and_stored_without(embedder: Embedder, memory: MemoryStore) -> None:
    found = chunks(embedder, memory, GUIDE, {"title": "The guide"}, chunk_context="headings", chunk_tokens=80)
    assert "".join(record.text for record in found) == GUIDE
    contexts = {record.text.strip().splitlines()[0]: record.provenance.get("context") for record in found}
    assert contexts["## Pears"] == "The guide > Fruit\n\n"
    assert contexts["Vegetables"] == "The guide\n\n"
    assert contexts["Some words before."] == "The guide\n\n"
    alone = embedder.embed_documents([record.provenance["context"] + record.text for record in found])
    assert alone.dense is not None
    for record, vector in zip(found, alone.dense, strict=True):
        assert record.dense is not None
        np.testing.assert_allclose(record.dense, vector, atol=1e-5)


def test_chunks_deep_in_a_section_are_under_all_of_its_headings(embedder: Embedder, memory: MemoryStore) -> None:
    found = chunks(embedder, memory, GUIDE, {}, chunk_context="headings")
    contexts = {record.text.split()[0]: record.provenance.get("context") for record in found}
    assert contexts["green"] == "Fruit > Pears\n\n"
    assert contexts["Leeks"] == "Vegetables\n\n"


def test_without_a_title_and_above_the_first_heading_nothing_is_added(embedder: Embedder, memory: MemoryStore) -> None:
    found = chunks(embedder, memory, GUIDE, {}, chunk_context="headings")
    assert "context" not in found[0].provenance
    assert found[0].text.startswith("Some words before.")


def test_long_headings_are_left_out_from_the_middle(embedder: Embedder, memory: MemoryStore) -> None:
    long = "very long words " * 20
    text = f"# Top\n\n## {long}\n\n### Last\n\n" + "word and another word, " * 60
    found = chunks(embedder, memory, text, {}, chunk_context="headings")
    assert found[-1].provenance["context"] == "Top > Last\n\n"


def test_another_context_is_a_change_and_none_is_the_same_as_before(embedder: Embedder, memory: MemoryStore) -> None:
    document = [Document("d", GUIDE)]
    first = ingest(document, embedder, memory, chunk_tokens=40)
    again = ingest(document, embedder, memory, chunk_tokens=40, chunk_context=None)
    other = ingest(document, embedder, memory, chunk_tokens=40, chunk_context="headings")
    assert (first.new, again.unchanged, other.changed) == (1, 1, 1)


def test_what_is_refused(embedder: Embedder, memory: MemoryStore) -> None:
    with pytest.raises(ConfigurationError, match="chunk_context needs chunk_tokens"):
        ingest([], embedder, memory, chunk_context="headings")
    with pytest.raises(ConfigurationError, match="'head'"):
        ingest([], embedder, memory, chunk_tokens=10, chunk_context="head")  # type: ignore[arg-type]
    room = embedder.token_room("document")
    ingest([], embedder, memory, chunk_tokens=room - 64, chunk_context="headings")
    with pytest.raises(ConfigurationError, match="headings"):
        ingest([], embedder, memory, chunk_tokens=room - 63, chunk_context="headings")
