"""Vectors of tokens and MaxSim, against FlagEmbedding's formula and sentence-transformers' own class, in float64."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.multi_vector_encoder import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Dense, Normalize

from reference.checkpoint_files import Array, write_json
from reference.sentence_layouts import build_bge_m3, build_sentence_transformer
from reference.sentence_reference import read_json
from rerankers.pairs import random_pairs
from support import TEXTS
from twinvec import Embedder, MaxSim, MultiBatch
from twinvec.errors import CheckpointError, ConfigurationError, TruncationWarning
from twinvec.maxsim import compare_tokens
from twinvec_stores import HybridIndex, MemoryStore, StoreConfig

Vectors = Callable[[Sequence[str], str], list[Array]]
PAIRS = random_pairs(300)


def bge_vectors(folder: Path) -> Vectors:
    """All token states but the first, through the linear layer, of length 1."""
    model = SentenceTransformer(str(folder), device="cpu").double()
    head = torch.load(folder / "colbert_linear.pt", weights_only=True)

    @torch.no_grad()
    def vectors(texts: Sequence[str], role: str) -> list[Array]:
        found = []
        for text in texts:
            states = model.encode([text], output_value="token_embeddings")[0]
            projected = states[1:].double() @ head["weight"].double().T + head["bias"].double()
            found.append(torch.nn.functional.normalize(projected, dim=-1).numpy())
        return found

    return vectors


def build_multi_vector_encoder(folder: Path, source: Path, *, prompts: dict[str, str], **options: Any) -> Path:
    transformer = Transformer(str(source), **options)
    dense = Dense(64, 16, bias=False, activation_function=torch.nn.Identity(), module_input_name="token_embeddings")
    modules = [transformer, dense, MultiVectorMask(skiplist_words=["a", ".", "no such token"])]
    modules.append(Normalize(module_input_name="token_embeddings"))
    MultiVectorEncoder(modules=modules, prompts=prompts).save(str(folder))
    return folder


def encoder_vectors(folder: Path) -> Vectors:
    model = MultiVectorEncoder(str(folder), device="cpu").double()

    def vectors(texts: Sequence[str], role: str) -> list[Array]:
        encode = model.encode_query if role == "query" else model.encode_document
        return [encode(text, convert_to_numpy=True) for text in texts]

    return vectors


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("multi")
    source = build_sentence_transformer(place / "bert", "bert", max_seq_length=64, seed=7)
    prompts = {"query": "query: ", "document": "passage: "}
    encoder = build_multi_vector_encoder(place / "encoder", source, prompts=prompts, query_length=12)
    return {"bge-m3": build_bge_m3(place / "bge", seed=7), "encoder": encoder}


@pytest.fixture(scope="module", params=["bge-m3", "encoder"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def embedder(kind: str, folders: dict[str, Path]) -> Iterator[Embedder]:
    with Embedder(folders[kind], dtype="float32") as made:
        yield made


@pytest.fixture(scope="module")
def vectors(kind: str, folders: dict[str, Path]) -> Vectors:
    return bge_vectors(folders[kind]) if kind == "bge-m3" else encoder_vectors(folders[kind])


@pytest.mark.filterwarnings("ignore::twinvec.TruncationWarning")
@pytest.mark.parametrize("role", ["query", "document"])
def test_vectors_of_tokens_are_the_references(embedder: Embedder, vectors: Vectors, role: str) -> None:
    embed = embedder.embed_queries if role == "query" else embedder.embed_documents
    multi = embed(TEXTS, dense=False, sparse=False, multi=True).multi
    assert multi is not None
    for found, expected in zip(multi, vectors(TEXTS, role), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.filterwarnings("ignore::twinvec.TruncationWarning")
def test_scores_of_300_pairs_are_the_references(embedder: Embedder, vectors: Vectors, kind: str) -> None:
    scores = MaxSim(embedder).score(PAIRS)
    texts = list(dict.fromkeys(text for _, text in PAIRS))
    queries = list(dict.fromkeys(query for query, _ in PAIRS))
    of_queries, of_texts = (
        dict(zip(k, vectors(k, r), strict=True)) for k, r in ((queries, "query"), (texts, "document"))
    )
    expected = []
    for query, text in PAIRS:
        best = (of_queries[query] @ of_texts[text].T).max(axis=1)
        expected.append(best.mean() if kind == "bge-m3" else best.sum())
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    alone = [float(MaxSim(embedder).score([pair])[0]) for pair in PAIRS[:20]]
    np.testing.assert_allclose(scores[:20], alone, atol=1e-5 * (1 if kind == "bge-m3" else 20))
    ranked = MaxSim(embedder).rerank(PAIRS[0][0], texts)
    assert [each.score for each in ranked] == sorted((each.score for each in ranked), reverse=True)
    assert len(ranked) == len(texts)


def test_all_three_are_one_pass_and_the_others_stay_as_they_are(folders: dict[str, Path]) -> None:
    with Embedder(folders["bge-m3"], dtype="float32", memo_bytes=0) as embedder:
        plain = embedder.embed_documents(TEXTS)
        before = embedder.stats()
        both = embedder.embed_documents(TEXTS, multi=True)
        after = embedder.stats()
        assert plain.multi is None
        assert (after["forwards"] - before["forwards"], after["texts"] - before["texts"]) == (1, len(set(TEXTS)))
        np.testing.assert_array_equal(plain.dense, both.dense)
        assert plain.sparse is not None
        assert both.sparse is not None
        assert plain.sparse.to_dicts() == both.sparse.to_dicts()
        assert both.multi is not None
        part = both[1:3].multi
        assert part is not None
        np.testing.assert_array_equal(part.values, np.concatenate([both.multi[1], both.multi[2]]))


def test_as_the_third_stage_of_a_search(folders: dict[str, Path]) -> None:
    with Embedder(folders["bge-m3"], dtype="float32") as embedder:
        index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
        index.add(TEXTS, ids=[str(i) for i in range(len(TEXTS))])
        maxsim = MaxSim(embedder)
        found = index.search("capital of France", k=4, rerank=maxsim, rerank_k=len(TEXTS), explain=True)
        ranked = maxsim.rerank("capital of France", TEXTS, top_n=4)
        assert [result.score for result in found] == pytest.approx([each.score for each in ranked], abs=1e-5)
        awaited = asyncio.run(index.asearch("capital of France", k=4, rerank=maxsim, rerank_k=len(TEXTS)))
        assert [r.record.id for r in awaited] == [r.record.id for r in found]
        maxsim.close()
        assert embedder.healthy
        with pytest.raises(ConfigurationError, match="this MaxSim is closed"):
            maxsim.score([("a", "b")])


def test_a_maxsim_of_its_own_is_pickled_and_closed(folders: dict[str, Path]) -> None:
    with MaxSim(folders["encoder"], dtype="float32") as maxsim:
        again = pickle.loads(pickle.dumps(maxsim))
        assert again.score([("a list", "of files")]) == pytest.approx(maxsim.score([("a list", "of files")]))
        again.close()
        assert maxsim.score([]).shape == (0,)
        assert maxsim.score([("a", "b")], activation="sigmoid")[0] < 1
        with pytest.warns(TruncationWarning, match=r"\(first: pair 0\)\. Split it"):
            maxsim.score([("a", "word " * 100)])
        embedder = maxsim._embedder
    assert not embedder.healthy


def test_what_has_no_vectors_of_tokens_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    source = build_sentence_transformer(tmp_path / "bert", "bert", max_seq_length=64)
    with pytest.raises(ConfigurationError, match=r"colbert_linear\.pt"):
        MaxSim(source)
    with Embedder(source, dtype="float32") as plain, pytest.raises(ConfigurationError, match="no vectors of tokens"):
        plain.embed_documents(["a"], multi=True)
    with Embedder(folders["encoder"], dtype="float32") as encoder:
        with pytest.raises(ConfigurationError, match=r"vectors of tokens only: multi=True"):
            encoder.embed_documents(["a"])
        with pytest.raises(ConfigurationError, match="dtype: already said"):
            MaxSim(encoder, dtype="float32")
        with pytest.raises(ConfigurationError, match="windows=True is for a Reranker"):
            MaxSim(encoder).score([("a", "b")], windows=True)


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("sentence_bert_config.json", {"query_expansion": {"strategy": "fixed", "length": 32}}, "query_expansion"),
        ("2_MultiVectorMask/config.json", {"keep_only_token_ids": [1]}, "keep_only_token_ids"),
    ],
)
def test_what_is_not_computed_is_refused(
    folders: dict[str, Path], tmp_path: Path, file: str, change: dict[str, Any], says: str
) -> None:
    source = folders["bge-m3"].parent / "bert"
    folder = build_multi_vector_encoder(tmp_path / "encoder", source, prompts={})
    write_json(folder / file, read_json(folder / file) | change)
    with pytest.raises(CheckpointError, match=says):
        MaxSim(folder)


def test_a_text_without_vectors_has_nothing_in_common() -> None:
    row = np.eye(3, dtype=np.float32)
    texts = MultiBatch.stack([row[:0], row[:2], row[:0], row[2:], row[:0]])
    assert compare_tokens(row, texts).tolist() == [0, 2, 0, 1, 0]
    assert compare_tokens(row[:0], texts).tolist() == [0] * 5
