"""LlamaIndex's embeddings cache, adapted to distinguish roles, prompts and models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from llama_index.core.storage.kvstore.types import DEFAULT_COLLECTION, BaseKVStore

from twinvec import Role

_role: ContextVar[Role] = ContextVar("role", default=Role.DOCUMENT)


@contextmanager
def as_query() -> Iterator[None]:
    """Mark lookups in this context as queries; all others are documents."""
    before = _role.set(Role.QUERY)
    try:
        yield
    finally:
        _role.reset(before)


class RoleAwareCache(BaseKVStore):
    """A key-value store in which a text has a separate entry for each role, prompt and model.

    ``BaseEmbedding`` looks a text up under the text itself, whatever its role, so a query would get the vector of a
    document. Here the key is prefixed with ``query:<namespace>:`` or ``document:<namespace>:``.

    Attributes:
        store: the underlying store, with the longer keys.
    """

    def __init__(self, store: BaseKVStore, namespaces: Mapping[Role, str]) -> None:
        """Wrap a store.

        Args:
            store: any of LlamaIndex's key-value stores; several models may share it.
            namespaces: whatever decides the vectors of a role: model, options and prompt.
        """
        self.store = store
        self._namespaces = namespaces

    def put(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """Store the vector of a text."""
        self.store.put(self._key(key), val, collection=collection)

    async def aput(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """See ``put``."""
        await self.store.aput(self._key(key), val, collection=collection)

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """Return the entry of a text."""
        return self.store.get(self._key(key), collection=collection)

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """See ``get``."""
        return await self.store.aget(self._key(key), collection=collection)

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """Return everything in the store, under the full keys."""
        return self.store.get_all(collection=collection)

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """See ``get_all``."""
        return await self.store.aget_all(collection=collection)

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Delete a text; return whether it existed."""
        return self.store.delete(self._key(key), collection=collection)

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """See ``delete``."""
        return await self.store.adelete(self._key(key), collection=collection)

    def _key(self, text: str) -> str:
        role = _role.get()
        return f"{role.value}:{self._namespaces[role]}:{text}"
