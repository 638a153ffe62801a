"""Questions with the documents that answer them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from twinvec.errors import ConfigurationError

_SHOWN = 5


@dataclass(frozen=True)
class Questions:
    """Judged questions: which documents answer each, and how well.

    Attributes:
        texts: question id -> text.
        grades: question id -> document id -> grade. Grades of 1 or more mean relevant, 0 or less not relevant.
        fields: question id -> other information, such as its language.

    Raises:
        ConfigurationError: no question has a relevant document, judgements refer to unknown questions, or grades are
            not integers.
    """

    texts: Mapping[str, str]
    grades: Mapping[str, Mapping[str, int]]
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for id, text in self.texts.items():
            if not isinstance(text, str) or not text.strip():
                raise ConfigurationError(f"question {id!r} has no text")
        if unknown := [id for id in self.grades if id not in self.texts]:
            raise ConfigurationError(
                f"{named(unknown)}: judged, but not among the {len(self.texts)} questions; do both files match?"
            )
        for id, judged in self.grades.items():
            for document, grade in judged.items():
                if isinstance(grade, bool) or not isinstance(grade, int):
                    raise ConfigurationError(
                        f"question {id!r}, document {document!r}: the grade {grade!r} is not an integer"
                    )
        if not self.asked:
            raise ConfigurationError("no question has a relevant document (a grade of 1 or more)")

    @property
    def asked(self) -> list[str]:
        """Return the ids of the questions that have a relevant document and can be measured."""
        return [id for id in self.texts if any(grade > 0 for grade in self.grades.get(id, {}).values())]

    @property
    def documents(self) -> list[str]:
        """Return the ids of all judged documents."""
        return list(dict.fromkeys(document for judged in self.grades.values() for document in judged))

    def notes(self) -> list[str]:
        """Return remarks about these questions for readers of the results."""
        notes = []
        if without := len(self.texts) - len(self.asked):
            notes.append(f"{without} of {len(self.texts)} questions have no relevant document: left out")
        grades = [grade for judged in self.grades.values() for grade in judged.values()]
        if negative := sum(grade < 0 for grade in grades):
            notes.append(f"{negative} grades below 0 count as not relevant")
        if max(grades) > 1:
            notes.append(
                f"grades go up to {max(grades)}: nDCG uses them as weights, other measures treat 1 and more as relevant"
            )
        if repeated := sum(n - 1 for n in Counter(self.texts.values()).values()):
            notes.append(f"{repeated} questions repeat the text of another one: they are not independent")
        if made := sum("made" in fields for fields in self.fields.values()):
            notes.append(
                f"{made} questions were made from the documents, not asked by people: they favour lexical search "
                "and are easier than real ones"
            )
        return notes

    def part(self, ids: list[str]) -> Questions:
        """Return a subset of the questions."""
        return Questions(
            {id: self.texts[id] for id in ids},
            {id: self.grades[id] for id in ids if id in self.grades},
            {id: self.fields[id] for id in ids if id in self.fields},
        )


def named(ids: list[str]) -> str:
    """Return the first few of some ids, and the number of the others."""
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(repr(id) for id in ids[:_SHOWN]) + more
