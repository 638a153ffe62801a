"""from_huggingface: the same vectors where that class is right, and a warning for each thing where it is not."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from langchain_huggingface import HuggingFaceEmbeddings

from langchain_twinvec import DifferenceWarning, TwinVecEmbeddings
from twinvec.errors import ConfigurationError

LINES = "line breaks reach the model"


def taken(source: Any, **options: Any) -> tuple[TwinVecEmbeddings, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = TwinVecEmbeddings.from_huggingface(source, dtype="float32", **options)
    said = [each for each in caught if issubclass(each.category, DifferenceWarning)]
    assert {each.filename for each in said} <= {__file__}
    return made, [str(each.message) for each in said]


def only(said: list[str]) -> str:
    """The one thing said besides the line breaks."""
    assert said[0].startswith(LINES)
    assert len(said) == 2, said
    return said[1]


def test_an_object_and_its_arguments_give_the_same_documents(bert_folder: str) -> None:
    theirs = HuggingFaceEmbeddings(model=bert_folder, model_kwargs={"device": "cpu"}, show_progress=False)
    texts = ["sort a list", "the capital of Russia", "  spaces  ", ""]
    for source in (theirs, {"model": bert_folder, "model_kwargs": {"device": "cpu"}}):
        made, said = taken(source)
        np.testing.assert_allclose(made.embed_documents(texts), theirs.embed_documents(texts), atol=1e-5)
        np.testing.assert_allclose(made.embed_query(texts[0]), theirs.embed_query(texts[0]), atol=1e-5)
        assert [each[: len(LINES)] for each in said] == [LINES]
        made.embedder.close()


def test_every_argument_is_translated(bert_folder: str) -> None:
    made, _ = taken(
        {
            "model_name": bert_folder,
            "cache_folder": "/a/cache",
            "show_progress": True,
            "model_kwargs": {
                "device": "cpu",
                "token": "hf_secret",
                "local_files_only": True,
                "trust_remote_code": False,
                "backend": "torch",
                "similarity_fn_name": "dot",
                "model_kwargs": {"torch_dtype": torch.bfloat16, "attn_implementation": "sdpa"},
                "processor_kwargs": {"model_max_length": 16},
            },
            "encode_kwargs": {"batch_size": 8, "normalize_embeddings": True, "convert_to_numpy": True},
        },
        sparse="bm25",
    )
    assert made.token is not None
    assert (made.device, made.offline, made.cache_dir, made.max_length, made.show_progress, made.dtype) == (
        "cpu",
        True,
        "/a/cache",
        16,
        True,
        "float32",  # said by the caller, before the translated bfloat16
    )
    assert made.sparse().embed_query("list").indices
    assert made.embedder.max_length == 16
    made.embedder.close()


def test_dtypes_of_torch_are_understood(bert_folder: str) -> None:
    with pytest.warns(DifferenceWarning):
        made = TwinVecEmbeddings.from_huggingface(
            {"model_name": bert_folder, "model_kwargs": {"model_kwargs": {"dtype": torch.bfloat16}}}
        )
    assert made.embedder.spec.dtype == "bfloat16"
    made.embedder.close()


def test_query_encode_kwargs_become_the_query_prompt(bert_folder: str) -> None:
    theirs = HuggingFaceEmbeddings(model_name=bert_folder, query_encode_kwargs={"prompt": "Instruct: find\nQuery: "})
    made, said = taken(theirs)
    np.testing.assert_allclose(made.embed_query("a b"), theirs.embed_query("a b"), atol=1e-5)
    np.testing.assert_allclose(made.embed_documents(["a b"]), theirs.embed_documents(["a b"]), atol=1e-5)
    assert len(said) == 1
    made.embedder.close()


def test_a_prompt_by_name_is_looked_up(e5_folder: str) -> None:
    theirs = HuggingFaceEmbeddings(
        model_name=e5_folder,
        encode_kwargs={"prompt_name": "passage"},
        query_encode_kwargs={"prompt_name": "query"},
    )
    made, said = taken(theirs)
    np.testing.assert_allclose(made.embed_query("a b"), theirs.embed_query("a b"), atol=1e-5)
    np.testing.assert_allclose(made.embed_documents(["a b"]), theirs.embed_documents(["a b"]), atol=1e-5)
    assert len(said) == 1
    made.embedder.close()


def test_own_prompts_that_were_never_applied_are_said(e5_folder: str) -> None:
    made, said = taken({"model_name": e5_folder})
    assert said[1:] == [
        "the model's prompt 'query: ' goes before each query: HuggingFaceEmbeddings never applies it by itself",
        "the model's prompt 'passage: ' goes before each document: HuggingFaceEmbeddings never applies it by itself",
    ]
    assert made.embedder.prompt_for("query") == "query: "
    made.embedder.close()


@pytest.mark.parametrize(
    "arguments",
    [{"model_kwargs": {"default_prompt_name": "query"}}, {"encode_kwargs": {"prompt_name": "query"}}],
)
def test_a_query_prompt_does_not_go_before_documents(e5_folder: str, arguments: dict[str, Any]) -> None:
    theirs = HuggingFaceEmbeddings(model_name=e5_folder, **arguments)
    assert theirs.embed_query("a b") == theirs.embed_documents(["a b"])[0]
    made, said = taken(theirs)
    assert made.embedder.prompt_for("query") == "query: "
    assert made.embedder.prompt_for("document") == "passage: "
    assert "'query' goes before each query only: HuggingFaceEmbeddings put it before each document too" in only(said)
    np.testing.assert_allclose(made.embed_query("a b"), theirs.embed_query("a b"), atol=1e-5)
    made.embedder.close()


def test_a_document_prompt_does_not_go_before_queries(e5_folder: str) -> None:
    made, said = taken({"model_name": e5_folder, "encode_kwargs": {"prompt_name": "passage"}})
    assert [made.embedder.prompt_for(role) for role in ("query", "document")] == ["query: ", "passage: "]
    assert "'passage' goes before each document only" in only(said)
    made.embedder.close()


def test_a_prompt_of_no_role_goes_before_both_as_it_did(bert_folder: str) -> None:
    made, said = taken({"model_name": bert_folder, "encode_kwargs": {"prompt": "represent: "}})
    assert [made.embedder.prompt_for(role) for role in ("query", "document")] == ["represent: "] * 2
    assert "goes before queries and documents alike" in only(said)
    made.embedder.close()


def test_prompts_of_the_arguments_are_used_by_role(bert_folder: str) -> None:
    made, said = taken({"model_name": bert_folder, "model_kwargs": {"prompts": {"query": "q: ", "passage": "p: "}}})
    assert [made.embedder.prompt_for(role) for role in ("query", "document")] == ["q: ", "p: "]
    assert len(said) == 3
    made.embedder.close()
    made, said = taken({"model_name": bert_folder}, prompts={"query": "mine: "})
    assert made.embedder.prompt_for("query") == "mine: "
    made.embedder.close()


def test_lengths_and_processes_are_said(bert_folder: str) -> None:
    arguments = {"model_name": bert_folder, "multi_process": True, "encode_kwargs": {"normalize_embeddings": False}}
    made, said = taken(arguments)
    assert "all vectors have length 1, whatever normalize_embeddings says" in said[1]
    assert "started processes for each call and ignored normalize_embeddings" in said[2]
    made.embedder.close()


def test_fewer_dims_are_said_where_they_were_shorter(gte_folder: str) -> None:
    made, said = taken({"model_name": gte_folder, "model_kwargs": {"truncate_dim": 16}})
    assert "length 1 after truncate_dim too" in only(said)
    assert np.linalg.norm(made.embed_query("a b")) == pytest.approx(1, abs=1e-5)
    made.embedder.close()
    arguments = {"model_kwargs": {"truncate_dim": 16}, "encode_kwargs": {"normalize_embeddings": True}}
    made, said = taken({"model_name": gte_folder, **arguments})
    assert len(said) == 1
    made.embedder.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "m", "query_instruction": "x"}, "HuggingFaceEmbeddings: query_instruction has no counterpart"),
        ({"model": "m", "model_kwargs": {"config_kwargs": {}}}, "model_kwargs: config_kwargs has no counterpart"),
        ({"model": "m", "model_kwargs": {"backend": "onnx"}}, "backend='onnx' has no counterpart"),
        ({"model": "m", "model_kwargs": {"model_kwargs": {"quantization_config": 1}}}, "quantization_config has no"),
        ({"model": "m", "model_kwargs": {"tokenizer_kwargs": {"padding_side": "left"}}}, "padding_side has no"),
        ({"model": "m", "encode_kwargs": {"precision": "int8"}}, "encode_kwargs: precision='int8' has no counterpart"),
        ({"model": "m", "query_encode_kwargs": {"nonsense": 1}}, "query_encode_kwargs: nonsense has no counterpart"),
        (
            {"model": "m", "model_kwargs": {"truncate_dim": 8}, "encode_kwargs": {"truncate_dim": 9}},
            "truncate_dim is said more than once: 8, 9",
        ),
    ],
)
def test_what_has_no_counterpart_fails(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TwinVecEmbeddings.from_huggingface(arguments)


def test_other_objects_fail() -> None:
    with pytest.raises(TypeError, match="expected HuggingFaceEmbeddings or a dict of its arguments, not int"):
        TwinVecEmbeddings.from_huggingface(3)  # type: ignore[arg-type]
