"""ModelSpec, its fingerprint, and the settings from the environment."""

import dataclasses
import os
import pickle
import subprocess
import sys
from typing import Any

import pytest

from twinvec import ModelSpec
from twinvec.errors import ConfigurationError, TwinVecError
from twinvec.settings import Settings

DIGEST = "0" * 31 + "1"
LOADED = ModelSpec(
    model="owner/name", revision="a" * 40, dtype="float32", dim=64, max_length=512, sparse="head", digest=DIGEST
)
DIFFERENT: dict[str, Any] = {
    "dtype": "bfloat16",
    "dim": 32,
    "max_length": 511,
    "sparse": None,
    "sparse_keys": "ids",
    "reproducible": True,
    "quantization": "int8",
    "digest": DIGEST[::-1],
}
PLACES: dict[str, Any] = {"model": "/data/copy", "revision": None, "trust_remote_code": True}


@pytest.mark.parametrize("name", DIFFERENT)
def test_whatever_decides_a_vector_changes_the_fingerprint(name: str) -> None:
    other = dataclasses.replace(LOADED, **{name: DIFFERENT[name]})
    assert other != LOADED
    assert other.fingerprint != LOADED.fingerprint


def test_the_fingerprint_is_that_of_stores_made_before_there_was_quantization() -> None:
    assert LOADED.fingerprint == "96d2862bca34446a2c50e42b544e19fd"


@pytest.mark.parametrize("name", PLACES)
def test_where_the_files_lie_does_not_once_their_digest_is_known(name: str) -> None:
    assert dataclasses.replace(LOADED, **{name: PLACES[name]}).fingerprint == LOADED.fingerprint


@pytest.mark.parametrize("name", PLACES)
def test_before_loading_the_name_is_all_that_is_known(name: str) -> None:
    unloaded = dataclasses.replace(LOADED, digest=None)
    assert dataclasses.replace(unloaded, **{name: PLACES[name]}).fingerprint != unloaded.fingerprint


def test_a_moved_head_file_of_the_same_content_keeps_the_fingerprint() -> None:
    """The digest covers the head file's content, so its path decides nothing."""
    here, there = (dataclasses.replace(LOADED, sparse=f"/{place}/head.safetensors") for place in ("a", "b"))
    assert here.fingerprint == there.fingerprint


def test_every_field_is_covered_by_these_tests() -> None:
    assert {f.name for f in dataclasses.fields(ModelSpec)} == {*DIFFERENT, *PLACES}


def test_the_fingerprint_is_32_hex_digits_and_the_same_in_another_process() -> None:
    assert len(LOADED.fingerprint) == 32
    assert int(LOADED.fingerprint, 16) >= 0
    code = f"from twinvec.spec import ModelSpec; print({LOADED!r}.fingerprint)"
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert other.stdout.strip() == LOADED.fingerprint


def test_a_spec_is_a_hashable_value_and_survives_pickling() -> None:
    twin = dataclasses.replace(LOADED)
    assert {LOADED: "found"}[twin] == "found"
    copy = pickle.loads(pickle.dumps(LOADED))
    assert (copy, copy.fingerprint) == (LOADED, LOADED.fingerprint)
    with pytest.raises(dataclasses.FrozenInstanceError):
        LOADED.dim = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    "field",
    [
        {"model": ""},
        {"dtype": "float64"},
        {"dtype": "fp16"},
        {"sparse_keys": "tokens"},
        {"dim": 0},
        {"dim": -1},
        {"dim": True},
        {"dim": 64.0},
        {"dim": "64"},
        {"max_length": 0},
        {"max_length": True},
    ],
    ids=str,
)
def test_a_value_that_cannot_be_honoured_is_refused_by_name(field: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(field))) as caught:
        ModelSpec(**{"model": "owner/name", **field})
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TwinVecError)


def test_unknown_fields_and_positions_are_refused() -> None:
    make: Any = ModelSpec
    with pytest.raises(TypeError):
        make(model="owner/name", token="secret")
    with pytest.raises(TypeError):
        make("owner/name")


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings.from_env({}) == Settings(device="auto", cache_dir=None, offline=False, token_budget=None)


def test_each_variable_has_its_setting() -> None:
    env = {"TWINVEC_DEVICE": "cuda:1", "TWINVEC_CACHE_DIR": "/c", "TWINVEC_OFFLINE": "1", "TWINVEC_TOKEN_BUDGET": "512"}
    assert Settings.from_env(env) == Settings(device="cuda:1", cache_dir="/c", offline=True, token_budget=512)


@pytest.mark.parametrize("name", ["DEVICE", "CACHE_DIR", "OFFLINE", "TOKEN_BUDGET"])
def test_an_empty_variable_is_an_unset_one(name: str) -> None:
    assert Settings.from_env({f"TWINVEC_{name}": ""}) == Settings()


@pytest.mark.parametrize(("value", "offline"), [("0", False), ("false", False), ("1", True), ("true", True)])
def test_offline_is_a_switch(value: str, offline: bool) -> None:
    assert Settings.from_env({"TWINVEC_OFFLINE": value}).offline is offline


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKEN_BUDGET", "0"),
        ("TOKEN_BUDGET", "-5"),
        ("TOKEN_BUDGET", "1e3"),
        ("TOKEN_BUDGET", "²"),
        ("OFFLINE", "maybe"),
    ],
)
def test_an_unreadable_value_is_an_error_that_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"TWINVEC_{name}"):
        Settings.from_env({f"TWINVEC_{name}": value})


def test_the_process_environment_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINVEC_TOKEN_BUDGET", "77")
    assert Settings.from_env().token_budget == 77
