"""MtebEncoder on local tasks: mteb's scores equal our own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.models_protocols import EncoderProtocol, SearchProtocol
from scipy.stats import spearmanr
from typer.testing import CliRunner

from reference.giga import build_giga_0826
from reference.gte import build_gte
from reference.rerankers import build_cross_encoder
from reference.tokenizers_ import WORDS_EN, WORDS_RU
from twinvec import Embedder, Task
from twinvec.errors import ConfigurationError
from twinvec_cli import verify
from twinvec_cli.main import app
from twinvec_stores import HybridIndex, MemoryStore, StoreConfig
from twinvec_stores.evaluation import MtebEncoder, Questions, evaluate
from twinvec_stores.search.options import SearchKeywords

INSTRUCTION = "Given a few words, find the list that they are from"


def metadata(name: str, kind: Any, score: str, prompt: Any) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="local",
        dataset={"path": "local/local", "revision": "1"},
        type=kind,
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=score,
        prompt=prompt,
    )


def lists() -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, int]]]:
    """Documents of random words, and questions of a few words of one of them and others."""
    draw = random.Random(3)
    words = WORDS_EN + WORDS_RU
    documents = {f"d{i}": " ".join(draw.choices(words, k=12)) for i in range(40)}
    questions = {f"q{i}": " ".join(documents[f"d{i}"].split()[:3] + draw.choices(words, k=3)) for i in range(25)}
    return documents, questions, {f"q{i}": {f"d{i}": 2, f"d{i + 1}": 1} for i in range(25)}


class Lists(AbsTaskRetrieval):
    metadata: TaskMetadata = metadata("Lists", "Retrieval", "ndcg_at_10", {"query": INSTRUCTION})
    reranked: dict[str, list[str]] | None = None

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        documents, questions, grades = lists()
        self.dataset = {
            "default": {
                "test": {
                    "corpus": Dataset.from_list([{"id": k, "title": "", "text": v} for k, v in documents.items()]),
                    "queries": Dataset.from_list([{"id": k, "text": v} for k, v in questions.items()]),
                    "relevant_docs": grades,
                    "top_ranked": self.reranked,
                }
            }
        }
        self.data_loaded = True


class Similar(AbsTaskSTS):
    metadata: TaskMetadata = metadata("Similar", "STS", "cosine_spearman", "Retrieve semantically similar text")
    min_score, max_score = 0, 5

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        texts = list(lists()[0].values())
        rows = [{"sentence1": a, "sentence2": b, "score": float(i % 5)} for i, (a, b) in enumerate(pairwise(texts))]
        self.dataset = {"test": Dataset.from_list(rows)}
        self.data_loaded = True


def scores(encoder: MtebEncoder, task: Any) -> dict[str, float]:
    result = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False)
    (score,) = result.task_results[0].scores["test"]
    return dict(score)


@pytest.fixture(scope="module")
def gte(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    with Embedder(build_gte(tmp_path_factory.mktemp("gte"), dtype="float32"), dtype="float32") as embedder:
        yield embedder


@pytest.fixture(scope="module")
def giga(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    with Embedder(build_giga_0826(tmp_path_factory.mktemp("giga")), dtype="float32", sparse="bm25") as embedder:
        yield embedder


@pytest.mark.parametrize("model", ["gte", "giga"])
@pytest.mark.parametrize("search", [{"mode": "dense"}, {"mode": "sparse"}, {}, {"fusion": "dbsf"}])
def test_scores_of_retrieval_are_our_own(model: str, search: SearchKeywords, request: pytest.FixtureRequest) -> None:
    embedder: Embedder = request.getfixturevalue(model)
    task = INSTRUCTION if model == "giga" else None
    documents, texts, grades = lists()
    index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder, task=task)), task=task)
    index.add(list(documents.values()), ids=list(documents))
    own = evaluate(index, Questions(texts, grades), ways={"way": search}, measures=["nDCG@10", "R@5", "AP@100"])
    found = scores(MtebEncoder(embedder, **search), Lists())
    for theirs, ours in (("ndcg_at_10", "nDCG@10"), ("recall_at_5", "R@5"), ("map_at_100", "AP@100")):
        assert found[theirs] == pytest.approx(own.ways["way"].mean(ours), abs=1e-4)
    assert 0.05 < found["ndcg_at_10"] < 0.999


def test_similarity_takes_the_symmetric_instruction(giga: Embedder) -> None:
    texts = list(lists()[0].values())
    task = Task("Retrieve semantically similar text", symmetric=True)
    rows = giga.embed_queries(texts, task=task, sparse=False).dense
    assert rows is not None
    cosines = np.einsum("ij,ij->i", rows[:-1], rows[1:])
    wanted = spearmanr(cosines, [i % 5 for i in range(len(cosines))]).statistic
    assert scores(MtebEncoder(giga), Similar())["cosine_spearman"] == pytest.approx(wanted, abs=1e-4)


def test_ones_own_instructions_go_before_mtebs(giga: Embedder) -> None:
    for key in ("Lists", "Retrieval"):
        own = scores(MtebEncoder(giga, mode="dense", tasks={key: "Another sentence altogether"}), Lists())
        assert own["ndcg_at_10"] != scores(MtebEncoder(giga, mode="dense"), Lists())["ndcg_at_10"]


def test_reranking_looks_at_what_is_given(gte: Embedder) -> None:
    task = Lists()
    task.reranked = {f"q{i}": [f"d{i}", f"d{(i + 7) % 40}"] for i in range(25)}
    found = scores(MtebEncoder(gte, mode="dense"), task)
    assert found["recall_at_3"] == pytest.approx(0.5)  # d{i + 1} is not among them


def test_what_mteb_asks_of_a_model(gte: Embedder) -> None:
    encoder = MtebEncoder(gte, mode="sparse")
    assert isinstance(encoder, EncoderProtocol)
    assert isinstance(encoder, SearchProtocol)
    meta = encoder.mteb_model_meta
    assert meta.name is not None
    assert meta.name.startswith("twinvec/")
    assert (meta.embed_dim, meta.experiment_kwargs) == (gte.dim, {"mode": "sparse"})


def test_refusals(gte: Embedder) -> None:
    with pytest.raises(ConfigurationError, match="k, group_by and filter"):
        MtebEncoder(gte, k=3)
    with pytest.raises(ConfigurationError, match="needs index first"):
        MtebEncoder(gte).search([], top_k=3)
    with pytest.raises(ConfigurationError, match="a list in place of a text"):
        MtebEncoder(gte).encode([{"text": [["a turn"]]}], task_metadata=Lists.metadata)


def test_verify_compares_the_score_of_a_task(gte: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = Lists(), gte.spec.model
    score = scores(MtebEncoder(gte, mode="dense"), task)["ndcg_at_10"]
    monkeypatch.setattr(mteb, "get_task", {"Lists": task}.__getitem__)
    published = {("own/right", "Lists"): score + 0.004, ("own/wrong", "Lists"): score + 0.006}
    monkeypatch.setattr(verify, "_TASK_SCORES", published)
    for name, status in (("own/right", 0), ("own/wrong", 1), ("own/unknown", 0)):
        result = CliRunner().invoke(app, ["verify", model, "--mteb", "Lists", "--as", name])
        assert (result.exit_code, f"Lists: {score:.5f}" in result.stdout) == (status, True)
        assert ("is published" in result.stdout) == (name == "own/unknown")
    reranker = build_cross_encoder(tmp_path, "bert")
    refused = CliRunner().invoke(app, ["verify", str(reranker), "--mteb", "Lists"])
    assert (refused.exit_code, "--mteb is for embedding models" in refused.stderr) == (2, True)
