"""Statements: text with the names of a store's tables, filters, and the values beside it."""

from __future__ import annotations

from typing import Any

from psycopg import sql

from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.postgres.connections import either
from twinvec_stores.engines.postgres.filters import Translator
from twinvec_stores.engines.postgres.schema import Schema
from twinvec_stores.filters.conditions import Filter


class Statement:
    """A statement in the making.

    Attributes:
        text: what to send.
    """

    def __init__(self, schema: Schema, config: StoreConfig) -> None:
        """Begin without text and values."""
        self._schema = schema
        self._translator = Translator(config, self._bind)
        self._parameters: dict[str, Any] = {}
        self.text: sql.Composable = sql.SQL("")

    def compose(self, text: str, *, where: Filter | None = None, **parts: Any) -> sql.Composed:
        """Return text with the names of the tables, a filter on ``records``, and other parts: SQL, or values."""
        made = {name: part if isinstance(part, sql.Composable) else self._bind(part) for name, part in parts.items()}
        if where is not None:
            made["where"] = self._translator.where(where)
        return self._schema.text(text, **made)

    async def execute(self, connection: Any) -> Any:
        """Run it on a connection of either kind, and return the cursor."""
        return await either(connection.execute, self.text, self._parameters, binary=True)

    async def fetch(self, connection: Any) -> list[Any]:
        """Run it, and return the rows."""
        cursor = await self.execute(connection)
        rows: list[Any] = await either(cursor.fetchall)
        return rows

    def _bind(self, value: Any) -> sql.Placeholder:
        name = f"p{len(self._parameters)}"
        self._parameters[name] = value
        return sql.Placeholder(name)
