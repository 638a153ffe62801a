"""What vectors of tokens cost beside dense ones, and what MaxSim costs beside a cross-encoder of the same size.

And what a search takes whose third stage reads the store's vectors of tokens, beside one that embeds its candidates.

    python benchmarks/maxsim.py

A BERT-base of random weights with bge-m3's two heads, on FAQ answers; bursts are alternated, reported is the median of
the fastest third of each.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from benchmarks.rerank import faq_pairs
from benchmarks.rerank_systems import as_reranker
from benchmarks.speed_models import CPU_MODELS, build_checkpoint, train_tokenizer
from benchmarks.speed_work import processor

from twinvec import Embedder, MaxSim, Reranker, TruncationWarning
from twinvec_stores import HybridIndex, MemoryStore, StoreConfig

RESULTS = Path(__file__).with_name("results") / "maxsim-cpu.json"
TEXTS, REPEATS = 6, 12


def build(folder: Path) -> tuple[Path, Path]:
    """Write an embedder with bge-m3's heads, and a cross-encoder of the same size."""
    shape = CPU_MODELS["bert-base"]
    embedder, reranker = folder / "embedder", folder / "reranker"
    embedder.mkdir()
    build_checkpoint(embedder, shape, train_tokenizer())
    for name, width in (("sparse_linear", 1), ("colbert_linear", shape.hidden)):
        torch.save(torch.nn.Linear(shape.hidden, width).state_dict(), embedder / f"{name}.pt")
    as_reranker(embedder, reranker)
    return embedder, reranker


def seconds(call: Callable[[], object]) -> float:
    """Return what one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Measure, print, write json."""
    warnings.simplefilter("ignore", TruncationWarning)
    texts = [text for _, text in faq_pairs(TEXTS)]
    pairs = [("How do I remove duplicates from a list?", text) for text in texts]
    with tempfile.TemporaryDirectory() as place:
        for_vectors, for_pairs = build(Path(place))
        with (
            Embedder(for_vectors, memo_bytes=0) as embedder,
            Reranker(for_pairs, memo_bytes=0, dtype=embedder.spec.dtype) as reranker,
        ):
            maxsim = MaxSim(embedder)
            indexes = {
                name: HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder, token_pool=pool)))
                for name, pool in (("kept", 2), ("embedded", None))
            }
            for index in indexes.values():
                index.add(texts)
            calls: dict[str, Callable[[], object]] = {
                "dense": lambda: embedder.embed_documents(texts, sparse=False),
                "dense and multi": lambda: embedder.embed_documents(texts, sparse=False, multi=True),
                "maxsim": lambda: maxsim.score(pairs),
                "cross-encoder": lambda: reranker.score(pairs),
                **{
                    f"search, {name}": partial(index.search, pairs[0][0], k=TEXTS, rerank=maxsim, rerank_k=TEXTS)
                    for name, index in indexes.items()
                },
            }
            took: dict[str, list[float]] = {name: [] for name in calls}
            for repeat in range(REPEATS + 1):
                for name, call in list(calls.items())[:: 1 if repeat % 2 else -1]:
                    took[name].append(seconds(call))
            dtype = embedder.spec.dtype
    fastest = {name: statistics.median(sorted(each[1:])[: REPEATS // 3]) for name, each in took.items()}
    report = {
        "machine": processor(),
        "model": "BERT-base with random weights",
        "dtype": dtype,
        "texts": TEXTS,
        "seconds": {name: round(each, 4) for name, each in fastest.items()},
        "multi_over_dense": round(fastest["dense and multi"] / fastest["dense"], 3),
        "maxsim_over_cross_encoder": round(fastest["maxsim"] / fastest["cross-encoder"], 3),
        "embedded_over_kept": round(fastest["search, embedded"] / fastest["search, kept"], 1),
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
