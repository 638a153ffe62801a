"""`twinvec store copy`: between a folder and PostgreSQL, again, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cli.conftest import Run
from stores import postgres
from stores.embedded import CONFIG, ROWS, contents, filled
from stores.oracle import Row, batch
from twinvec_stores import EmbeddedStore, StoreConfig, open_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    filled(tmp_path / "index").close()
    return tmp_path / "index"


def test_to_a_server_and_back(run: Run, folder: Path, tmp_path: Path) -> None:
    with EmbeddedStore(folder) as store:
        store.set_search({"fetch_k": 50})
    address, name = postgres.url(), postgres.new_name()
    result = run("store", "copy", folder, address, "--to-collection", name)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("5 records in postgresql://")
    result = run("store", "copy", address, tmp_path / "back", "--collection", name)
    assert (result.exit_code, result.stderr) == (0, "")
    with (
        EmbeddedStore(folder) as one,
        EmbeddedStore(tmp_path / "back") as two,
        open_store(address, collection=name) as server,
    ):
        assert contents(one) == contents(server) == contents(two)
        assert one.config == server.config == two.config
        assert two.config.search == {"fetch_k": 50}


def test_again_brings_it_up_to_date(run: Run, folder: Path, tmp_path: Path) -> None:
    run("store", "copy", folder, tmp_path / "two")
    with EmbeddedStore(folder) as store:
        store.upsert(batch([Row("r0", "changed", {"i": 7}), Row("new")], CONFIG))
        store.delete(["r1"])
    result = run("store", "copy", folder, tmp_path / "two")
    assert result.exit_code == 1
    assert "the source has 5 records, the copy 6" in result.stderr
    assert "1 other records: --prune deletes them" in result.stderr
    assert "NOT the same" in result.stdout
    result = run("store", "copy", folder, tmp_path / "two", "--prune")
    assert (result.exit_code, result.stderr) == (0, "")
    with EmbeddedStore(folder) as one, EmbeddedStore(tmp_path / "two") as two:
        assert contents(one) == contents(two)


def test_settings_of_a_new_one(run: Run, folder: Path, tmp_path: Path) -> None:
    assert run("store", "copy", folder, tmp_path / "int8", "--quantization", "int8").exit_code == 0
    assert run("store", "copy", tmp_path / "int8", tmp_path / "plain", "--quantization", "none").exit_code == 0
    for name, quantization in (("int8", "int8"), ("plain", None)):
        with EmbeddedStore(tmp_path / name) as store:
            assert store.config.quantization == quantization
    result = run("store", "copy", tmp_path / "int8", postgres.url(), "--to-collection", postgres.new_name())
    assert result.exit_code == 0
    assert "has quantization None, not int8" in result.stderr
    result = run("store", "copy", folder, tmp_path / "first", "--quantization", "first_dim=2")
    assert result.exit_code == 2
    assert "use it with `twinvec ingest`" in result.stderr
    assert not (tmp_path / "first").exists()


def test_another_process_may_be_writing(run: Run, folder: Path, tmp_path: Path) -> None:
    code = "import sys; from twinvec_stores import open_store; s = open_store(sys.argv[1]); print(flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdin=pipe, stdout=pipe, env=os.environ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        result = run("store", "copy", folder, tmp_path / "two")
        other.communicate(b"\n")
    assert (result.exit_code, result.stderr) == (0, "")
    with EmbeddedStore(tmp_path / "two") as store:
        assert {row.id for row in contents(store)} == {row.id for row in ROWS}


def test_refusals(run: Run, folder: Path, tmp_path: Path) -> None:
    result = run("store", "copy", folder, folder)
    assert (result.exit_code, "the same store" in result.stderr) == (2, True)
    result = run("store", "copy", tmp_path / "nothing", tmp_path / "two")
    assert (result.exit_code, "there is no store" in result.stderr) == (2, True)
    assert not (tmp_path / "two").exists()
    EmbeddedStore(tmp_path / "other", StoreConfig(fingerprint="two", model="another", dim=4, idf=True)).close()
    result = run("store", "copy", folder, tmp_path / "other")
    assert (result.exit_code, "another" in result.stderr) == (2, True)
    assert "resume" in run("store", "copy", "--help").stdout


def test_a_store_without_a_dense_half(run: Run, tmp_path: Path) -> None:
    """With more records than are compared."""
    config = StoreConfig(fingerprint="one", sparse=True)
    with EmbeddedStore(tmp_path / "sparse", config) as store:
        weights = np.random.default_rng(0).uniform(0.1, 1, 300).astype(np.float32)
        store.upsert(batch([Row(f"{i}", sparse={i % 7: float(w)}) for i, w in enumerate(weights)], config))
    result = run("store", "copy", tmp_path / "sparse", tmp_path / "two", "--sample", 20)
    assert (result.exit_code, result.stdout[:11]) == (0, "300 records")
