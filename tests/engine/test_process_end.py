"""The end of a process: other threads finish their work after main has ended, and nobody is waited for who need not be.

The interpreter shuts executors down when main ends, and only then waits for threads: whatever needs an executor fails.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from reference.gte import build_gte

START = """
import asyncio, sys, threading
from concurrent.futures import ThreadPoolExecutor
from twinvec import Embedder

def after_main():
    '''Return once main has ended and so no executor takes work any more.'''
    pool = ThreadPoolExecutor(1)
    try:
        while True:
            pool.submit(int).result()
    except RuntimeError:
        return

def load(**options):
    return Embedder(sys.argv[1], dtype="float32", memo_bytes=0, **options)

def hold(embedder):
    '''Let main end in the middle of a forward pass.'''
    backbone = embedder._core.model.encoder.backbone
    forward, entered = backbone.forward, threading.Event()
    def held(batch):
        entered.set()
        after_main()
        return forward(batch)
    backbone.forward = held
    return entered

texts = [f"text number {i}" for i in range(300)]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_gte(tmp_path_factory.mktemp("end"), seed=31)


def check_end(folder: Path, script: str, output: str) -> None:
    """Run a script; it ends by itself, with status 0, this output and no other."""
    command = [sys.executable, "-c", START + textwrap.dedent(script), str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"the process does not end; its output: {error.stdout!r} {error.stderr!r}")
    assert (done.returncode, done.stdout, done.stderr) == (0, output, "")


def test_a_thread_finishes_the_call_that_main_ended_in(folder: Path) -> None:
    script = """
    embedder = load(token_budget=256)
    entered = hold(embedder)
    def work():
        print(len(embedder.embed_documents(texts)), embedder.stats()["forwards"] > 5)
    threading.Thread(target=work).start()
    entered.wait()
    """
    check_end(folder, script, "300 True\n")


def test_an_executor_finishes_what_it_was_given(folder: Path) -> None:
    script = """
    embedder = load()
    def work(number):
        after_main()
        return len(embedder.embed_documents([f"{number} {text}" for text in texts]))
    pool = ThreadPoolExecutor(3)
    for number in range(6):
        pool.submit(work, number).add_done_callback(lambda done: sys.stdout.write(f"{done.result()}\\n"))
    """
    check_end(folder, script, "300\n" * 6)


@pytest.mark.parametrize("sparse", ["head", "bm25"])
def test_an_event_loop_of_another_thread_finishes(folder: Path, sparse: str) -> None:
    script = f"""
    embedder = load(sparse={sparse!r})
    async def work():
        after_main()
        documents, *queries = await asyncio.gather(
            embedder.aembed_documents(texts), *(embedder.aembed_queries([text]) for text in texts[:64])
        )
        assert documents.sparse is not None
        print(len(documents), sum(map(len, queries)))
    threading.Thread(target=asyncio.run, args=(work(),)).start()
    """
    check_end(folder, script, "300 64\n")


def test_a_first_call_after_mains_end_works(folder: Path) -> None:
    script = """
    embedder, bm25 = load(), load(sparse="bm25")
    def work():
        after_main()
        print(len(embedder.embed_queries(["a"])), len(bm25.embed_queries(["a"], dense=False)))
        print(len(bm25.embed_documents(texts)))
        embedder.close()
        bm25.close()
        print(embedder.healthy)
    threading.Thread(target=work).start()
    """
    check_end(folder, script, "1 1\n300\nFalse\n")


def test_what_loading_imports_can_be_imported_after_mains_end(folder: Path) -> None:
    # transformers imports scikit-learn where it is installed, which imports joblib, which imports this
    script = """
    def work():
        after_main()
        import concurrent.futures.process
        print("imported")
    threading.Thread(target=work).start()
    """
    check_end(folder, script, "imported\n")


def test_a_model_can_be_loaded_after_mains_end(folder: Path) -> None:
    script = """
    def work():
        after_main()
        with load() as embedder, load(device="cpu,cpu") as replicas:
            print(len(embedder.embed_documents(texts)), len(replicas.embed_documents(texts)))
        load().embed_queries(["left to the interpreter"])
    threading.Thread(target=work).start()
    """
    check_end(folder, script, "300 300\n")


@pytest.mark.parametrize("sparse", ["head", "bm25"])
def test_an_ingest_finishes(folder: Path, tmp_path: Path, sparse: str) -> None:
    pytest.importorskip("qdrant_edge")
    script = f"""
    from twinvec_stores import EmbeddedStore, StoreConfig, ingest
    embedder = load(sparse={sparse!r})
    def work():
        after_main()
        with EmbeddedStore({str(tmp_path / "store")!r}, StoreConfig.for_embedder(embedder)) as store:
            report = ingest([{{"id": str(i), "text": text}} for i, text in enumerate(texts)], embedder, store)
            print(report.records, store.count())
    threading.Thread(target=work).start()
    """
    check_end(folder, script, "300 300\n")


@pytest.mark.parametrize("call", ['embed_documents(["a"])', "embed_documents(texts)"])
def test_a_daemon_thread_in_the_middle_of_a_call_ends_quietly(folder: Path, call: str) -> None:
    script = f"""
    embedder = load(token_budget=256)
    entered = hold(embedder)
    threading.Thread(target=lambda: embedder.{call}, daemon=True).start()
    entered.wait()
    """
    check_end(folder, script, "")


def test_an_event_loop_of_a_daemon_thread_ends_quietly(folder: Path) -> None:
    script = """
    embedder = load(token_budget=256)
    entered = hold(embedder)
    async def work():
        await asyncio.gather(*(embedder.aembed_queries([text]) for text in texts))
    threading.Thread(target=lambda: asyncio.run(work()), daemon=True).start()
    entered.wait()
    """
    check_end(folder, script, "")
