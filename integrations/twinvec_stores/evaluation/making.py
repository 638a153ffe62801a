"""Questions for those who have none: from one's own documents, by rule or by a language model."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from twinvec.errors import ConfigurationError
from twinvec_stores.evaluation.questions import Questions
from twinvec_stores.ingestion.headings import headings
from twinvec_stores.protocol import HybridStore
from twinvec_stores.records import Record

KINDS = ("link", "title", "heading", "first sentence")
COLUMNS = ("question", "document", "grade", "made", "overlap", "excerpt")
_LINK = re.compile(r"(?<!!)\[([^\]\n]{3,200})\]\(<?([^)\s>#?]+)[^)\n]*\)")
_SENTENCE = re.compile(r"\s*(.{20,300}?[.!?…。！？])(?=\s|\Z)", re.DOTALL)
_WORD = re.compile(r"\w+")
_STEM = 5  # first letters by which words are compared, so that inflection does not matter
_FEWEST_WORDS = 2
_POINTING = re.compile(r"\b(?:passage|excerpt|the (?:above )?text|отрыв\w+|в тексте|фрагмент\w*)\b", re.IGNORECASE)
_EXCERPT = 300  # characters, for reviewers
_LONGEST = 4000  # characters of a document in the prompt
_PROMPT = (
    "Write one question that a person who has never seen the following text would ask, and that it answers. Write it "
    "in the language of the text, in other words than its own where possible, and without mentioning a text. "
    "Answer with the question alone.\n\n"
)


class ChatModel(Protocol):
    """A language model: any chat model of LangChain."""

    def invoke(self, input: str, /) -> Any:
        """Return a message with ``content``."""


@dataclass(frozen=True)
class MadeQuestion:
    """A question that was made from a document.

    Attributes:
        text: the question.
        document: id of the document that answers it, or of the record if the store has no chunks.
        kind: its origin: one of ``KINDS``, or "model".
        overlap: share of its words that also occur in the document; 1 means copied from it.
        excerpt: the beginning of the document.
    """

    text: str
    document: str
    kind: str
    overlap: float
    excerpt: str


@dataclass(frozen=True)
class MadeQuestions:
    """The result of ``make_questions``.

    Attributes:
        kept: the questions.
        dropped: reason -> number of questions left out for it.
    """

    kept: Sequence[MadeQuestion]
    dropped: Mapping[str, int]

    def to_questions(self) -> Questions:
        """Return them in the form that ``evaluate`` takes.

        Raises:
            ConfigurationError: there is none.
        """
        ids = [f"q{number}" for number in range(1, len(self.kept) + 1)]
        return Questions(
            {id: made.text for id, made in zip(ids, self.kept, strict=True)},
            {id: {made.document: 1} for id, made in zip(ids, self.kept, strict=True)},
            {id: {"made": made.kind, "overlap": made.overlap} for id, made in zip(ids, self.kept, strict=True)},
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a sheet for a person to review: set the grade to 0 if the document does not answer the question.

        ``read_questions`` reads it back.
        """
        with open(path, "w", encoding="utf-8-sig", newline="") as file:  # so that spreadsheets see the encoding
            sheet = csv.writer(file)
            sheet.writerow(COLUMNS)
            for made in self.kept:
                sheet.writerow([made.text, made.document, 1, made.kind, f"{made.overlap:.2f}", made.excerpt])


def make_questions(
    store: HybridStore,
    n: int = 100,
    *,
    model: ChatModel | None = None,
    max_overlap: float = 0.8,
    seed: int = 0,
) -> MadeQuestions:
    """Make questions from the documents of a store.

    Without a language model they are the texts of links to a document, titles (metadata), Markdown headings and first
    sentences, in this order of preference, and always the same for a store and seed. Questions in a document's own
    words favour lexical search: those that share more than ``max_overlap`` of their words with their document are left
    out, as are those that fit several documents. They do not replace real questions: use them for a first comparison.

    Args:
        store: the store; its records have texts.
        n: maximum number of questions; one per document first, then more.
        model: a chat model of LangChain, which writes one question for each of n documents.
        max_overlap: maximum share of words in common with the document; 1 keeps all questions.
        seed: seed of the choice of documents.
    """
    documents = _documents(store)
    order = sorted(documents)
    np.random.default_rng(seed).shuffle(order)
    made = _by_model(documents, order[:n], model) if model is not None else _by_rule(documents)
    kept, dropped = _filtered(made, documents, max_overlap)
    places = {document: place for place, document in enumerate(order)}
    kept.sort(key=lambda each: (KINDS.index(each.kind) if each.kind in KINDS else 0, places[each.document]))
    first: dict[str, MadeQuestion] = {}
    more = [each for each in kept if first.setdefault(each.document, each) is not each]
    return MadeQuestions([*first.values(), *more][:n], dropped)


class _Document(NamedTuple):
    """A document's text, and the title in its metadata."""

    text: str
    title: object


def _documents(store: HybridStore) -> dict[str, _Document]:
    """Return the documents by their ids; chunks are put together."""
    documents: dict[str, list[Record]] = defaultdict(list)
    for page in store.scroll_all():
        for record in page:
            documents[str(record.provenance.get("document", record.id))].append(record)
    for records in documents.values():
        records.sort(key=lambda record: int(record.provenance.get("chunk", 0)))
    return {
        id: _Document("\n".join(record.text for record in records), records[0].metadata.get("title"))
        for id, records in documents.items()
    }


def _by_model(
    documents: Mapping[str, _Document], chosen: Sequence[str], model: ChatModel
) -> Iterator[tuple[str, str, str]]:
    for document in chosen:
        content = model.invoke(_PROMPT + documents[document].text[:_LONGEST]).content
        if not isinstance(content, str):
            raise ConfigurationError(f"the language model answers with {type(content).__name__}, not with text")
        yield content.strip().strip("\"'«»“”"), document, "model"


def _by_rule(documents: Mapping[str, _Document]) -> Iterator[tuple[str, str, str]]:
    """Yield (question, document, kind)."""
    names: dict[str, set[str]] = defaultdict(set)  # last part of an id, as in links -> documents
    for document in documents:
        names[document.rsplit("/", 1)[-1]].add(document)
    for document, (text, title) in documents.items():
        for words, target in _LINK.findall(text):
            aimed = names[target.rstrip("/").rsplit("/", 1)[-1]] - {document}
            if len(aimed) == 1:
                yield words, *aimed, "link"
        if isinstance(title, str):
            yield title, document, "title"
        found = headings(text)
        for heading in found:
            yield heading.title, document, "heading"
        start = found[0].end if found and not text[: found[0].start].strip() else 0
        if first := _SENTENCE.match(text, start):
            yield first[1], document, "first sentence"


def _filtered(
    made: Iterable[tuple[str, str, str]], documents: Mapping[str, _Document], max_overlap: float
) -> tuple[list[MadeQuestion], dict[str, int]]:
    made = [(" ".join(text.split()), document, kind) for text, document, kind in made]
    answers: dict[str, set[str]] = defaultdict(set)
    for text, document, _ in made:
        answers[text.casefold()].add(document)
    stems = {document: _stems(documents[document].text) for document in {document for _, document, _ in made}}
    kept: dict[tuple[str, str], MadeQuestion] = {}
    dropped: Counter[str] = Counter()
    for text, document, kind in made:
        words = _stems(text)
        overlap = len(words & stems[document]) / max(len(words), 1)
        if len(words) < _FEWEST_WORDS:
            dropped["too short"] += 1
        elif kind == "model" and _POINTING.search(text):
            dropped["asks about a text"] += 1
        elif len(answers[text.casefold()]) > 1:
            dropped["fits several documents"] += 1
        elif overlap > max_overlap:
            dropped["has the document's own words"] += 1
        else:
            excerpt = " ".join(documents[document].text[: 2 * _EXCERPT].split())[:_EXCERPT]
            question = MadeQuestion(text, document, kind, overlap, excerpt)
            kept.setdefault((text.casefold(), document), question)
    return list(kept.values()), dict(dropped)


def _stems(text: str) -> set[str]:
    return {word[:_STEM] for word in _WORD.findall(text.casefold())}
