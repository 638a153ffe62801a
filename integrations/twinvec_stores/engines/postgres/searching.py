"""Searches in SQL: one statement for all queries."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from twinvec.vectors import Float32, SparseVector
from twinvec_stores.engines.postgres.statements import Statement
from twinvec_stores.filters.conditions import And, Filter
from twinvec_stores.records import DenseQuery, StoreQuery

GRAPH = -1  # the number of a row that says that there is a graph
_OVERSAMPLING = 2  # records that a graph in half precision finds for each that is wanted


def rank(
    statement: Statement, queries: Sequence[StoreQuery], limit: int, filter: Filter, *, exact: bool, halves: bool
) -> sql.Composed:
    """Return the text of a search; its rows are the number of a query, an id and a score.

    Args:
        statement: gets the values.
        queries: what to rank by.
        limit: records for each query.
        filter: only rank matching records.
        exact: compare with every vector instead of using the graph.
        halves: there is a graph in half precision.
    """
    rankings: list[sql.Composable] = [
        statement.compose("SELECT {mark}::integer, '', 0::float8 WHERE {has_graph}", mark=GRAPH)
    ]
    for number, query in enumerate(queries):
        if not isinstance(query, DenseQuery):
            ranking = _sparse(statement, query.vector, limit, filter)
        elif halves and not exact:
            ranking = _halves(statement, query.vector, limit, filter)
        else:
            ranking = _dense(statement, query.vector, limit, filter, exact=exact)
        part = "SELECT {number}::integer, id, score FROM ({ranking}) AS ranking"
        rankings.append(statement.compose(part, number=number, ranking=ranking))
    return sql.SQL(" UNION ALL ").join(rankings)


def _dense(statement: Statement, vector: Float32, limit: int, filter: Filter, *, exact: bool) -> sql.Composed:
    return statement.compose(
        "SELECT id, -(dense {ip} {vector}::float8[]::{full}) AS score FROM {records} WHERE {where} "
        "ORDER BY (dense {ip} {vector}::float8[]::{full}) {exactly} LIMIT {limit}",
        vector=vector.tolist(),
        where=filter,
        exactly=sql.SQL("+ 0" if exact else ""),  # the index is for the distance itself
        limit=limit,
    )


def _halves(statement: Statement, vector: Float32, limit: int, filter: Filter) -> sql.Composed:
    return statement.compose(
        "SELECT id, -(dense {ip} {vector}::float8[]::{full}) AS score FROM ("
        "SELECT id, dense FROM {records} WHERE {where} "
        "ORDER BY dense::{half}({dim}) {ip} {vector}::float8[]::{full}::{half}({dim}) LIMIT {candidates}"
        ") AS near ORDER BY score DESC LIMIT {limit}",
        vector=vector.tolist(),
        dim=sql.Literal(len(vector)),
        where=filter,
        candidates=_OVERSAMPLING * limit,
        limit=limit,
    )


def _sparse(statement: Statement, vector: SparseVector, limit: int, filter: Filter) -> sql.Composed:
    return statement.compose(
        "SELECT r.id, found.score::float8 AS score FROM ("
        "SELECT t.record, sum(q.weight * t.weight::float8)::real AS score "
        "FROM unnest({keys}::integer[], {weights}::float8[]) AS q (key, weight) JOIN {terms} t USING (key) "
        "WHERE {among} GROUP BY t.record ORDER BY score DESC LIMIT {limit}"
        ") AS found JOIN {records} r USING (record)",
        keys=vector.indices.tolist(),
        weights=vector.values.tolist(),
        among=among(statement, filter),
        limit=limit,
    )


def among(statement: Statement, filter: Filter) -> sql.Composable:
    """Return a condition on the rows of ``terms`` t: those of matching records."""
    if filter == And():
        return sql.SQL("TRUE")
    return statement.compose("t.record IN (SELECT record FROM {records} WHERE {where})", where=filter)
