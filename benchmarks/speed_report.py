"""From measurements to targets, tables and a plot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.speed_sections import BASE, BEST, DEFAULTS, FLASH, LANGCHAIN, OURS, OURS_SPARSE
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

_RATIOS = (  # name, slow, fast
    ("over sentence-transformers, both bf16", BASE, OURS),
    ("over sentence-transformers, both bf16, its best batch size", BEST, OURS),
    ("over sentence-transformers with flash attention, both bf16", FLASH, OURS),
    ("over sentence-transformers defaults", DEFAULTS, OURS),
    ("over HuggingFaceEmbeddings defaults", LANGCHAIN, OURS),
    ("over sentence-transformers, both fp32", DEFAULTS, "TwinVec fp32, dense"),
    ("dense + sparse, cost over dense alone", OURS_SPARSE, OURS),
)
_COLOURS = {OURS: "#1b6ca8", OURS_SPARSE: "#7fb3d5", BASE: "#c0562f", BEST: "#e8a87c", DEFAULTS: "#9a9a9a"}

Result = dict[str, Any]


def rows_of(report: Result) -> Iterator[tuple[str, Result]]:
    """Yield (model, row) of the throughput sections."""
    for key, section in report["sections"].items():
        kind, _, model = key.partition(" ")
        if kind == "throughput":
            for row in section["result"].get("rows", []):
                yield model, row


def ratios(report: Result) -> dict[str, dict[str, float]]:
    """Return, by "model, profile", how many times faster or slower."""
    seconds: dict[str, dict[str, float]] = {}
    for model, row in rows_of(report):
        seconds.setdefault(f"{model}, {row['profile']}", {})[row["name"]] = row["seconds"]
    return {
        key: {name: took[slow] / took[fast] for name, slow, fast in _RATIOS if slow in took and fast in took}
        for key, took in seconds.items()
    }


def targets(report: Result) -> list[Result]:
    """Return what was hoped for beside what was measured; None where it was not."""
    shares = {(model, row["profile"], row["name"]): row["share"] for model, row in rows_of(report)}
    mixed = ratios(report).get("gte-base, mixed", {})
    queries = {row["name"]: row for row in _section(report, "latency gte-base").get("rows", [])}
    p50 = queries.get("TwinVec bf16", {}).get("p50")
    same, best = mixed.get(_RATIOS[0][0]), mixed.get(_RATIOS[1][0])
    cost = mixed.get(_RATIOS[-1][0])
    if report["device"] == "cuda":
        wanted = [
            ("GTE-base, mixed: share of the matrix rate", shares.get(("gte-base", "mixed", OURS)), ">=", 0.60),
            ("Giga-3B, 512 tokens: share of the matrix rate", shares.get(("giga-3b", "512", OURS)), ">=", 0.70),
            ("GTE-base, mixed: times sentence-transformers, padded SDPA", same, ">=", 2.0),
            ("GTE-base, mixed: the same at its best batch size", best, ">=", 2.0),
            ("GTE-base, single query: p50 in ms", p50 and 1000 * p50, "<=", 2.0),
            ("GTE-base, mixed: dense + sparse over dense", cost, "<=", 1.05),
        ]
    else:
        defaults = mixed.get("over sentence-transformers defaults")
        wanted = [
            ("GTE-base, mixed: share of the bf16 matrix rate", shares.get(("gte-base", "mixed", OURS)), ">=", 0.70),
            ("GTE-base, mixed: times sentence-transformers' defaults", defaults, ">=", 7.0),
            ("GTE-base, mixed: times sentence-transformers, both bf16", same, ">=", 3.0),
            ("GTE-base, mixed: dense + sparse over dense", cost, "<=", 1.05),
        ]
    return [
        {"what": what, "measured": value, "relation": relation, "target": target, "met": _met(value, relation, target)}
        for what, value, relation, target in wanted
    ]


def _met(value: float | None, relation: str, target: float) -> bool | None:
    if value is None:
        return None
    return value >= target if relation == ">=" else value <= target


def _section(report: Result, key: str) -> Result:
    found: Result = report["sections"].get(key, {}).get("result", {})
    return found


def render(report: Result) -> Group:
    """Return all tables, the targets last."""
    parts: list[Any] = []
    for key, section in report["sections"].items():
        kind, _, model = key.partition(" ")
        title = f"{key}: {section['status']}, {section['seconds']:.0f} s"
        parts.append(Text(f"\n{title}", style="bold"))
        if section.get("error"):
            parts.append(Text("  " + section["error"].strip().splitlines()[-1]))
        parts += _TABLES[kind](section["result"])
        parts += [
            Text(f"  {name}: {error.strip().splitlines()[-1]}")
            for name, error in section["result"].get("errors", {}).items()
        ]
        found = {k: v for k, v in ratios(report).items() if kind == "throughput" and k.startswith(f"{model},")}
        parts += [Text(f"  {k}: {name}: {value:.2f}x") for k, v in found.items() for name, value in v.items()]
    table = _table("target", "measured", "", "target", "")
    for row in report["targets"]:
        value = "-" if row["measured"] is None else f"{row['measured']:.2f}"
        verdict = {True: "met", False: "missed", None: "not measured"}[row["met"]]
        table.add_row(row["what"], value, row["relation"], f"{row['target']:.2f}", verdict)
    return Group(*parts, Text(""), table)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=number > 0)
    return table


def _limit_tables(result: Result) -> list[Any]:
    lines = [f"  matrix product, {key}: {rate / 1e12:.3f} TFLOP/s" for key, rate in result.get("flops", {}).items()]
    if "copy_bytes" in result:
        lines.append(f"  copy, read and written: {result['copy_bytes'] / 1e9:.1f} GB/s")
    return [Text(line) for line in lines]


def _throughput_tables(result: Result) -> list[Any]:
    table = _table("", "text", "tok/s", "docs/s", "limit", "own", "RSS MB", "CUDA MB", "said", "runs")
    for row in result.get("rows", []):
        memory = row.get("memory", {})
        own = f"{row['share_own_shape']:.0%}" if "share_own_shape" in row else "-"
        rates = (f"{row['tokens_per_s']:.0f}", f"{row['documents_per_s']:.1f}", f"{row['share']:.0%}", own)
        sizes = (_megabytes(memory.get(key)) for key in ("peak_rss", "peak_reserved", "predicted_memory"))
        table.add_row(row["name"], row["profile"], *rates, *sizes, str(len(row["runs"])))
    lines = [f"  batch sizes tried by {name}, seconds: {tried}" for name, tried in result.get("tuned", {}).items()]
    lines.append(
        "  limit: share of the matrix rate; own: of the model's own shape; said: memory that TwinVec predicted"
    )
    if agreement := result.get("agreement", {}):
        lines.append(f"  lowest cosine with sentence-transformers: {min(agreement.values()):.6f}")
    return [table, *map(Text, lines)]


def _megabytes(value: float | None) -> str:
    return f"{value / 2**20:.0f}" if value else "-"


def _latency_tables(result: Result) -> list[Any]:
    table = _table("one query at a time, ms", "first", "p50", "p95")
    for row in result.get("rows", []):
        table.add_row(row["name"], *(f"{1000 * row[key]:.2f}" for key in ("cold", "p50", "p95")))
    return [table]


def _host_tables(result: Result) -> list[Any]:
    table = _table("forward pass for nothing", "text", "tok/s", "docs/s", "x limit")
    for row in result.get("rows", []):
        rates = (f"{row['tokens_per_s']:.0f}", f"{row['documents_per_s']:.0f}", f"{row['times_limit']:.2f}")
        table.add_row(row["name"], row["profile"], *rates)
    return [table, Text("  x limit: over what the device could compute at its matrix rate; below 1 it would starve")]


def _deviation_tables(result: Result) -> list[Any]:
    table = _table("a text alone and in batches", "max |delta|", "1 - min cosine", "bitwise")
    for name, found in result.items():
        if name != "errors":
            cells = (f"{found['max_delta']:.2e}", f"{1 - found['min_cosine']:.2e}", "yes" if found["bitwise"] else "no")
            table.add_row(name, *cells)
    return [table]


def _first_tables(result: Result) -> list[Any]:
    columns = ("import", "load", "first", "process")
    table = _table("fresh process, seconds", *columns)
    for row in result.get("rows", []):
        table.add_row(row["name"], *(f"{row[column]:.2f}" for column in columns))
    return [table]


def _int8_tables(result: Result) -> list[Any]:
    parts = _throughput_tables(result)
    if "min_cosine" in result:
        parts.append(Text(f"  cosine with bf16: lowest {result['min_cosine']:.5f}, mean {result['mean_cosine']:.5f}"))
    return parts


_TABLES = {
    "limit": _limit_tables,
    "throughput": _throughput_tables,
    "latency": _latency_tables,
    "host": _host_tables,
    "deviation": _deviation_tables,
    "first": _first_tables,
    "int8": _int8_tables,
}


def write_tables(report: Result, path: Path) -> None:
    """Write the tables as text."""
    with path.open("w", encoding="utf-8") as file:
        Console(file=file, width=120).print(render(report))


def write_plot(report: Result, path: Path) -> None:
    """Draw the share of the limit and tokens per second of every model and kind of text."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    cells: dict[str, dict[str, Result]] = {}
    for model, row in rows_of(report):
        if row["name"] in _COLOURS:
            label = row["profile"] if row["profile"] == "mixed" else f"{row['profile']} tokens"
            cells.setdefault(f"{model}\n{label}", {})[row["name"]] = row
    if not cells:
        return
    figure, (shares, tokens) = pyplot.subplots(
        2, 1, figsize=(max(7, 1.5 * len(cells) + 2), 8), sharex=True, layout="constrained"
    )
    width = 0.9 / max(map(len, cells.values()))
    for place, cell in enumerate(cells.values()):
        for number, (name, row) in enumerate((name, cell[name]) for name in _COLOURS if name in cell):
            x, colour = place + (number - (len(cell) - 1) / 2) * width, _COLOURS[name]
            bars = shares.bar(x, row["share"], 0.94 * width, color=colour)
            shares.bar_label(bars, [f"{row['share']:.0%}"], fontsize=7, padding=1)
            tokens.plot(x, row["tokens_per_s"], "o", color=colour)
            rate, offset = row["tokens_per_s"] / 1000, {"xytext": (0, 6), "textcoords": "offset points", "ha": "center"}
            tokens.annotate(f"{rate:.3g}k", (x, row["tokens_per_s"]), fontsize=7, **offset)
    for axis, title in ((shares, "share of the matrix rate"), (tokens, "tokens per second, log scale")):
        axis.set_ylabel(title)
        axis.spines[["top", "right"]].set_visible(False)
    shares.set_ylim(0, 1)
    shares.set_title(report["machine"]["device"], fontsize=10)
    tokens.set_yscale("log")
    tokens.margins(y=0.15)
    tokens.set_xticks(range(len(cells)), list(cells))
    shown = [name for name in _COLOURS if any(name in cell for cell in cells.values())]
    marks = [Patch(color=_COLOURS[name]) for name in shown]
    figure.legend(marks, shown, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
