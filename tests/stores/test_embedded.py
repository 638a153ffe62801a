"""The embedded store: a folder is opened, made and closed, and another's folder is refused."""

from __future__ import annotations

import asyncio
import gc
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stores.embedded import CALLS, CONFIG, ROWS, contents, filled, is_locked, python
from stores.oracle import batch
from twinvec.errors import (
    ConfigurationError,
    FingerprintMismatchError,
    StoreClosedError,
    StoreEngineError,
    StoreMismatchError,
    StoreNotFoundError,
)
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.embedded.store import EmbeddedStore


def test_what_was_written_is_there_when_it_is_opened_again(folder: Path) -> None:
    filled(folder).close()
    with EmbeddedStore(folder) as store:
        assert store.config == CONFIG
        assert contents(store) == ROWS
        store.delete(["r0"])
    with EmbeddedStore(str(folder), CONFIG) as store:
        assert contents(store) == ROWS[1:]


@pytest.mark.parametrize("below", [".", "deeper/still"])
def test_opening_makes_nothing_where_nothing_is(tmp_path: Path, below: str) -> None:
    with pytest.raises(StoreNotFoundError, match="no store"):
        EmbeddedStore(tmp_path / below)
    assert list(tmp_path.iterdir()) == []


def test_missing_parents_are_made(tmp_path: Path) -> None:
    filled(tmp_path / "a" / "b" / "c").close()
    assert contents(EmbeddedStore(tmp_path / "a" / "b" / "c")) == ROWS


def test_another_process_is_refused_and_told_why(folder: Path) -> None:
    code = "import sys; from twinvec_stores.engines.embedded.store import EmbeddedStore; EmbeddedStore(sys.argv[1])"
    with filled(folder) as store:
        outcome = python(code, str(folder))
        assert outcome.returncode == 1
        last = outcome.stderr.strip().splitlines()[-1]
        assert last.startswith(f"twinvec.errors.StoreLockedError: {folder} is open in another process")
        assert contents(store) == ROWS
    assert python(code, str(folder)).returncode == 0


def test_one_process_shares_one_engine(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = EmbeddedStore(folder, CONFIG)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    second, third = EmbeddedStore("store"), EmbeddedStore(tmp_path / "link", CONFIG)
    first.upsert(batch(ROWS[:2], CONFIG))
    second.upsert(batch(ROWS[2:], CONFIG))
    assert contents(first) == contents(second) == contents(third) == ROWS
    first.close()
    second.close()
    second.close()  # which must not close it for the third
    assert contents(third) == ROWS
    assert is_locked(folder)
    third.close()
    assert not is_locked(folder)


def test_a_store_that_is_forgotten_gives_the_folder_back(folder: Path) -> None:
    store = filled(folder)
    del store
    gc.collect()
    assert not is_locked(folder)
    assert contents(EmbeddedStore(folder)) == ROWS


def test_another_model_is_refused_and_both_are_named(folder: Path) -> None:
    other = replace(CONFIG, fingerprint="two", model="models/two")
    open_one = filled(folder)
    for _ in range(2):  # while it is open, and when it is not
        with pytest.raises(FingerprintMismatchError) as caught:
            EmbeddedStore(folder, other)
        assert (caught.value.stored, caught.value.given) == ("one", "two")
        assert [w for w in ("one", "two", "models/one", "models/two", str(folder)) if w not in str(caught.value)] == []
        open_one.close()
    assert contents(EmbeddedStore(folder)) == ROWS


OTHERS: list[tuple[StoreConfig, str]] = [
    (replace(CONFIG, dim=8), "dim=4 instead of 8"),
    (replace(CONFIG, dim=None), "dim=4 instead of None"),
    (replace(CONFIG, sparse=False, idf=False), "sparse=True instead of False"),
    (replace(CONFIG, idf=False), "idf=True instead of False"),
    (replace(CONFIG, fields={"i": "float"}), "fields"),
    (replace(CONFIG, fields={"i": "integer", "j": "integer"}), "fields"),
    (replace(CONFIG, quantization="int8"), "quantization=None instead of 'int8'"),
]


@pytest.mark.parametrize(("other", "words"), OTHERS)
def test_other_settings_are_refused(folder: Path, other: StoreConfig, words: str) -> None:
    with filled(folder), pytest.raises(StoreMismatchError, match=words):
        EmbeddedStore(folder, other)
    with pytest.raises(StoreMismatchError, match=words):
        EmbeddedStore(folder, other)
    with EmbeddedStore(folder, replace(CONFIG, fields={})) as store:  # they are the store's own affair
        assert store.config == CONFIG
        assert contents(store) == ROWS


def test_another_schema_version_is_refused(folder: Path) -> None:
    filled(folder).close()
    data = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps({**data, "schema_version": 3, "new": 1}))
    with pytest.raises(StoreMismatchError, match="schema version 3, this version of TwinVec reads 2"):
        EmbeddedStore(folder)


def test_a_store_with_fingerprints_of_samples_is_refused_with_the_reason(folder: Path) -> None:
    filled(folder).close()
    data = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps({**data, "schema_version": 1}))
    for config in (None, CONFIG):
        with pytest.raises(StoreMismatchError, match=r"samples of their weights.*[Ii]ngest the documents"):
            EmbeddedStore(folder, config)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"{",
        lambda data: b"\xff\xfe",
        lambda data: b"null",
        lambda data: b"[1]",
        lambda data: json.dumps(data)[:-20].encode(),
        lambda data: json.dumps({**data, "unknown": 1}).encode(),
        lambda data: json.dumps({k: v for k, v in data.items() if k != "dim"}).encode(),
        lambda data: json.dumps({**data, "dim": "four"}).encode(),
        lambda data: json.dumps({**data, "fields": None}).encode(),
        lambda data: json.dumps({**data, "fields": ["i"]}).encode(),
        lambda data: json.dumps({**data, "fields": {"a..b": "float"}}).encode(),
        lambda data: json.dumps({**data, "quantization": "int4"}).encode(),
    ],
)
def test_a_damaged_configuration_is_refused(folder: Path, damage: Callable[[Any], bytes]) -> None:
    filled(folder).close()
    whole = (folder / "store.json").read_bytes()
    (folder / "store.json").write_bytes(damage(json.loads(whole)))
    for config in (None, CONFIG):
        with pytest.raises(StoreMismatchError, match=str(folder)):
            EmbeddedStore(folder, config)
    (folder / "store.json").write_bytes(whole)
    assert contents(EmbeddedStore(folder)) == ROWS


def test_a_missing_shard_is_refused(folder: Path) -> None:
    filled(folder).close()
    (folder / "shard").rename(folder.parent / "elsewhere")
    for config in (None, CONFIG):
        with pytest.raises(StoreMismatchError, match="is missing its folder shard"):
            EmbeddedStore(folder, config)
    (folder.parent / "elsewhere").rename(folder / "shard")
    assert contents(EmbeddedStore(folder)) == ROWS


def test_an_unreadable_shard_is_an_engine_error(folder: Path) -> None:
    filled(folder).close()
    shutil.rmtree(folder / "shard")
    (folder / "shard").mkdir()
    with pytest.raises(StoreEngineError, match=str(folder)):
        EmbeddedStore(folder)
    assert not is_locked(folder)


def test_a_folder_of_other_files_is_refused(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigurationError, match=r"other files \(thesis.tex\)"):
        EmbeddedStore(folder, CONFIG)
    assert [entry.name for entry in folder.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for config in (None, CONFIG):
        with pytest.raises(ConfigurationError, match="is a file"):
            EmbeddedStore(tmp_path / "file", config)
    with pytest.raises(StoreEngineError, match="below"):
        EmbeddedStore(tmp_path / "file" / "below", CONFIG)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_store_that_was_hardly_made_is_made_again(folder: Path) -> None:
    EmbeddedStore(folder, CONFIG).close()
    (folder / "store.json").rename(folder / "store.json.new")  # killed before the last step
    (folder / "shard.new").mkdir()
    (folder / "shard.new" / "half").write_text("made")
    with pytest.raises(StoreNotFoundError):
        EmbeddedStore(folder)
    other = replace(CONFIG, dim=8, fields={})
    with EmbeddedStore(folder, other) as store:
        rows = [replace(r, dense=(1.0,) + (0.0,) * 7) for r in ROWS]
        store.upsert(batch(rows, other))
    assert contents(EmbeddedStore(folder)) == rows
    assert not (folder / "shard.new").exists()


def test_records_without_a_configuration_are_not_thrown_away(folder: Path) -> None:
    filled(folder).close()
    (folder / "store.json").rename(folder.parent / "kept.json")
    with pytest.raises(StoreMismatchError, match="records"):
        EmbeddedStore(folder, CONFIG)
    (folder.parent / "kept.json").rename(folder / "store.json")
    assert contents(EmbeddedStore(folder)) == ROWS


def test_what_a_killed_optimizer_left_is_removed(folder: Path) -> None:
    filled(folder).close()
    left = folder / "shard" / "temp_segments" / "segment_builder_x"
    left.mkdir(parents=True)
    (left / "vectors").write_bytes(bytes(10_000))
    with EmbeddedStore(folder) as store:
        assert not left.exists()
        assert contents(store) == ROWS


def test_the_engine_is_an_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_edge", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'twinvec\[embedded\]'"):
        EmbeddedStore(folder, CONFIG)
    assert not folder.exists()


@pytest.mark.parametrize("call", CALLS)
def test_a_closed_store_says_so(folder: Path, call: str) -> None:
    store = filled(folder)
    CALLS[call](store)
    store.count()
    store.close()
    store.close()
    asyncio.run(store.aclose())
    with pytest.raises(StoreClosedError, match=str(folder)):
        CALLS[call](store)
    other = EmbeddedStore(folder)  # the folder being open again does not open the store again
    with pytest.raises(StoreClosedError, match=str(folder)):
        CALLS[call](store)
    other.close()


def test_a_pickled_store_is_opened_again(folder: Path) -> None:
    store = filled(folder)
    pickled = pickle.dumps(store)
    shared = pickle.loads(pickled)
    assert contents(shared) == ROWS
    store.close()
    shared.close()
    code = "import pickle, sys; print(pickle.loads(bytes.fromhex(sys.argv[1])).count())"
    assert python(code, pickled.hex()).stdout == "5\n"


def test_info_and_repr_tell_what_is_there(folder: Path) -> None:
    with filled(folder) as store:
        store.flush()
        info = store.info()
        assert (info.engine, info.location, info.records) == ("embedded", str(folder), 5)
        assert (info.has_graph, info.segments, info.config) == (False, 1, CONFIG)
        assert info.bytes is not None
        assert info.bytes > 5 * 16
        assert all(word in repr(store) for word in ("EmbeddedStore", str(folder), "models/one", "dim=4"))
