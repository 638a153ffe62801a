"""Another model for a store on a server, whose readers and writers go on."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from cli.conftest import Run
from cli.test_reembed import METADATA, TEXTS, assert_holds
from stores import milvus, postgres
from stores.qdrant_server import QdrantServer
from twinvec import Embedder
from twinvec.errors import ConfigurationError, StoreReadOnlyError
from twinvec_stores import And, HybridIndex, HybridStore, Reembedding, StoreConfig, open_store
from twinvec_stores.models import models_of

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")
SECRET = "hunter2"


@dataclass(frozen=True)
class Place:
    """A store on a server."""

    url: str
    collection: str

    def open(self, embedder: Embedder | None = None) -> HybridStore:
        config = None if embedder is None else StoreConfig.for_embedder(embedder, fields={"n": "integer"})
        return open_store(self.url, config, collection=self.collection)

    def fill(self, embedder: Embedder, texts: dict[str, str]) -> None:
        with HybridIndex(embedder, self.open(embedder)) as index:
            index.add(list(texts.values()), ids=list(texts), metadata=[METADATA.get(id, {}) for id in texts])

    def reembedding(self, embedder: Embedder) -> Reembedding:
        return Reembedding(self.url, embedder, collection=self.collection)

    def assert_opens(self, embedder: Embedder, texts: dict[str, str]) -> None:
        with self.open() as store:
            assert_holds(store, embedder, texts)

    def change(self, embedder: Embedder) -> dict[str, str]:
        self.fill(embedder, {"d1": "another text", "added": "one more"})
        with self.open() as store:
            store.delete(["d2"])
        return {id: text for id, text in (TEXTS | {"d1": "another text", "added": "one more"}).items() if id != "d2"}


@pytest.fixture(scope="module", params=["postgres", "qdrant", pytest.param("milvus", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server, with a secret where one does not matter to it."""
    if request.param == "qdrant":
        server = QdrantServer()
        yield server.url
        server.close()
    elif request.param == "postgres":
        yield postgres.url().replace("postgres:@", f"postgres:{SECRET}@")
    else:
        yield milvus.url().replace("://", f"://root:{SECRET}@")


@pytest.fixture
def place(url: str, old: Embedder) -> Place:
    made = Place(url, milvus.new_name())
    made.fill(old, TEXTS)
    return made


def test_what_is_written_meanwhile_is_in_both(place: Place, old: Embedder, new: Embedder) -> None:
    work = place.reembedding(new)
    assert work.run() == len(TEXTS)
    place.assert_opens(old, TEXTS)
    texts = place.change(old)
    assert work.switch() == 2
    place.assert_opens(new, texts)
    with place.open(new) as store:
        store.optimize()
    with pytest.raises(ConfigurationError, match="already"):
        place.reembedding(new)


def test_stores_that_were_open_keep_the_old_vectors_and_refuse_writes(
    place: Place, old: Embedder, new: Embedder
) -> None:
    with HybridIndex(old, place.open(old)) as before, HybridIndex(old, place.open(old)) as other:
        work = place.reembedding(new)
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
        place.assert_opens(new, texts)
        place.reembedding(old).switch()  # and back
        place.fill(old, {"again": "again"})
        place.assert_opens(old, texts | {"again": "again"})


def test_writers_lose_nothing_and_readers_see_one_model_whole(place: Place, old: Embedder, new: Embedder) -> None:
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
                with place.open() as store:
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
        except StoreReadOnlyError:  # it has been switched since it was opened, or is being
            pass

    embedder_lock = threading.Lock()
    threads = [threading.Thread(target=repeat, args=[step]) for step in range(3)]
    for thread in threads:
        thread.start()
    for embedder in (new, old, new):
        place.reembedding(embedder).switch()
        done = len(acknowledged)
        while len(acknowledged) < done + 3 and not failures:
            ended.wait(0.01)
    ended.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(seen) == 2
    with place.open() as store:  # a write that was refused may have been made nevertheless
        rest = {record.id: record.text for page in store.scroll_all() for record in page}
    assert rest.items() >= (TEXTS | acknowledged).items()
    place.assert_opens(new, rest)


def test_a_failure_while_switching_changes_nothing(place: Place, old: Embedder, new: Embedder) -> None:
    work = place.reembedding(new)
    work.run()
    models = models_of(place.url, place.collection)
    with (
        models.open_to_write() as serving,
        work.open_target() as target,
        pytest.raises(OSError, match="no space"),
        models.switching(serving, target),
    ):
        raise OSError("no space")
    texts = place.change(old)  # writes go on
    work.switch()
    place.assert_opens(new, texts)


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
def test_a_killed_run_is_resumed(place: Place, old: Embedder, new: Embedder, bert: str) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, place.url, place.collection, bert], check=False)
    assert done.returncode == -signal.SIGKILL
    place.assert_opens(old, TEXTS)
    work = place.reembedding(new)
    assert work.run() == 10
    work.switch()
    place.assert_opens(new, TEXTS)


def test_two_switches_at_once_leave_one_model_serving(place: Place, old: Embedder, new: Embedder) -> None:
    works = [place.reembedding(new) for _ in range(2)]
    works[0].run()
    models = models_of(place.url, place.collection)
    with models.open_to_write() as serving, works[0].open_target() as target:
        works[1].switch()
        with pytest.raises(StoreReadOnlyError, match="re-embedded"), models.switching(serving, target):
            pass
    place.assert_opens(new, TEXTS)
    with models.open_before() as before:
        assert before.config.fingerprint == old.spec.fingerprint


def test_the_command(run: Run, place: Place, old: Embedder, new: Embedder, bert: str) -> None:
    where = (place.url, "--collection", place.collection)
    failed = run("store", "reembed", *where, "--rollback")
    assert "nothing to go back to" in failed.stderr
    options = ("--model", bert, "--sparse", "bm25", "--dtype", "float32")
    prepared = run("store", "reembed", *where, *options, "--no-switch")
    assert prepared.stdout.splitlines()[0][:20] == "20 records embedded "
    place.assert_opens(old, TEXTS)
    switched = run("store", "reembed", *where, *options)
    assert (switched.exit_code, switched.stdout.splitlines()[0][:19]) == (0, "0 records embedded ")
    texts = place.change(new)
    back = run("store", "reembed", *where, "--rollback")
    assert back.exit_code == 0, back.stderr
    place.assert_opens(old, texts)
    for result in (failed, prepared, switched, back):
        assert SECRET not in result.stdout + result.stderr
