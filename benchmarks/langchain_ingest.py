"""Documents per second from a list of LangChain Documents to a searchable store, beside LangChain's usual classes.

    make bench-langchain                  (or: python benchmarks/langchain_ingest.py --documents 256 --repeats 5)

One dense checkpoint for all: MiniLM; or, with ``--checkpoint gte``, the one of ``throughput.py``, of GTE-base size with
a lexical head and random weights. Peers take their sparse half from sentence-transformers' SparseEncoder with a small
SPLADE; with MiniLM, one of ours takes it from there too. A run makes a new store, adds all documents and searches once;
models are loaded before. Documents are windows of real FAQ answers, all different, with the answers' lengths. Then
the LangChain layer by itself: what ``TwinVecEmbeddings`` and ``TwinVecVectorStore`` add to ``Embedder`` and
``HybridIndex``. Every contestant lives in its own process; the repeats are interleaved, so that noise of the machine
hits all alike; reported are medians.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.speed_models import CORPUS, REPOSITORY, build_checkpoint
from benchmarks.speed_work import processor
from benchmarks.splade import splade_folder

RESULTS = REPOSITORY / "benchmarks/results"
QUERY = "How do I remove duplicates from a list?"
BM25, SPLADE, HEAD = (f"TwinVecVectorStore hybrid, {half}" for half in ("BM25", "SPLADE", "own head"))
DENSE, HYBRID = "HuggingFaceEmbeddings + Qdrant dense", "HuggingFaceEmbeddings + Qdrant hybrid, SPLADE"
RATIOS = {
    "hybrid (own head) over their hybrid": (HYBRID, HEAD),
    "hybrid (own head) over their dense": (DENSE, HEAD),
    "hybrid (own head) over their dense, both fp32": (DENSE, f"{HEAD}, fp32"),
    "hybrid (BM25) over their hybrid": (HYBRID, BM25),
    "hybrid (BM25) over their dense": (DENSE, BM25),
    "hybrid over hybrid, both MiniLM and SPLADE": (HYBRID, SPLADE),
    "hybrid over hybrid, both MiniLM and SPLADE, all fp32": (HYBRID, f"{SPLADE}, fp32"),
}
LAYERS = {
    "TwinVecEmbeddings over Embedder": ("Embedder, arrays", "TwinVecEmbeddings, lists of floats"),
    "TwinVecVectorStore over HybridIndex": ("HybridIndex", "TwinVecVectorStore"),
}

PACKAGES = ("torch", "transformers", "sentence-transformers", "langchain-core", "langchain-huggingface",
            "langchain-qdrant", "qdrant-client", "qdrant-edge-py")  # fmt: skip

Run = Callable[[list[Any], Path], object]  # documents, an empty folder


def embeddings(checkpoint: str, sparse: str | None, dtype: str) -> Any:
    """Return TwinVecEmbeddings that remember no text of an earlier repeat."""
    from langchain_twinvec import TwinVecEmbeddings
    from twinvec import Embedder

    return TwinVecEmbeddings(embedder=Embedder(checkpoint, sparse=sparse, dtype=dtype, memo_bytes=0))


def twinvec(checkpoint: str, sparse: str | None, dtype: str = "auto") -> Run:
    from langchain_twinvec import TwinVecVectorStore

    made = embeddings(checkpoint, str(splade_folder()) if sparse == "splade" else sparse, dtype)

    def run(documents: list[Any], folder: Path) -> None:
        with TwinVecVectorStore.from_documents(documents, made, path=folder) as store:
            assert store.similarity_search(QUERY)

    return run


def qdrant(checkpoint: str, *, sparse: bool, on_disk: bool = False) -> Run:
    from langchain_huggingface import HuggingFaceEmbeddings
    from langchain_qdrant import QdrantVectorStore, RetrievalMode

    made = HuggingFaceEmbeddings(model_name=checkpoint, model_kwargs={"device": "cpu"})
    hybrid = {"sparse_embedding": splade(), "retrieval_mode": RetrievalMode.HYBRID} if sparse else {}

    def run(documents: list[Any], folder: Path) -> None:
        place = {"path": str(folder)} if on_disk else {"location": ":memory:"}
        store = QdrantVectorStore.from_documents(documents, made, **place, **hybrid)
        assert store.similarity_search(QUERY)
        store.client.close()

    return run


def splade() -> Any:
    """Return sentence-transformers' SparseEncoder as langchain-qdrant wants it."""
    from langchain_qdrant import SparseEmbeddings, SparseVector
    from sentence_transformers import SparseEncoder

    model = SparseEncoder(str(splade_folder()), device="cpu")

    class Splade(SparseEmbeddings):
        def embed_documents(self, texts: list[str]) -> list[SparseVector]:
            rows = (row.coalesce() for row in model.encode_document(texts))
            return [SparseVector(indices=r.indices()[0].tolist(), values=r.values().tolist()) for r in rows]

        def embed_query(self, text: str) -> SparseVector:
            return self.embed_documents([text])[0]

    return Splade()


CONTESTANTS: dict[str, Callable[[str], Run]] = {
    HEAD: lambda c: twinvec(c, "head"),
    f"{HEAD}, fp32": lambda c: twinvec(c, "head", "float32"),
    BM25: lambda c: twinvec(c, "bm25"),
    SPLADE: lambda c: twinvec(c, "splade"),
    f"{SPLADE}, fp32": lambda c: twinvec(c, "splade", "float32"),
    "TwinVecVectorStore dense": lambda c: twinvec(c, None),
    DENSE: lambda c: qdrant(c, sparse=False),
    f"{DENSE}, on disk": lambda c: qdrant(c, sparse=False, on_disk=True),
    HYBRID: lambda c: qdrant(c, sparse=True),
}
PEERS = [DENSE, f"{DENSE}, on disk", HYBRID]
OF_CHECKPOINT = {
    "minilm": [BM25, SPLADE, f"{SPLADE}, fp32", "TwinVecVectorStore dense", *PEERS],
    "gte": [HEAD, f"{HEAD}, fp32", BM25, "TwinVecVectorStore dense", *PEERS],
}


def work(name: str, checkpoint: str, documents: list[tuple[str, dict[str, Any]]], pipe: Any) -> None:
    """Serve one contestant: each message is one timed run; the answer is its seconds."""
    from langchain_core.documents import Document

    warnings.simplefilter("ignore")
    made = [Document(page_content=text, metadata=data) for text, data in documents]
    run = CONTESTANTS[name](checkpoint)

    def timed(some: list[Any]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            run(some, Path(folder) / "index")
            return time.perf_counter() - start

    timed(made[:8])
    pipe.send(None)
    while pipe.recv():
        pipe.send(timed(made))


def measure(
    checkpoint: str, documents: list[Any], names: list[str], repeats: int, console: Console
) -> dict[str, list[float]]:
    """Run all contestants interleaved; return the seconds of each run."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in names:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(name, checkpoint, documents, theirs), daemon=True)
        process.start()
        processes.append(process)
        console.log(f"loading {name}")
        ours.recv()
        pipes[name] = ours
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        # every second time in the other order: whoever runs after whom must not matter
        for name, pipe in list(pipes.items())[:: 1 if repeat % 2 == 0 else -1]:
            pipe.send(True)
            seconds[name].append(pipe.recv())
            console.log(f"repeat {repeat + 1}/{repeats}: {name}: {seconds[name][-1]:.1f} s")
    for pipe in pipes.values():
        pipe.send(False)
    for process in processes:
        process.join()
    return seconds


def measure_layers(
    checkpoint: str, documents: list[tuple[str, dict[str, Any]]], repeats: int
) -> dict[str, list[float]]:
    """Time each layer after the one below it, in this process and on one model; return the seconds of each run."""
    from langchain_core.documents import Document

    from langchain_twinvec import TwinVecVectorStore
    from twinvec_stores import HybridIndex, MemoryStore, StoreConfig

    made = embeddings(checkpoint, "bm25", "auto")
    texts, data = [text for text, _ in documents], [data for _, data in documents]
    whole = [Document(page_content=text, metadata=data) for text, data in documents]

    def index() -> HybridIndex:
        return HybridIndex(made.embedder, MemoryStore(StoreConfig.for_embedder(made.embedder)))

    runs: dict[str, Callable[[], object]] = {
        "Embedder, arrays": lambda: made.embedder.embed_documents(texts, sparse=False),
        "TwinVecEmbeddings, lists of floats": lambda: made.embed_documents(texts),
        "HybridIndex": lambda: index().add(texts, metadata=data),
        "TwinVecVectorStore": lambda: TwinVecVectorStore(made).add_documents(whole),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.embed_documents(texts[:8])
        for repeat in range(repeats):
            for name, run in list(runs.items())[:: 1 if repeat % 2 == 0 else -1]:
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    made.embedder.close()
    return seconds


def make_documents(n: int) -> list[tuple[str, dict[str, Any]]]:
    """Return n different windows of the FAQ answers' words, with the answers' lengths, and metadata."""
    answers = [json.loads(line)["text"].split(" ") for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    words = [word for answer in answers for word in answer]
    chance = random.Random(0)
    made: dict[str, dict[str, Any]] = {}
    while len(made) < n:
        length = len(chance.choice(answers))
        start = chance.randrange(len(words) - length)
        made[" ".join(words[start : start + length])] = {"source": f"faq/{start}", "words": length}
    return list(made.items())


def ratios(seconds: dict[str, list[float]], pairs: dict[str, tuple[str, str]]) -> dict[str, float]:
    """Return the median over the repeats of the seconds of the first over those of the second."""
    return {
        name: round(statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)), 3)
        for name, (slow, fast) in pairs.items()
        if slow in seconds and fast in seconds
    }


def show(
    console: Console, checkpoint: str, rows: list[dict[str, Any]], found: dict[str, float], layers: dict[str, float]
) -> None:
    """Print the tables."""
    table = Table(title=f"from a list of Documents to a searchable store, {checkpoint}, CPU; medians")
    table.add_column("", no_wrap=True)
    table.add_column("docs/s", justify="right", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["name"], str(row["documents_per_s"]), str(row["seconds"]))
    console.print(table)
    for name, value in found.items():
        console.print(f"  {name}: {value:.2f}x")
    for name, value in layers.items():
        console.print(f"  {name}: {value - 1:+.1%}")


def checkpoint_folder(name: str, folder: Path) -> str:
    """Return MiniLM's folder, or write the checkpoint of GTE-base size."""
    if name == "gte":
        build_checkpoint(folder)
        return str(folder)
    from twinvec_cli.demo import find_model

    return str(find_model())


def main() -> None:
    """Parse arguments, run, print, write json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", choices=list(OF_CHECKPOINT), default="minilm")
    parser.add_argument("--documents", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="contestants whose names contain one of these words")
    parser.add_argument("--output", type=Path, help="where the json goes")
    options = parser.parse_args()
    console = Console()
    documents = make_documents(options.documents)
    names = OF_CHECKPOINT[options.checkpoint]
    names = [n for n in names if not options.only or any(word in n for word in options.only)]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoint_folder(options.checkpoint, Path(folder))
        seconds = measure(checkpoint, documents, names, options.repeats, console)
        layer_seconds = measure_layers(checkpoint, documents, options.repeats)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    rows: list[dict[str, Any]] = [
        {"name": name, "seconds": round(median, 3), "documents_per_s": round(len(documents) / median, 1)}
        for name, median in medians.items()
    ]
    found = ratios(seconds, RATIOS)
    layers = ratios(layer_seconds, {name: (above, below) for name, (below, above) in LAYERS.items()})
    show(console, options.checkpoint, rows, found, layers)
    report = {
        "machine": {"processor": processor(), "python": platform.python_version()},
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "documents": {"n": len(documents), "words": sum(data["words"] for _, data in documents)},
        "rows": rows,
        "ratios": found,
        "layers": layers,
        "seconds": seconds,
        "layer_seconds": layer_seconds,
    }
    output = options.output or RESULTS / f"langchain-ingest-{options.checkpoint}-cpu.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    console.print(f"written to {output}")


if __name__ == "__main__":
    main()
