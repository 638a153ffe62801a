"""The sections of the benchmark: each measures one thing of one model, and fills a dictionary as it goes."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.speed_models import MODELS, REPOSITORY, Shape, build_checkpoint, count, mixed, of_lengths, tiny
from benchmarks.speed_work import Contestant, ContestantError, Handle, copy_rate, lowest_cosine, product_rate, running
from rich.console import Console

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BASE, BEST = "sentence-transformers bf16", "sentence-transformers bf16, best batch size"
FLASH, DEFAULTS = "sentence-transformers bf16, flash attention", "sentence-transformers defaults (fp32)"
OURS, OURS_SPARSE, LANGCHAIN = (
    "TwinVec bf16, dense",
    "TwinVec bf16, dense + sparse",
    "HuggingFaceEmbeddings defaults (fp32)",
)
LENGTHS = (128, 512)
_GRACE = 10.0  # seconds for a small question, also when the time is up
_BLOCK = 20  # queries in a row, before the next contestant's turn
_CPU_ROWS, _CUDA_ROWS = 2048, 16384  # tokens of a forward pass: rows of the model's own products


@dataclass(frozen=True)
class Sizes:
    """How much work there is.

    Attributes:
        texts: of mixed length, by model; the texts of fixed length have as many tokens.
        batch_sizes: that sentence-transformers may choose from.
        queries, warm_up: of the latency section; the first of them is the cold one.
        probes: texts of the deviation and quantization sections.
        host: texts of the host section.
        starts: fresh processes.
    """

    texts: dict[str, int]
    batch_sizes: tuple[int, ...]
    queries: int
    warm_up: int
    probes: int
    host: int
    starts: int


CPU = Sizes({"gte-base": 64, "giga-480m": 16, "giga-3b": 4}, (1, 8, 32), 60, 5, 16, 2000, 3)
CUDA = Sizes({"gte-base": 4096, "giga-480m": 2048, "giga-3b": 1024}, (32, 128, 512), 200, 20, 64, 4096, 2)
TINY = Sizes(dict.fromkeys(MODELS, 8), (4, 8), 4, 1, 4, 16, 1)


@dataclass
class Run:
    """One run of the benchmark: what was asked for, and what all sections share."""

    device: str
    sizes: Sizes
    repeats: int
    only: list[str] | None
    small: bool
    deadline: float | None
    folder: Path
    tokenizer: Tokenizer
    console: Console
    _built: dict[str, Path] = field(default_factory=dict)
    _texts: dict[int, dict[str, list[str]]] = field(default_factory=dict)

    def left(self) -> float | None:
        """Return the seconds that are left, None for no limit."""
        return None if self.deadline is None else max(self.deadline - time.monotonic(), 0)

    @property
    def late(self) -> bool:
        """Return whether the time is up."""
        return self.left() == 0

    def shape(self, model: str) -> Shape:
        """Return the size of a model in this run."""
        return tiny(MODELS[model]) if self.small else MODELS[model]

    def checkpoint(self, model: str) -> Path:
        """Return the folder of a model, written on first use."""
        if model not in self._built:
            start = time.perf_counter()
            folder = self.folder / model
            folder.mkdir()
            build_checkpoint(folder, self.shape(model), self.tokenizer)
            self._built[model] = folder
            self.console.log(f"{model}: checkpoint written in {time.perf_counter() - start:.1f} s")
        return self._built[model]

    def profiles(self, n: int) -> dict[str, list[str]]:
        """Return n texts of mixed length, and for each fixed length texts of as many tokens."""
        if n not in self._texts:
            made = {"mixed": mixed(n)}
            tokens = sum(count(made["mixed"], self.tokenizer))
            for length in LENGTHS:
                made[str(length)] = of_lengths([length] * max(tokens // length, 2), self.tokenizer)
            self._texts[n] = made
        return self._texts[n]

    def chosen(self, contestants: list[Contestant]) -> list[Contestant]:
        """Return those that the caller asked for."""
        return [c for c in contestants if not self.only or any(word in c.name for word in self.only)]

    def rates(self, shape: Shape, dtypes: set[str]) -> dict[str, float]:
        """Return FLOP/s by dtype: of the model's largest product, on CUDA also of 8192 x 8192 x 8192."""
        cuda, rows = self.device == "cuda", 64 if self.small else _CPU_ROWS
        own = (_CUDA_ROWS if cuda else rows, shape.hidden, shape.intermediate)
        if not cuda:
            return {dtype: product_rate("cpu", dtype, own, 15) for dtype in dtypes}
        found = {dtype: product_rate("cuda", dtype, (8192, 8192, 8192), 10) for dtype in dtypes}
        return found | {f"{dtype}, own shape": product_rate("cuda", dtype, own, 10) for dtype in dtypes}


Result = dict[str, Any]


def limit(run: Run, model: str, result: Result) -> None:
    """Measure the rates that no model can pass."""
    result["flops"] = run.rates(run.shape(model), {"bfloat16", "float32"})
    size = 2**20 if run.small else 2**30 if run.device == "cuda" else 2**27
    result["copy_bytes"] = copy_rate(run.device, size, 10)


def contestants(shape: Shape, device: str) -> list[Contestant]:
    """Return who takes part in the throughput section; on a CPU the slow ones in part of it."""
    bf16, cpu = {"dtype": "bfloat16"}, device == "cpu"
    part = ("mixed",) if cpu else ()
    equal = {**bf16, "attention": "sdpa"}
    found = [Contestant(OURS, "twinvec", "bfloat16", bf16)]
    if shape.has_head:
        found.append(Contestant(OURS_SPARSE, "twinvec", "bfloat16", {**bf16, "sparse": "head"}, part))
    found.append(Contestant(BASE, "sentence-transformers", "bfloat16", equal))
    found.append(Contestant(BEST, "sentence-transformers", "bfloat16", equal, part, tune=True))
    if device == "cuda" and (importlib.util.find_spec("flash_attn") or importlib.util.find_spec("kernels")):
        flash = {**bf16, "attention": "flash_attention_2"}
        found.append(Contestant(FLASH, "sentence-transformers", "bfloat16", flash, tune=True))
    if shape.dtype == "float32":
        found.append(Contestant(DEFAULTS, "sentence-transformers", "float32", {}, ("mixed",), most=2))
        if cpu:
            found.append(Contestant("TwinVec fp32, dense", "twinvec", "float32", {"dtype": "float32"}, part))
            if importlib.util.find_spec("langchain_huggingface"):
                found.append(Contestant(LANGCHAIN, "langchain", "float32", {}, part, most=1))
    return found


def throughput(run: Run, model: str, result: Result) -> None:
    """Time all contestants interleaved on every kind of text; the limit is measured between the repeats."""
    shape, errors = run.shape(model), result.setdefault("errors", {})
    rows = result.setdefault("rows", [])
    profiles = run.profiles(run.sizes.texts[model])
    takers = run.chosen(contestants(shape, run.device))
    with running(takers, run.checkpoint(model), run.device, run.left, errors) as handles:
        for name, handle in handles.items():
            if handle.contestant.tune:
                sample = profiles["mixed"][: max(len(profiles["mixed"]) // 2, 1)]
                with noting(errors, name):
                    result.setdefault("tuned", {})[name] = handle.ask(
                        run.left(), "tune", sample, [size for size in run.sizes.batch_sizes if size <= len(sample)]
                    )
        for profile, texts in profiles.items():
            if not run.late:
                entrants = {n: h for n, h in handles.items() if profile in (h.contestant.profiles or profiles)}
                rows += _race(run, shape, profile, texts, entrants, errors)
        if not run.late:
            result["agreement"] = _agreement(run, handles, profiles["mixed"], errors)


@contextlib.contextmanager
def noting(errors: dict[str, str], name: str) -> Iterator[None]:
    """Note a contestant's failure and go on."""
    try:
        yield
    except ContestantError as error:
        errors[name] = str(error)


def _race(
    run: Run, shape: Shape, profile: str, texts: list[str], entrants: dict[str, Handle], errors: dict[str, str]
) -> list[Result]:
    lengths = count(texts, run.tokenizer)
    seconds: dict[str, list[float]] = {name: [] for name in entrants}
    rates: dict[str, list[float]] = {}
    for name, handle in entrants.items():
        with noting(errors, name):
            handle.ask(run.left(), "timed", texts if run.device == "cuda" else texts[:4])
    for repeat in range(run.repeats):
        # every second time in the other order: whoever runs after whom must not matter
        for name, handle in list(entrants.items())[:: 1 if repeat % 2 == 0 else -1]:
            if name in errors or run.late or repeat >= handle.contestant.most:
                continue
            for key, rate in run.rates(shape, {e.contestant.dtype for e in entrants.values()}).items():
                rates.setdefault(key, []).append(rate)
            with noting(errors, name):
                seconds[name].append(handle.ask(run.left(), "timed", texts))
                run.console.log(f"{shape.name}, {profile}, repeat {repeat + 1}: {name}: {seconds[name][-1]:.2f} s")
    median = {key: statistics.median(values) for key, values in rates.items()}
    rows = []
    for name, runs in seconds.items():
        if not runs:
            continue
        took, dtype = statistics.median(runs), entrants[name].contestant.dtype
        flops = shape.flops(lengths)
        row = {"profile": profile, "name": name, "dtype": dtype, "runs": runs, "seconds": took, "texts": len(texts)}
        row |= {"tokens": sum(lengths), "longest": max(lengths), "limit": median[dtype], "flops": flops}
        row |= {"tokens_per_s": sum(lengths) / took, "documents_per_s": len(texts) / took}
        row["share"] = flops / took / median[dtype]
        if f"{dtype}, own shape" in median:
            row["share_own_shape"] = flops / took / median[f"{dtype}, own shape"]
        if name not in errors:
            with noting(errors, name):
                row["memory"] = entrants[name].ask(_GRACE, "memory")
        rows.append(row)
    return rows


def _agreement(run: Run, handles: dict[str, Handle], texts: list[str], errors: dict[str, str]) -> dict[str, float]:
    """Return each one's lowest cosine with sentence-transformers in its most exact dtype: all compute the same."""
    probes, vectors = sorted(texts, key=len)[:4], {}
    for name, handle in handles.items():
        if name not in errors:
            with noting(errors, name):
                vectors[name] = handle.ask(run.left(), "vectors", probes)
    reference = next((vectors[name] for name in (DEFAULTS, BASE) if name in vectors), None)
    if reference is None:
        return {}
    return {name: lowest_cosine(found, reference) for name, found in vectors.items()}


def latency(run: Run, model: str, result: Result) -> None:
    """Time single queries, one by one: the first of a fresh process, and then many; in turns."""
    sizes, bf16 = run.sizes, {"dtype": "bfloat16"}
    queries = of_lengths([8 + i % 9 for i in range(sizes.queries + sizes.warm_up + 1)], run.tokenizer)
    lengths = count(queries, run.tokenizer)
    takers = [
        Contestant("TwinVec bf16", "twinvec", "bfloat16", bf16),
        Contestant(BASE, "sentence-transformers", "bfloat16", {**bf16, "attention": "sdpa"}),
        Contestant("forward pass alone, bf16", "bare", "bfloat16", bf16),
    ]
    if run.device == "cuda":
        takers.append(Contestant("forward pass alone, bf16, one graph", "bare", "bfloat16", {**bf16, "graph": True}))
    seconds: dict[str, list[float]] = {}
    errors, rows = result.setdefault("errors", {}), result.setdefault("rows", [])
    with running(run.chosen(takers), run.checkpoint(model), run.device, run.left, errors) as handles:
        for start in [0, *range(1, len(queries), _BLOCK)]:
            stop = 1 if start == 0 else start + _BLOCK
            for name, handle in handles.items():
                words = [" ".join("x" * n) for n in lengths]
                asked = (words if handle.contestant.kind == "bare" else queries)[start:stop]
                if name not in errors:
                    with noting(errors, name):
                        seconds.setdefault(name, []).extend(handle.ask(run.left(), "queries", asked))
    for name, found in seconds.items():
        warm = found[1 + sizes.warm_up :]
        if len(warm) > 1:
            cuts = statistics.quantiles(warm, n=20, method="inclusive")
            rows.append(
                {"name": name, "cold": found[0], "p50": statistics.median(warm), "p95": cuts[-1], "n": len(warm)}
            )


def host(run: Run, model: str, result: Result) -> None:
    """Measure what the host can feed when the forward pass costs nothing."""
    shape = run.shape(model)
    bf16 = {"dtype": "bfloat16"}
    takers = [Contestant("dense", "host", "bfloat16", bf16)]
    if shape.has_head:
        takers.append(Contestant("dense + sparse", "host", "bfloat16", {**bf16, "sparse": "head"}))
    errors, rows = result.setdefault("errors", {}), result.setdefault("rows", [])
    result["limit"] = run.rates(shape, {"bfloat16"})["bfloat16"]
    with running(takers, run.checkpoint(model), run.device, run.left, errors) as handles:
        for profile, texts in run.profiles(run.sizes.host).items():
            lengths = count(texts, run.tokenizer)
            asked = [(name, handle, "timed") for name, handle in handles.items()]
            asked += [("tokenizer alone", handle, "tokenized") for handle in list(handles.values())[:1]]
            seconds: dict[str, list[float]] = {}
            for _ in range(run.repeats + 1):
                for name, handle, method in asked:
                    with noting(errors, name):
                        seconds.setdefault(name, []).append(handle.ask(run.left(), method, texts))
            for name, found in seconds.items():
                took = statistics.median(found[1:])
                row = {"profile": profile, "name": name, "seconds": took, "runs": found[1:], "texts": len(texts)}
                row |= {"tokens_per_s": sum(lengths) / took, "documents_per_s": len(texts) / took}
                row["times_limit"] = shape.flops(lengths) / took / result["limit"]
                rows.append(row)


def deviation(run: Run, model: str, result: Result) -> None:
    """Measure how much a vector depends on what its text travels with."""
    texts = mixed(2 * run.sizes.probes)
    bf16 = {"dtype": "bfloat16"}
    takers = [
        Contestant("TwinVec bf16", "twinvec", "bfloat16", bf16),
        Contestant("TwinVec fp32", "twinvec", "float32", {"dtype": "float32"}),
        Contestant("TwinVec bf16, reproducible", "twinvec", "bfloat16", {**bf16, "reproducible": True}),
        Contestant(BASE, "sentence-transformers", "bfloat16", {**bf16, "attention": "sdpa"}),
    ]
    errors = result.setdefault("errors", {})
    with running(run.chosen(takers), run.checkpoint(model), run.device, run.left, errors) as handles:
        for name, handle in handles.items():
            with noting(errors, name):
                result[name] = handle.ask(run.left(), "deviation", texts[::2], texts[1::2])


def int8(run: Run, model: str, result: Result) -> None:
    """Measure weight-only int8 beside bf16: speed, memory, lowest and mean cosine."""
    import numpy as np

    names = ("TwinVec bf16", "TwinVec int8 weights")
    options = ({"dtype": "bfloat16"}, {"dtype": "bfloat16", "quantization": "int8"})
    takers = [Contestant(n, "twinvec", "bfloat16", o) for n, o in zip(names, options, strict=True)]
    texts, shape = mixed(run.sizes.texts[model]), run.shape(model)
    errors = result.setdefault("errors", {})
    with running(takers, run.checkpoint(model), run.device, run.left, errors) as handles:
        result["rows"] = _race(run, shape, "mixed", texts, handles, errors)
        vectors = {}
        for name, handle in handles.items():
            with noting(errors, name):
                vectors[name] = handle.ask(run.left(), "vectors", texts[: run.sizes.probes])
    if len(vectors) == len(names):
        exact, rounded = (vectors[name] for name in names)
        result["min_cosine"] = lowest_cosine(exact, rounded)
        result["mean_cosine"] = float(
            np.mean([lowest_cosine(a[None], b[None]) for a, b in zip(exact, rounded, strict=True)])
        )


def first(run: Run, model: str, result: Result) -> None:
    """Time fresh processes from their start to the first vector."""
    folder, rows = run.checkpoint(model), result.setdefault("rows", [])
    script = REPOSITORY / "benchmarks/speed_first.py"
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(run.sizes.starts):
        for system in ("twinvec", "sentence-transformers"):
            command = [sys.executable, str(script), system, str(folder), run.device]
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, timeout=run.left(), check=False)  # noqa: S603
            whole = time.perf_counter() - start
            if done.returncode:
                raise ContestantError(done.stderr)
            found.setdefault(system, []).append(json.loads(done.stdout.splitlines()[-1]) | {"process": whole})
    for system, times in found.items():
        rows.append({"name": system, **{key: statistics.median(t[key] for t in times) for key in times[0]}})


SECTIONS: dict[str, Callable[[Run, str, Result], None]] = {
    function.__name__: function for function in (limit, throughput, latency, host, deviation, first, int8)
}


def plan(models: Sequence[str]) -> list[tuple[str, str]]:
    """Return (section, model) in the order of importance: a limit of time cuts off the end."""
    main, others = models[0], models[1:]
    made = [(section, main) for section in ("limit", "throughput", "latency", "host")]
    made += [("throughput", model) for model in reversed(others)]
    made += [(section, main) for section in ("deviation", "int8", "first")]
    return made + [(section, model) for section in ("int8", "latency") for model in reversed(others)]
