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
_MANY = 20_000  # matching records; fewer are collected before a sparse search


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
    dense_alone = all(isinstance(query, DenseQuery) for query in queries)
    few = None if filter == And() else statement.compose("(SELECT count(*) FROM few) < {many}", many=_MANY)
    for number, query in enumerate(queries):
        if isinstance(query, DenseQuery):
            ranking = _dense(statement, query.vector, limit, filter, graph, None if dense_alone else few)
        else:
            ranking = _sparse(statement, query.vector, limit, filter, few)
        part = "SELECT {number}::integer, id, score FROM ({ranking}) AS ranking"
        rankings.append(statement.compose(part, number=number, ranking=ranking))
    ranked = sql.SQL(" UNION ALL ").join(rankings)
    if few is None or dense_alone:
        return ranked
    counted = "WITH few AS MATERIALIZED (SELECT record FROM {records} WHERE {where} LIMIT {many}) "
    return statement.compose(counted, where=filter, many=_MANY) + ranked


def _dense(
    statement: Statement,
    vector: Float32,
    limit: int,
    filter: Filter,
    graph: Graph | None,
    few: sql.Composable | None,
) -> sql.Composable:
    """Rank by distance; where it is known anyway that few records match, all of them are compared."""
    asked = statement.compose("{vector}::float8[]::{full}", vector=vector.tolist())
    if graph is None or few is None:
        return _near(statement, asked, limit, filter, graph, sql.SQL("TRUE"))
    every = _near(statement, asked, limit, filter, None, few)
    return _either(every, _near(statement, asked, limit, filter, graph, sql.SQL("NOT {}").format(few)))


def _near(
    statement: Statement,
    asked: sql.Composable,
    limit: int,
    filter: Filter,
    graph: Graph | None,
    condition: sql.Composable,
) -> sql.Composed:
    if graph is None or graph.oversampling is None:
        return statement.compose(
            "SELECT id, -(dense {ip} {asked}) AS score FROM {records} WHERE {where} AND {condition} "
            "ORDER BY (dense {ip} {asked}) {exactly} LIMIT {limit}",
            asked=asked,
            where=filter,
            condition=condition,
            exactly=sql.SQL("+ 0" if graph is None else ""),  # a graph is for the distance itself
            limit=limit,
        )
    return statement.compose(
        "SELECT id, -(dense {ip} {asked}) AS score FROM (SELECT id, dense FROM {records} "
        "WHERE {where} AND {condition} ORDER BY {kept} {distance} {sought} LIMIT {candidates}"
        ") AS near ORDER BY score DESC LIMIT {limit}",
        asked=asked,
        where=filter,
        condition=condition,
        kept=statement.compose(graph.value, vector=sql.Identifier("dense")),
        distance=statement.compose(graph.distance),
        sought=statement.compose(graph.value, vector=asked),
        candidates=graph.oversampling * limit,
        limit=limit,
    )


def _sparse(
    statement: Statement, vector: SparseVector, limit: int, filter: Filter, few: sql.Composable | None
) -> sql.Composable:
    """Rank by weights of terms; a filter that many records match is only asked about the best, until enough match."""
    # OFFSET 0 and a subquery for each id keep a planner without statistics, as of a new table, from reading all of it,
    # and one with statistics from asking for the record of each term
    if few is None:
        return _best(statement, vector, limit, sql.SQL("TRUE"))
    # IS TRUE keeps the set what it is, a hash table, and no part of a join
    among = sql.SQL("(t.record IN (SELECT record FROM few)) IS TRUE AND {}").format(few)
    one_by_one = statement.compose(
        "SELECT matching.id, scored.score::float8 FROM ({scores} ORDER BY score DESC OFFSET 0) AS scored, LATERAL "
        "(SELECT id FROM {records} WHERE record = scored.record AND {where} OFFSET 0) AS matching "
        "WHERE NOT {few} ORDER BY scored.score DESC LIMIT {limit}",
        scores=_scores(statement, vector, sql.SQL("TRUE")),
        where=filter,
        few=few,
        limit=limit,
    )
    return _either(_best(statement, vector, limit, among), one_by_one)


def _either(one: sql.Composable, other: sql.Composable) -> sql.Composed:
    return sql.SQL("({}) UNION ALL ({})").format(one, other)


def _best(statement: Statement, vector: SparseVector, limit: int, among: sql.Composable) -> sql.Composed:
    return statement.compose(
        "SELECT (SELECT r.id FROM {records} r WHERE r.record = found.record) AS id, found.score::float8 AS score "
        "FROM ({scores} ORDER BY score DESC LIMIT {limit}) AS found",
        scores=_scores(statement, vector, among),
        limit=limit,
    )


def _scores(statement: Statement, vector: SparseVector, among: sql.Composable) -> sql.Composed:
    return statement.compose(
        "SELECT t.record, sum(q.weight * t.weight::float8)::real AS score "
        "FROM unnest({keys}::integer[], {weights}::float8[]) AS q (key, weight), LATERAL "
        "(SELECT record, weight FROM {terms} WHERE key = q.key OFFSET 0) AS t WHERE {among} GROUP BY t.record",
        keys=vector.indices.tolist(),
        weights=vector.values.tolist(),
        among=among,
    )
