"""from_huggingface: the same vectors where that class is right, and a warning for each thing where it is not."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from langchain_huggingface import HuggingFaceEmbeddings
from tokenizers import Tokenizer

from langchain_twinvec import DifferenceWarning, TwinVecEmbeddings
from reference.giga_original import build_giga_original
from twinvec.errors import ConfigurationError, RemoteCodeRequiredError

LINES = "line breaks reach the model"


def taken(source: Any, **options: Any) -> tuple[TwinVecEmbeddings, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = TwinVecEmbeddings.from_huggingface(source, dtype="float32", **options)
    said = [each for each in caught if issubclass(each.category, DifferenceWarning)]
    assert {each.filename for each in said} <= {__file__}
    return made, [str(each.message) for each in said]


def only(said: list[str]) -> str:
    assert len(said) == 1, said
    return said[0]


def test_an_object_and_its_arguments_give_the_same_documents(bert_folder: str) -> None:
    theirs = HuggingFaceEmbeddings(model=bert_folder, model_kwargs={"device": "cpu"}, show_progress=False)
    texts = ["sort a list", "the capital of Russia", "  spaces  ", ""]
    for source in (theirs, {"model": bert_folder, "model_kwargs": {"device": "cpu"}}):
        made, said = taken(source)
        np.testing.assert_allclose(made.embed_documents(texts), theirs.embed_documents(texts), atol=1e-5)
        np.testing.assert_allclose(made.embed_query(texts[0]), theirs.embed_query(texts[0]), atol=1e-5)
        assert said == []
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
    assert said == []
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
    assert said == []
    made.embedder.close()


def test_own_prompts_that_were_never_applied_are_said(e5_folder: str) -> None:
    made, said = taken({"model_name": e5_folder})
    assert said == [
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
    assert len(said) == 2
    made.embedder.close()
    made, said = taken({"model_name": bert_folder}, prompts={"query": "mine: "})
    assert made.embedder.prompt_for("query") == "mine: "
    made.embedder.close()


def test_lengths_and_processes_are_said(bert_folder: str) -> None:
    arguments = {"model_name": bert_folder, "multi_process": True, "encode_kwargs": {"normalize_embeddings": False}}
    made, said = taken(arguments)
    assert "all vectors have length 1, regardless of normalize_embeddings" in said[0]
    assert "started processes for each call and ignored normalize_embeddings" in said[1]
    made.embedder.close()


def test_fewer_dims_are_said_where_they_were_shorter(gte_folder: str) -> None:
    made, said = taken({"model_name": gte_folder, "model_kwargs": {"truncate_dim": 16}})
    assert "length 1 after truncate_dim too" in only(said)
    assert np.linalg.norm(made.embed_query("a b")) == pytest.approx(1, abs=1e-5)
    made.embedder.close()
    arguments = {"model_kwargs": {"truncate_dim": 16}, "encode_kwargs": {"normalize_embeddings": True}}
    made, said = taken({"model_name": gte_folder, **arguments})
    assert said == []
    made.embedder.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "m", "instruction": "x"}, "HuggingFaceEmbeddings: instruction has no counterpart"),
        (
            {"model": "m", "model_kwargs": {"config_kwargs": {"rope_theta": 1}}},
            "config_kwargs: rope_theta has no",
        ),
        ({"model": "m", "model_kwargs": {"backend": "onnx"}}, "backend='onnx' has no counterpart"),
        ({"model": "m", "model_kwargs": {"model_kwargs": {"quantization_config": 1}}}, "quantization_config has no"),
        ({"model": "m", "model_kwargs": {"tokenizer_kwargs": {"do_lower_case": True}}}, "do_lower_case has no"),
        ({"model": "m", "encode_kwargs": {"precision": "int8"}}, "encode_kwargs: precision='int8' has no counterpart"),
        ({"model": "m", "query_encode_kwargs": {"nonsense": 1}}, "query_encode_kwargs: nonsense has no counterpart"),
        (
            {"model": "m", "model_kwargs": {"truncate_dim": 8}, "encode_kwargs": {"truncate_dim": 9}},
            "truncate_dim is specified more than once: 8, 9",
        ),
    ],
)
def test_what_has_no_counterpart_fails(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TwinVecEmbeddings.from_huggingface(arguments)


HARMLESS = {
    "model_kwargs": {
        "device": "cpu",
        "trust_remote_code": True,
        "model_kwargs": {"attn_implementation": "flash_attention_2", "low_cpu_mem_usage": True, "unpad_inputs": True},
        "config_kwargs": {"use_memory_efficient_attention": False, "unpad_inputs": False},
        "tokenizer_kwargs": {"padding_side": "left", "use_fast": True},
    },
    "encode_kwargs": {"show_progress_bar": True, "num_workers": 2, "batch_size": 4},
}


def test_a_card_is_taken_over_whole_and_no_code_of_it_runs(gte_folder: str) -> None:
    made, said = taken({"model_name": gte_folder, **HARMLESS})
    assert "trust_remote_code=True is dropped" in only(said)
    assert not made.trust_remote_code
    assert made.show_progress
    plain = TwinVecEmbeddings(model=gte_folder, dtype="float32")
    assert made.embed_documents(["a b"]) == plain.embed_documents(["a b"])
    plain.embedder.close()
    made.embedder.close()


def test_code_that_is_needed_is_still_asked_for(tmp_path: Path) -> None:
    folder = build_giga_original(tmp_path / "model", remote_code=True)
    config = folder / "config.json"
    unknown = {"model_type": "gigarembed_next", "hidden_size": 64, "max_position_embeddings": 4096}
    config.write_text(json.dumps(json.loads(config.read_text()) | unknown))
    made, said = taken({"model_name": str(folder), "model_kwargs": {"trust_remote_code": True}})
    assert made.trust_remote_code
    assert not any("trust_remote_code" in each for each in said)
    made.embedder.close()
    with pytest.raises(RemoteCodeRequiredError):
        taken({"model_name": str(folder)})


def test_the_keywords_alone_do(bert_folder: str) -> None:
    theirs = {"model_name": bert_folder, "model_kwargs": {"device": "cpu"}, "encode_kwargs": {"batch_size": 2}}
    made = TwinVecEmbeddings.from_huggingface(**theirs, dtype="float32", sparse="bm25")
    assert made.embedder.has_sparse
    np.testing.assert_allclose(made.embed_query("a b"), HuggingFaceEmbeddings(**theirs).embed_query("a b"), atol=1e-5)
    made.embedder.close()
    with pytest.raises(ConfigurationError, match="model_name="):
        TwinVecEmbeddings.from_huggingface(dtype="float32")


def test_objects_of_the_community_class_have_fewer_attributes(bert_folder: str) -> None:
    common: dict[str, Any] = {"cache_folder": None, "model_kwargs": {}, "encode_kwargs": {}, "show_progress": False}
    old = SimpleNamespace(client=None, model_name=bert_folder, multi_process=False, **common)
    made, said = taken(old)
    assert said == []
    made.embedder.close()
    bge = SimpleNamespace(model_name=bert_folder, query_instruction="find: ", embed_instruction="", **common)
    made, said = taken(bge)
    assert said == []
    assert [made.embedder.prompt_for(role) for role in ("query", "document")] == ["find: ", ""]
    made.embedder.close()


def test_line_breaks_are_said_where_they_are_other_tokens(giga_folder: str, gte_folder: str) -> None:
    for folder in (giga_folder, gte_folder):
        made, said = taken({"model_name": folder})
        tokens = Tokenizer.from_file(f"{folder}/tokenizer.json")
        differs = tokens.encode("a\nb").ids != tokens.encode("a b").ids
        assert any(each.startswith(LINES) for each in said) == differs
        made.embedder.close()


def test_another_dtype_is_said(bert_folder: str) -> None:
    theirs = HuggingFaceEmbeddings(model=bert_folder, model_kwargs={"model_kwargs": {"dtype": torch.bfloat16}})
    made, said = taken(theirs)
    assert "computed in float32, where that object computes in bfloat16" in only(said)
    made.embedder.close()


def test_other_objects_fail() -> None:
    with pytest.raises(TypeError, match="expected HuggingFaceEmbeddings or a dict of its arguments, not int"):
        TwinVecEmbeddings.from_huggingface(3)  # type: ignore[arg-type]
