"""What `twinvec demo` prints."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from twinvec_cli.collection import Collection
from twinvec_cli.demo import EXPLAINED, QUESTIONS, SPARSE_WEIGHT, Search, matching_terms

if TYPE_CHECKING:
    from twinvec import Embedder

_TOP = 3
_LINES = 3  # of a snippet


def show_start(collection: Collection) -> None:
    """Say what is about to happen."""
    _print(
        f"{len(collection.documents)} answers from the Python and SQLite FAQs, {len(collection.queries)} questions.\n"
        "Dense: all-MiniLM-L6-v2. Sparse: SPLADE-tiny. Loading both ..."
    )


def show(embedder: Embedder, search: Search, load_seconds: float) -> None:
    """Print answers, the matching terms of one question, quality and times."""
    console = Console()
    _print("\nThe three best answers. A [x] marks the one that the FAQ gives to this very question.")
    for query in QUESTIONS:
        console.print(_answers(search, query, console.width))
    console.print(_terms(embedder, search))
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
    for way in search.scores:
        table.add_column(way.capitalize(), ratio=1)
    room = (width - 10) // len(search.scores)  # three columns with their borders
    rankings = [search.ranking(way, query, _TOP) for way in search.scores]
    for documents in zip(*rankings, strict=True):
        table.add_row(*(_snippet(search, query, document, room) for document in documents))
    return table


def _snippet(search: Search, query: str, document: str, width: int) -> Text:
    right = search.collection.qrels[query].get(document, 0) > 0
    text = ("[x] " if right else "") + search.collection.documents[document]
    lines = textwrap.wrap(text, width, max_lines=_LINES, placeholder=" ...")
    return Text("\n".join(lines), style="green" if right else "")


def _terms(embedder: Embedder, search: Search) -> Table:
    row = list(search.collection.queries).index(EXPLAINED)
    best = list(search.collection.documents).index(search.ranking("sparse", EXPLAINED, 1)[0])
    assert search.queries.sparse is not None
    assert search.documents.sparse is not None
    (query,) = embedder.token_weights(search.queries.sparse[[row]])
    (document,) = embedder.token_weights(search.documents.sparse[[best]])
    table = Table(
        title=Text(f"\nWhat sparse search matched: {search.collection.queries[EXPLAINED]}"),
        title_justify="left",
    )
    for name in ("Term", "In the question", "In the answer", "Product"):
        table.add_column(name, justify="left" if name == "Term" else "right")
    for term, first, second in matching_terms(query, document):
        table.add_row(Text(term, style="bold"), f"{first:.2f}", f"{second:.2f}", f"{first * second:.2f}")
    table.caption = "A learned sparse vector also weighs related words that the text itself does not contain."
    table.caption_justify = "left"
    return table


def _quality(search: Search) -> Table:
    table = Table(title=f"\nQuality over all {len(search.collection.qrels)} questions", title_justify="left")
    table.add_column("Search")
    table.add_column("nDCG@10", justify="right")
    table.add_column("Recall@10", justify="right")
    for way in search.scores:
        table.add_row(way, *(f"{value:.3f}" for value in search.quality(way)))
    return table


def _verdict(search: Search) -> str:
    dense, hybrid = search.quality("dense")[0], search.quality("hybrid")[0]
    if hybrid > dense:
        return f"hybrid = cosine + {SPARSE_WEIGHT} * sparse; the weight was chosen on other FAQs."
    return (
        f"hybrid = cosine + {SPARSE_WEIGHT} * sparse. The weight was chosen on other FAQs (Perl, Debian, R, ...), "
        "where it lifts nDCG@10 from .767 to .798; on these questions the dense model alone does better."
    )


def _times(embedder: Embedder, search: Search, load_seconds: float) -> Table:
    stats = embedder.stats()
    n_documents, n_queries = len(search.documents), len(search.queries)
    seconds = search.times
    table = Table(title=f"\nTimes ({stats['device']}, {stats['dtype']})", title_justify="left")
    table.add_column("Step")
    table.add_column("Seconds", justify="right")
    table.add_column("Rate", justify="right")
    table.add_row("load both models", f"{load_seconds:.1f}", "")
    for name, n in (("documents", n_documents), ("queries", n_queries)):
        table.add_row(f"embed {n} {name}, both halves", f"{seconds[name]:.1f}", f"{n / seconds[name]:,.0f} {name}/s")
    table.add_row(f"score {n_queries} x {n_documents}, in memory", f"{seconds['search']:.2f}", "")
    cut = int(search.documents.truncated.sum())
    table.caption = f"{cut} of {n_documents} documents were cut at {embedder.max_length} tokens."
    table.caption_justify = "left"
    return table
