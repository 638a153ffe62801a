"""HybridRetriever: every field in constructor and call, batches in one pass with a run per query, code as it is."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from typing import Any
from uuid import UUID, uuid4

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.vectorstores import VectorStoreRetriever
from pydantic import ValidationError

from langchain_.gate import Gate, turns_while_held
from langchain_twinvec import HybridRetriever, TwinVecEmbeddings, TwinVecVectorStore
from twinvec.errors import ConfigurationError, InvalidTextError, StoreClosedError
from twinvec_stores import Eq, Fusion, SearchOptions

TEXTS = [f"{verb} {what}" for verb in ("sort", "find", "delete", "Москва") for what in ("a list", "files", "北京")]
IDS = [f"doc-{i:02}" for i in range(len(TEXTS))]
QUERIES = ["sort files", "Москва", "delete a list"]


@pytest.fixture
def filled(gte: TwinVecEmbeddings) -> TwinVecVectorStore:
    return TwinVecVectorStore.from_texts(TEXTS, gte, [{"kind": "ab"[i % 2]} for i in range(len(TEXTS))], ids=IDS)


class Log(BaseCallbackHandler):
    """What the callbacks were told, by run."""

    def __init__(self) -> None:
        self.started: dict[UUID, dict[str, Any]] = {}
        self.ended: dict[UUID, Any] = {}

    def on_retriever_start(self, serialized: Any, query: str, *, run_id: UUID, **told: Any) -> None:
        self.started[run_id] = {"query": query, **told}

    def on_retriever_end(self, documents: Any, *, run_id: UUID, **told: Any) -> None:
        self.ended[run_id] = documents

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **told: Any) -> None:
        self.ended[run_id] = error

    def by_query(self) -> dict[str, Any]:
        return {told["query"]: self.ended[run_id] for run_id, told in self.started.items()}


class AsyncLog(AsyncCallbackHandler):
    def __init__(self, log: Log) -> None:
        self.log = log

    async def on_retriever_start(self, serialized: Any, query: str, *, run_id: UUID, **told: Any) -> None:
        self.log.on_retriever_start(serialized, query, run_id=run_id, **told)

    async def on_retriever_end(self, documents: Any, *, run_id: UUID, **told: Any) -> None:
        self.log.on_retriever_end(documents, run_id=run_id)

    async def on_retriever_error(self, error: BaseException, *, run_id: UUID, **told: Any) -> None:
        self.log.on_retriever_error(error, run_id=run_id)


def first_text(documents: list[Document]) -> str:
    return documents[0].page_content


FIELDS: list[dict[str, Any]] = [
    {"k": 2},
    {"mode": "dense"},
    {"mode": "sparse"},
    {"fusion": "rrf"},
    {"fusion": Fusion("weighted", dense_weight=1.0, sparse_weight=0.3)},
    {"filter": {"kind": "a"}},
    {"filter": Eq("kind", "b")},
    {"mode": "dense", "score_threshold": 0.5},
    {"k": 3, "fetch_k": 8, "mmr": 0.2},
    {"explain": True, "exact": True},
]


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_each_field_in_the_constructor_and_in_the_call(filled: TwinVecVectorStore, fields: dict[str, Any]) -> None:
    expected = filled.similarity_search(QUERIES[0], **fields)
    made, plain = filled.as_retriever(**fields), filled.as_retriever()
    assert made.invoke(QUERIES[0]) == expected
    assert plain.invoke(QUERIES[0], **fields) == expected
    assert made.batch(QUERIES[:1]) == plain.batch(QUERIES[:1], **fields) == [expected]
    assert asyncio.run(made.ainvoke(QUERIES[0])) == expected
    assert asyncio.run(plain.abatch(QUERIES[:1], **fields)) == [expected]
    assert filled.as_retriever(search_kwargs=fields).invoke(QUERIES[0]) == expected


def test_a_task_for_the_queries(giga: TwinVecEmbeddings) -> None:
    store = TwinVecVectorStore.from_texts(TEXTS, giga, ids=IDS)
    task = "Given a question, find a paragraph with the answer"
    expected = store.similarity_search_with_score(QUERIES[0], k=12, mode="dense", task=task)
    retriever = store.as_retriever(k=12, mode="dense", task=task, explain=True)
    found = retriever.invoke(QUERIES[0])
    assert [d.metadata["_twinvec"]["score"] for d in found] == [score for _, score in expected]
    assert found != store.as_retriever(k=12, mode="dense", explain=True).invoke(QUERIES[0])


def test_the_search_types_of_langchain(filled: TwinVecVectorStore) -> None:
    made = filled.as_retriever(search_type="mmr", search_kwargs={"k": 3, "fetch_k": 8, "lambda_mult": 0.2})
    assert (made.k, made.mmr, made.search_kwargs) == (3, 0.2, {})
    assert made.invoke(QUERIES[0]) == filled.max_marginal_relevance_search(QUERIES[0], 3, 8, 0.2)
    assert filled.as_retriever(search_type="mmr").invoke(QUERIES[0]) == filled.similarity_search(QUERIES[0], mmr=0.5)

    for threshold in (0.2, 0.7):
        made = filled.as_retriever(
            search_type="similarity_score_threshold", search_kwargs={"score_threshold": threshold, "k": 12}
        )
        expected = filled.similarity_search_with_relevance_scores(QUERIES[0], 12, score_threshold=threshold)
        assert 0 < len(expected) < 12
        assert made.invoke(QUERIES[0]) == [document for document, _ in expected]
        assert asyncio.run(made.abatch(QUERIES[:1])) == [[document for document, _ in expected]]


def test_it_is_what_existing_code_expects(filled: TwinVecVectorStore) -> None:
    made = filled.as_retriever()
    assert isinstance(made, HybridRetriever)
    assert isinstance(made, VectorStoreRetriever)
    assert isinstance(made, BaseRetriever)
    assert len(made.invoke(QUERIES[0])) == 4
    made.search_kwargs["k"] = 2  # as code does after the fact
    assert len(made.invoke(QUERIES[0])) == 2
    assert made.add_documents([Document(page_content="new", id="new")]) == ["new"]
    chain = made | RunnableLambda(first_text)
    assert chain.invoke("new") == "new"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 3}, "Extra inputs are not permitted"),
        ({"search_kwargs": {"top_k": 3}}, "top_k= is an argument of another store; here it is k="),
        ({"search_kwargs": {"kk": 3}}, "search_kwargs: 'kk' is not one of k, fetch_k"),
        ({"search_type": "hybrid"}, "search_type='hybrid' is not one of"),
        ({"search_type": "similarity_score_threshold"}, "needs score_threshold from 0 to 1, not None"),
        ({"search_type": "similarity_score_threshold", "score_threshold": 3.0}, "from 0 to 1, not 3.0"),
        ({"fusion": "sum"}, "fusion 'sum' is not one of"),
        ({"k": 0}, "k=0 must be an integer from 1"),
        ({"fetch_k": 1}, "fetch_k=1 is less than k=4"),
        ({"mmr": 2.0}, "mmr=2.0 must be"),
        ({"mode": "both"}, "Input should be 'hybrid', 'dense' or 'sparse'"),
        ({"filter": {"a": {"$near": 1}}}, "near"),
        ({"task": "Find"}, "not trained with instructions"),
    ],
)
def test_wrong_fields_fail_when_made(filled: TwinVecVectorStore, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        filled.as_retriever(**fields)


def test_every_option_of_a_search_is_one_of_the_retriever() -> None:
    assert {each.name for each in fields(SearchOptions)} <= HybridRetriever.model_fields.keys()


def test_wrong_arguments_of_a_call_fail(filled: TwinVecVectorStore) -> None:
    retriever = filled.as_retriever()
    for call in (retriever.invoke, lambda query, **given: retriever.batch([query], **given)):
        with pytest.raises(TypeError, match="unknown search argument 'kk'"):
            call("a", kk=3)
        with pytest.raises(ConfigurationError, match="here it is k="):
            call("a", top_k=3)
    with pytest.raises(ValidationError, match="must be a TwinVecVectorStore, not str"):
        HybridRetriever(vectorstore="a name")  # type: ignore[arg-type]


def test_a_batch_is_one_pass(filled: TwinVecVectorStore, gate: Gate) -> None:
    gate.open.set()
    retriever = filled.as_retriever(k=2)
    single = [retriever.invoke(query) for query in QUERIES]
    fresh = [f"{query} once more" for query in QUERIES]
    gate.batches.clear()
    assert [len(found) for found in retriever.batch(fresh)] == [2, 2, 2]
    assert gate.batches == [3]
    assert [len(found) for found in asyncio.run(retriever.abatch([f"{query} again" for query in QUERIES]))] == [2, 2, 2]
    assert gate.batches == [3, 3]
    assert retriever.batch(QUERIES) == asyncio.run(retriever.abatch(QUERIES)) == single
    assert retriever.batch([]) == asyncio.run(retriever.abatch([])) == []


def test_every_query_of_a_batch_is_a_run(filled: TwinVecVectorStore) -> None:
    retriever = filled.as_retriever(k=1, tags=["mine"], metadata={"who": "me"})
    first = uuid4()
    configs: list[Any] = [
        {"run_name": f"run {i}", "tags": [f"tag {i}"], "metadata": {"number": i}} for i in range(len(QUERIES))
    ]
    configs[0]["run_id"] = first
    for asynchronous in (False, True):
        log = Log()
        given: list[Any] = [{**config, "callbacks": [AsyncLog(log) if asynchronous else log]} for config in configs]
        found = asyncio.run(retriever.abatch(QUERIES, given)) if asynchronous else retriever.batch(QUERIES, given)
        assert log.by_query() == dict(zip(QUERIES, found, strict=True))
        assert log.started[first]["query"] == QUERIES[0]
        for i, told in enumerate(log.started.values()):
            assert told["name"] == f"run {i}"
            assert set(told["tags"]) == {"mine", f"tag {i}"}
            assert (told["metadata"]["number"], told["metadata"]["who"]) == (i, "me")
            assert told["metadata"]["ls_retriever_name"] == "hybrid"


def test_traces_name_the_store_and_the_model(filled: TwinVecVectorStore, gte: TwinVecEmbeddings) -> None:
    log = Log()
    filled.as_retriever().invoke("a", {"callbacks": [log]})
    (told,) = log.started.values()
    assert told["name"] == "HybridRetriever"
    assert told["tags"] == ["TwinVecVectorStore", "TwinVecEmbeddings"]
    assert told["metadata"] == {
        "ls_retriever_name": "hybrid",
        "ls_vector_store_provider": "TwinVecVectorStore",
        "ls_embedding_provider": "TwinVecEmbeddings",
        "ls_embedding_model": gte.model,
    }


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_bad_query_costs_only_itself_where_errors_are_returned(
    filled: TwinVecVectorStore, asynchronous: bool
) -> None:
    retriever, log = filled.as_retriever(k=1), Log()
    queries = [QUERIES[0], "\ud800", QUERIES[1]]
    if asynchronous:
        found = asyncio.run(retriever.abatch(queries, {"callbacks": [log]}, return_exceptions=True))
    else:
        found = retriever.batch(queries, {"callbacks": [log]}, return_exceptions=True)
    assert [found[0], found[2]] == retriever.batch(QUERIES[:2])
    assert isinstance(found[1], InvalidTextError)
    assert log.by_query() == dict(zip(queries, found, strict=True))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_errors_are_told_to_every_run_and_raised(filled: TwinVecVectorStore, asynchronous: bool) -> None:
    retriever, log = filled.as_retriever(), Log()
    filled.close()

    def call() -> object:
        config: Any = {"callbacks": [log]}
        return asyncio.run(retriever.abatch(QUERIES, config)) if asynchronous else retriever.batch(QUERIES, config)

    with pytest.raises(StoreClosedError):
        call()
    assert {type(error) for error in log.by_query().values()} == {StoreClosedError}
    assert len(log.ended) == len(QUERIES)


def test_fields_are_configurable(filled: TwinVecVectorStore) -> None:
    retriever = filled.as_retriever(k=3).configurable_fields(
        k=ConfigurableField(id="k"), fusion=ConfigurableField(id="fusion"), filter=ConfigurableField(id="filter")
    )
    assert len(retriever.invoke(QUERIES[0])) == 3
    chosen = {"k": 2, "fusion": "rrf", "filter": {"kind": "a"}}
    expected = filled.similarity_search(QUERIES[0], 2, {"kind": "a"}, fusion="rrf")
    assert retriever.invoke(QUERIES[0], {"configurable": chosen}) == expected
    assert retriever.with_config(configurable=chosen).batch(QUERIES[:1]) == [expected]
    # the way of code for VectorStoreRetriever
    older = filled.as_retriever(search_kwargs={"k": 5}).configurable_fields(
        search_kwargs=ConfigurableField(id="search_kwargs")
    )
    assert len(older.invoke(QUERIES[0])) == 5
    assert len(older.invoke(QUERIES[0], {"configurable": {"search_kwargs": {"k": 2}}})) == 2
    by_relevance = filled.as_retriever(search_type="similarity_score_threshold", score_threshold=0.7, k=12)
    again = by_relevance.configurable_fields(k=ConfigurableField(id="k"))
    assert again.invoke(QUERIES[0], {"configurable": {"k": 11}}) == by_relevance.invoke(QUERIES[0])


def test_a_chain_batches_its_retriever_in_one_pass(filled: TwinVecVectorStore, gate: Gate) -> None:
    gate.open.set()
    chain = filled.as_retriever(k=1) | RunnableLambda(first_text)
    assert len(chain.batch([f"chained {query}" for query in QUERIES])) == 3
    assert gate.batches == [3]


def test_the_event_loop_goes_on_while_it_retrieves(filled: TwinVecVectorStore, gate: Gate) -> None:
    async def main() -> list[list[Document]]:
        work = asyncio.create_task(filled.as_retriever(k=1).abatch([f"slow {query}" for query in QUERIES]))
        assert await turns_while_held(gate, work) >= 100
        return await work

    assert [len(found) for found in asyncio.run(main())] == [1, 1, 1]


def test_a_cancelled_batch_tells_its_runs(filled: TwinVecVectorStore, gate: Gate) -> None:
    log = Log()

    async def main() -> None:
        work = asyncio.create_task(filled.as_retriever().abatch(["cancelled"], {"callbacks": [log]}))
        await asyncio.to_thread(gate.entered.wait, 60)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        gate.open.set()

    asyncio.run(main())
    assert {type(error) for error in log.ended.values()} == {asyncio.CancelledError}
