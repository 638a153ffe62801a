"""The text that the model actually sees: roles, tasks and the family's prompt template."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from types import MappingProxyType

from twinvec.errors import PromptError


class Role(str, Enum):
    """Which side of a search a text is on."""

    QUERY = "query"
    DOCUMENT = "document"


@dataclass(frozen=True)
class Task:
    """A one-sentence instruction in natural language, Russian or English.

    Attributes:
        instruction: for example ``"Given a question, find a paragraph with the answer"``.
        symmetric: False wraps queries only (retrieval); True wraps every text (classification,
            similarity, clustering, paraphrase).
    """

    instruction: str
    symmetric: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.instruction, str) or not self.instruction.strip():
            raise PromptError("Task.instruction must not be empty")


# Instructions from the model cards of Giga Embeddings, E5 and Qwen3; the names are TwinVec's.
TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "retrieval": Task("Given a query, retrieve relevant passages"),
        "web_search": Task("Given a web search query, retrieve relevant passages that answer the query"),
        "question_answering": Task("Given a question, find a paragraph with the answer"),
        "question_answering_ru": Task("Дан вопрос, необходимо найти абзац текста с ответом"),
        "similar_questions_ru": Task("Дан вопрос, найди семантически похожие вопросы", symmetric=True),
        "similarity": Task("Retrieve semantically similar text", symmetric=True),
        "similarity_ru": Task("Дан текст, найди семантически похожие тексты", symmetric=True),
        "paraphrase_ru": Task("Дан текст, необходимо найти его парафраз", symmetric=True),
        "clustering": Task("Identify the topic or theme of the given text", symmetric=True),
    }
)


def _sentence(instruction: str) -> str:
    return " ".join(instruction.split()).rstrip(".").casefold()


_SYMMETRIC = frozenset(_sentence(task.instruction) for task in TASKS.values() if task.symmetric)
_LONGEST_PROMPT = 2000  # characters searched for an existing prompt in a text

_QUERY_NAMES = ("query", "search_query", "Retrieval-query", "retrieval.query")
_DOCUMENT_NAMES = ("document", "passage", "corpus", "search_document", "text", "Retrieval-document",
                   "retrieval.passage")  # fmt: skip
_INSTRUCT = re.compile(r"(Instruct: )(.+)(\nQuery: ?)", re.DOTALL)


@dataclass(frozen=True)
class PromptTemplate:
    """The prompts of one checkpoint.

    Attributes:
        instruct: where a task goes, for example ``"Instruct: {task}\\nQuery: "``; None if the model was not trained
            with instructions.
        query: prefix of queries if no task is given.
        document: prefix of documents if no symmetric task is given.
        named: the checkpoint's own prompts by name; ``task=name`` selects one for both roles.
    """

    instruct: str | None = None
    query: str = ""
    document: str = ""
    named: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_prompts(cls, prompts: Mapping[str, str], default_name: str | None = None) -> PromptTemplate:
        """Read sentence-transformers ``prompts``: role names, task names, and an instruction if there is one.

        A role without its own prompt takes ``prompts[default_name]``, unless that is the other role's.
        """
        if default_name is not None and default_name not in prompts:
            raise PromptError(f"default_prompt_name {default_name!r} is not in prompts {sorted(prompts)}")

        def prompt_of(role: tuple[str, ...], other: tuple[str, ...]) -> str:
            own = [prompts[name] for name in role if name in prompts]
            if own:
                return next(filter(None, own), "")
            return prompts[default_name] if default_name is not None and default_name not in other else ""

        query, document = prompt_of(_QUERY_NAMES, _DOCUMENT_NAMES), prompt_of(_DOCUMENT_NAMES, _QUERY_NAMES)
        match = _INSTRUCT.fullmatch(query)
        return cls(
            instruct=f"{match[1]}{{task}}{match[3]}" if match else None,
            query=query,
            document=document,
            named=dict(prompts),
        )

    def override(self, prompts: Mapping[str, str]) -> PromptTemplate:
        """Return this template with the caller's prompts overriding its own."""
        if bad := [k for k, v in prompts.items() if not isinstance(k, str) or not isinstance(v, str)]:
            raise PromptError(f"prompts must map names to strings; check {bad[0]!r}")
        other = PromptTemplate.from_prompts(prompts)
        return replace(
            self,
            instruct=other.instruct or self.instruct,
            query=other.query if any(n in prompts for n in _QUERY_NAMES) else self.query,
            document=other.document if any(n in prompts for n in _DOCUMENT_NAMES) else self.document,
            named={**self.named, **prompts},
        )

    def prefix(self, role: Role | str, task: Task | str | None = None) -> str:
        """Return the exact prefix for a text of the given role.

        Args:
            role: query or document.
            task: a Task; or the name of one of the checkpoint's prompts or of ``TASKS``; or an instruction, treated as
                asymmetric unless it equals that of a symmetric task in ``TASKS``; or None for the checkpoint's default.

        Raises:
            PromptError: a task was given, but the model was not trained with instructions.
        """
        role = Role(role)
        if task is None:
            return self.query if role is Role.QUERY else self.document
        if isinstance(task, str):
            if task in self.named:
                return self.named[task]
            if task in _QUERY_NAMES + _DOCUMENT_NAMES:
                raise PromptError(f"task={task!r} is the name of a role; the role follows from the method's name")
            task = TASKS.get(task) or Task(task, symmetric=_sentence(task) in _SYMMETRIC)
        elif not isinstance(task, Task):
            raise TypeError(f"task must be a Task, a string or None, not {type(task).__name__}")
        if self.instruct is None:
            own = [n for n in self.named if n not in _QUERY_NAMES + _DOCUMENT_NAMES]
            hint = f" Its own prompts, usable as task=: {', '.join(own)}." if own else ""
            raise PromptError(
                f"this model was not trained with instructions, so the task {task.instruction!r} would only add "
                f"noise.{hint} Omit task, or pass prompt=... to put your own text before each text."
            )
        if role is Role.QUERY or task.symmetric:
            return self.instruct.replace("{task}", task.instruction)
        return self.document

    def begins(self, text: str, prefix: str) -> bool:
        """Return whether a text already has the ``prefix`` it is about to get, or another instruction of its form."""
        if not prefix.strip():
            return False
        rendered = self._rendered
        instructed = rendered is not None and rendered.match(prefix) and rendered.match(text[:_LONGEST_PROMPT])
        return text.startswith(prefix) or bool(instructed)

    @cached_property
    def _rendered(self) -> re.Pattern[str] | None:
        if self.instruct is None:
            return None
        before, _, after = self.instruct.partition("{task}")
        return re.compile(rf"{re.escape(before)}.+?{re.escape(after.rstrip())}", re.DOTALL)
