"""Pairs per second of a cross-encoder beside sentence-transformers, ONNX Runtime and OpenVINO, at equal precision.

    python benchmarks/rerank.py --build FOLDER            # MiniLM with a head of one label, and its graphs
    python benchmarks/rerank.py FOLDER --precision float32     (then bfloat16, int8: rows are added to the results)
    python benchmarks/rerank.py --device cuda --precision bfloat16         (a part of make bench-gpu)

Every contestant lives in a process of its own; peers answer one caller after the other, behind a lock. Pairs are the
FAQ's questions with answers of other questions, up to 512 tokens, all different. All but sentence-transformers'
defaults have their best batch size. Repeats are interleaved, in both orders; reported are medians of nine. Then 64
callers at once, each with one pair. Without FOLDER: a BERT-base with random weights, which needs no package, so beside
CrossEncoder alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.rerank_systems import as_reranker
from benchmarks.speed_models import CPU_MODELS, REPOSITORY, build_checkpoint, train_tokenizer
from benchmarks.speed_peers import GRAPH_INT8
from benchmarks.speed_sections import noting
from benchmarks.speed_work import Contestant, interleaved, processor, running

RESULTS = Path(__file__).with_name("results")
FAQ = Path(__file__).parent / "collections" / "faq"
PAIRS, BATCH_SIZES = {"cpu": 32, "cuda": 2048}, {"cpu": (1, 4, 16), "cuda": (32, 128, 512)}
CALLERS, REPEATS = 64, 9
PACKAGES = ("torch", "transformers", "sentence-transformers", "onnxruntime", "openvino")
CONTESTANTS = {
    "float32": [
        Contestant("TwinVec fp32", "twinvec pairs", "float32", {"dtype": "float32"}),
        Contestant("CrossEncoder fp32, its defaults", "cross-encoder", "float32"),
        Contestant("CrossEncoder fp32", "cross-encoder", "float32", tune=True),
        Contestant("ONNX Runtime fp32", "onnxruntime pairs", "float32", tune=True),
        Contestant("OpenVINO fp32", "openvino pairs", "float32", {"precision": "f32"}, tune=True),
    ],
    "bfloat16": [
        Contestant("TwinVec bf16", "twinvec pairs", "bfloat16", {"dtype": "bfloat16"}),
        Contestant("CrossEncoder bf16", "cross-encoder", "bfloat16", {"dtype": "bfloat16"}, tune=True),
        Contestant("OpenVINO bf16", "openvino pairs", "bfloat16", {"precision": "bf16"}, tune=True),
    ],
    "int8": [
        Contestant("TwinVec int8", "twinvec pairs", "int8", {"dtype": "float32", "quantization": "int8"}),
        Contestant("ONNX Runtime int8", "onnxruntime pairs", "int8", {"file": GRAPH_INT8}, tune=True),
    ],
}  # fmt: skip


def faq_pairs(count: int) -> list[tuple[str, str]]:
    """Return questions, each with an answer some places on: nearly all are wrong, which costs the same."""

    def read(name: str) -> list[str]:
        return [json.loads(line)["text"] for line in (FAQ / name).read_text(encoding="utf-8").splitlines()]

    queries, answers = read("queries.jsonl"), read("corpus.jsonl")
    return [(queries[i % len(queries)], answers[(7 * i) % len(answers)]) for i in range(count)]


def measure(
    contestants: list[Contestant], folder: Path, device: str
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return a row for each contestant, and the errors of others."""
    pairs, errors = faq_pairs(PAIRS[device]), dict[str, str]()
    callers = [[pair] for pair in faq_pairs(CALLERS)]
    rows: dict[str, dict[str, Any]] = {}
    with running(contestants, folder, device, lambda: None, errors) as handles:
        for name, handle in handles.items():
            with noting(errors, name):
                if handle.contestant.tune:
                    handle.ask(None, "tune", pairs[::4], BATCH_SIZES[device])
                handle.ask(None, "timed", pairs[: len(pairs) // 2])
                rows[name] = {"precision": handle.contestant.dtype, "seconds": [], "callers": []}
                print(name, "is ready", file=sys.stderr, flush=True)
        for name, handle, _ in interleaved(handles, REPEATS):
            with noting(errors, name):
                rows[name]["seconds"].append(handle.ask(None, "timed", pairs))
                rows[name]["callers"].append(handle.ask(None, "callers", callers))
        for name, handle in handles.items():
            with noting(errors, name):
                rows[name] |= {"logits": handle.ask(None, "vectors", pairs[:16]), **handle.ask(None, "memory")}
    return {name: _row(row, len(pairs)) for name, row in rows.items() if name not in errors}, errors


def _row(row: dict[str, Any], pairs: int) -> dict[str, Any]:
    seconds, callers = statistics.median(row.pop("seconds")), statistics.median(row.pop("callers"))
    return {
        **row,
        "logits": [round(float(value), 4) for value in row["logits"][:, 0]],
        "pairs_per_s": round(pairs / seconds, 1),
        "callers_pairs_per_s": round(CALLERS / callers, 1),
        "loaded": round(row["loaded"], 2),
    }


def main() -> None:
    """Measure one precision, add it to the file, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--build", action="store_true", help="write the model, and end")
    parser.add_argument("--device", choices=list(PAIRS), default="cpu")
    parser.add_argument("--precision", choices=CONTESTANTS, default="float32")
    parser.add_argument("--output", type=Path, help="the json's file; default: in benchmarks/results")
    options = parser.parse_args()
    if options.build and options.folder is None:
        parser.error("--build writes the model into FOLDER: name it")
    if options.build:
        command = [sys.executable, "-m", "benchmarks.rerank_systems", str(options.folder)]
        subprocess.run(command, cwd=REPOSITORY, check=True)  # noqa: S603
        return
    contestants = CONTESTANTS[options.precision]
    if options.folder is None:
        contestants = [each for each in contestants if each.kind in ("twinvec pairs", "cross-encoder")]
    with tempfile.TemporaryDirectory() as temporary:
        rows, errors = measure(contestants, options.folder or _random(Path(temporary)), options.device)
    output = options.output or RESULTS / f"rerank-{options.device}.json"
    known = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {"rows": {}}
    report = {
        "machine": processor() if options.device == "cpu" else _gpu(),
        "versions": {name: metadata.version(name) for name in PACKAGES if find_spec(name.replace("-", "_"))},
        "pairs": PAIRS[options.device],
        "callers": CALLERS,
        "rows": known["rows"] | rows,
    }
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, row in rows.items():
        print(f"{name:34} {row['pairs_per_s']:7.1f} pairs/s, 64 callers {row['callers_pairs_per_s']:7.1f}")
    for name, error in errors.items():
        print(name, error, file=sys.stderr)


def _random(folder: Path) -> Path:
    """Write a cross-encoder of BERT-base's size with random weights."""
    embedder, reranker = folder / "embedder", folder / "reranker"
    embedder.mkdir()
    build_checkpoint(embedder, CPU_MODELS["bert-base"], train_tokenizer())
    as_reranker(embedder, reranker)
    return reranker


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name()


if __name__ == "__main__":
    main()
