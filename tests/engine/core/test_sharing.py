"""One model for all who need the same forward pass."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.fakes import core_of, until
from reference.gte import build_gte
from reference.sentence_layouts import build_splade
from support import dense_of
from twinvec import Embedder
from twinvec.engine import loading
from twinvec.engine.registry import REGISTRY
from twinvec.errors import (
    ConfigurationError,
)


def test_prompts_dims_keys_lengths_and_halves_share_one_model(folder: Path) -> None:
    options: list[dict[str, Any]] = [
        {},
        {"dim": 16},
        {"sparse": None},
        {"sparse_keys": "ids"},
        {"max_length": 8},
        {"prompts": {"query": "q: "}},
        {"memo_bytes": 0},
    ]
    made = [Embedder(folder, dtype="float32", **option) for option in options]
    assert len({id(core_of(e)) for e in made}) == 1
    full = dense_of(made[0].embed_documents(["the capital"]))
    small = dense_of(made[1].embed_documents(["the capital"]))
    np.testing.assert_allclose(small[0], full[0, :16] / np.linalg.norm(full[0, :16]), atol=1e-6)
    for e in made:
        e.close()


@pytest.mark.parametrize("option", [{"dtype": "bfloat16"}, {"dtype": "float32", "reproducible": True}])
def test_what_changes_the_forward_pass_is_another_model(folder: Path, option: dict[str, Any]) -> None:
    with Embedder(folder, dtype="float32") as one, Embedder(folder, **option) as other:
        assert core_of(one) is not core_of(other)


def test_threads_that_load_at_once_load_once(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: Embedder(folder, dtype="float32"), range(8)))
    assert len({id(core_of(e)) for e in made}) == 1
    for e in made:
        e.close()


def test_closing_one_user_leaves_the_others_working_and_the_last_one_frees(folder: Path) -> None:
    one, other = Embedder(folder, dtype="float32"), Embedder(folder, dtype="float32", dim=32)
    core = core_of(one)
    one.close()
    with pytest.raises(ConfigurationError, match="closed"):
        one.embed_documents(["a"])
    assert not one.healthy
    assert len(other.embed_documents(["a"])) == 1
    other.close()
    assert not any(thread.is_alive() for thread in core._threads)
    assert core not in [slot.core for slot in REGISTRY._slots.values()]


def test_a_collected_embedder_gives_its_share_back(folder: Path) -> None:
    made = Embedder(folder, dtype="float32")
    threads = core_of(made)._threads
    del made
    gc.collect()
    until(lambda: not any(thread.is_alive() for thread in threads))


def test_a_failed_load_leaves_nothing_behind(tmp_path: Path) -> None:
    dense, sparse = build_gte(tmp_path / "dense", seed=12), build_splade(tmp_path / "sparse")
    (sparse / "model.safetensors").write_bytes(b"broken")
    before = len(REGISTRY)
    with pytest.raises(Exception, match="Download it again"):
        Embedder(dense, sparse=sparse)
    assert len(REGISTRY) == before


def test_loading_leaves_no_thread_behind_that_has_computed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP keeps workers for every such thread, and all of them slow each other down."""
    threads = []
    build = loading._build_backbone

    def recorded(*args: Any) -> Any:
        threads.append(threading.current_thread())
        return build(*args)

    monkeypatch.setattr(loading, "_build_backbone", recorded)
    with Embedder(folder, dtype="float16"):
        (thread,) = threads
        assert thread is not threading.current_thread()
        assert not thread.is_alive()


def test_a_collected_embedder_is_closed_before_the_interpreter_ends(folder: Path) -> None:
    """A thread that is inside of torch when the interpreter ends aborts the process."""
    script = f"""
import threading
from twinvec import Embedder
from twinvec.engine.core import InferenceCore

close = InferenceCore.close
def late(self, **options):
    threading.main_thread().join()
    close(self, **options)
    print("closed")

InferenceCore.close = late
Embedder({str(folder)!r}, dtype="float32").embed_queries(["a"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr
