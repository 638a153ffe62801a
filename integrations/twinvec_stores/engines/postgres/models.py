"""The models of a store in PostgreSQL: the same records with the vectors of each, in tables of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import Connection, sql

from twinvec.errors import ConfigurationError, StoreReadOnlyError
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.postgres.schema import CREATION, DATA
from twinvec_stores.engines.postgres.store import PostgresStore


class ModelStore(PostgresStore):
    """The tables of a model that does not serve; they are created if there are none."""

    _states = ("prepared", "before")

    def _open(self, connection: Connection[Any], config: StoreConfig | None) -> StoreConfig:
        if config is None:
            return self._open_before(connection)
        self._schema.open(connection, None)
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [CREATION])
            rows = connection.execute(self._schema.text("SELECT model, config FROM {store}")).fetchall()
            for model, data in rows:
                stored = StoreConfig.from_dict(data, self._place)
                if stored.identity == config.identity:
                    stored.check(config, self._place)
                    return self._use(connection, model, stored)
            granted = self._granted(connection)
            self._schema.use(config.key)
            self._schema.create_tables(connection, config, "prepared")
            for name, privilege, role in granted:
                parts = {"privilege": sql.SQL(privilege), "role": sql.SQL(role)}
                if name == "records" or config.sparse:
                    connection.execute(self._schema.text(f"GRANT {{privilege}} ON {{{name}}} TO {{role}}", **parts))
            return config

    def _open_before(self, connection: Connection[Any]) -> StoreConfig:
        self._schema.open(connection, None)
        asked = self._schema.text("SELECT model, config FROM {store} WHERE state = 'before'")
        row = connection.execute(asked).fetchone()
        if row is None:
            raise ConfigurationError(f"{self._place} was not re-embedded: there is nothing to go back to")
        return self._use(connection, row[0], StoreConfig.from_dict(row[1], self._place))

    def _use(self, connection: Connection[Any], model: str, config: StoreConfig) -> StoreConfig:
        self._schema.use(model)
        if config.dim is not None:
            self._schema.name_vectors(connection)
        return config

    def _granted(self, connection: Connection[Any]) -> list[tuple[str, str, str]]:
        """Return what others may do with the tables that serve: table, privilege, role."""
        found: list[tuple[str, str, str]] = []
        for name in DATA:
            asked = self._schema.text(
                "SELECT privilege_type, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END "
                "FROM pg_class, aclexplode(relacl) WHERE oid = to_regclass({table}) AND grantee <> relowner",
                table=self._schema.text(f"{{{name}_name}}"),
            )
            found += [(name, *row) for row in connection.execute(asked).fetchall()]
        return found


@contextmanager
def switching(serving: PostgresStore, model: ModelStore) -> Iterator[None]:
    """Keep the writes of all processes waiting, and then let a model serve, if what is done meanwhile succeeds.

    Raises:
        StoreReadOnlyError: another model serves.
        StoreEngineError: the server failed; nothing has changed.
    """
    schema = serving._schema
    with serving._connected() as connection, connection.transaction():
        connection.execute(schema.text("SELECT pg_advisory_xact_lock({writing})"))
        if connection.execute(schema.text("SELECT FROM {store} WHERE {writable}"), [["serving"]]).fetchone() is None:
            raise StoreReadOnlyError(f"{serving._place} was re-embedded with another model meanwhile")
        yield
        connection.execute(
            schema.text(
                "UPDATE {store} SET state = CASE model WHEN {next} THEN 'serving' WHEN {model} THEN 'before' "
                "ELSE 'prepared' END",
                next=sql.Literal(model._schema.model),
            )
        )
