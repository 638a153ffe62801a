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
_ALL = sql.SQL("TRUE")


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
    collected = filter != And() and not all(isinstance(query, DenseQuery) for query in queries)
    few = statement.compose("(SELECT count(*) FROM few) < {many}", many=_MANY) if collected else None
    search = _Search(statement, limit, filter, few)
    rankings: list[sql.Composable] = [
        statement.compose("SELECT {mark}::integer, '', 0::float8 WHERE {has_graph}", mark=GRAPH)
    ]
    for number, query in enumerate(queries):
        ranking = search.dense(query.vector, graph) if isinstance(query, DenseQuery) else search.sparse(query.vector)
        part = "SELECT {number}::integer, id, score FROM ({ranking}) AS ranking"
        rankings.append(statement.compose(part, number=number, ranking=ranking))
    ranked = sql.SQL(" UNION ALL ").join(rankings)
    if few is None:
        return ranked
    matching = "WITH few AS MATERIALIZED (SELECT record FROM {records} WHERE {where} LIMIT {many}) "
    return statement.compose(matching, where=filter, many=_MANY) + ranked


class _Search:
    """Rankings of the records that match a filter, as subqueries with an id and a score."""

    def __init__(self, statement: Statement, limit: int, filter: Filter, few: sql.Composable | None) -> None:
        """Rank for a statement; ``few`` is whether few records match, where these have been collected."""
        self._statement, self._limit, self._filter, self._few = statement, limit, filter, few

    def dense(self, vector: Float32, graph: Graph | None) -> sql.Composable:
        """Rank by inner products; where it is known that few records match, all of them are compared."""
        asked = self._statement.compose("{vector}::float8[]::{full}", vector=vector.tolist())
        if graph is None:
            return self._every(asked, _ALL)
        if self._few is None:
            return self._nearest(asked, graph, _ALL)
        many = sql.SQL("NOT {}").format(self._few)
        return _either(self._every(asked, self._few), self._nearest(asked, graph, many))

    def sparse(self, vector: SparseVector) -> sql.Composable:
        """Rank by weights of terms; where many records match the filter, only the best are asked, until enough do."""
        if self._few is None:
            return self._best(vector, _ALL)
        # IS TRUE keeps the set what it is, a hash table, and no part of a join
        among = sql.SQL("(t.record IN (SELECT record FROM few)) IS TRUE AND {}").format(self._few)
        one_by_one = self._statement.compose(
            "SELECT matching.id, scored.score::float8 FROM ({scores} ORDER BY score DESC OFFSET 0) AS scored, LATERAL "
            "(SELECT id FROM {records} WHERE record = scored.record AND {where} OFFSET 0) AS matching "
            "WHERE NOT {few} ORDER BY scored.score DESC LIMIT {limit}",
            scores=self._scores(vector, _ALL),
            where=self._filter,
            few=self._few,
            limit=self._limit,
        )
        return _either(self._best(vector, among), one_by_one)

    def _every(self, asked: sql.Composable, condition: sql.Composable) -> sql.Composed:
        return self._statement.compose(  # + 0, as a graph is for the distance itself
            "SELECT id, -(dense {ip} {asked}) AS score FROM {records} WHERE {where} AND {condition} "
            "ORDER BY (dense {ip} {asked}) + 0 LIMIT {limit}",
            asked=asked,
            where=self._filter,
            condition=condition,
            limit=self._limit,
        )

    def _nearest(self, asked: sql.Composable, graph: Graph, condition: sql.Composable) -> sql.Composed:
        return self._statement.compose(
            "SELECT id, -(dense {ip} {asked}) AS score FROM (SELECT id, dense FROM {records} "
            "WHERE {where} AND {condition} ORDER BY {kept} {distance} {sought} LIMIT {candidates}"
            ") AS near ORDER BY score DESC LIMIT {limit}",
            asked=asked,
            where=self._filter,
            condition=condition,
            kept=self._statement.compose(graph.value, vector=sql.Identifier("dense")),
            distance=self._statement.compose(graph.distance),
            sought=self._statement.compose(graph.value, vector=asked),
            candidates=graph.oversampling * self._limit,
            limit=self._limit,
        )

    def _best(self, vector: SparseVector, among: sql.Composable) -> sql.Composed:
        return self._statement.compose(
            "SELECT (SELECT r.id FROM {records} r WHERE r.record = found.record) AS id, found.score::float8 AS score "
            "FROM ({scores} ORDER BY score DESC LIMIT {limit}) AS found",
            scores=self._scores(vector, among),
            limit=self._limit,
        )

    def _scores(self, vector: SparseVector, among: sql.Composable) -> sql.Composed:
        # OFFSET 0 here and a subquery for each id keep a planner without statistics, as of a new table, from reading
        # all of it, and one with statistics from asking for the record of each term
        return self._statement.compose(
            "SELECT t.record, sum(q.weight * t.weight::float8)::real AS score "
            "FROM unnest({keys}::integer[], {weights}::float8[]) AS q (key, weight), LATERAL "
            "(SELECT record, weight FROM {terms} WHERE key = q.key OFFSET 0) AS t WHERE {among} GROUP BY t.record",
            keys=vector.indices.tolist(),
            weights=vector.values.tolist(),
            among=among,
        )


def _either(one: sql.Composable, other: sql.Composable) -> sql.Composed:
    return sql.SQL("({}) UNION ALL ({})").format(one, other)
