"""A text splitter that counts the model's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from langchain_core.documents import Document
from langchain_text_splitters import TextSplitter

from langchain_twinvec.embeddings import TwinVecEmbeddings
from twinvec import BaseEmbedder
from twinvec_stores.ingestion.chunking import Chunker
from twinvec_stores.ingestion.spans import Span


class TwinVecTextSplitter(TextSplitter):
    """Chunks of at most ``chunk_size`` tokens of the model that will embed them.

    Each chunk is an exact slice of the text; it ends at the end of a paragraph, otherwise of a sentence, line or word,
    within its last quarter. Together the chunks cover the text, except for parts that are only white space.

    Examples:
        >>> splitter = TwinVecTextSplitter(embeddings, chunk_size=300, chunk_overlap=30)
        >>> chunks = splitter.split_documents(documents)
    """

    def __init__(
        self,
        embeddings: TwinVecEmbeddings | BaseEmbedder,
        *,
        chunk_size: int = 300,
        chunk_overlap: int = 0,
        add_start_index: bool = False,
    ) -> None:
        """Check the parameters.

        Args:
            embeddings: the embeddings whose tokens count, or the Embedder itself.
            chunk_size: maximum tokens of a chunk's own text, without prompt and special tokens.
            chunk_overlap: maximum number of tokens that a chunk repeats from the previous one.
            add_start_index: add the chunk's position in the text, in characters, to its metadata as "start_index".

        Raises:
            ConfigurationError: the numbers are invalid, or the model would cut the chunks.
        """
        embedder = embeddings.embedder if isinstance(embeddings, TwinVecEmbeddings) else embeddings
        self._chunker = Chunker(embedder, chunk_size, chunk_overlap)
        super().__init__(
            chunk_size,
            chunk_overlap,
            length_function=lambda text: len(embedder.token_offsets([text])[0]),
            add_start_index=add_start_index,
            strip_whitespace=False,
        )

    def split_text(self, text: str) -> list[str]:
        """Return the chunks of a text."""
        return [text[span.start : span.end] for span in self._spans([text])[0]]

    def create_documents(self, texts: list[str], metadatas: list[dict[Any, Any]] | None = None) -> list[Document]:
        """Return the chunks of texts as documents, each with a copy of its text's metadata."""
        given = metadatas if metadatas is not None else [{}] * len(texts)
        return [
            Document(page_content=text[span.start : span.end], metadata=self._placed(metadata, span))
            for text, metadata, spans in zip(texts, given, self._spans(texts), strict=True)
            for span in spans
        ]

    def _spans(self, texts: Sequence[str]) -> list[list[Span]]:
        found = self._chunker.split(texts)
        return [[span for span in spans if span.end > span.start] for spans in found]

    def _placed(self, metadata: dict[Any, Any], span: Span) -> dict[Any, Any]:
        return deepcopy(metadata) | ({"start_index": span.start} if self._add_start_index else {})
