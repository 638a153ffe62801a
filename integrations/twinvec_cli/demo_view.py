"""The output of `twinvec demo`."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from twinvec_cli.collection import Collection
from twinvec_cli.demo_search import WAYS, Search

if TYPE_CHECKING:
    from twinvec import BaseEmbedder

QUESTIONS = ("q0393", "q0477", "q0323", "q0424")
EXPLAINED = "q0393"  # the question whose matching terms are shown
_TOP = 3
_LINES = 3  # per snippet
_TERMS = 6


def show_start(collection: Collection) -> None:
    """Announce what is about to happen."""
    _print(
        f"{len(collection.documents)} answers from the Python and SQLite FAQs, {len(collection.queries)} questions.\n"
        "Dense: all-MiniLM-L6-v2. Sparse: BM25. Loading ..."
    )


def show(embedder: BaseEmbedder, search: Search, load_seconds: float) -> None:
    """Print answers, the matching terms of one question, quality and times."""
    console = Console()
    _print("\nThe top three answers. [x] marks the FAQ's own answer to the question.")
    for query in QUESTIONS:
        console.print(_answers(search, query, console.width))
    console.print(_terms(search))
    console.print(_quality(search))
    _print(_verdict(search))
    console.print(_times(embedder, search, load_seconds))


def _print(message: str) -> None:
    Console().print(message, markup=False, highlight=False)


def _answers(search: Search, query: str, width: int) -> Table:
    table = Table(
        title=Text(f"\n{search.collection.queries[query]}", style="bold"), title_justify="left", show_lines=True,
        expand=True,
    )  # fmt: skip
    for way in WAYS:
        table.add_column(way.capitalize(), ratio=1)
    room = (width - 10) // len(WAYS)  # three columns with their borders
    rankings = [search.ranking(way, query)[:_TOP] for way in WAYS]
    for documents in zip(*rankings, strict=True):
        table.add_row(*(_snippet(search, query, document, room) for document in documents))
    return table


def _snippet(search: Search, query: str, document: str, width: int) -> Text:
    right = search.collection.qrels[query].get(document, 0) > 0
    text = ("[x] " if right else "") + search.collection.documents[document]
    lines = textwrap.wrap(text, width, max_lines=_LINES, placeholder=" ...")
    return Text("\n".join(lines), style="green" if right else "")


def _terms(search: Search) -> Table:
    why = search.found["sparse"][EXPLAINED][0].explanation
    assert why is not None
    table = Table(
        title=Text(f"\nTerms matched by sparse search: {search.collection.queries[EXPLAINED]}"),
        title_justify="left",
    )
    for name in ("Term", "In the question", "In the answer", "Product"):
        table.add_column(name, justify="left" if name == "Term" else "right")
    for term, first, second in why.terms[:_TERMS]:
        table.add_row(Text(term, style="bold"), f"{first:.2f}", f"{second:.2f}", f"{first * second:.2f}")
    table.caption = "BM25 compares word stems: rare terms count more, long answers count less."
    table.caption_justify = "left"
    return table


def _quality(search: Search) -> Table:
    table = Table(title=f"\nQuality over all {len(search.collection.qrels)} questions", title_justify="left")
    table.add_column("Search")
    table.add_column("nDCG@10", justify="right")
    table.add_column("Recall@10", justify="right")
    for way in WAYS:
        table.add_row(way, *(f"{value:.3f}" for value in search.quality(way)))
    return table


def _verdict(search: Search) -> str:
    dense, hybrid = search.quality("dense")[0], search.quality("hybrid")[0]
    how = "Hybrid is 0.65 dense + 0.35 sparse, each scaled from 0 to 1; the weights were chosen on other collections."
    if hybrid > dense:
        return how
    return (
        f"{how} On these questions dense search alone is a little better; on the Russian, Chinese and English "
        "collections of benchmarks/quality.py hybrid search is."
    )


def _times(embedder: BaseEmbedder, search: Search, load_seconds: float) -> Table:
    stats, report = embedder.stats(), search.report
    n = len(search.collection.queries)
    table = Table(title=f"\nTimes ({stats['device']}, {stats['dtype']})", title_justify="left")
    table.add_column("Step")
    table.add_column("Seconds", justify="right")
    table.add_column("Rate", justify="right")
    table.add_row("load the model", f"{load_seconds:.1f}", "")
    table.add_row(
        f"ingest {report.records} documents",
        f"{report.seconds:.1f}",
        f"{report.records / report.seconds:,.0f} documents/s",
    )
    embedded, *ready = WAYS
    table.add_row(f"embed and search {n} questions, {embedded}", f"{search.seconds[embedded]:.1f}", "")
    for way in ready:
        table.add_row(
            f"search {n} questions, {way}", f"{search.seconds[way]:.2f}", f"{n / search.seconds[way]:,.0f} questions/s"
        )
    size = f"{search.info.bytes / 1e6:.1f} MB on disk" if search.info.bytes is not None else ""
    table.caption = f"{report.truncated} documents were cut at {embedder.max_length} tokens. The store: {size}."
    table.caption_justify = "left"
    return table
