"""Searches in SQL: one statement for all queries."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from twinvec.vectors import Float32, SparseVector
from twinvec_stores.engines.postgres.graphs import Graph
from twinvec_stores.engines.postgres.statements import Statement
from twinvec_stores.filters.conditions import And, Filter
from twinvec_stores.records import DenseQuery, StoreQuery

GRAPH = -1  # the number of a row that says that there is a graph


def rank(
    statement: Statement, queries: Sequence[StoreQuery], limit: int, filter: Filter, graph: Graph | None
) -> sql.Composed:
    """Return the text of a search; its rows are the number of a query, an id and a score.

    Args:
        statement: gets the values.
        queries: what to rank by.
        limit: records for each query.
        filter: only rank matching records.
        graph: finds dense vectors; None: compare with every one.
    """
    rankings: list[sql.Composable] = [
        statement.compose("SELECT {mark}::integer, '', 0::float8 WHERE {has_graph}", mark=GRAPH)
    ]
    for number, query in enumerate(queries):
        if isinstance(query, DenseQuery):
            ranking = _dense(statement, query.vector, limit, filter, graph)
        else:
            ranking = _sparse(statement, query.vector, limit, filter)
        part = "SELECT {number}::integer, id, score FROM ({ranking}) AS ranking"
        rankings.append(statement.compose(part, number=number, ranking=ranking))
    return sql.SQL(" UNION ALL ").join(rankings)


def _dense(statement: Statement, vector: Float32, limit: int, filter: Filter, graph: Graph | None) -> sql.Composed:
    asked = statement.compose("{vector}::float8[]::{full}", vector=vector.tolist())
    if graph is None or graph.oversampling is None:
        return statement.compose(
            "SELECT id, -(dense {ip} {asked}) AS score FROM {records} WHERE {where} "
            "ORDER BY (dense {ip} {asked}) {exactly} LIMIT {limit}",
            asked=asked,
            where=filter,
            exactly=sql.SQL("+ 0" if graph is None else ""),  # a graph is for the distance itself
            limit=limit,
        )
    return statement.compose(
        "SELECT id, -(dense {ip} {asked}) AS score FROM ("
        "SELECT id, dense FROM {records} WHERE {where} ORDER BY {kept} {distance} {sought} LIMIT {candidates}"
        ") AS near ORDER BY score DESC LIMIT {limit}",
        asked=asked,
        where=filter,
        kept=statement.compose(graph.value, vector=sql.Identifier("dense")),
        distance=statement.compose(graph.distance),
        sought=statement.compose(graph.value, vector=asked),
        candidates=graph.oversampling * limit,
        limit=limit,
    )


def _sparse(statement: Statement, vector: SparseVector, limit: int, filter: Filter) -> sql.Composed:
    # OFFSET 0 and a subquery for each id keep a planner without statistics, as of a new table, from reading all of it
    return statement.compose(
        "SELECT (SELECT r.id FROM {records} r WHERE r.record = found.record) AS id, found.score::float8 AS score FROM ("
        "SELECT t.record, sum(q.weight * t.weight::float8)::real AS score "
        "FROM unnest({keys}::integer[], {weights}::float8[]) AS q (key, weight), LATERAL "
        "(SELECT record, weight FROM {terms} WHERE key = q.key OFFSET 0) AS t "
        "WHERE {among} GROUP BY t.record ORDER BY score DESC LIMIT {limit}"
        ") AS found",
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
