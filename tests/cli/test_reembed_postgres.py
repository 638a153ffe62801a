"""Another model for a store in PostgreSQL: what its server does, and what others may do there."""

from __future__ import annotations

import pytest

from cli.test_reembed import TEXTS
from stores import postgres
from stores.test_postgres import database, grants
from twinvec import Embedder
from twinvec.errors import StoreEngineError
from twinvec_stores import HybridIndex, PostgresStore, Reembedding, StoreConfig, open_store
from twinvec_stores.engines.postgres import models


def test_a_server_that_fails_while_switching_changes_nothing(old: Embedder, new: Embedder) -> None:
    place = postgres.url(), postgres.new_name()
    with HybridIndex(old, PostgresStore(*place, StoreConfig.for_embedder(old))) as index:
        index.add(list(TEXTS.values()), ids=list(TEXTS))
    work = Reembedding(place[0], new, collection=place[1])
    work.run()
    with (
        PostgresStore(*place) as serving,
        models.ModelStore(*place, work.open_target().config) as target,
        pytest.raises(StoreEngineError, match="AdminShutdown"),
        models.switching(serving, target),
    ):
        postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'")
    with HybridIndex(old, PostgresStore(*place)) as index:  # writes go on
        index.add(["one more"], ids=["added"])
        index.store.optimize()
    work.run()
    work.switch()
    with PostgresStore(*place) as store:
        assert store.config.fingerprint == new.spec.fingerprint
        assert store.count() == len(TEXTS) + 1
        assert store.info().has_graph


def test_readers_keep_their_privileges(old: Embedder, new: Embedder) -> None:
    url = database("reembedded")
    with open_store(url, StoreConfig.for_embedder(old), collection="kb") as store:
        HybridIndex(old, store).add(list(TEXTS.values()), ids=list(TEXTS))
    for statement in grants():
        postgres.execute_at(url, statement.replace("mydb", "reembedded").replace("kb_", "again_"))
    Reembedding(url, new, collection="kb").switch()
    with open_store(url.replace("postgres:@", "again_reader:@"), collection="kb") as reader:
        assert HybridIndex(new, reader).search(TEXTS["d1"], k=1)[0].record.id == "d1"
        with pytest.raises(StoreEngineError, match="permission denied"):
            reader.delete(["d1"])
    with open_store(url.replace("postgres:@", "again_writer:@"), collection="kb") as writer:
        HybridIndex(new, writer).add(["one more"], ids=["added"])
        assert writer.count() == len(TEXTS) + 1
