"""Contestants, each in a process of its own, and the few lines that know about CUDA."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

from benchmarks import rerank_systems
from benchmarks.speed_models import PEER
from benchmarks.speed_peers import OnnxRuntime, OpenVino, SentenceTransformersGraph


@dataclass(frozen=True)
class Contestant:
    """A way to embed.

    Attributes:
        kind: a key of ``SYSTEMS``.
        dtype: what it computes in, which decides its limit.
        options: of the system.
        profiles: kinds of text that it takes part in; empty for all.
        most: repeats at most, for slow ones.
        tune: choose the best batch size first.
        packages: another environment's site-packages, instead of this one's.
    """

    name: str
    kind: str
    dtype: str
    options: dict[str, Any] = field(default_factory=dict)
    profiles: tuple[str, ...] = ()
    most: int = sys.maxsize
    tune: bool = False
    packages: str = ""


class TwinVec:
    """An Embedder without a memo."""

    def __init__(self, folder: str, device: str, **options: Any) -> None:
        from twinvec import Embedder

        self.embedder = Embedder(folder, device=device, memo_bytes=0, **{"sparse": None, **options})

    def embed(self, texts: list[str]) -> Vectors:
        dense = self.embedder.embed_documents(texts, prompt="").dense
        assert dense is not None
        return dense

    def query(self, text: str) -> Any:
        return self.embedder.embed_queries([text], prompt="").dense

    def stats(self) -> dict[str, Any]:
        chosen = (
            "token_budget",
            "attention",
            "load_seconds",
            "predicted_memory",
            "kernels",
            "graphs",
            "batch_fill",
            "linear",
        )
        known = self.embedder.stats()
        return {name: known.get(name) for name in chosen}


class HostOnly(TwinVec):
    """An Embedder whose model costs nothing: it returns the same random states and token weights for any text."""

    def __init__(self, folder: str, device: str, **options: Any) -> None:
        import torch

        super().__init__(folder, device, **options)
        encoder = self.embedder._core.model.encoder
        longest = max(encoder.token_budget, self.embedder.max_length)
        states = torch.randn(longest, encoder.description.hidden, dtype=encoder.dtype, device=encoder.device)
        encoder.backbone.forward = lambda batch: states[: batch.n_tokens]  # type: ignore[method-assign]
        if (head := encoder._head) is not None:
            with torch.inference_mode():
                weights = head(states)
            head.forward = lambda hidden: weights[: len(hidden)].clone()  # type: ignore[method-assign]

    def tokenize(self, texts: list[str]) -> object:
        return self.embedder._core.model.tokenizer.encode(texts)


class SentenceTransformers:
    """sentence-transformers; without a dtype, in all its defaults."""

    batch_size = 32

    def __init__(self, folder: str, device: str, dtype: str | None = None, attention: str | None = None) -> None:
        from sentence_transformers import SentenceTransformer

        chosen = {"dtype": dtype, "attn_implementation": attention}
        model_kwargs = {key: value for key, value in chosen.items() if value}
        self.model = SentenceTransformer(str(Path(folder) / PEER), device=device, model_kwargs=model_kwargs)

    def embed(self, texts: list[str]) -> Vectors:
        vectors: Vectors = self.model.encode(texts, batch_size=self.batch_size)
        return vectors

    def query(self, text: str) -> Any:
        return self.model.encode([text])

    def stats(self) -> dict[str, Any]:
        transformer: Any = self.model[0]
        return {"batch_size": self.batch_size, "attention": transformer.auto_model.config._attn_implementation}


class LangChain:
    """LangChain's HuggingFaceEmbeddings in its defaults."""

    def __init__(self, folder: str, device: str) -> None:
        from langchain_huggingface import HuggingFaceEmbeddings

        path = str(Path(folder) / PEER)
        self.model = HuggingFaceEmbeddings(model_name=path, model_kwargs={"device": device})

    def embed(self, texts: list[str]) -> Vectors:
        import numpy as np

        return np.array(self.model.embed_documents(texts), dtype=np.float32)

    def query(self, text: str) -> Any:
        return self.model.embed_query(text)

    def stats(self) -> dict[str, Any]:
        return {}


class BareForward:
    """The transformers class alone on one row of random ids, as long as the text's words; on CUDA also as a graph."""

    def __init__(self, folder: str, device: str, dtype: str, graph: bool = False) -> None:
        import torch
        from transformers import AutoModel

        options = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
        self.model = AutoModel.from_pretrained(str(Path(folder) / PEER), **options).to(device).eval()
        self.device, self.graph = device, graph
        self.replay: Callable[[], None] | None = None

    def query(self, text: str) -> Any:
        if self.graph and self.replay is None:
            self.replay = self._capture(len(text.split()))
        if self.replay is not None:
            self.replay()
        else:
            self._forward(self._ids(len(text.split())))
        synchronize(self.device)

    def stats(self) -> dict[str, Any]:
        return {}

    def _ids(self, n: int) -> Any:
        import torch

        return torch.randint(5, 1000, (1, n), device=self.device)

    def _forward(self, ids: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self.model(input_ids=ids).last_hidden_state

    def _capture(self, n: int) -> Callable[[], None]:
        import torch

        ids = self._ids(n)
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(3):
                self._forward(ids)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._forward(ids)
        replay: Callable[[], None] = graph.replay
        return replay


SYSTEMS: dict[str, Callable[..., Any]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "twinvec": TwinVec,
    "host": HostOnly,
    "sentence-transformers": SentenceTransformers,
    "sentence-transformers graph": SentenceTransformersGraph,
    "langchain": LangChain,
    "bare": BareForward,
    **rerank_systems.SYSTEMS,
}


class Worker:
    """What a contestant's process can be asked to do."""

    def __init__(self, contestant: Contestant, folder: str, device: str) -> None:
        self.device, start = device, time.perf_counter()
        self.system = SYSTEMS[contestant.kind](folder, device, **contestant.options)
        self.loaded = time.perf_counter() - start

    def timed(self, texts: list[str]) -> float:
        """Return the seconds of one call."""
        return _seconds(self.system.embed, texts)

    def callers(self, each: list[list[Any]]) -> float:
        """Return the seconds until all of so many callers have their answer, who come at once."""
        with ThreadPoolExecutor(len(each)) as callers:
            return _seconds(lambda asked: list(callers.map(self.system.embed, asked)), each)

    def vectors(self, texts: list[str]) -> Vectors:
        """Return vectors of one call."""
        vectors: Vectors = self.system.embed(texts)
        return vectors

    def queries(self, texts: list[str]) -> list[float]:
        """Return the seconds of each query, one after the other."""
        return [_seconds(self.system.query, text) for text in texts]

    def tokenized(self, texts: list[str]) -> float:
        """Return the seconds of the tokenizer alone."""
        return _seconds(self.system.tokenize, texts)

    def deviation(self, texts: list[str], others: list[str]) -> dict[str, Any]:
        """Return how much vectors depend on what a text travels with: alone, in both orders, among others."""
        import numpy as np

        alone = np.concatenate([self.system.embed([text]) for text in texts])
        n, m = len(texts), len(others)
        travels = [(texts, slice(None)), (texts[::-1], slice(None, None, -1))]
        travels += [(texts + others, slice(n)), (others + texts, slice(m, None))]
        seen = [self.system.embed(batch)[place] for batch, place in travels]
        return {
            "max_delta": max(float(np.abs(vectors - alone).max()) for vectors in seen),
            "min_cosine": min(lowest_cosine(vectors, alone) for vectors in seen),
            "bitwise": all(np.array_equal(vectors, alone) for vectors in seen),
        }

    def tune(self, texts: list[str], sizes: Sequence[int]) -> dict[int, float | None]:
        """Try batch sizes, keep the fastest; return the seconds of each, None for those that failed."""
        found: dict[int, float | None] = {}
        for size in sizes:
            self.system.batch_size = size
            try:
                self.system.embed(texts[:size])
                found[size] = self.timed(texts)
            except RuntimeError:  # out of memory
                found[size] = None
        self.system.batch_size = min((s, size) for size, s in found.items() if s is not None)[1]
        return found

    def memory(self) -> dict[str, Any]:
        """Return peak bytes of the process and of the device, and what the system says of itself."""
        return {"peak_rss": peak_rss(), "loaded": self.loaded, **device_memory(self.device), **self.system.stats()}


def lowest_cosine(a: Vectors, b: Vectors) -> float:
    """Return the lowest cosine of rows."""
    import numpy as np

    a, b = (vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True) for vectors in (a, b))
    return float((a * b).sum(axis=1).min())


def _seconds(function: Callable[[Any], object], argument: Any) -> float:
    start = time.perf_counter()
    function(argument)
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def peak_rss() -> int:
    """Return the peak bytes of this process; Linux's ``ru_maxrss`` would begin at the parent's."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_memory(device: str) -> dict[str, int]:
    """Return peak bytes of this process on a CUDA device."""
    if device != "cuda":
        return {}
    import torch

    return {"peak_reserved": torch.cuda.max_memory_reserved(), "peak_allocated": torch.cuda.max_memory_allocated()}


def device_name(device: str) -> str:
    """Return the name of the accelerator or of the processor, and its cores."""
    if device == "cuda":
        import torch

        return f"{torch.cuda.get_device_name()}, {os.cpu_count()} processor cores"
    return processor()


def processor() -> str:
    """Return the name of the processor and its cores."""
    model = ""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor()}, {os.cpu_count()} cores"


def product_rate(device: str, dtype: str, shape: tuple[int, int, int], repeats: int) -> float:
    """Return FLOP/s of [m, k] x [k, n] on random numbers: the median over the repeats."""
    import torch

    m, k, n = shape
    a, b = (torch.randn(size, k, dtype=getattr(torch, dtype), device=device) for size in (m, n))
    return 2 * m * k * n / _median_seconds(lambda: torch.nn.functional.linear(a, b), device, repeats)


def copy_rate(device: str, size: int, repeats: int) -> float:
    """Return bytes/s, read and written, of a copy of ``size`` bytes."""
    import torch

    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _median_seconds(lambda: target.copy_(source), device, repeats)


def _median_seconds(function: Callable[[], object], device: str, repeats: int) -> float:
    function()
    synchronize(device)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def serve(contestant: Contestant, folder: str, device: str, pipe: Any) -> None:
    """Run in the contestant's process: answer (method, arguments) with (None, result) or (error, None)."""
    warnings.simplefilter("ignore")
    if contestant.packages:  # nothing of this environment's has been imported yet but what benchmarks import
        sys.path[:] = [*(path for path in sys.path if "site-packages" not in path), contestant.packages]
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", "TRANSFORMERS_VERBOSITY": "error"}
    try:
        from transformers.utils import logging

        logging.disable_progress_bar()
        worker = Worker(contestant, folder, device)
    except Exception:
        pipe.send((traceback.format_exc(), None))
        return
    pipe.send((None, None))
    while (message := pipe.recv()) is not None:
        name, arguments = message
        try:
            pipe.send((None, getattr(worker, name)(*arguments)))
        except Exception:
            pipe.send((traceback.format_exc(), None))


class ContestantError(Exception):
    """A contestant raised, died or took too long; the text is its traceback."""


class Handle:
    """A contestant's process, seen from outside."""

    def __init__(self, contestant: Contestant, folder: Path, device: str) -> None:
        self.contestant = contestant
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (contestant, str(folder), device, theirs)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()  # so that a child's death is an EOFError here

    def wait(self, seconds: float | None) -> Any:
        """Return the next answer."""
        try:
            if not self._pipe.poll(seconds):
                self._process.kill()
                raise ContestantError(f"{self.contestant.name} did not answer within {seconds:.0f} s")
            error, result = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise ContestantError(f"{self.contestant.name} died, exit code {self._process.exitcode}") from None
        if error is not None:
            raise ContestantError(error)
        return result

    def ask(self, seconds: float | None, method: str, *arguments: Any) -> Any:
        """Call a method of ``Worker`` there."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe.send((method, arguments))
        return self.wait(seconds)

    def leave(self) -> None:
        """Ask the process to end."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe.send(None)

    def close(self) -> None:
        """Wait for the end of the process."""
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()


@contextlib.contextmanager
def running(
    contestants: Sequence[Contestant],
    folder: Path,
    device: str,
    left: Callable[[], float | None],
    errors: dict[str, str],
) -> Iterator[dict[str, Handle]]:
    """Start contestants one by one, so that each loads alone, and end them after; ``errors`` notes who fails."""
    handles: dict[str, Handle] = {}
    ready: dict[str, Handle] = {}
    try:
        for contestant in contestants:
            handle = handles[contestant.name] = Handle(contestant, folder, device)
            try:
                handle.wait(left())
                ready[contestant.name] = handle
            except ContestantError as error:
                errors[contestant.name] = str(error)
        yield ready
    finally:
        for handle in handles.values():
            handle.leave()
        for handle in handles.values():
            handle.close()


def interleaved(handles: dict[str, Handle], repeats: int) -> Iterator[tuple[str, Handle, int]]:
    """Give every contestant its turn in each repeat, in both orders."""
    for repeat in range(repeats):
        for name, handle in list(handles.items())[:: 1 if repeat % 2 == 0 else -1]:
            yield name, handle, repeat
