"""Speed and memory beside sentence-transformers and LangChain's HuggingFaceEmbeddings, in one run.

    make bench                                     (or: python benchmarks/throughput.py --models gte-base --repeats 3)
    make bench-gpu                                 the same on a CUDA device, with larger sizes, within nine minutes

Models of the sizes of GTE-base, Giga-480M and Giga-3B with random weights; real text of mixed length, and texts of 128
and 512 tokens. Every contestant lives in its own process, so that its peak memory is its own; the repeats are
interleaved, so that noise of the machine hits all alike; reported are medians. The limit is the rate of a matrix
product, measured between the repeats: the model's own largest on a CPU, 8192 x 8192 x 8192 on CUDA. A section that
fails is noted and the others go on; json, tables and a plot are written after every section.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from importlib import metadata, util
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.speed_models import MODELS, REPOSITORY, train_tokenizer
from benchmarks.speed_report import ratios, render, targets, write_plot, write_tables
from benchmarks.speed_sections import CPU, CUDA, SECTIONS, TINY, Run, plan
from benchmarks.speed_work import device_name, processor

PACKAGES = ("torch", "transformers", "sentence-transformers", "langchain-huggingface", "tokenizers", "numpy")
CUDA_MINUTES = 8.5  # so that a command of ten minutes also holds the start and the tests


def main() -> None:
    """Parse arguments, run the sections, write after each."""
    began = time.monotonic()
    options = parse()
    console = Console(log_path=False, width=120)
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(options, Path(folder), began, console)
        report = describe(run, options)
        for section, model in plan(options.models):
            if section not in options.sections:
                continue
            key = f"{section} {model}"
            report["sections"][key] = perform(run, section, model)
            console.log(f"{key}: {report['sections'][key]['status']}")
            report["seconds"] = round(time.monotonic() - began, 1)
            write(report, options.output, run.device)
    console.print(render(report))
    console.print(f"{report['seconds']:.0f} s; written to {options.output}/throughput-{run.device}.*")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), help="default: gte-base on a CPU, all on CUDA")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--only", nargs="+", help="contestants whose names contain one of these words")
    parser.add_argument("--repeats", type=int, help="default: 3; 1 with --tiny")
    parser.add_argument("--texts", type=int, help="of mixed length; those of fixed length have as many tokens")
    parser.add_argument("--minutes", type=float, help="skip what is left then; default: 8.5 on CUDA, none on a CPU")
    parser.add_argument("--tiny", action="store_true", help="models and sizes that only show that it works")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks/results", help="folder for the results")
    options = parser.parse_args()
    if options.device == "auto":
        import torch

        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.minutes is None and options.device == "cuda":
        options.minutes = CUDA_MINUTES
    options.models = options.models or (list(MODELS) if options.device == "cuda" else ["gte-base"])
    return options


def prepare(options: argparse.Namespace, folder: Path, began: float, console: Console) -> Run:
    """Return what the sections share."""
    sizes = TINY if options.tiny else CUDA if options.device == "cuda" else CPU
    if options.texts:
        sizes = replace(sizes, texts=dict.fromkeys(MODELS, options.texts), host=options.texts)
    return Run(
        device=options.device,
        sizes=sizes,
        repeats=options.repeats or (1 if options.tiny else 3),
        only=options.only,
        small=options.tiny,
        deadline=None if options.minutes is None else began + 60 * options.minutes,
        folder=folder,
        tokenizer=train_tokenizer(),
        console=console,
    )


def describe(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Return a report without results."""
    asked = {name: value for name, value in vars(options).items() if name != "output"}
    versions = {name: metadata.version(name) for name in PACKAGES if util.find_spec(name.replace("-", "_"))}
    machine = {"device": device_name(run.device), "processor": processor(), "python": platform.python_version()}
    shapes = {model: vars(run.shape(model)) | {"parameters": run.shape(model).parameters} for model in options.models}
    return {
        "device": run.device, "machine": machine, "versions": versions, "options": asked, "models": shapes,
        "sections": {},
    }  # fmt: skip


def perform(run: Run, section: str, model: str) -> dict[str, Any]:
    """Run one section; whatever happens in it, return what it has measured."""
    done: dict[str, Any] = {"status": "skipped: the time is up", "seconds": 0.0, "result": {}}
    if run.late:
        return done
    start = time.monotonic()
    try:
        SECTIONS[section](run, model, done["result"])
    except Exception as error:
        done["status"], done["error"] = "failed", f"{traceback.format_exc()}\n{type(error).__name__}: {error}"
    else:
        done["status"] = "cut short: the time is up" if run.late else "done"
    done["seconds"] = time.monotonic() - start
    return done


def write(report: dict[str, Any], folder: Path, device: str) -> None:
    """Write json, tables and, where matplotlib is, the plot."""
    report["ratios"], report["targets"] = ratios(report), targets(report)
    stem = folder / f"throughput-{device}"
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    write_tables(report, stem.with_suffix(".txt"))
    if util.find_spec("matplotlib"):
        write_plot(report, stem.with_suffix(".png"))


if __name__ == "__main__":
    main()
