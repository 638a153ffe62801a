"""Kill -9 a re-embedding again and again while readers query, resume it, and compare the store with a fresh one.

    python tests/kill_reembed.py --documents 20000 --kills 10 [--engine postgres]

Two rounds: a store gets another model; its documents change (changed, gone and new ones), and it goes back to the model
before. Each child process is killed after a number of store operations drawn at random; a third of them are given a
random time after that, so that the blow may fall anywhere, also into the switch. Of PostgreSQL the server is killed,
too, every other time. Meanwhile readers open the store, search it, and compute what the model that it names must find.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from killing import CONTEXT, WORDS, Operations, compare, main, run_and_kill, write_corpus
from reference.gte import build_gte
from stores import milvus
from stores.postgres import KilledServer
from stores.qdrant_server import QdrantServer
from twinvec import Embedder
from twinvec.errors import StoreEngineError
from twinvec_stores import DenseQuery, HybridStore, Reembedding, SparseQuery, StoreConfig, open_store, reembedding
from twinvec_stores.ingestion import ingest
from twinvec_stores.records import StoreQuery

OPERATIONS = ("scroll", "get", "upsert", "delete", "flush")
WRITES = ("upsert", "delete")
READERS, HITS = 2, 5
PAUSE = 0.05  # seconds between looks, which leave the machine to the others


@dataclass(frozen=True)
class Place:
    """Where a store is; on a server it is a collection."""

    location: str
    server: dict[str, str] = field(default_factory=dict)

    def open(self, config: StoreConfig | None = None, *, read_only: bool = False) -> HybridStore:
        """Open it; a server takes readers and writers alike."""
        return open_store(self.location, config, read_only=read_only and not self.server, **self.server)


def fill(corpus: Path, model: Path, place: Place) -> None:
    """Ingest a version of the corpus; what it lacks is deleted."""
    with (
        Embedder(model, dtype="float32") as embedder,
        place.open(StoreConfig.for_embedder(embedder)) as store,
    ):
        ingest(corpus, embedder, store, chunk_tokens=40, overlap_tokens=8, prune=True, prune_share=1)


def reembed(place: Place, model: Path, page: int, operations: Operations) -> None:
    """Let another model serve, unless it does already; the report is whether it had to be."""
    reembedding._PAGE = page
    with Embedder(model, dtype="float32") as embedder:
        with place.open(read_only=True) as store:
            serves = store.config.fingerprint == embedder.spec.fingerprint
        if not serves:
            operations.watch(HybridStore, OPERATIONS)
            work = Reembedding(place.location, embedder, **place.server)
            work.run()
            work.switch()
    operations.end(not serves)


def read(place: Place, models: list[Path], seed: int, *, is_killed: bool, teller: Connection, ended: Any) -> None:
    """Look at a store until ``ended``, and once after that; tell how often each model was found."""
    rng, found = random.Random(seed), Counter[str]()
    with contextlib.ExitStack() as opened:
        loaded = [opened.enter_context(Embedder(model, dtype="float32")) for model in models]
        embedders = {embedder.spec.fingerprint: embedder for embedder in loaded}
        is_last = False
        while not is_last:
            is_last = ended.wait(PAUSE)
            try:
                with place.open(read_only=True) as store:
                    embedder = embedders[store.config.fingerprint]
                    look(store, embedder, rng)
                found[embedder.spec.model] += 1
            except StoreEngineError:
                if not is_killed or is_last:
                    raise
            if found.total() == 1:
                teller.send(None)  # it reads
        teller.send(found)


def look(store: HybridStore, embedder: Embedder, rng: random.Random) -> None:
    """Search, and compare records and scores with what the model makes of their texts."""
    question = embedder.embed_queries([" ".join(rng.choices(WORDS, k=4))])
    assert question.dense is not None
    assert question.sparse is not None
    queries: list[StoreQuery] = [DenseQuery(question.dense[0]), SparseQuery(question.sparse[0])]
    rankings = store.search(queries, limit=HITS)
    assert len(rankings[0]) == HITS
    scores = [{hit.id: hit.score for hit in hits} for hits in rankings]
    records = store.get([*scores[0] | scores[1]], with_vectors=True)
    expected = embedder.embed_documents([record.text for record in records])
    assert expected.dense is not None
    assert expected.sparse is not None
    weights = question.sparse[0].to_dict()
    for row, record in enumerate(records):
        assert record.dense is not None
        np.testing.assert_allclose(record.dense, expected.dense[row], atol=1e-5)
        if record.id in scores[0]:
            assert abs(scores[0][record.id] - float(question.dense[0] @ expected.dense[row])) < 1e-4
        if record.id in scores[1]:
            document = expected.sparse[row].to_dict()
            score = sum(weight * document.get(key, 0) for key, weight in weights.items())
            assert abs(scores[1][record.id] - score) < 1e-3


@contextmanager
def readers(place: Place, models: list[Path], told: list[str], *, is_killed: bool) -> Iterator[None]:
    """Let processes read meanwhile, and tell what they saw: both models, and never a mixture."""
    ended = CONTEXT.Event()
    started = []
    for seed in range(READERS):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        options = {"is_killed": is_killed, "teller": sender, "ended": ended}
        process = CONTEXT.Process(target=read, args=(place, models, seed), kwargs=options)
        process.start()
        sender.close()
        started.append((process, receiver))
    try:
        for _, receiver in started:
            receiver.recv()
        yield
    finally:
        ended.set()
        for process, _ in started:
            process.join()
    for _, receiver in started:
        found = receiver.recv()  # or it ended with the error that it has printed
        assert len(found) == len(models), found
        told.append(f"a reader found {' and '.join(f'{Path(name).name} {n} times' for name, n in found.items())}")


@contextmanager
def engine_of(name: str, folder: Path) -> Iterator[tuple[Callable[[str], Place], KilledServer | None]]:
    """Give the places of stores, and the server if it is one that may be killed."""
    with contextlib.ExitStack() as opened:
        if name == "embedded":
            yield lambda store: Place(str(folder / store)), None
            return
        killed = KilledServer() if name == "postgres" else None
        if killed is not None:
            opened.callback(killed.stop)
            url = killed.url
        elif name == "qdrant":
            server = QdrantServer()
            opened.callback(server.close)
            url = server.url
        else:
            url = milvus.url()
        own = milvus.new_name()
        yield lambda store: Place(url, {"collection": f"{own}_{store}"}), killed


def rounds(
    folder: Path, documents: int, kills: int, rng: random.Random, *, page: int = 256, engine: str = "embedded"
) -> Iterator[str]:
    """Re-embed a store, change it and go back, killed again and again; compare, and tell how it goes."""
    models = [build_gte(folder / f"model {i}", dtype="float32", layers=1, hidden=32, heads=2, seed=i) for i in range(2)]
    corpora = [folder / f"version {version}.jsonl" for version in (1, 2)]
    for version, corpus in enumerate(corpora, 1):
        write_corpus(corpus, documents, version=version)
    with engine_of(engine, folder) as (place_of, server):
        killed, whole = place_of("killed"), place_of("whole")
        for place in (killed, whole):
            fill(corpora[0], models[0], place)
        [run] = run_and_kill(partial(reembed, whole, models[1], page), 0, 0, rng, writes=WRITES)
        yield f"{documents} documents, {run.operations} operations of stores"
        for number, (model, corpus) in enumerate(zip(reversed(models), corpora, strict=True), 1):
            told: list[str] = []
            work, deaths = partial(reembed, killed, model, page), -1
            with readers(killed, models, told, is_killed=server is not None):
                for end in run_and_kill(work, kills, run.operations, rng, writes=WRITES, server=server):
                    deaths += 1
                    yield f"killed in operation {end.operations}" if end.report is None else "switched"
            yield from told
            fresh = place_of(f"fresh_{number}")
            fill(corpus, model, fresh)
            with killed.open() as left, fresh.open() as right:
                records = compare(left, right)
            yield f"{deaths} kills: all {records} records are equal to those of a fresh store"
            if number == 1:
                fill(corpora[1], model, killed)


if __name__ == "__main__":
    sys.exit(main(__doc__, ["embedded", "postgres", "qdrant", "milvus"], rounds))
