"""`twinvec questions`: make questions for `twinvec eval` from your own documents."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinvec.errors import ConfigurationError
from twinvec_cli.options import Collection, Store

if TYPE_CHECKING:
    from twinvec_stores.evaluation import ChatModel, MadeQuestions

_LLM = "A chat model of LangChain to write them, such as ollama:qwen3 (pip install langchain)."
_OVERLAP = "Maximum share of words in common with the document; 1 keeps all questions."
_CAUTION = (
    "They were made from the documents, not asked by people: use them for a first comparison only, they favour lexical "
    "search. Review the file (grade 0: not answered by this document), and collect fifty real questions."
)


def questions(
    location: Store,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The csv to write.")] = Path("questions.csv"),
    n: Annotated[int, typer.Option("-n", min=1, metavar="N", help="Maximum number.")] = 100,
    llm: Annotated[str | None, typer.Option(metavar="MODEL", help=_LLM)] = None,
    max_overlap: Annotated[float, typer.Option(min=0, max=1, metavar="X", help=_OVERLAP)] = 0.8,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the choice of documents.")] = 0,
    collection: Collection = None,
) -> None:
    """Make questions from a store's documents: from link texts, titles, headings and first sentences, or by an LLM.

    Review the csv; `twinvec eval` and `twinvec tune` read it.

    Example: [bold]twinvec questions index/ -o questions.csv && twinvec eval index/ -q questions.csv --by made[/bold]
    """
    from twinvec_stores import open_store
    from twinvec_stores.evaluation import make_questions

    if out.exists():
        raise ConfigurationError(f"{out} exists and may have been reviewed: choose another file")
    model = _chat_model(llm) if llm is not None else None
    with open_store(location, collection=collection) as store:
        made = make_questions(store, n, model=model, max_overlap=max_overlap, seed=seed)
    for line in _account(made):
        typer.echo(line, err=True)
    if not made.kept:
        raise ConfigurationError(
            "no questions remain: --max-overlap 1 keeps those in the documents' own words; or use --llm"
        )
    made.write(out)
    typer.echo(_CAUTION, err=True)
    typer.echo(f"{len(made.kept)} questions in {out}")


def _chat_model(name: str) -> ChatModel:
    try:
        from langchain.chat_models import init_chat_model
    except ImportError:
        raise ConfigurationError("--llm needs LangChain: pip install langchain, and the model's own package") from None
    model: ChatModel = init_chat_model(name)
    return model


def _account(made: MadeQuestions) -> list[str]:
    kinds = Counter(question.kind for question in made.kept)
    lines = [f"{number} made from: {kind}" for kind, number in kinds.items()]
    return lines + [f"{number} left out: {reason}" for reason, number in made.dropped.items()]
