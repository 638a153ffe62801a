"""Every option is declared and documented once; every place that takes options takes the same ones."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import pydoc
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import SecretStr

from langchain_twinvec import TwinVecEmbeddings, TwinVecMilvusSparseEmbeddings, TwinVecSparseEmbeddings
from llama_index_twinvec import TwinVecEmbedding, TwinVecSparseEmbedding
from reference.gte import build_gte
from twinvec import Embedder, EmbedderOptions, ModelSpec
from twinvec.cache import VectorCache
from twinvec.errors import ConfigurationError
from twinvec.options import EmbedderKeywords, option_docs
from twinvec_cli.main import app
from twinvec_cli.options import meaning

SECRET = "hf_do_not_show"
DECIDING = {field.name: field.default for field in fields(ModelSpec) if field.name not in ("model", "digest")}
OPTIONS = DECIDING | {field.name: field.default for field in fields(EmbedderOptions)}
LANGCHAIN = (TwinVecEmbeddings, TwinVecSparseEmbeddings, TwinVecMilvusSparseEmbeddings)
OF_ITS_OWN = {  # what means something else in a command
    "embed": set[str](),
    "ingest": {"model", "prompts", "quantization"},
    "serve": set[str](),
    "verify": {"dtype"},
    "search": {"task"},
}
LLAMA_INDEX = (TwinVecEmbedding, TwinVecSparseEmbedding)


def keywords(call: Any) -> dict[str, Any]:
    return {p.name: p.default for p in inspect.signature(call).parameters.values() if p.kind is p.KEYWORD_ONLY}


def shown(thing: Any) -> str:
    """Return what ``help(thing)`` prints, in one line."""
    written = io.StringIO()
    pydoc.Helper(output=written)(thing)
    return " ".join(written.getvalue().replace("|", " ").split())


def test_the_embedder_takes_every_option_with_its_default() -> None:
    assert keywords(Embedder) == OPTIONS
    assert set(typing.get_type_hints(EmbedderKeywords, localns={"Cache": Any})) == set(OPTIONS)


def test_the_keywords_that_type_checkers_see_have_the_declared_types() -> None:
    names = {"Cache": object}
    seen = typing.get_type_hints(EmbedderKeywords, localns=names)
    declared = {**typing.get_type_hints(ModelSpec), **typing.get_type_hints(EmbedderOptions, localns=names)}
    for name, kind in seen.items():
        wider = set(typing.get_args(kind) or [kind]) - set(typing.get_args(declared[name]) or [declared[name]])
        assert not {str(each) for each in wider} - {
            "os.PathLike[str]",
            "<class 'str'>",
            "<class 'twinvec.options.Secret'>",
        }
        assert bool(wider) == (name in ("sparse", "cache_dir", "token", "cache")), name


@pytest.mark.parametrize("kind", [*LANGCHAIN, *LLAMA_INDEX])
def test_the_frameworks_take_every_option_with_its_default(kind: Any) -> None:
    taken = keywords(kind)
    assert {name: taken[name] for name in OPTIONS} == OPTIONS
    schema = kind.model_json_schema()
    properties = schema["properties"]
    assert set(OPTIONS) - {"token"} <= set(properties)
    docs = option_docs()
    assert {name: properties[name]["description"] for name in OPTIONS if name in properties} == {
        name: text for name, text in docs.items() if name in OPTIONS and name in properties
    }


@pytest.mark.parametrize("thing", [Embedder, *LANGCHAIN, *LLAMA_INDEX])
def test_help_names_every_option_with_its_meaning(thing: Any) -> None:
    page, docs = shown(thing), option_docs()
    assert set(docs) == {"model", *OPTIONS}
    assert all(len(text) > 20 for text in docs.values())
    missing = [name for name in OPTIONS if f"{name}: {docs[name].replace('|', ' ')}" not in page]
    assert missing == []


def test_one_name_for_the_sparse_half() -> None:
    for kind in LANGCHAIN:
        made: Any = kind
        assert "sparse" in made.model_json_schema()["properties"]
        for other in ("sparse_", "sparse_source"):
            assert other not in made.model_json_schema()["properties"]
            with pytest.raises(ValueError, match="Extra inputs"):
                made(model="x", **{other: "bm25"})


def test_an_unknown_option_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"unknown option 'batch_size'; there are .*token_budget"):
        Embedder(tmp_path, batch_size=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_overflow": "cut"}, "on_overflow='cut'"),
        ({"on_overload": "drop"}, "on_overload='drop'"),
        ({"memo_bytes": -1}, "memo_bytes=-1"),
        ({"memo_bytes": 1.5}, "memo_bytes=1.5"),
        ({"token_budget": 0}, "token_budget=0"),
        ({"token_budget": True}, "token_budget=True"),
        ({"prompts": ["query: "]}, "prompts="),
        ({"prompts": {"query": 3}}, "prompts="),
        ({"token": 3}, "token must be a string, not int"),
        ({"cache": 3}, "cache must be a folder"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        EmbedderOptions(**options)


def test_no_token_is_shown_pickled_or_kept(tmp_path: Path) -> None:
    folder = build_gte(tmp_path / "model", seed=71)
    options = EmbedderOptions(token=SECRET)
    assert options.token == SECRET
    assert EmbedderOptions(token=SecretStr(SECRET)) == options  # type: ignore[arg-type]
    for copied in (pickle.loads(pickle.dumps(options)), copy.copy(options)):
        assert copied == EmbedderOptions()
    with Embedder(folder, token=SecretStr(SECRET), memo_bytes=0) as embedder:
        assert embedder.options == EmbedderOptions(memo_bytes=0)
        assert SECRET not in f"{options!r} {embedder!r} {embedder.options!r} {pickle.dumps(embedder)!r}"
    assert repr(embedder.options) == "EmbedderOptions(memo_bytes=0)"


def test_a_pickle_is_made_of_the_spec_and_the_options(tmp_path: Path) -> None:
    folder = build_gte(tmp_path / "model", seed=71)
    given: dict[str, Any] = {
        "device": "cpu", "prompts": {"query": "q: "}, "on_overflow": "error", "cache_dir": tmp_path, "offline": True,
        "token_budget": 99, "on_overload": "error", "memo_bytes": 7, "cache": tmp_path / "cache",
    }  # fmt: skip
    with Embedder(folder, dtype="float32", dim=32, **given) as embedder:
        assert isinstance(embedder.options.cache, VectorCache)
        made = pickle.loads(pickle.dumps(embedder))
        assert made.spec == embedder.spec
        for field in fields(EmbedderOptions):
            if field.name != "cache":
                assert getattr(made.options, field.name) == getattr(embedder.options, field.name)
        assert made.options.cache.path == tmp_path / "cache"
        assert made.options.cache_dir == str(tmp_path)
        made.close()


@pytest.mark.parametrize("kind", [TwinVecEmbeddings, TwinVecEmbedding])
def test_a_positional_model_is_taken_as_the_embedder_takes_it(kind: Any, tmp_path: Path) -> None:
    folder = build_gte(tmp_path / "model", seed=71)
    with Embedder(folder, dtype="float32", dim=32) as embedder:
        for model, options in ((folder, {"dtype": "float32", "dim": 32}), (embedder.spec, {})):
            made = kind(model, **options)
            assert made.embedder.spec == embedder.spec
            made.embedder.close()
        with pytest.raises(ConfigurationError, match="dim: already part of the ModelSpec"):
            kind(embedder.spec, dim=16)


@pytest.mark.parametrize("command", OF_ITS_OWN)
def test_the_commands_options_say_the_same(command: str) -> None:
    group: Any = typer.main.get_command(app)
    parameters = {parameter.name: parameter.help for parameter in group.commands[command].params}
    declared = {name: meaning(name) for name in parameters if name in option_docs() and name not in OF_ITS_OWN[command]}
    assert {"device", "trust_remote_code"} <= set(declared)
    assert ("sparse" in declared) == (command in ("embed", "ingest", "serve"))
    assert {name: parameters[name] for name in declared} == declared
