"""Structured queries, as LangChain's query constructor gives them, on a store with our translator."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_classic.retrievers.self_query.base import SelfQueryRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.structured_query import Comparator, Comparison, Operation, Operator, StructuredQuery

from langchain_twinvec import TwinVecEmbeddings, TwinVecTranslator, TwinVecVectorStore
from twinvec.errors import FilterError

RECORDS: dict[str, dict[str, Any]] = {
    "a": {"year": 1995, "genre": "comedy", "tags": ["old", "blue"], "made": "1995-05-01"},
    "b": {"year": 2005, "genre": "Science Fiction", "tags": ["new"], "made": "2005-05-01T12:00:00"},
    "c": {"year": 2015, "genre": "drama", "tags": [], "rating": 9.5},
}


@pytest.fixture(scope="module")
def films(gte: TwinVecEmbeddings) -> TwinVecVectorStore:
    return TwinVecVectorStore.from_texts(list(RECORDS), gte, list(RECORDS.values()), ids=list(RECORDS))


def retriever(films: TwinVecVectorStore, wanted: StructuredQuery) -> SelfQueryRetriever:
    return SelfQueryRetriever(
        vectorstore=films,
        query_constructor=RunnableLambda(lambda _: wanted),  # type: ignore[call-arg]
        structured_query_translator=TwinVecTranslator(),
    )


def day(value: str) -> dict[str, str]:
    return {"date": value, "type": "date"}


@pytest.mark.parametrize(
    ("comparator", "attribute", "value", "expected"),
    [
        (Comparator.EQ, "genre", "comedy", "a"),
        (Comparator.NE, "genre", "comedy", "bc"),
        (Comparator.GT, "year", 2005, "c"),
        (Comparator.GTE, "year", 2005, "bc"),
        (Comparator.LT, "year", 2005, "a"),
        (Comparator.LTE, "year", 2005, "ab"),
        (Comparator.IN, "year", [1995, 2015], "ac"),
        (Comparator.NIN, "year", [1995, 2015], "b"),
        (Comparator.IN, "genre", "drama", "c"),
        (Comparator.CONTAIN, "tags", "blue", "a"),
        (Comparator.CONTAIN, "genre", "Fiction", "b"),
        (Comparator.CONTAIN, "year", 2015, "c"),
        (Comparator.LIKE, "genre", "%fiction%", "b"),
        (Comparator.LIKE, "genre", "science%", "b"),
        (Comparator.LIKE, "genre", "ed", "a"),
        (Comparator.EQ, "made", day("2005-05-01"), "b"),
        (Comparator.NE, "made", day("2005-05-01"), "ac"),
        (Comparator.GT, "made", day("2000-01-01"), "b"),
    ],
)
def test_every_comparison(
    comparator: Comparator, attribute: str, value: Any, expected: str, films: TwinVecVectorStore
) -> None:
    wanted = StructuredQuery(query="film", filter=Comparison(comparator, attribute, value))
    found = retriever(films, wanted).invoke("a film")
    assert sorted(document.id or "" for document in found) == list(expected)


def test_operations_limits_and_no_filter(films: TwinVecVectorStore) -> None:
    old = Comparison(Comparator.LT, "year", 2000)
    comedy = Comparison(Comparator.EQ, "genre", "comedy")
    drama = Comparison(Comparator.EQ, "genre", "drama")
    for wanted, expected in (
        (Operation(Operator.AND, [old, comedy]), "a"),
        (Operation(Operator.OR, [drama, Operation(Operator.AND, [old, comedy])]), "ac"),
        (Operation(Operator.NOT, [Operation(Operator.OR, [drama, comedy])]), "b"),
        (None, "abc"),
    ):
        query = retriever(films, StructuredQuery(query="film", filter=wanted))
        assert sorted(d.id or "" for d in query.invoke("x")) == list(expected)
        assert sorted(d.id or "" for d in asyncio.run(query.ainvoke("x"))) == list(expected)
    assert len(retriever(films, StructuredQuery(query="film", filter=None, limit=2)).invoke("x")) == 2


@pytest.mark.parametrize(
    ("comparator", "value"),
    [(Comparator.LIKE, "%end"), (Comparator.LIKE, "a%b"), (Comparator.LIKE, 3), (Comparator.GT, "many")],
)
def test_what_no_store_can_tell_is_refused(comparator: Comparator, value: Any) -> None:
    with pytest.raises(FilterError):
        TwinVecTranslator().visit_comparison(Comparison(comparator, "genre", value))
