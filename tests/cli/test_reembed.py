"""Another model for a store: the same as a fresh store, resumed, followed, switched at once, and rolled back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.conftest import Run
from twinvec import Embedder
from twinvec.errors import ConfigurationError, StoreReadOnlyError
from twinvec_stores import EmbeddedStore, HybridIndex, HybridStore, Reembedding, StoreConfig, reembedding
from twinvec_stores.engines.embedded import models

WORDS = ["capital", "france", "sort", "python", "moscow", "gravity", "china"]
TEXTS = {f"d{i}": f"{WORDS[i % 7]} {WORDS[i % 5]} {i}" for i in range(20)}
METADATA = {id: {"n": i} for i, id in enumerate(TEXTS)}


@pytest.fixture
def folder(old: Embedder, tmp_path: Path) -> Path:
    fill(tmp_path / "index", old, TEXTS)
    return tmp_path / "index"


def fill(folder: Path, embedder: Embedder, texts: dict[str, str]) -> None:
    config = StoreConfig.for_embedder(embedder, fields={"n": "integer"})
    with HybridIndex(embedder, EmbeddedStore(folder, config)) as index:
        index.add(list(texts.values()), ids=list(texts), metadata=[METADATA.get(id, {}) for id in texts])


def assert_holds(store: HybridStore, embedder: Embedder, texts: dict[str, str]) -> None:
    """The store has these texts, with the vectors that the model gives each."""
    assert store.config.fingerprint == embedder.spec.fingerprint
    records = {record.id: record for page in store.scroll_all(with_vectors=True) for record in page}
    assert {id: record.text for id, record in records.items()} == texts
    expected = embedder.embed_documents(list(texts.values()))
    assert expected.dense is not None
    assert expected.sparse is not None
    for row, id in enumerate(texts):
        record = records[id]
        assert record.metadata == METADATA.get(id, {})
        assert record.dense is not None
        assert record.sparse is not None
        np.testing.assert_allclose(record.dense, expected.dense[row], atol=1e-5)
        assert record.sparse.to_dict() == pytest.approx(expected.sparse[row].to_dict(), abs=1e-5)


def assert_opens(folder: Path, embedder: Embedder, texts: dict[str, str]) -> None:
    for read_only in (False, True):
        with EmbeddedStore(folder, read_only=read_only) as store:
            assert_holds(store, embedder, texts)


def change(folder: Path, embedder: Embedder) -> dict[str, str]:
    fill(folder, embedder, {"d1": "another text", "added": "one more"})
    with EmbeddedStore(folder) as store:
        store.delete(["d2"])
    return {id: text for id, text in (TEXTS | {"d1": "another text", "added": "one more"}).items() if id != "d2"}


def test_what_is_written_meanwhile_is_in_both(folder: Path, old: Embedder, new: Embedder) -> None:
    work = Reembedding(folder, new)
    assert work.run() == len(TEXTS)
    assert_opens(folder, old, TEXTS)
    texts = change(folder, old)
    assert work.switch() == 2
    assert_opens(folder, new, texts)
    with EmbeddedStore(folder) as store:
        assert store.config.fields == {"n": "integer"}
    with pytest.raises(ConfigurationError, match="already"):
        Reembedding(folder, new)


def test_an_interrupted_run_embeds_the_rest(
    folder: Path, old: Embedder, new: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reembedding, "_PAGE", 5)

    def interrupt(n: int) -> None:
        if n == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Reembedding(folder, new).run(interrupt)
    assert_opens(folder, old, TEXTS)
    work = Reembedding(folder, new)
    assert work.run() == 10
    assert work.switch() == 0
    assert_opens(folder, new, TEXTS)


_KILLED = """
import os, signal, sys
from twinvec import Embedder
from twinvec_stores import Reembedding, reembedding
reembedding._PAGE = 5
work = Reembedding(sys.argv[1], Embedder(sys.argv[2], dtype="float32", sparse="bm25"))
work.run(lambda n: n == 10 and os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_a_killed_run_is_resumed(folder: Path, old: Embedder, new: Embedder, bert: str) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(folder), bert], check=False)
    assert done.returncode == -signal.SIGKILL
    assert_opens(folder, old, TEXTS)
    work = Reembedding(folder, new)
    assert work.run() == 10
    work.switch()
    assert_opens(folder, new, TEXTS)


def test_readers_see_one_model_whole(folder: Path, old: Embedder, new: Embedder) -> None:
    work = Reembedding(folder, new)
    work.run()
    seen: list[str] = []
    failures: list[BaseException] = []
    ended = threading.Event()
    embedders = {embedder.spec.fingerprint: embedder for embedder in (old, new)}

    def read() -> None:
        try:
            while not ended.is_set():
                with EmbeddedStore(folder, read_only=True) as store:
                    assert_holds(store, embedders[store.config.fingerprint], TEXTS)
                    seen.append(store.config.fingerprint)
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(2):
        work.switch()
        Reembedding(folder, old).switch()
    work.switch()
    while len(seen) < 3 and not failures:
        reader.join(0.01)
    ended.set()
    reader.join()
    assert failures == []
    assert_opens(folder, new, TEXTS)


def test_stores_that_were_open_keep_the_old_vectors_and_refuse_writes(
    folder: Path, old: Embedder, new: Embedder
) -> None:
    with HybridIndex(old, EmbeddedStore(folder)) as before, EmbeddedStore(folder, read_only=True) as reader:
        work = Reembedding(folder, new)
        work.run()
        before.add(["one more"], ids=["added"])
        work.switch()
        assert before.search("one more", k=1)[0].record.id == "added"
        for write in (lambda: before.add(["lost"]), lambda: before.store.delete(["d1"])):
            with pytest.raises(StoreReadOnlyError, match="open the store again"):
                write()
        assert_holds(before.store, old, TEXTS | {"added": "one more"})
        assert_holds(reader, old, TEXTS)
    assert_opens(folder, new, TEXTS | {"added": "one more"})


def test_a_failure_while_switching_changes_nothing(
    folder: Path, old: Embedder, new: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Reembedding(folder, new)
    work.run()
    with monkeypatch.context() as patched:
        patched.setattr(models, "switch", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            work.switch()
    texts = change(folder, old)  # writes go on
    work.switch()
    assert_opens(folder, new, texts)


_HOLD = "import sys; from twinvec_stores import open_store; s = open_store(sys.argv[1]); print(flush=True); input()"


def test_the_command(run: Run, folder: Path, old: Embedder, new: Embedder, bert: str) -> None:
    options = ("--model", bert, "--sparse", "bm25", "--dtype", "float32")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", _HOLD, str(folder)], stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None
        other.stdout.readline()
        result = run("store", "reembed", folder, *options)
        other.communicate(b"\n")
    assert result.exit_code == 2
    assert "20 records embedded" in result.stdout
    assert "run this again to switch" in result.stderr
    assert_opens(folder, old, TEXTS)
    result = run("store", "reembed", folder, *options)
    assert (result.exit_code, result.stdout.splitlines()[0][:19]) == (0, "0 records embedded ")
    assert_opens(folder, new, TEXTS)
    texts = change(folder, new)
    result = run("store", "reembed", folder, "--rollback")
    assert result.exit_code == 0, result.stderr
    assert_opens(folder, old, texts)
    assert run("store", "reembed", folder, "--rollback").exit_code == 0
    assert_opens(folder, new, texts)


def test_a_model_that_answers_worse_is_not_switched_to(
    run: Run, folder: Path, old: Embedder, new: Embedder, bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from twinvec_stores import evaluation
    from twinvec_stores.evaluation import compare

    questions = tmp_path / "questions.jsonl"
    rows = [{"query": text, "relevant": [id]} for id, text in TEXTS.items()]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--model", bert, "--sparse", "bm25", "--dtype", "float32", "--queries", questions)
    result = run("store", "reembed", folder, *options, "--no-switch")
    assert result.exit_code == 0, result.stderr
    assert "Side by side" in result.stdout
    assert_opens(folder, old, TEXTS)

    def worse(scores: Any, baseline: Any) -> Any:
        return compare(np.zeros(40), np.ones(40))

    monkeypatch.setattr(evaluation, "compare", worse)
    result = run("store", "reembed", folder, *options)
    assert result.exit_code == 1
    assert "Not switched" in result.stdout
    assert_opens(folder, old, TEXTS)


def test_refusals(run: Run, folder: Path, tmp_path: Path, bert: str) -> None:
    for arguments, message in (
        ((folder,), "either --model or --rollback"),
        ((folder, "--rollback"), "nothing to go back to"),
        (("ftp://host", "--model", bert), "in a folder or on a server of Qdrant, PostgreSQL or Milvus"),
        ((folder, "--collection", "x", "--model", bert), "only for a server"),
        ((tmp_path / "nothing", "--model", bert), "there is no store"),
    ):
        result = run("store", "reembed", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr


def test_a_damaged_pointer_is_told(folder: Path) -> None:
    (folder / "serving").write_text('{"serving": "gone", "before": ""}')
    with pytest.raises(Exception, match="gone is missing"):
        EmbeddedStore(folder)
    (folder / "serving").write_text("[]")
    with pytest.raises(Exception, match="is damaged"):
        EmbeddedStore(folder, read_only=True)
