"""One fault for each check, so that everybody can see that it would be found: ``--seed-fault NAME``."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import torch

from soaking.callers import Soak
from twinvec.cache.rows import Key
from twinvec.compute.backbone import PackedTransformer
from twinvec.compute.linear import PackedInt8Linear
from twinvec.compute.quantization import Int8Linear
from twinvec.embedder import Embedder
from twinvec.engine import core
from twinvec.engine.dispatcher import Dispatcher
from twinvec.engine.job import Job
from twinvec.errors import StoreClosedError
from twinvec.text.bm25 import Bm25
from twinvec.vectors import EmbeddingBatch
from twinvec_stores import HybridIndex, RecordBatch
from twinvec_stores.engines.embedded.store import EmbeddedStore
from twinvec_stores.engines.memory import MemoryStore

_random = Random(0)
_kept: list[Any] = []


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong from the start of a soak.

    Attributes:
        check: that has to find it.
        what: goes wrong.
        install: puts it in.
    """

    check: str
    what: str
    install: Callable[[Soak], None]


def _wrap(owner: Any, name: str, changed: Callable[..., Any]) -> Callable[[Soak], None]:
    """Return what puts ``changed(original, *arguments)`` in place of a method or function."""

    def install(_: Soak) -> None:
        original = getattr(owner, name)
        setattr(owner, name, lambda *args, **kwargs: changed(original, *args, **kwargs))

    return install


def _now_and_then(chance: float = 0.05) -> bool:
    return _random.random() < chance


def _batch(changed: Callable[[EmbeddingBatch], EmbeddingBatch]) -> Callable[[Soak], None]:
    return _wrap(Job, "batch", lambda batch, job: changed(batch(job)) if _now_and_then() else batch(job))


def _rolled(rows: Any) -> Any:
    return rows[np.roll(np.arange(len(rows)), 1)]


def _without_a_half(batch: EmbeddingBatch) -> EmbeddingBatch:
    return batch if batch.dense is None or batch.sparse is None else replace(batch, sparse=None)


def _noise(is_meant: Callable[[Soak, PackedTransformer], bool]) -> Callable[[Soak], None]:
    """Return what spoils the rows of one kind of model in larger batches."""

    def install(soak: Soak) -> None:
        def noisy(forward: Any, self: PackedTransformer, batch: Any) -> torch.Tensor:
            states: torch.Tensor = forward(self, batch)
            return states + torch.randn_like(states) if batch.n_tokens > 100 and is_meant(soak, self) else states

        _wrap(PackedTransformer, "forward", noisy)(soak)

    return install


def _is_int8(_: Soak, model: PackedTransformer) -> bool:
    return any(isinstance(layer, Int8Linear | PackedInt8Linear) for layer in model.modules())


def _is_bf16(_: Soak, model: PackedTransformer) -> bool:
    return next(model.parameters()).dtype == torch.bfloat16


def _is_second_device(soak: Soak, model: PackedTransformer) -> bool:
    (lossy,) = [client for client in soak.clients if client.losing]
    encoders = soak.embedders[lossy.name]._core.model.encoders[1:]
    return any(getattr(encoder, "_backbone", None) is model for encoder in encoders)


def _other_terms(weigh: Any, self: Bm25, role: Any, texts: list[str]) -> Any:
    rows, counts = weigh(self, role, texts)
    return (_rolled(rows) if _now_and_then() else rows), counts


def _fail_all(failed: Any, self: Dispatcher, batch: Any, error: BaseException) -> None:
    failed(self, batch, error)
    for job in list(self.jobs):
        self._answer(job, error)


def _drop_answer(answer: Any, self: Dispatcher, job: Job, error: BaseException | None) -> None:
    self._end(job) if _now_and_then(0.002) else answer(self, job, error)


def _remember_entry(forget: Any, self: Dispatcher, entry: Any) -> None:
    forget(self, entry)
    self._entries[Key("nobody asks for this", entry.key.text, 0), False] = entry


def _leave_thread(name: str) -> Callable[..., None]:
    def close(original: Any, self: Any, **options: Any) -> None:
        original(self, **options)
        threading.Thread(target=threading.Event().wait, name=name, daemon=True).start()

    return close


def _keep_memory(batch: Any, job: Job) -> EmbeddingBatch:
    _kept.append(np.ones(25_000))  # 0.2 MB
    result: EmbeddingBatch = batch(job)
    return result


def _rows_of_others(find: Any, *args: Any, **halves: bool) -> list[Any]:
    rows = find(*args, **halves)
    known = [i for i, row in enumerate(rows) if row is not None]
    return [rows[known[known.index(i) - 1]] if i in known else None for i in range(len(rows))]


def _add_partly(add: Any, self: HybridIndex, texts: Any, **more: Any) -> Any:
    try:
        return add(self, texts, **more)
    except Exception:
        with contextlib.suppress(Exception):
            add(self, texts[:1], ids=more["ids"][:1], metadata=more["metadata"][:1])
        raise


def _upsert(changed: Callable[[RecordBatch], RecordBatch]) -> Callable[[Soak], None]:
    def upsert(original: Any, self: MemoryStore, batch: RecordBatch) -> Any:
        return original(self, changed(batch) if _now_and_then() else batch)

    return _wrap(MemoryStore, "_upsert", upsert)


def _without_last(batch: RecordBatch) -> RecordBatch:
    return RecordBatch.of(list(batch)[:-1])


def _with_other_vectors(batch: RecordBatch) -> RecordBatch:
    return replace(batch, dense=_rolled(batch.dense))


def _lower_scores(search: Any, self: HybridIndex, query: str, **options: Any) -> list[Any]:
    return [replace(result, score=0.9 * result.score) for result in search(self, query, **options)]


def _delete_and_close(close: Any, self: EmbeddedStore) -> None:
    with contextlib.suppress(StoreClosedError):  # several writers close it
        self.delete([record.id for record in self.scroll(limit=1)[0]])
    close(self)


def _fail_to_close(close: Any, self: Embedder, **options: bool) -> None:
    close(self, **options)
    raise RuntimeError("seeded")


FAULTS = {
    "dense": Fault(
        "dense",
        "rows of a call change places",
        _batch(lambda b: replace(b, dense=None if b.dense is None else _rolled(b.dense))),
    ),
    "sparse": Fault(
        "sparse",
        "sparse rows of a call change places",
        _batch(lambda b: replace(b, sparse=None if b.sparse is None else _rolled(b.sparse))),
    ),
    "halves": Fault("halves", "one half is missing", _batch(_without_a_half)),
    "tokens": Fault("tokens", "token counts are wrong", _batch(lambda b: replace(b, token_counts=b.token_counts + 1))),
    "int8": Fault("dense", "int8 rows depend on their company", _noise(_is_int8)),
    "bf16": Fault("dense", "bfloat16 rows depend on their company", _noise(_is_bf16)),
    "device": Fault("dense", "the second device computes other rows", _noise(_is_second_device)),
    "bm25": Fault("sparse", "BM25 rows change places", _wrap(Bm25, "weigh", _other_terms)),
    "cache": Fault(
        "dense", "a persistent cache has the rows of other texts", _wrap(core, "find_rows", _rows_of_others)
    ),
    "errors": Fault("errors", "a failed batch rejects everybody", _wrap(Dispatcher, "failed", _fail_all)),
    "hang": Fault("hang", "an answer is lost", _wrap(Dispatcher, "_answer", _drop_answer)),
    "queue": Fault("queue", "entries stay after they have ended", _wrap(Dispatcher, "_forget", _remember_entry)),
    "threads": Fault(
        "threads", "a closed model leaves a thread", _wrap(core.InferenceCore, "close", _leave_thread("twinvec"))
    ),
    "growing-threads": Fault("threads in use", "so does each close", _wrap(Embedder, "close", _leave_thread("other"))),
    "growing-memory": Fault("memory in use", "each call leaves 0.2 MB", _wrap(Job, "batch", _keep_memory)),
    "restart": Fault("restart", "restart() does nothing", _wrap(core.InferenceCore, "restart", lambda *_: None)),
    "callers": Fault("callers", "close() raises", _wrap(Embedder, "close", _fail_to_close)),
    "lost-write": Fault("writes", "a store drops a record", _upsert(_without_last)),
    "partial-write": Fault("writes", "a failed write leaves a record", _wrap(HybridIndex, "add", _add_partly)),
    "stored-vectors": Fault("stored vectors", "a store mixes vectors", _upsert(_with_other_vectors)),
    "search": Fault("search", "scores are not the cosines", _wrap(HybridIndex, "search", _lower_scores)),
    "reopened": Fault(
        "reopened store", "a closed store has lost a record", _wrap(EmbeddedStore, "close", _delete_and_close)
    ),
}
