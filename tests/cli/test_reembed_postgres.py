"""Another model for a store in PostgreSQL, whose readers and writers go on."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from cli.conftest import Run
from cli.test_reembed import METADATA, TEXTS, assert_holds
from stores import postgres
from stores.test_postgres import database, grants
from twinvec import Embedder
from twinvec.errors import ConfigurationError, StoreEngineError, StoreReadOnlyError
from twinvec_stores import And, HybridIndex, HybridStore, PostgresStore, Reembedding, StoreConfig, open_store
from twinvec_stores.engines.postgres import models


@pytest.fixture
def collection(old: Embedder) -> str:
    name = postgres.new_name()
    fill(name, old, TEXTS)
    return name


def open_as(name: str, embedder: Embedder) -> HybridIndex:
    config = StoreConfig.for_embedder(embedder, fields={"n": "integer"})
    return HybridIndex(embedder, PostgresStore(postgres.url(), name, config))


def fill(name: str, embedder: Embedder, texts: dict[str, str]) -> None:
    with open_as(name, embedder) as index:
        index.add(list(texts.values()), ids=list(texts), metadata=[METADATA.get(id, {}) for id in texts])


def reembedding(name: str, embedder: Embedder) -> Reembedding:
    return Reembedding(postgres.url(), embedder, collection=name)


def assert_opens(name: str, embedder: Embedder, texts: dict[str, str]) -> None:
    with open_store(postgres.url(), collection=name) as store:
        assert_holds(store, embedder, texts)


def change(name: str, embedder: Embedder) -> dict[str, str]:
    fill(name, embedder, {"d1": "another text", "added": "one more"})
    with open_store(postgres.url(), collection=name) as store:
        store.delete(["d2"])
    return {id: text for id, text in (TEXTS | {"d1": "another text", "added": "one more"}).items() if id != "d2"}


def test_what_is_written_meanwhile_is_in_both(collection: str, old: Embedder, new: Embedder) -> None:
    work = reembedding(collection, new)
    assert work.run() == len(TEXTS)
    assert_opens(collection, old, TEXTS)
    texts = change(collection, old)
    assert work.switch() == 2
    assert_opens(collection, new, texts)
    with open_store(postgres.url(), collection=collection) as store:
        assert store.config.fields == {"n": "integer"}
        store.optimize()
        assert store.info().has_graph
    with pytest.raises(ConfigurationError, match="already"):
        reembedding(collection, new)


def test_stores_that_were_open_keep_the_old_vectors_and_refuse_writes(
    collection: str, old: Embedder, new: Embedder
) -> None:
    with open_as(collection, old) as before, open_as(collection, old) as other:
        work = reembedding(collection, new)
        work.run()
        before.add(["one more"], ids=["added"])
        work.switch()
        assert before.search("one more", k=1)[0].record.id == "added"
        for index in (before, other):
            for write in (
                lambda: index.add(["lost"]),  # noqa: B023
                lambda: index.store.delete(["d1"]),  # noqa: B023
                lambda: index.store.delete(filter=And()),  # noqa: B023
            ):
                with pytest.raises(StoreReadOnlyError, match="open the store again"):
                    write()
        texts = TEXTS | {"added": "one more"}
        assert_holds(other.store, old, texts)
        assert_opens(collection, new, texts)
        reembedding(collection, old).switch()  # and back
        before.add(["again"], ids=["again"])
        assert_opens(collection, old, texts | {"again": "again"})


def test_writers_lose_nothing_and_readers_see_one_model_whole(collection: str, old: Embedder, new: Embedder) -> None:
    embedders = {embedder.spec.fingerprint: embedder for embedder in (old, new)}
    ended = threading.Event()
    failures: list[BaseException] = []
    seen: set[str] = set()
    acknowledged: dict[str, str] = {}

    def repeat(step: int) -> None:
        number = 0
        try:
            while not ended.is_set():
                number += 1
                with open_store(postgres.url(), collection=collection) as store:
                    (read if step == 0 else write)(store, f"{step} {number}")
        except BaseException as error:
            failures.append(error)

    def read(store: HybridStore, name: str) -> None:
        embedder = embedders[store.config.fingerprint]
        with embedder_lock:
            expected = embedder.embed_documents([TEXTS["d3"]])
        [record] = store.get(["d3"], with_vectors=True)
        assert record.dense is not None
        assert expected.dense is not None
        assert record.dense == pytest.approx(expected.dense[0], abs=1e-5)
        assert store.count() >= len(TEXTS)
        seen.add(store.config.fingerprint)

    def write(store: HybridStore, name: str) -> None:
        try:
            HybridIndex(embedders[store.config.fingerprint], store).add([f"text {name}"], ids=[name])
            acknowledged[name] = f"text {name}"
        except StoreReadOnlyError:  # it has been switched since it was opened
            pass

    embedder_lock = threading.Lock()
    threads = [threading.Thread(target=repeat, args=[step]) for step in range(3)]
    for thread in threads:
        thread.start()
    for embedder in (new, old, new):
        reembedding(collection, embedder).switch()
        done = len(acknowledged)
        while len(acknowledged) < done + 3 and not failures:
            ended.wait(0.01)
    ended.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(seen) == 2
    assert_opens(collection, new, TEXTS | acknowledged)


def test_a_failure_while_switching_changes_nothing(
    collection: str, old: Embedder, new: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = reembedding(collection, new)
    work.run()
    place = postgres.url(), collection
    with PostgresStore(*place) as serving, models.ModelStore(*place, work.open_target().config) as target:
        with pytest.raises(OSError, match="no space"), models.switching(serving, target):
            raise OSError("no space")
        with pytest.raises(StoreEngineError, match="AdminShutdown"), models.switching(serving, target):
            postgres.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'"
            )
    texts = change(collection, old)  # writes go on
    work.switch()
    assert_opens(collection, new, texts)


_KILLED = """
import os, signal, sys
from twinvec import Embedder
from twinvec_stores import Reembedding, reembedding
reembedding._PAGE = 5
work = Reembedding(sys.argv[1], Embedder(sys.argv[3], dtype="float32", sparse="bm25"), collection=sys.argv[2])
work.run(lambda n: n == 10 and os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_a_killed_run_is_resumed(collection: str, old: Embedder, new: Embedder, bert: str) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, postgres.url(), collection, bert], check=False)
    assert done.returncode == -signal.SIGKILL
    assert_opens(collection, old, TEXTS)
    work = reembedding(collection, new)
    assert work.run() == 10
    work.switch()
    assert_opens(collection, new, TEXTS)


def test_two_switches_at_once_leave_one_model_serving(collection: str, old: Embedder, new: Embedder) -> None:
    works = [reembedding(collection, new) for _ in range(2)]
    works[0].run()
    place = postgres.url(), collection
    with PostgresStore(*place) as serving, works[0].open_target() as target:
        works[1].switch()
        with pytest.raises(StoreReadOnlyError, match="meanwhile"), models.switching(serving, target):  # type: ignore[arg-type]
            pass
    assert_opens(collection, new, TEXTS)
    assert postgres.execute("SELECT state FROM {store} ORDER BY state", store=f"{collection}/store") == [
        ("before",),
        ("serving",),
    ]


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


def test_the_command(run: Run, collection: str, old: Embedder, new: Embedder, bert: str) -> None:
    address = postgres.url().replace("postgres:@", "postgres:hunter2@")
    place = (address, "--collection", collection)
    failed = run("store", "reembed", *place, "--rollback")
    assert "nothing to go back to" in failed.stderr
    options = ("--model", bert, "--sparse", "bm25", "--dtype", "float32")
    prepared = run("store", "reembed", *place, *options, "--no-switch")
    assert prepared.stdout.splitlines()[0][:20] == "20 records embedded "
    assert_opens(collection, old, TEXTS)
    switched = run("store", "reembed", *place, *options)
    assert (switched.exit_code, switched.stdout.splitlines()[0][:19]) == (0, "0 records embedded ")
    texts = change(collection, new)
    back = run("store", "reembed", *place, "--rollback")
    assert back.exit_code == 0, back.stderr
    assert_opens(collection, old, texts)
    for result in (failed, prepared, switched, back):
        assert "hunter2" not in result.stdout + result.stderr
