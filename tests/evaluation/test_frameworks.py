"""Both frameworks' own evaluators with our retrievers: their numbers are ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from langsmith import Client
from langsmith import evaluate as langsmith_evaluate
from langsmith.schemas import Example
from llama_index.core.evaluation import RetrieverEvaluator
from urllib3.util.retry import Retry

from langchain_twinvec import TwinVecEmbeddings
from langchain_twinvec import TwinVecVectorStore as LangChainStore
from llama_index_twinvec import HybridRetriever, TwinVecEmbedding
from llama_index_twinvec import TwinVecVectorStore as LlamaIndexStore
from twinvec import Embedder
from twinvec_stores import HybridIndex, MemoryStore, StoreConfig
from twinvec_stores.evaluation import Evaluation, Questions, evaluate, read_questions

K = 4
TEXTS = {
    f"d{i}": f"{subject}, step {i}" for i, subject in enumerate(["sort", "read", "a socket", "dates", "words"] * 5)
}
ASKED = {f"q{i}": f"{['sort', 'words of', 'the socket', 'read dates'][i % 4]} step {i}" for i in range(12)}
RELEVANT = {id: [f"d{i}", f"d{i + 5}"] for i, id in enumerate(ASKED)}
EXAMPLES = [
    Example(id=UUID(int=i), inputs={"question": text}, outputs={"documents": RELEVANT[id]})
    for i, (id, text) in enumerate(ASKED.items())
]


@pytest.fixture(scope="module")
def index(embedder: Embedder) -> HybridIndex:
    index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
    index.add(list(TEXTS.values()), ids=list(TEXTS))
    return index


@pytest.fixture(scope="module")
def own(index: HybridIndex) -> Evaluation:
    questions = Questions(ASKED, {id: dict.fromkeys(found, 1) for id, found in RELEVANT.items()})
    found = evaluate(index, questions, ways={"hybrid": {}}, measures=[f"RR@{K}", f"Success@{K}", f"R@{K}"])
    assert 0 < found.ways["hybrid"].mean(f"RR@{K}") < 1
    return found


def test_llama_indexs_retriever_evaluator(index: HybridIndex, own: Evaluation) -> None:
    store = LlamaIndexStore(embedding=TwinVecEmbedding(embedder=index.embedder), store=index.store)
    names = {"mrr": f"RR@{K}", "hit_rate": f"Success@{K}", "recall": f"R@{K}"}
    evaluator = RetrieverEvaluator.from_metric_names(list(names), retriever=HybridRetriever(store, similarity_top_k=K))
    for row, (id, text) in enumerate(ASKED.items()):
        found = evaluator.evaluate(text, RELEVANT[id])
        assert found.retrieved_ids == list(own.ways["hybrid"].rankings[id])
        wanted = {name: own.ways["hybrid"].scores[measure][row] for name, measure in names.items()}
        assert found.metric_vals_dict == pytest.approx(wanted)


def test_langsmiths_evaluate(index: HybridIndex, own: Evaluation) -> None:
    chain = LangChainStore(TwinVecEmbeddings(embedder=index.embedder), store=index.store).as_retriever(k=K)

    def recall(outputs: dict[str, Any], reference_outputs: dict[str, Any]) -> dict[str, Any]:
        found, wanted = set(outputs["ids"]), set(reference_outputs["documents"])
        return {"key": "recall", "score": len(found & wanted) / len(wanted)}

    def target(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"ids": [document.id for document in chain.invoke(inputs["question"])]}

    client = Client(
        api_url="http://127.0.0.1:1", api_key="none", auto_batch_tracing=False, retry_config=Retry(0), timeout_ms=1
    )
    rows = langsmith_evaluate(target, data=EXAMPLES, evaluators=[recall], client=client, upload_results=False)
    found = {row["example"].id: row["evaluation_results"]["results"][0].score for row in rows}
    assert [found[example.id] for example in EXAMPLES] == own.ways["hybrid"].scores[f"R@{K}"].tolist()


def test_examples_as_langsmith_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "examples.json"
    path.write_text(json.dumps([json.loads(example.model_dump_json()) for example in EXAMPLES]), encoding="utf-8")
    questions = read_questions(path)
    assert list(questions.texts.values()) == list(ASKED.values())
    assert [list(grades) for grades in questions.grades.values()] == list(RELEVANT.values())
