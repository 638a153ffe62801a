"""Whether a copy of a store answers as its source does: counts, sampled records, and their rankings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from twinvec_stores.checking import pages
from twinvec_stores.protocol import HybridStore
from twinvec_stores.records import DenseQuery, Hit, Record, SparseQuery, StoreQuery, checksum

_LIMIT = 10  # hits of each ranking
_TOLERANCE = 1e-5  # engines add the same products in other orders
_KEYS = 1000  # sparse keys whose document frequencies are compared


def compare_stores(source: HybridStore, target: HybridStore, *, sample: int = 100) -> list[str]:
    """Compare a copy with its source, for instance after ``copy_store``.

    Both must have equally many records. Some of the source's, drawn at random, must be in the target with the same
    content, and searching with their vectors must rank the same records with the same scores in both, exactly and
    without a graph.

    Args:
        source: nothing is written.
        target: a copy; nothing is written.
        sample: number of records drawn.

    Returns:
        The differences; empty if there are none.
    """
    records = [record for page in pages(source, sample) for record in page]
    return [
        *_counts(source, target),
        *_contents(records, target),
        *_rankings(records, source, target),
        *_frequencies(records, source, target),
    ]


def _counts(source: HybridStore, target: HybridStore) -> Iterator[str]:
    wanted, found = source.count(), target.count()
    if wanted != found:
        yield f"the source has {wanted} records, the copy {found}"


def _contents(records: list[Record], target: HybridStore) -> Iterator[str]:
    copies = {copy.id: copy for copy in target.get([record.id for record in records], with_vectors=True)}
    for record in records:
        if record.id not in copies:
            yield f"the record {record.id!r} is missing"
        elif checksum(copies[record.id]) != checksum(record):
            yield f"the record {record.id!r} differs"


def _rankings(records: list[Record], source: HybridStore, target: HybridStore) -> Iterator[str]:
    asked: list[tuple[str, StoreQuery]] = []
    for record in records:
        asked += [(record.id, SparseQuery(record.sparse))] if record.sparse is not None else []
        asked += [(record.id, DenseQuery(record.dense))] if record.dense is not None else []
    queries = [query for _, query in asked]
    # in one call, as an engine may read every vector for it
    wanted, found = (store.search(queries, limit=_LIMIT, exact=True) for store in (source, target))
    for (id, query), one, other in zip(asked, wanted, found, strict=True):
        if not _alike(one, other):
            kind = "dense" if isinstance(query, DenseQuery) else "sparse"
            yield f"the {kind} search for the record {id!r} finds other records, or with other scores"


def _alike(wanted: list[Hit], found: list[Hit]) -> bool:
    """Return whether two rankings are the same but for the order of equal scores."""
    scores, others = dict(wanted), dict(found)
    last = min(scores.values(), default=0.0)
    tolerance = _TOLERANCE * max([1.0, *scores.values()])
    # below the last score, rounding decides which of equal ones are still within the limit
    return len(wanted) == len(found) and all(
        abs(scores.get(id, last) - others.get(id, last)) <= tolerance for id in scores | others
    )


def _frequencies(records: list[Record], source: HybridStore, target: HybridStore) -> Iterator[str]:
    if not source.config.idf:
        return
    keys = np.unique(np.concatenate([np.empty(0, np.int32), *(r.sparse.indices for r in records if r.sparse)]))
    wanted, found = (store.document_frequencies(keys[:_KEYS].astype(np.int32)) for store in (source, target))
    if different := int((wanted != found).sum()):
        yield f"{different} of {len(wanted)} terms occur in other numbers of records"
