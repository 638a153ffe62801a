"""LlamaIndex's embeddings cache, made to tell roles, prompts and models apart."""

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
    """Say that what is looked up in here are queries; everything else are documents."""
    before = _role.set(Role.QUERY)
    try:
        yield
    finally:
        _role.reset(before)


class RoleAwareCache(BaseKVStore):
    """A key-value store in which a text has an entry of its own for each role, prompt and model.

    ``BaseEmbedding`` looks a text up under the text itself, whatever its role: a query would get the vector of a
    document. Here ``query:<namespace>:`` or ``document:<namespace>:`` goes before it.

    Attributes:
        store: the store that keeps the entries, under the longer keys.
    """

    def __init__(self, store: BaseKVStore, namespaces: Mapping[Role, str]) -> None:
        """Use a store.

        Args:
            store: any of LlamaIndex's key-value stores; several models may share one.
            namespaces: what decides the vectors of a role: model, options and prompt.
        """
        self.store = store
        self._namespaces = namespaces

    def put(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """Keep the vector of a text."""
        self.store.put(self._key(key), val, collection=collection)

    async def aput(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """See ``put``."""
        await self.store.aput(self._key(key), val, collection=collection)

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """Return what was kept for a text."""
        return self.store.get(self._key(key), collection=collection)

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """See ``get``."""
        return await self.store.aget(self._key(key), collection=collection)

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """Return everything in the store, under its full keys."""
        return self.store.get_all(collection=collection)

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """See ``get_all``."""
        return await self.store.aget_all(collection=collection)

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Forget a text; returns whether it was there."""
        return self.store.delete(self._key(key), collection=collection)

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """See ``delete``."""
        return await self.store.adelete(self._key(key), collection=collection)

    def _key(self, text: str) -> str:
        role = _role.get()
        return f"{role.value}:{self._namespaces[role]}:{text}"
