"""`twinvec search`: print ranked records for queries."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from twinvec.errors import ConfigurationError, FilterError
from twinvec_cli.console import note
from twinvec_cli.opening import readable
from twinvec_cli.options import Collection, Device, Rerank, Store, TrustRemoteCode

if TYPE_CHECKING:
    from rich.table import Table

    from twinvec_stores import Result


Mode = Literal["hybrid", "dense", "sparse"]
FusionMethod = Literal["relative", "rrf", "weighted", "dbsf"]
_QUERY = "The query; a single - reads one query per line from stdin."
_FILTER = """Only records that match: 'day>=2025-01-01', or JSON: '{"year": {"$gte": 2020}, "lang": "ru"}'."""
_COMPARISON = re.compile(r"\s*((?:\"[^\"]*\"|[^\s{}<>=!\"])+)\s*(>=|<=|!=|==|=|>|<)\s*(\S.*?)\s*")
_OPERATORS = {">=": "$gte", "<=": "$lte", "!=": "$ne", "==": "$eq", "=": "$eq", ">": "$gt", "<": "$lt"}
_MMR = "Diversify results: weight of relevance, from 0 to 1 (0.5 is common)."


def search(
    location: Store,
    query: Annotated[str, typer.Argument(metavar="QUERY", help=_QUERY)],
    k: Annotated[int, typer.Option("-k", min=1, metavar="N", help="Results per query.")] = 5,
    mode: Annotated[
        Mode | None, typer.Option(metavar="MODE", help="hybrid, dense or sparse. Default: everything the store has.")
    ] = None,
    fusion: Annotated[
        FusionMethod | None, typer.Option(metavar="NAME", help="Hybrid only: relative, rrf, weighted or dbsf.")
    ] = None,
    dense_weight: Annotated[float | None, typer.Option(metavar="X", help="Weight of the dense half.")] = None,
    sparse_weight: Annotated[float | None, typer.Option(metavar="X", help="Weight of the sparse half.")] = None,
    filter: Annotated[str | None, typer.Option(metavar="JSON", help=_FILTER)] = None,
    threshold: Annotated[float | None, typer.Option(metavar="X", help="Minimum score.")] = None,
    min_dense: Annotated[float | None, typer.Option(metavar="X", help="Minimum cosine of a record.")] = None,
    min_sparse: Annotated[float | None, typer.Option(metavar="X", help="Minimum sparse score of a record.")] = None,
    group_by: Annotated[
        str | None, typer.Option(metavar="FIELD", help="document: return documents instead of chunks; or a field.")
    ] = None,
    group_size: Annotated[int | None, typer.Option(min=1, metavar="N", help="Records of each group.")] = None,
    expand: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Show this many chunks on each side of a chunk found.")
    ] = None,
    rerank: Rerank = None,
    rerank_k: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of results to rerank; 50, or as tuned.")
    ] = None,
    mmr: Annotated[float | None, typer.Option(metavar="X", help=_MMR)] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare with all vectors instead of using the graph.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show both scores and ranks, and the matching terms.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per query.")] = False,
    task: Annotated[str | None, typer.Option(metavar="TEXT", help="An instruction, or the name of one.")] = None,
    collection: Collection = None,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Search a store with the model it was created with.

    Examples:

    [bold]twinvec search index/ "how do I sort a list?"[/bold]

    [bold]twinvec search index/ "столица России" -k 3 --mode hybrid --explain[/bold]

    [bold]twinvec search http://localhost:6333 - --json < questions.txt > found.jsonl[/bold]
    """
    from twinvec import Reranker
    from twinvec_stores import HybridIndex, load_embedder

    given: dict[str, Any] = {
        "k": k,
        "mode": mode,
        "filter": _filter(filter),
        "score_threshold": threshold,
        "min_dense": min_dense,
        "min_sparse": min_sparse,
        "group_by": group_by,
        "group_size": group_size,
        "expand": expand,
        "rerank_k": rerank_k,
        "mmr": mmr,
        "exact": exact,
        "explain": explain,
    }
    options = {name: value for name, value in given.items() if value is not None}  # the rest is the store's
    if (chosen := _fusion(fusion, dense_weight, sparse_weight)) is not None:
        options["fusion"] = chosen
    queries = _queries(query)
    with contextlib.ExitStack() as opened:
        store = opened.enter_context(readable(location, collection))
        note(f"Loading {store.config.model} ...")
        embedder = opened.enter_context(load_embedder(store, device=device, trust_remote_code=trust_remote_code))
        if rerank is not None:
            options["rerank"] = opened.enter_context(Reranker(rerank, device=device))
        found = HybridIndex(embedder, store).search_many(queries, task=task, **options)
    for text, results in zip(queries, found, strict=True):
        if as_json:
            typer.echo(json.dumps({"query": text, "results": [r.to_dict() for r in results]}, ensure_ascii=False))
        else:
            _print(text, results, explain=explain)


def _fusion(method: FusionMethod | None, dense_weight: float | None, sparse_weight: float | None) -> Any:
    from twinvec_stores import Fusion

    given = {
        "method": method,
        "dense_weight": dense_weight,
        "sparse_weight": sparse_weight,
    }
    said = {name: value for name, value in given.items() if value is not None}
    return Fusion(**said) if said else None  # type: ignore[arg-type]


def _filter(text: str | None) -> Any:
    if text is None:
        return None
    from twinvec_stores import parse_filter

    if (compared := _COMPARISON.fullmatch(text)) is not None:
        field, operator, value = compared.groups()
        return parse_filter({field: {_OPERATORS[operator]: _value(value)}})
    try:
        form = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FilterError(f"--filter: neither field>=value nor JSON ({error})") from None
    return parse_filter(form)


def _value(text: str) -> Any:
    """Return the operand: a number, true or false if it looks like one, otherwise the text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, (str, int, float)) else text


def _queries(query: str) -> list[str]:
    if query != "-":
        return [query]
    lines = typer.get_text_stream("stdin").read().splitlines()
    queries = [line for line in lines if line.strip()]
    if not queries:
        raise ConfigurationError("no queries on stdin: write one per line")
    return queries


def _print(query: str, results: Sequence[Result], *, explain: bool) -> None:
    from rich.console import Console

    console = Console()
    if not results:
        console.print(f"{query}: nothing found", markup=False, highlight=False)
        return
    console.print(_table(query, results, explain=explain))


def _table(query: str, results: Sequence[Result], *, explain: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(query, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True
    )
    table.add_column("Score", justify="right", no_wrap=True)
    table.add_column("Record", ratio=1, overflow="fold")
    if explain:
        table.add_column("Why", overflow="fold", max_width=34)
    for result in results:
        body = Text.assemble((result.record.id, "bold"), "\n", _snippet(result.context or result.record.text))
        table.add_row(f"{result.score:.3f}", body, *([_why(result)] if explain else []))
    return table


def _snippet(text: str, length: int = 220) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 4] + " ..."


def _why(result: Result) -> str:
    why = result.explanation
    assert why is not None
    lines = []
    for half, score, rank in (
        ("dense", why.dense_score, why.dense_rank),
        ("sparse", why.sparse_score, why.sparse_rank),
        ("rerank", why.rerank_score, why.rerank_rank),
    ):
        if score is not None:
            lines.append(f"{half} {score:.3f}" + (f", rank {rank}" if rank is not None else ""))
    lines += [f'"{term}" {a:.2f} x {b:.2f}' for term, a, b in why.terms[:5]]
    return "\n".join(lines)
