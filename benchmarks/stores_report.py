"""What benchmarks/stores.py found: medians, ratios, targets, tables."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.stores_systems import CONTENDERS, EXACT, FLUSHED, HNSW, INT8, LITE, LOCAL, MATVEC, VOLATILE
from benchmarks.stores_work import MEASURES
from rich.console import Console
from rich.table import Table

# by size: the p50 of a hybrid query in ms, with a graph and exactly; recall of the dense half, and of hybrid; what the
# graph takes to build, in seconds and in times the vectors' memory
TARGETS: dict[int, dict[str, float]] = {
    100_000: {HNSW: 10, EXACT: 25, "dense": 0.99, "hybrid": 0.99},
    1_000_000: {HNSW: 15, "hybrid": 0.98, "seconds": 900, "memory": 2},
}
_MIB = 2**20


def summarise(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row per contender: medians over the repeats; recall over all queries that were asked."""
    ingested, served = measured["ingest"], measured["served"]
    rows = []
    for name in [name for name in CONTENDERS if name in ingested or name in served]:
        row: dict[str, Any] = {"name": name}
        if runs := ingested.get(name):
            rates = [run["documents"] / run["seconds"] for run in runs]
            row |= {"documents": runs[0]["documents"], "documents_per_s": round(statistics.median(rates), 1)}
            row |= {"ingests": len(runs), "ingest_memory": _mib(runs[0]["memory"])}
            parts = runs[0]["tenths"]
            row |= {"rate_of_last_tenth": round(parts[0] / parts[-1], 3)} if len(parts) == 10 else {}
            row |= {"start_memory": _mib(runs[0]["memory_before"])["rss"], "disk_ingested": runs[0]["disk"] // _MIB}
        if built := measured["optimized"].get(name):
            row |= {"optimize_s": round(built["seconds"], 1), "disk_optimized": built["disk"] // _MIB}
            row |= {"graph": built["graph"] // _MIB} if "graph" in built else {}
            row["optimize_peak"] = max(built["memory"]["peak"], built["child_peak"]) // _MIB
        if asked := served.get(name):
            row |= {"query_memory": _mib(asked["memory"]), "open_memory": _mib(asked["memory_opened"])}
            row |= {} if CONTENDERS[name].in_memory else {"open_s": round(asked["open_s"], 3)}
            row["queries"] = {measure: _medians(runs) for measure, runs in asked["measures"].items()}
        rows.append(row)
    return rows


def _medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    found = {f"{p}_ms": round(1000 * statistics.median(run[p] for run in runs), 3) for p in ("p50", "p95")}
    found["best_ms"] = round(1000 * min(run["best"] for run in runs), 3)
    found["asked"] = sum(run["asked"] for run in runs)
    if "recall" in runs[0]:
        found["recall"] = round(sum(run["recall"] * run["asked"] for run in runs) / found["asked"], 4)
        found["worst_recall"] = min(run["worst_recall"] for run in runs)
    return found


def _mib(memory: dict[str, int]) -> dict[str, int]:
    return {name: value // _MIB for name, value in memory.items()}


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the ratios that the README quotes, those that this run has the parts of."""
    by = {row["name"]: row for row in rows}

    def p50(name: str, measure: str, key: str = "p50_ms") -> float | None:
        value: float | None = by.get(name, {}).get("queries", {}).get(measure, {}).get(key)
        return value

    def ratio(above: float | None, below: float | None) -> float | None:
        return round(above / below, 2) if above and below else None

    rate = {name: row.get("documents_per_s") for name, row in by.items()}
    disk = {name: row.get("disk_optimized") for name, row in by.items()}
    found = {
        "ingest rate over qdrant-client local": ratio(rate.get(EXACT), rate.get(LOCAL)),
        "ingest rate over qdrant-client :memory:": ratio(rate.get(EXACT), rate.get(VOLATILE)),
        "ingest rate flushed every batch over qdrant-client local": ratio(rate.get(FLUSHED), rate.get(LOCAL)),
        "ingest rate over milvus-lite": ratio(rate.get(EXACT), rate.get(LITE)),
        "exact dense, share of numpy's best matvec rate": ratio(p50(MATVEC, "dense", "best_ms"), p50(EXACT, "dense")),
        "HNSW dense, times faster than exact": ratio(p50(EXACT, "dense"), p50(HNSW, "dense")),
        "int8 dense, times faster than float HNSW": ratio(p50(HNSW, "dense"), p50(INT8, "dense")),
        "int8 hybrid, times faster than float HNSW": ratio(p50(HNSW, "hybrid"), p50(INT8, "hybrid")),
        "int8 disk, times float": ratio(disk.get(INT8), disk.get(HNSW)),
    }
    for peer in (LOCAL, LITE):
        for measure in MEASURES[:3]:
            found[f"{measure}, times faster than {peer}"] = ratio(p50(peer, measure), p50(HNSW, measure))
    return {name: value for name, value in found.items() if value is not None}


def targets(data: dict[str, Any], rows: list[dict[str, Any]], found: dict[str, float]) -> list[dict[str, Any]]:
    """Return the targets for so many documents, what was measured, and whether they were met."""
    if (limits := TARGETS.get(data["documents"])) is None:
        return []
    by = {row["name"]: row for row in rows}
    checks: list[tuple[str, float | None, float, bool]] = []
    for name in (HNSW, EXACT):
        hybrid, dense = (by.get(name, {}).get("queries", {}).get(measure, {}) for measure in ("hybrid", "dense"))
        agreement = f"{name}: agreement with the exact hybrid top 10, at least"
        if name in limits:
            checks.append((f"{name}: hybrid query, p50 in ms, at most", hybrid.get("p50_ms"), limits[name], False))
        if "dense" in limits:
            checks.append((f"{name}: dense recall@10, at least", dense.get("recall"), limits["dense"], True))
        checks.append((agreement, hybrid.get("recall"), limits["hybrid"], True))
    if "seconds" in limits and (graph := by.get(HNSW, {})).get("optimize_s"):
        vectors = data["documents"] * data["dim"] * 4 / _MIB
        checks.append((f"{HNSW}: seconds to build the graph, at most", graph["optimize_s"], limits["seconds"], False))
        memory = round(graph["optimize_peak"] / vectors, 2)
        checks.append((f"{HNSW}: memory to build it over the vectors', at most", memory, limits["memory"], False))
    ingest = found.get("ingest rate over qdrant-client local")
    checks.append(("ingest rate over qdrant-client local, at least", ingest, 50.0, True))
    return [
        {"target": name, "limit": limit, "measured": value, "met": value >= limit if at_least else value <= limit}
        for name, value, limit, at_least in checks
        if value is not None
    ]


def show(console: Console, report: dict[str, Any]) -> None:
    """Print one size's tables."""
    rows, title = report["rows"], f"{report['data']['documents']:,} documents, {report['data']['kind']}"
    console.print(_writing(rows, f"{title}: writing; medians"))
    console.print("  docs/s: with validation, conversion, and the flush at the end; index, open: seconds;")
    console.print("  ingested, indexed: MiB on the disk before and after building the index")
    console.print(f"  a durable write of 4 KiB takes {report['fsync_ms']:.2f} ms here: {LOCAL} makes one per point")
    console.print(_memory(rows, f"{title}: resident memory, MiB"))
    console.print("  index: the largest process; opened: before a query; own: of queried, not mapped from files")
    console.print(_asking([row for row in rows if "queries" in row], f"{title}: one query at a time; medians"))
    console.print(f"  x: p50 against {HNSW}; found: recall@10, hybrid: of the exact hybrid top 10")
    for name, value in report["ratios"].items():
        console.print(f"  {name}: {value:.2f}x" if "share" not in name else f"  {name}: {value:.0%}")
    if not report["targets"]:
        console.print(f"  targets: they are set for {' and '.join(f'{size:,}' for size in TARGETS)} documents")
    for target in report["targets"]:
        colour, word = ("green", "met") if target["met"] else ("red", "NOT MET")
        line = f"{target['target']} {target['limit']:g}: {target['measured']:g}"
        console.print(f"  [{colour}]{word}[/{colour}]: {line}")


def _table(title: str, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    table = Table(title=title)
    for column in left + right:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return table


def _cells(row: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    return ["-" if row.get(name) is None else f"{row[name]:,}" for name in names]


def _writing(rows: list[dict[str, Any]], title: str) -> Table:
    table = _table(title, ("",), ("docs", "docs/s", "index", "open", "ingested", "indexed"))
    for row in rows:
        if row["name"] != MATVEC:
            names = ("documents", "documents_per_s", "optimize_s", "open_s", "disk_ingested", "disk_optimized")
            table.add_row(row["name"], *_cells(row, names))
    return table


def _memory(rows: list[dict[str, Any]], title: str) -> Table:
    table = _table(title, ("",), ("start", "ingested", "peak", "index", "opened", "queried", "own"))
    for row in rows:
        ingested, queried = row.get("ingest_memory", {}), row.get("query_memory", {})
        found = {"start": row.get("start_memory"), "ingested": ingested.get("rss"), "peak": ingested.get("peak")}
        found |= {"opened": row.get("open_memory", {}).get("rss")}
        found |= {"index": row.get("optimize_peak"), "queried": queried.get("rss"), "own": queried.get("anonymous")}
        table.add_row(row["name"], *_cells(found, ("start", "ingested", "peak", "index", "opened", "queried", "own")))
    return table


def _asking(rows: list[dict[str, Any]], title: str) -> Table:
    table = _table(title, ("query", ""), ("p50 ms", "p95 ms", "x", "found", "asked"))
    for measure in MEASURES:
        chosen = [row for row in rows if measure in row["queries"]]
        base = next((row["queries"][measure]["p50_ms"] for row in rows if row["name"] == HNSW), None)
        for row in chosen:
            cell = row["queries"][measure]
            times = (f"{cell['p50_ms']:.2f}", f"{cell['p95_ms']:.2f}", f"{cell['p50_ms'] / base:.1f}" if base else "-")
            found = f"{cell['recall']:.4f}" if "recall" in cell else "-"
            cells = (row["name"], *times, found, str(cell["asked"]))
            table.add_row(measure if row is chosen[0] else "", *cells, end_section=row is chosen[-1])
    return table
