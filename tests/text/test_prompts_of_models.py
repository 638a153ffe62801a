"""Prompts as models have them: sentence-transformers' own answer, and texts that have a prompt already."""

import asyncio
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sentence_transformers
import torch

from reference.giga import build_giga_0826
from reference.sentence_layouts import build_sentence_transformer
from twinvec import Embedder
from twinvec.checkpoints.hub import open_checkpoint
from twinvec.errors import DoublePromptWarning
from twinvec.families.modules import read_modules

QUESTION = "Given a question, find a paragraph with the answer"


@pytest.mark.parametrize(
    "prompts",
    [
        pytest.param({"query": "q: ", "document": ""}, id="empty document prompt"),
        pytest.param({"query": "q: ", "passage": "", "s2s": "s: "}, id="empty passage prompt"),
        pytest.param({"query": "q: "}, id="no document prompt"),
    ],
)
@pytest.mark.parametrize("default", ["query", None])
def test_a_query_prompt_never_goes_before_documents_as_in_sentence_transformers(
    tmp_path: Path, prompts: dict[str, str], default: str | None
) -> None:
    """sentence-transformers' own model says what encode_query and encode_document put in front."""
    build_sentence_transformer(tmp_path, "bert", prompts=prompts, default_prompt_name=default)
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    ours = read_modules(open_checkpoint(str(tmp_path))).prompts
    for role, encode in (("query", theirs.encode_query), ("document", theirs.encode_document)):
        expected = torch.as_tensor(encode(["what is the capital"]))
        mine = torch.as_tensor(theirs.encode([ours.prefix(role) + "what is the capital"], prompt=""))
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)


def get_detailed_instruct(task: str, query: str) -> str:
    """As the cards of Giga and E5 print it."""
    return f"Instruct: {task}\nQuery: {query}"


@pytest.fixture(scope="module")
def giga(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    with Embedder(build_giga_0826(tmp_path_factory.mktemp("giga"), size="480M"), dtype="float32") as embedder:
        yield embedder


@pytest.mark.parametrize("task", [QUESTION, "another one", None])
def test_a_text_that_has_its_prompt_is_not_wrapped_twice_in_silence(giga: Embedder, task: str | None) -> None:
    text = get_detailed_instruct(QUESTION, "где столица?")
    texts = ["first", text, text + " 2"]

    async def awaited(texts: list[str], *, task: str | None) -> None:
        await giga.aembed_queries(texts, task=task)

    for embed in (giga.embed_queries, lambda texts, task: asyncio.run(awaited(texts, task=task))):
        with pytest.warns(DoublePromptWarning, match=r"2 of 3 texts.*texts\[1\].*Instruct: Given") as caught:
            embed(texts, task=task)
        assert len(caught) == 1
        assert caught[0].filename == __file__


def test_texts_without_a_prompt_and_prompts_by_hand_give_no_warning(giga: Embedder) -> None:
    text = get_detailed_instruct(QUESTION, "где столица?")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_hand = giga.embed_queries([text], prompt="")
        giga.embed_documents([text], task=QUESTION)  # nothing goes before documents
        giga.embed_queries(["Instruct: me", "Query: x", "", " "])
        ours = giga.embed_queries(["где столица?"], task=QUESTION)
    np.testing.assert_array_equal(by_hand.dense, ours.dense)
    with pytest.warns(DoublePromptWarning, match="1 of 1"):
        giga.embed_documents([text], task="similarity")
