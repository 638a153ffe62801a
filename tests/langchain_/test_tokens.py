"""Counting and splitting by the model's own tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_text_splitters import RecursiveCharacterTextSplitter
from tokenizers import Tokenizer

from langchain_twinvec import TwinVecEmbeddings, TwinVecTextSplitter
from twinvec.errors import ConfigurationError

TEXT = (
    "Sort a list with sorted(). Open a file with open().\n\nParis is the capital of France; Москва — столица России. "
    * 5
)


@pytest.fixture(scope="module")
def tokenizer(gte_folder: str) -> Tokenizer:
    return Tokenizer.from_file(f"{gte_folder}/tokenizer.json")


@pytest.mark.parametrize("text", ["", "a", "Hello world!", "Москва — столица", TEXT])
def test_tokens_are_the_models(text: str, gte: TwinVecEmbeddings, tokenizer: Tokenizer) -> None:
    expected = tokenizer.encode(text, add_special_tokens=False)
    assert gte.count_tokens(text) == len(expected.ids)
    assert gte.tokenize(text) == [text[start:end] for start, end in expected.offsets]


def test_langchains_own_splitters_can_count_with_them(gte: TwinVecEmbeddings) -> None:
    splitter = RecursiveCharacterTextSplitter(chunk_size=12, chunk_overlap=0, length_function=gte.count_tokens)
    assert all(gte.count_tokens(chunk) <= 12 for chunk in splitter.split_text(TEXT))


@settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=200), size=st.integers(2, 20), overlap=st.integers(0, 1))
def test_chunks_are_slices_that_cover_the_text(text: str, size: int, overlap: int, gte: TwinVecEmbeddings) -> None:
    splitter = TwinVecTextSplitter(gte, chunk_size=size, chunk_overlap=overlap, add_start_index=True)
    end = 0
    for document in splitter.create_documents([text]):
        start = document.metadata["start_index"]
        assert text[start : start + len(document.page_content)] == document.page_content
        assert not text[end:start].strip()
        end = max(end, start + len(document.page_content))
    assert not text[end:].strip()


def test_documents_keep_their_metadata_and_no_chunk_is_too_long(gte: TwinVecEmbeddings, tokenizer: Tokenizer) -> None:
    splitter = TwinVecTextSplitter(gte, chunk_size=10, chunk_overlap=3)
    chunks = splitter.split_documents([Document(page_content=TEXT, metadata={"n": [1]}), Document(page_content="b")])
    assert chunks[-1] == Document(page_content="b")
    assert {chunk.metadata["n"][0] for chunk in chunks[:-1]} == {1}
    assert all(len(tokenizer.encode(c.page_content, add_special_tokens=False).ids) <= 10 for c in chunks)
    assert [c.page_content for c in chunks[:-1]] == splitter.split_text(TEXT)
    assert splitter.split_text("") == []


def test_chunks_that_the_model_would_cut_are_refused(gte: TwinVecEmbeddings) -> None:
    with pytest.raises(ConfigurationError, match="the model accepts"):
        TwinVecTextSplitter(gte.embedder, chunk_size=10**6)
