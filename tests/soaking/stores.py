"""Writers that share stores: each knows what its part must hold, whatever failed meanwhile."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from soaking.clients import Call, Client, WrongError
from soaking.ledger import Ledger
from soaking.texts import N_CLEAN
from twinvec import Embedder, Role, SparseBatch
from twinvec_stores import HybridIndex, HybridStore, Record, Result
from twinvec_stores.search.options import Mode

IDS = 60  # of a writer


class Writer:
    """One of the callers of an index; nobody else writes its ids.

    Attributes:
        held: id -> (row of its text, version), as far as it has been told that it is there.
    """

    def __init__(
        self, name: str, client: Client, index: HybridIndex, texts: Sequence[str], ledger: Ledger, seed: int
    ) -> None:
        self.index, self.held = index, dict[str, tuple[int, int]]()
        self._client, self._texts, self._ledger = client, texts, ledger
        self._ids = [f"{name} {i}" for i in range(IDS)]
        self._version = 0
        self._random = random.Random(seed)

    def work(self, stopped: threading.Event) -> None:
        """Write and read in turns."""
        while not stopped.is_set():
            self._random.choice((self._add, self._add, self._update, self._delete, self._search, self._search))()
            self._watch(lambda: self.check(self.index.store))

    def check(self, store: HybridStore) -> None:
        """Compare all that the store has of this writer with what it was told.

        Raises:
            WrongError: a write is lost, or half of one that failed is there.
        """
        records = {record.id: record for record in store.get(self._ids, with_vectors=True)}
        found = {id: self._known(record) for id, record in records.items()}
        if found != self.held:
            different = {id for id in found.keys() | self.held.keys() if found.get(id) != self.held.get(id)}
            id = min(different)
            raise WrongError("writes", f"{len(different)} records: {id!r} is {found.get(id)}, not {self.held.get(id)}")
        kept = [record for record in records.values() if record.dense is not None and record.sparse is not None]
        if len(kept) < len(records):
            raise WrongError("stored vectors", "a record has lost one")
        if kept:
            expected = self._client.truth[Role.DOCUMENT][[self.held[record.id][0] for record in kept]]
            assert expected.dense is not None
            assert expected.sparse is not None
            dense = np.stack([record.dense for record in kept if record.dense is not None])
            sparse = SparseBatch.stack([record.sparse for record in kept if record.sparse is not None])
            self._client.check_dense(dense, expected.dense, "stored vectors")
            self._client.check_sparse(sparse, expected.sparse, "stored vectors")

    def _known(self, record: Record) -> tuple[int, int]:
        row, version = int(record.metadata["row"]), int(record.metadata["version"])
        if record.text != self._texts[row]:
            raise WrongError("writes", f"{record.id!r} has the text of another record")
        return row, version

    def _watch(self, work: Callable[[], Any], role: Role = Role.DOCUMENT, rows: Sequence[int] = ()) -> None:
        with self._ledger.watch(Call(self._client, role, list(rows))):
            work()

    def _some(self, ids: Sequence[str]) -> list[str]:
        return self._random.sample(ids, min(len(ids), self._random.randint(1, 12)))

    def _add(self) -> None:
        ids = self._some(self._ids)
        rows = self._random.choices(range(1, N_CLEAN), k=len(ids))
        if self._random.random() < 0.3:
            rows[-1] = self._random.randrange(N_CLEAN, len(self._texts))
        self._version += 1
        metadata = [{"row": row, "version": self._version} for row in rows]

        def add() -> None:
            self.index.add([self._texts[row] for row in rows], ids=ids, metadata=metadata)
            self.held.update((id, (row, self._version)) for id, row in zip(ids, rows, strict=True))

        self._watch(add, rows=rows)

    def _update(self) -> None:
        ids = self._some(self._ids)
        self._version += 1

        def update() -> None:
            for id in self.index.update_metadata(ids, {"version": self._version}):
                self.held[id] = self.held[id][0], self._version

        self._watch(update)

    def _delete(self) -> None:
        ids = self._some(self._ids)

        def delete() -> None:
            self.index.store.delete(ids)
            for id in ids:
                self.held.pop(id, None)

        self._watch(delete)

    def _search(self) -> None:
        row = self._random.choice([row for row, _ in self.held.values()] or [1])
        modes: tuple[Mode | None, ...] = ("dense", "sparse", None)
        mode = self._random.choice(modes)

        def search() -> None:
            results = self.index.search(self._texts[row], k=5, mode=mode, exact=True)
            self._check_results(row, mode, results)

        self._watch(search, Role.QUERY, [row])

    def _check_results(self, row: int, mode: str | None, results: list[Result]) -> None:
        """Compare records with their texts, and the cosines of this writer's with those of the rows alone.

        Another writer may replace one of its records after it was ranked and before it is read.
        """
        rows = [self._known(result.record)[0] for result in results]
        scores = [result.score for result in results]
        if scores != sorted(scores, reverse=True):
            raise WrongError("search", f"not in order: {scores}")
        if mode != "dense":
            return
        query, documents = (self._client.truth[role].dense for role in (Role.QUERY, Role.DOCUMENT))
        assert query is not None
        assert documents is not None
        off = np.abs(documents[rows] @ query[row] - np.array(scores))
        difference = max((off[i] for i, result in enumerate(results) if result.record.id in self._ids), default=0.0)
        if difference > 2e-3:
            raise WrongError("search", f"a score differs by {difference:.2g} from the cosine")
        mine = max((float(documents[own] @ query[row]) for own, _ in self.held.values()), default=-1.0)
        if mine > max(scores, default=-1.0) + 2e-3:
            raise WrongError("search", f"best {max(scores, default=None)}, but this writer has one with {mine}")


def make_writers(
    stores: Sequence[tuple[Client, Callable[[Embedder], HybridStore]]],
    embedders: dict[str, Embedder],
    texts: Sequence[str],
    ledger: Ledger,
) -> list[Writer]:
    """Open each store; return two writers of each."""
    writers = []
    for n, (client, make) in enumerate(stores):
        index = HybridIndex(embedders[client.name], make(embedders[client.name]))
        writers += [Writer(f"{n}-{i}", client, index, texts, ledger, 2 * n + i) for i in range(2)]
    return writers
