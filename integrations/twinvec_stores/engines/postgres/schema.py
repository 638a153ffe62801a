"""The tables of a store: a PostgreSQL schema with the name of the collection.

``records`` has a row for each record, and ``terms`` a row for each key of each sparse vector: an inverted index, which
gives exact sparse scores and document frequencies. ``store`` has the configuration; it has a row for each model that
the store was embedded with, whose tables have its name (``records_1a2b``), one of which serves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import Connection, errors, sql
from psycopg.types.json import Json

from twinvec.errors import ConfigurationError, StoreEngineError, StoreMismatchError, StoreNotFoundError
from twinvec_stores.config import FieldType, StoreConfig
from twinvec_stores.engines.postgres.graphs import graph_of

_OLDEST_SERVER = 140_000  # multiranges
_OLDEST_VECTOR = (0, 8)  # graph searches that go on until enough records have matched the filter
CREATION = 0x7477696E  # lock of whoever creates tables in the database
_WRITING = CREATION + 1  # shared by those who write into tables, held by who lets other tables serve
_MAX_NAME = 63  # bytes; PostgreSQL would cut longer ones
_MAX_DIM = 16_000
_CANDIDATES = 128  # for each link of a graph; with pgvector's 64, one of a million records finds a tenth less
_PAGE = 8168  # bytes of a page without its header; each row takes 4 more, and begins at a multiple of 8
_BESIDE = 512  # bytes of a row besides its vector: what has to be there, and short texts
_VECTOR = {
    "full": "vector",
    "half": "halfvec",
    "full_ops": "vector_ip_ops",
    "half_ops": "halfvec_ip_ops",
    "bit_ops": "bit_hamming_ops",
    "send": "vector_send",
    "binary_quantize": "binary_quantize",
    "l2_normalize": "l2_normalize",
    "subvector": "subvector",
}
_OPERATORS = {"ip": "<#>", "hamming": "<~>"}
DATA = ("records", "terms")
COLUMNS: Mapping[FieldType, tuple[str, str]] = {
    "keyword": ("text[]", "gin"),
    "text": ("text[]", "gin"),
    "bool": ("boolean[]", "gin"),
    "integer": ("nummultirange", "gist"),
    "float": ("nummultirange", "gist"),
    "datetime": ("nummultirange", "gist"),
}


class Schema:
    """The names in a store's statements, and the creation of its tables."""

    def __init__(self, collection: str, where: str) -> None:
        """Name the tables.

        Args:
            collection: the schema.
            where: the store's name in errors.

        Raises:
            ConfigurationError: a schema cannot have this name.
        """
        if (
            not 0 < len(collection.encode()) <= _MAX_NAME
            or set(collection) & set("\x00%")
            or collection.startswith("pg_")
        ):
            raise ConfigurationError(
                f"collection={collection!r:.80} must have 1 to {_MAX_NAME} bytes, no %, and not begin with pg_"
            )
        self.collection, self._where = collection, where
        self._names: dict[str, sql.Composable] = {"schema": sql.Identifier(collection)}
        self.use("")

    def use(self, model: str) -> None:
        """Name the tables of a model; the first one of a store has no name."""
        self.model = model
        suffix = f"_{model}" if model else ""
        self._graph = f"records{suffix}_graph"
        tables = {"store": "store", "sequence": "record_numbers", "graph": self._graph}
        for name, table in {**tables, **{name: f"{name}{suffix}" for name in DATA}}.items():
            self._names[name] = sql.Identifier(self.collection, table)
            self._names[f"{name}_name"] = sql.Literal(sql.Identifier(self.collection, table).as_string())
        self._names["model"] = sql.Literal(model)
        self._names["writable"] = self.text("model = {model} AND state = ANY(%s)")
        self._names["writing"] = sql.SQL("{}, hashtext({})").format(
            sql.Literal(_WRITING), sql.Literal(f"{self.collection}/{model}")
        )
        self._names["has_graph"] = self.text(
            "EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass({graph_name}) AND indisvalid)"
        )

    def text(self, text: str, **parts: sql.Composable) -> sql.Composed:
        """Return SQL of ours with the names of the tables, and other parts."""
        return sql.SQL(text).format(**self._names, **parts)

    @staticmethod
    def column(field: str, config: StoreConfig) -> sql.Identifier:
        """Return the column of a declared field."""
        return sql.Identifier(f"field_{list(config.fields).index(field)}")

    def open(self, connection: Connection[Any], config: StoreConfig | None) -> StoreConfig:
        """Return the configuration of the store, which is created if there is none.

        Raises:
            StoreNotFoundError: there is none, and ``config`` is None.
            StoreMismatchError: it is another model's, or not a store.
            StoreEngineError: the server is too old, or lacks pgvector.
        """
        stored = self._read(connection)
        if stored is None:
            if config is None:
                raise StoreNotFoundError(f"there is no store {self._where}")
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(%s)", [CREATION])
                stored = self._read(connection) or self._create(connection, config)
        if config is not None:
            stored.check(config, self._where)
        if stored.dim is not None:
            self.name_vectors(connection)
        return stored

    def copies(self, config: StoreConfig) -> dict[str, sql.Composed]:
        """Return the statements that ``Rows`` are copied with."""
        columns = ["point", "record", "id", "text", "metadata", "provenance", "exact", "checksum"]
        columns += ["keys", "weights"] if config.sparse else []
        columns += ["dense"] if config.dim is not None else []
        columns += ["tokens"] if config.token_pool is not None else []
        named = [*map(sql.Identifier, columns), *(self.column(name, config) for name in config.fields)]
        return {
            "records": self.text(
                "COPY {records} ({columns}) FROM STDIN (FORMAT BINARY)", columns=sql.SQL(", ").join(named)
            ),
            "terms": self.text("COPY {terms} (record, key, weight) FROM STDIN (FORMAT BINARY)"),
        }

    def content(self, config: StoreConfig, *, with_vectors: bool) -> sql.Composed:
        """Return what ``to_record`` reads."""
        text: str = "id, text, metadata, provenance, exact"
        if with_vectors:
            text += ", checksum" + (", keys, weights" if config.sparse else "")
            text += ", {send}(dense)" if config.dim is not None else ""
            text += ", tokens" if config.token_pool is not None else ""
        return self.text(text)

    def has_graph(self, connection: Connection[Any]) -> bool:
        """Return whether there is a whole graph."""
        row = connection.execute(self.text("SELECT {has_graph}")).fetchone()
        return row is not None and bool(row[0])

    def graph_bytes(self, connection: Connection[Any]) -> int:
        """Return the size of the graph, whole or not."""
        row = connection.execute(
            self.text("SELECT coalesce(pg_relation_size(to_regclass({graph_name})), 0)")
        ).fetchone()
        return 0 if row is None else int(row[0])

    def optimize(self, connection: Connection[Any], config: StoreConfig) -> None:
        """Build the graph while others read and write, and clean up.

        Raises:
            StoreEngineError: another process does so.
        """
        lock = connection.execute(
            "SELECT pg_try_advisory_lock(%s, hashtext(%s))", [CREATION, self.collection]
        ).fetchone()
        if lock is None or not lock[0]:
            raise StoreEngineError(f"{self._where}: another process optimizes it; wait for it")
        if (graph := graph_of(config)) is not None:
            if not self.has_graph(connection):  # one that was interrupted, if any
                connection.execute(self.text("DROP INDEX CONCURRENTLY IF EXISTS {graph}"))
            connection.execute(
                self.text(
                    "CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON {records} USING hnsw "
                    f"(({graph.value}) {graph.operators}) WITH (ef_construction = {_CANDIDATES})",
                    name=sql.Identifier(self._graph),
                    vector=sql.Identifier("dense"),
                )
            )
        connection.execute(self.text("VACUUM (ANALYZE) {records}"))
        if config.sparse:
            connection.execute(self.text("VACUUM (ANALYZE) {terms}"))

    def _read(self, connection: Connection[Any]) -> StoreConfig | None:
        tables = connection.execute(
            "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace "
            "WHERE nspname = %s AND relkind IN ('r', 'p', 'v', 'm', 'f')",
            [self.collection],
        ).fetchall()
        if not tables:
            return None
        if ("store",) not in tables or ("records",) not in tables:
            raise StoreMismatchError(
                f"{self._where}: the schema has tables that TwinVec did not create: choose another collection="
            )
        try:
            row = connection.execute(self.text("SELECT model, config FROM {store} WHERE state = 'serving'")).fetchone()
        except errors.UndefinedColumn:
            row = None
        if row is not None:
            self.use(row[0])
        return StoreConfig.from_dict(row[1] if row else None, self._where)

    def _create(self, connection: Connection[Any], config: StoreConfig) -> StoreConfig:
        self._check_server(connection)
        if not connection.execute("SELECT FROM pg_namespace WHERE nspname = %s", [self.collection]).rowcount:
            connection.execute(self.text("CREATE SCHEMA {schema}"))
        connection.execute(
            self.text("CREATE TABLE {store} (model text PRIMARY KEY, state text NOT NULL, config json NOT NULL)")
        )
        connection.execute(self.text("CREATE SEQUENCE {sequence}"))
        return self.create_tables(connection, config, "serving")

    def create_tables(self, connection: Connection[Any], config: StoreConfig, state: str) -> StoreConfig:
        """Create the tables of a model; ``state`` is "serving" or "prepared".

        Raises:
            ConfigurationError: a database cannot have such a store.
        """
        if config.quantization == "int8":
            raise ConfigurationError(
                'pgvector has no vectors of 8 bits: take quantization="binary", "first_dim=256" (or another number) of '
                "models trained for it, or leave it out (--quantization none)"
            )
        if config.quantization is not None and graph_of(config) is None:
            raise ConfigurationError(f"pgvector has no graph of quantization={config.quantization!r}: take fewer dims")
        if config.dim is not None and config.dim > _MAX_DIM:
            raise ConfigurationError(f"pgvector takes at most {_MAX_DIM} dimensions, not {config.dim}")
        if config.dim is not None:
            self.name_vectors(connection, create=True)
        connection.execute(self.text("INSERT INTO {store} VALUES ({model}, %s, %s)"), [state, Json(config.to_dict())])
        connection.execute(self.text("CREATE TABLE {records} ({columns})", columns=self._columns(config)))
        if config.dim is not None:
            # vectors stay in their rows, as many to a page as fit, and long texts leave them: fetching each vector from
            # elsewhere takes most of an exact search, and the planner, which does not count it, prefers that to a graph
            rows = max(1, _PAGE // (4 * config.dim + _BESIDE))
            target = sql.Literal((_PAGE - 4 * rows) // rows // 8 * 8)
            connection.execute(self.text("ALTER TABLE {records} ALTER COLUMN dense SET STORAGE MAIN"))
            connection.execute(self.text("ALTER TABLE {records} SET (toast_tuple_target = {target})", target=target))
        if config.sparse:
            connection.execute(
                self.text(
                    "CREATE TABLE {terms} (record bigint NOT NULL, key integer NOT NULL, weight real NOT NULL, "
                    "PRIMARY KEY (key, record) INCLUDE (weight))"
                )
            )
        for name, kind in config.fields.items():
            method, column = sql.SQL(COLUMNS[kind][1]), self.column(name, config)
            connection.execute(self.text("CREATE INDEX ON {records} USING {method} ({on})", method=method, on=column))
        return config

    def _columns(self, config: StoreConfig) -> sql.Composable:
        columns: list[sql.Composable] = [
            sql.SQL(
                "point uuid PRIMARY KEY, record bigint NOT NULL UNIQUE, id text NOT NULL, text text NOT NULL, "
                "metadata jsonb NOT NULL, provenance json NOT NULL, exact json, checksum bigint NOT NULL"
            )
        ]
        if config.sparse:
            columns.append(sql.SQL("keys integer[] NOT NULL, weights real[] NOT NULL"))
        if config.dim is not None:
            columns.append(self.text("dense {full}({dim}) NOT NULL", dim=sql.Literal(config.dim)))
        if config.token_pool is not None:
            columns.append(sql.SQL("tokens bytea NOT NULL"))
        for name, kind in config.fields.items():
            columns.append(sql.SQL("{} {}").format(self.column(name, config), sql.SQL(COLUMNS[kind][0])))
        return sql.SQL(", ").join(columns)

    def _check_server(self, connection: Connection[Any]) -> None:
        if connection.info.server_version < _OLDEST_SERVER:
            raise StoreEngineError(f"{self._where}: PostgreSQL {_OLDEST_SERVER // 10_000} or newer is needed")
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise StoreEngineError(f"{self._where}: the database has the encoding {encoding}: create one with UTF8")

    def name_vectors(self, connection: Connection[Any], *, create: bool = False) -> None:
        """Learn where pgvector's types are: its schema need not be on the search path."""
        asked = (
            "SELECT nspname, extversion FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace "
            "WHERE extname = 'vector'"
        )
        found = connection.execute(asked).fetchone()
        if found is None and create:
            try:
                connection.execute("CREATE EXTENSION vector")
            except (errors.UndefinedFile, errors.FeatureNotSupported, errors.InsufficientPrivilege) as error:
                raise StoreEngineError(
                    f"{self._where}: pgvector is missing: install it on the server, and have an administrator run "
                    f"CREATE EXTENSION vector in this database ({error.diag.message_primary})"
                ) from None
            found = connection.execute(asked).fetchone()
        if found is None or tuple(map(int, found[1].split(".")[:2])) < _OLDEST_VECTOR:
            version = "missing" if found is None else f"version {found[1]}"
            raise StoreEngineError(f"{self._where}: pgvector 0.8 or newer is needed, it is {version}")
        for name, object in _VECTOR.items():
            self._names[name] = sql.Identifier(found[0], object)
        for name, operator in _OPERATORS.items():
            self._names[name] = sql.SQL(f"OPERATOR({{}}.{operator})").format(sql.Identifier(found[0]))
