"""Every measured number of README.md and docs/numbers.md is the one in its file under benchmarks/results/.

A claim is a text with the numbers of a file in it. Each must be found in its page, and what remains of the page's
numbers after all claims are taken out is a number that nobody vouches for: it fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from twinvec_stores import Fusion

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = "README.md"
NUMBERS = "docs/numbers.md"


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


SPEED, PEERS, CALLERS, SERVED = map(read, ("throughput-cpu", "peers-cpu", "concurrency-cpu", "serving-cpu"))
LONG = read("peers-cpu-8192")["models"]["gte-base"]
STORES, MILLION, SHARES = map(read, ("stores-synthetic", "stores-synthetic-1m", "quality-shares"))
CONTEXTS, HELD_BACK = read("chunk-document"), read("chunk-held-back")
MATRYOSHKA, REAL = read("stores-matryoshka"), read("stores-real")
MINILM, GTE = read("langchain-ingest-minilm-cpu"), read("langchain-ingest-gte-cpu")


def by_name(rows: list[dict[str, Any]], **wanted: object) -> dict[str, Any]:
    (row,) = (row for row in rows if all(row.get(key) == value for key, value in wanted.items()))
    return row


def section(name: str) -> dict[str, Any]:
    result: dict[str, Any] = SPEED["sections"][f"{name} gte-base"]["result"]
    return result


def fraction(value: float) -> str:
    """0.5519 -> ".552"."""
    return f"{value:.3f}".removeprefix("0")


def share(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def difference(value: float) -> str:
    return ("–" if value < 0 else "+") + fraction(abs(value))


def speed() -> Iterator[str]:
    mixed = section("throughput")["rows"]
    assert {row["longest"] for row in mixed if row["profile"] == "mixed"} == {876}
    yield f"{mixed[0]['texts']} real FAQ answers of mixed length (up to {mixed[0]['longest']} tokens)"
    for shown, name in {
        "TwinVec bf16, dense": "TwinVec bf16, dense",
        "TwinVec bf16, dense + sparse": "TwinVec bf16, dense + sparse",
        "sentence-transformers bf16": "sentence-transformers bf16",
        "sentence-transformers bf16, best batch size (1)": "sentence-transformers bf16, best batch size",
        "TwinVec fp32, dense": "TwinVec fp32, dense",
        "sentence-transformers defaults (fp32)": "sentence-transformers defaults (fp32)",
        "HuggingFaceEmbeddings defaults (fp32)": "HuggingFaceEmbeddings defaults (fp32)",
    }.items():
        row = by_name(mixed, name=name, profile="mixed")
        memory = row["memory"]["peak_rss"] / 2**20
        yield f"| {shown} | {row['tokens_per_s']:,.0f} | {row['share']:.0%} | {memory:,.0f} MB |"
    ratios = SPEED["ratios"]
    mixed_ratios = ratios["gte-base, mixed"]
    defaults, theirs = (
        mixed_ratios[f"over {name} defaults"] for name in ("sentence-transformers", "HuggingFaceEmbeddings")
    )
    half, full = (mixed_ratios[f"over sentence-transformers, both {dtype}"] for dtype in ("bf16", "fp32"))
    best = mixed_ratios["over sentence-transformers, both bf16, its best batch size"]
    yield f"{defaults:.1f}x sentence-transformers' defaults and {theirs:.1f}x `HuggingFaceEmbeddings`'"
    yield f"at equal precision {half:.1f}x (bf16) and {full:.1f}x (fp32)"
    short, long = (ratios[f"gte-base, {n}"]["over sentence-transformers, both bf16"] for n in (128, 512))
    yield f"comes within {best:.1f}x; on texts of equal length within {short:.1f}x (128 tokens)"
    yield f"and {long:.1f}x (512 tokens)"
    yield f"Dense + sparse costs {mixed_ratios['dense + sparse, cost over dense alone']:.2f}x dense alone"
    assert section("deviation")["TwinVec bf16"]["bitwise"]
    int8, beside = (by_name(section("int8")["rows"], name=f"TwinVec {name}") for name in ("int8 weights", "bf16"))
    yield f"{int8['tokens_per_s']:,.0f} tokens/s against {beside['tokens_per_s']:,.0f}"
    mean, lowest = (fraction(section("int8")[f"{name}_cosine"]) for name in ("mean", "min"))
    yield f"the cosine to bf16 is {mean} (lowest {lowest})"
    ours, peer, alone = section("latency")["rows"]
    yield (
        f"A single query takes {ours['p50'] * 1e3:.0f} ms (bf16, p50), as with sentence-transformers "
        f"({peer['p50'] * 1e3:.0f} ms); the forward pass alone takes {alone['p50'] * 1e3:.0f} ms"
    )
    ours, peer = (row["import"] + row["load"] + row["first"] for row in section("first")["rows"])
    yield f"first vector after {ours:.1f} s; sentence-transformers after {peer:.1f} s"
    yield "torch 2.13.0+cpu" if SPEED["versions"]["torch"] == "2.13.0+cpu" else "another torch"


PEER_MODELS = {"minilm": "MiniLM", "e5-small": "e5-small", "bert-base": "BERT-base", "gte-base": "GTE-base"}
PRECISIONS = {"bf16": "bfloat16", "int8": "int8", "fp32": "float32"}


def peers() -> Iterator[str]:
    for model, shown in PEER_MODELS.items():
        for name, row in PEERS["models"][model]["rows"].items():
            peak = row["peak_rss"] / 2**20
            cells = (f"{row['tokens_per_s']:,.0f}", f"{row['p50'] * 1e3:.1f} ms", f"{peak:,.0f} MB")
            yield f"| {shown} | {name} | {' | '.join(cells)} | {fraction(row['min_cosine'])} |"
        rates = [ours / peer for ours, peer in (beside_peers("tokens_per_s", p, model) for p in PRECISIONS)]
        queries = [peer / ours for ours, peer in (beside_peers("p50", p, model) for p in PRECISIONS)]
        yield f"| {shown} | {' | '.join(f'{ratio:.2f}x' for ratio in rates + queries)} |"
    ours, peer, whole = (LONG["rows"][name] for name in ("TwinVec bf16", "OpenVINO bf16", "TwinVec fp32"))
    yield f"one text of {LONG['tokens']:,} tokens in bf16: {ours['tokens_per_s']:.0f} tokens/s against OpenVINO's"
    yield f"{peer['tokens_per_s']:.0f}, and {ours['peak_rss'] / 2**20:,.0f} MB against {peer['peak_rss'] / 2**20:,.0f}"
    yield f"{whole['peak_rss'] / 2**20:,.0f} MB; OpenVINO in fp32, and ONNX Runtime in fp32 and int8, ran out"
    assert {"ONNX Runtime fp32", "OpenVINO fp32", "ONNX Runtime int8"} == LONG["errors"].keys()


def beside_peers(measure: str, precision: str, model: str = "minilm") -> tuple[float, float]:
    """Return ours and the best peer's at a precision: tokens/s, or the p50 of a query."""
    rows = PEERS["models"][model]["rows"]
    ours = rows[f"TwinVec {precision}"][measure]
    others = [r[measure] for n, r in rows.items() if r["precision"] == PRECISIONS[precision] and "TwinVec" not in n]
    return ours, max(others) if measure == "tokens_per_s" else min(others)


def served() -> Iterator[str]:
    bare, *routes = SERVED["rates"].values()
    (slow, *_, fast), rates = sorted(row["of_bare"] for row in routes), sorted(row["per_second"] for row in routes)
    yield f"{rates[0]:.0f} to {rates[-1]:.0f} a second by its four routes"
    yield f"{share(slow)} to {share(fast)} of the bare Embedder's {bare['per_second']:.0f}"


def callers() -> Iterator[str]:
    systems = ("TwinVec, dtype auto", "TwinVec fp32", "sentence-transformers")
    for n in (1, 8, 64):
        rows = (by_name(CALLERS["load"], system=system, callers=n) for system in systems)
        cells = (f"{row['rate']:.0f}/s | {row['p95'] * 1e3:.0f} ms" for row in rows)
        yield f"| {n} | {' | '.join(cells)} |"
    beside = [by_name(CALLERS["bulk"], system=system) for system in systems]
    waits = [f"{row['p95'] * 1e3:.0f} ms" for row in beside]
    rates = [f"{row['documents_per_s']:.0f}" for row in beside]
    yield f"{waits[0]} in bf16 and {waits[1]} in fp32, against {waits[2]} for the thread pool"
    yield f"runs at {rates[2]} documents/s, ours at {rates[0]} and {rates[1]}"


def langchain() -> Iterator[str]:
    both = "hybrid over hybrid, both MiniLM and SPLADE"
    rows = [
        ("MiniLM and the same SPLADE model on both sides", MINILM, "hybrid, SPLADE", "hybrid, SPLADE", both),
        ("the same, ours in fp32 as theirs", MINILM, "hybrid, SPLADE, fp32", "hybrid, SPLADE", f"{both}, all fp32"),
        ("our hybrid with BM25, their dense alone", MINILM, "hybrid, BM25", "dense", "hybrid (BM25) over their dense"),
        (
            "GTE-base size: our own head, their SPLADE",
            GTE,
            "hybrid, own head",
            "hybrid, SPLADE",
            "hybrid (own head) over their hybrid",
        ),
    ]
    for shown, report, ours, theirs, ratio in rows:
        first = by_name(report["rows"], name=f"TwinVecVectorStore {ours}")["documents_per_s"]
        second = by_name(report["rows"], name=f"HuggingFaceEmbeddings + Qdrant {theirs}")["documents_per_s"]
        yield f"| {shown} | {first} | {second} | {report['ratios'][ratio]:.1f}x |"
    layers = MINILM["layers"]
    yield f"takes {layers['TwinVecEmbeddings over Embedder']:.2f} times the time of the bare Embedder"
    yield f"{layers['TwinVecVectorStore over HybridIndex']:.2f} times that of `HybridIndex`"


def stores() -> Iterator[str]:
    for size in [*STORES["sizes"], *MILLION["sizes"]]:
        n, rows = size["data"]["documents"], size["rows"]
        yield f"| {n:,} records |"
        for shown, name in {
            "EmbeddedStore, exact": "TwinVec exact",
            "EmbeddedStore, graph": "TwinVec HNSW",
            "EmbeddedStore, graph and int8": "TwinVec int8",
            "PostgresStore, exact": "PostgreSQL exact",
            "PostgresStore, graph": "PostgreSQL HNSW",
            "PostgresStore, graph of bits": "PostgreSQL binary",
            "milvus-lite": "milvus-lite",
            "qdrant-client, local mode": "qdrant local",
        }.items():
            row: dict[str, Any] = next((row for row in rows if row["name"] == name), {})
            if not row.get("queries") or (n == 10_000 and name == "TwinVec int8"):
                continue  # not asked in this size, or not in the table
            graph = "graph built" if name == "milvus-lite" else "built"
            built = f" ({graph} in {row['optimize_s']:.0f} s)" if "optimize_s" in row else ""
            rate = f"{row['documents_per_s']:,.0f}" if "documents_per_s" in row else "–"
            queries = row["queries"]
            found, one, fifty = (share(queries[f"hybrid{part}"]["recall"]) for part in ("", " 1%", " 50%"))
            yield f"| {shown}{built} | {rate} | {queries['hybrid']['p50_ms']:.1f} ms | {found} | {one}, {fifty} |"
            if n > 10_000:
                latencies = (queries[f"hybrid{part}"]["p50_ms"] for part in ("", " 1%", " 10%", " 50%"))
                yield f"| {shown} | {' | '.join(f'{ms:.1f} ms' for ms in latencies)} |"
    million = by_name(MILLION["sizes"][0]["rows"], name="TwinVec HNSW")
    yield f"built within {million['optimize_peak']:,} MiB"
    kept, own = (million["query_memory"][part] for part in ("rss", "anonymous"))
    yield f"{kept:,} MiB are resident, {own} of which are not mapped files"
    data = STORES["sizes"][0]["data"]
    yield f"records of {data['dim']} dims and about {data['nonzeros_per_document']:.0f} sparse terms"


def first_passes() -> Iterator[str]:
    plain = {"a folder, the vectors": "TwinVec HNSW", "PostgreSQL, the vectors": "PostgreSQL HNSW"}
    smaller = {f"a folder, `{way}`": f"TwinVec {way}" for way in ("int8", "binary")}
    smaller |= {"PostgreSQL, `binary`": "PostgreSQL binary"}
    first = {
        "a folder, `first_dim=256`": "TwinVec first_dim=256",
        "PostgreSQL, `first_dim=256`": "PostgreSQL first_dim=256",
    }
    for report, names in ((STORES, plain | smaller), (MATRYOSHKA, plain | first), (REAL, plain | smaller)):
        size = report["sizes"][-1]
        yield f"{size['data']['documents']:,} records of {size['data']['dim']} dims"
        yield f"dense vectors take {size['data']['documents'] * size['data']['dim'] * 4 / 2**20:.0f} MiB"
        yield f"{by_name(size['rows'], name='TwinVec exact')['start_memory']} MiB of which the process needs anyway"
        for shown, name in names.items():
            row = by_name(size["rows"], name=name)
            kinds = ("dense", "hybrid", "hybrid 1%", "hybrid 50%")
            dense, all_, one, fifty = (fraction(row["queries"][kind]["recall"]) for kind in kinds)
            memory, disk = row.get("graph", row["open_memory"]["rss"]), row["disk_optimized"]
            latency = f"{row['queries']['dense']['p50_ms']:.1f} ms"
            yield f"| {shown} | {memory} MiB | {disk:,} MiB | {latency} | {dense} | {all_} | {one}, {fifty} |"


def interval(found: dict[str, float]) -> str:
    middle, low, high = (difference(found[name]) for name in ("difference", "low", "high"))
    return f"{middle} ({low} to {high})"


def quality() -> Iterator[str]:
    """Hybrid is the share that the tuning halves chose, which is the default now."""
    common, kinds = SHARES["common"], SHARES["kinds"]
    assert float(common) == Fusion().sparse_weight
    for kind, found in kinds.items():
        for part in found["collections"]:
            ways = ("dense", "sparse", common, "hybrid, rrf 1:1", "hybrid, dbsf 1:1")
            values = " | ".join(fraction(part["ndcg"][way]) for way in ways)
            yield f"| {part['name']} | {kind} | {part['queries']} | {values} | {interval(part['gain of common'])} |"
    better, worse, n = significant()
    yield f"significantly better than the better half in {better} of these {n}, and significantly worse in {worse}"
    parts = [part for found in kinds.values() for part in found["collections"]]
    for way in ("rrf", "dbsf"):
        above = sum(part["ndcg"][f"hybrid, {way} 1:1"] > part["ndcg"][common] for part in parts)
        yield f"{way} 1:1 is above it in {above}"


def significant() -> tuple[int, int, int]:
    """Collections where hybrid is better, and worse, than the better half; and all."""
    gains = [part["gain of common"] for found in SHARES["kinds"].values() for part in found["collections"]]
    return sum(gain["low"] > 0 for gain in gains), sum(gain["high"] < 0 for gain in gains), len(gains)


def shares() -> Iterator[str]:
    kinds, common, default = SHARES["kinds"], share(float(SHARES["common"])), share(float(SHARES["default"]))
    for kind, found in kinds.items():
        parts = found["collections"]
        compared = [found[name] for name in ("best minus common", "common minus default", "common minus dense")]
        asked = sum(part["queries"] for part in parts)
        cells = (kind, len(parts), f"{asked:,}", share(float(found["best"])), *map(interval, compared))
        yield f"| {' | '.join(map(str, cells))} |"
    assert not any(found["best minus common"]["low"] > 0 for found in kinds.values())
    changed = {kind: found["common minus default"] for kind, found in kinds.items()}
    assert [kind for kind, found in changed.items() if found["low"] > 0] == ["SPLADE", "BM25"]
    assert not any(found["high"] < 0 for found in changed.values())
    yield f"All kinds together choose a share of {common}"
    yield f"Against {default}, the default of version 0.1.0"


def contexts() -> Iterator[str]:
    subjects, details = CONTEXTS["subjects"], CONTEXTS["details"]
    assert CONTEXTS["chunk_tokens"] == HELD_BACK["chunk_tokens"]
    yield f"chunks of {CONTEXTS['chunk_tokens']} tokens"
    yield f"{subjects['held back']['queries']} short questions about the subjects of {subjects['documents']} long"
    yield f"{details['held back']['queries']} about details of {details['documents']} long FAQ answers"
    ways = {"headings": "headings", "document": "document, weight 1"}
    yield from table_of_contexts(subjects["held back"], details["held back"], ways)
    assert HELD_BACK["subjects"]["queries"] == HELD_BACK["details"]["queries"] == HELD_BACK["subjects"]["documents"]
    yield f"on {HELD_BACK['subjects']['documents']} other manual pages"
    yield from table_of_contexts(HELD_BACK["subjects"], HELD_BACK["details"], {name: name for name in ways})


def table_of_contexts(subjects: Any, details: Any, ways: dict[str, str]) -> Iterator[str]:
    shown = {"truncated documents": "truncated", "chunks": "chunks"}
    for title, name in (shown | {f'`chunk_context="{way}"`': name for way, name in ways.items()}).items():
        found = [part[name] for part in (subjects, details)]
        cells = [fraction(row["ndcg@10"]["hybrid"]) for row in found]
        for row in found:
            if name == "truncated":
                cells.append("")
            else:
                low, high = map(difference, row["minus truncated, 95%"]["hybrid"])
                cells.append(f"{low} to {high}")
        yield f"| {title} | {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def short() -> Iterator[str]:
    """What the README takes out of all that."""
    mixed = SPEED["ratios"]["gte-base, mixed"]
    row = by_name(section("throughput")["rows"], name="TwinVec bf16, dense", profile="mixed")
    yield f"{row['tokens_per_s']:,.0f} tokens/s in bf16, {mixed['over sentence-transformers defaults']:.1f}x"
    half, full = (mixed[f"over sentence-transformers, both {dtype}"] for dtype in ("bf16", "fp32"))
    best = mixed["over sentence-transformers, both bf16, its best batch size"]
    yield f"at equal precision {half:.1f}x (bf16) and {full:.1f}x (fp32), and {best:.1f}x where"
    yield f"together cost {mixed['dense + sparse, cost over dense alone']:.2f}x dense alone"
    bulk, query = (
        [beside_peers(measure, precision) for precision in ("bf16", "int8", "fp32")]
        for measure in ("tokens_per_s", "p50")
    )
    half, eighth, whole = (f"{ours / peer:.2f}x" for ours, peer in bulk)
    yield f"bulk {half} the better of them in bf16, {eighth} in int8, {whole} in fp32"
    half, eighth, whole = (f"{ours * 1e3:.1f} ms (theirs {peer * 1e3:.1f})" for ours, peer in query)
    yield f"a query takes {half} in bf16, {eighth} in int8, {whole} in fp32"
    systems = ("TwinVec fp32", "sentence-transformers")
    ours, peer = (by_name(CALLERS["load"], system=system, callers=64) for system in systems)
    yield f"64 callers with single queries (MiniLM, fp32): {ours['rate']:.0f}/s, against {peer['rate']:.0f}/s"
    ours, peer = (by_name(CALLERS["bulk"], system=system) for system in systems)
    yield f"p95 {ours['p95'] * 1e3:.0f} ms against {peer['p95'] * 1e3:.0f} ms"
    both = "hybrid over hybrid, both MiniLM and SPLADE"
    yield f"{MINILM['ratios'][both]:.1f}x, and {MINILM['ratios'][f'{both}, all fp32']:.1f}x all in fp32"
    [size, *_] = MILLION["sizes"]
    exact, graph = (by_name(size["rows"], name=f"TwinVec {name}") for name in ("exact", "HNSW"))
    yield f"{size['data']['documents']:,} records in a folder: {exact['documents_per_s']:,.0f} documents/s in"
    slow, fast = (row["queries"]["hybrid"] for row in (exact, graph))
    yield f"hybrid queries {slow['p50_ms']:.1f} ms exact and {fast['p50_ms']:.1f} ms with a graph"
    yield f"finds {share(fast['recall'])} of the exact top ten and was built in {graph['optimize_s']:.0f} s"
    better, worse, n = significant()
    yield f"significantly better than the better half in {better} of {n} cases, and significantly worse in {worse}"
    gains = [SHARES["kinds"][kind]["common minus dense"] for kind in ("head", "SPLADE", "BM25")]
    head, splade, bm25 = (interval(gain) for gain in gains)
    yield f"{head.replace('(', '(95% interval ', 1)} with the lexical head"
    yield f"{splade} with SPLADE, {bm25} with BM25"


# what was set, not measured
CONDITIONS = {
    NUMBERS: [
        "version 0.1.0", "AMD EPYC, 2 cores", "an Intel Xeon with AMX, 2 cores",
        "top 10 of 100 + 100", "exact top 10", "nDCG@10", "in the 9 collections", "95% interval",
        "weights of the document's beginning than 1",
        "0.65 dense + 0.35 sparse, each scaled from 0 to 1", "matches 1%, 50%",
        "| 1,000,000 records, hybrid query | no filter | 1% match | 10% | 50% |",
        "| 100,000 records, hybrid query | no filter | 1% match | 10% | 50% |", "rrf 1:1", "dbsf 1:1",
    ],
    README: ["version 0.1.0", "2 shared cores", "nDCG@10"],
}  # fmt: skip
NAMES = re.compile(r"\b(bf16|fp32|int8|p50|p95|e5-small|GTE-base|BM25)\b|!\[.*?\)|`[^`]*`|\]\([^)]*\)")
CLAIMS = {
    NUMBERS: (speed, peers, callers, served, langchain, stores, first_passes, quality, shares, contexts),
    README: (short,),
}


def page(name: str) -> str:
    """Return what is about numbers in a page, its lines joined."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if name == README:
        text = text[text.index("## Numbers") : text.index("## More")]
    return re.sub(r"\s+", " ", text)


def claims(name: str) -> list[str]:
    return [claim for group in CLAIMS[name] for claim in group()]


@pytest.mark.parametrize("name", [README, NUMBERS])
def test_numbers_are_those_of_the_results(name: str) -> None:
    text = page(name)
    assert [claim for claim in claims(name) if claim not in text] == []


def unknown(text: str, name: str) -> list[str]:
    """Return what still has a digit after everything known is taken out."""
    for known in sorted([*claims(name), *CONDITIONS[name]], key=len, reverse=True):
        text = text.replace(known, " ")
    return [word for word in NAMES.sub(" ", text).split() if re.search(r"\d", word)]


@pytest.mark.parametrize("name", [README, NUMBERS])
def test_there_is_no_other_number(name: str) -> None:
    assert unknown(page(name), name) == []
    assert unknown(page(name) + " 17x as fast, 1,150 ms", name) == ["17x", "1,150"]


MEASURED = re.compile(
    r"(?<![\w.])(\d[\d,.]*x\b|\d[\d,.]* (times (as|faster)|documents/s|tokens/s|ms\b)|\.\d{3}\b|\d[\d,]*/s\b|\d[\d.]*%)"
)


def elsewhere() -> Iterator[tuple[str, str]]:
    for path in [ROOT / README, *sorted((ROOT / "docs").glob("*.md"))]:
        name = str(path.relative_to(ROOT))
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        if name == README:
            text = text[: text.index("## Numbers")]
        if name != NUMBERS:
            yield name, text


def test_no_page_measures_beside_these() -> None:
    ray = [
        ("docs/cluster.md", "6%"),
        ("docs/cluster.md", "14%"),
    ]  # tests/ray_/test_planning.py has them from their file
    assert [(name, found[0]) for name, text in elsewhere() for found in MEASURED.finditer(text)] == ray
    assert MEASURED.search("it is 1.3 times as fast")
    assert MEASURED.search("nDCG .805")
