"""Operations on stored documents besides adding and searching: get, list, update, delete, scope."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from langchain_core.documents import Document
from typing_extensions import Self

from langchain_twinvec.filters import FilterForm, as_filter
from langchain_twinvec.peers import SEARCH, refuse_names_of_peers
from langchain_twinvec.searching import SearchableStore, to_document
from twinvec.errors import ConfigurationError
from twinvec.flows import awaiting, blocking, call
from twinvec.overriding import heard
from twinvec_stores import And, Result


class ManagedStore(SearchableStore):
    """Management of stored documents, as documented in TwinVecVectorStore."""

    def scoped(self, filter: FilterForm) -> Self:
        """Return a tenant's view of this store: every search, listing, count, write and deletion is limited to a
        filter.

        A document that contradicts the filter is rejected, and so is one with the id of a document outside; documents
        that lack the filter's fields get them. The view is closed along with its store.

        Args:
            filter: as in searches: ``{"tenant": "a"}``.
        """
        condition = as_filter(filter)
        if condition is None:
            raise ConfigurationError('scoped() needs a filter, such as {"tenant": "a"}')
        view = copy.copy(self)
        view.index = self.index.scoped(condition)
        return view

    def list_documents(self, filter: FilterForm = None, *, limit: int | None = None) -> Iterator[Document]:
        """Yield the matching documents, page by page, in the store's own order.

        Args:
            filter: as in searches; None: all.
            limit: maximum number of documents.
        """
        pages = self.index.store.scroll_all(filter=as_filter(filter))
        return islice((to_document(Result(record, 0.0)) for page in pages for record in page), limit)

    async def alist_documents(self, filter: FilterForm = None, *, limit: int | None = None) -> AsyncIterator[Document]:
        """See ``list_documents``."""
        given = 0
        async for page in self.index.store.ascroll_all(filter=as_filter(filter)):
            for record in page:
                if limit is not None and given >= limit:
                    return
                given += 1
                yield to_document(Result(record, 0.0))

    @blocking
    async def update_metadata(self, ids: Sequence[str], changes: Mapping[str, Any]) -> list[str]:
        """Update the metadata of documents without embedding them again; missing ids are skipped.

        Returns:
            The ids that were found.
        """
        return await call(self.index.update_metadata, self.index.aupdate_metadata, ids, changes)

    aupdate_metadata = heard(awaiting(update_metadata))

    @blocking
    async def delete(self, ids: list[str] | None = None, *, filter: FilterForm = None, **kwargs: Any) -> bool:
        """Delete by ids or by a filter; without either, delete everything. Missing ids are not an error."""
        refuse(kwargs)
        doomed = And() if ids is None and filter is None else as_filter(filter)
        await call(self.index.store.delete, self.index.store.adelete, ids, filter=doomed)
        return True

    adelete = heard(awaiting(delete))

    @blocking
    async def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents with these ids, in the order of ``ids``; missing ones are left out."""
        records = await call(self.index.store.get, self.index.store.aget, ids)
        return [to_document(Result(record, 0.0)) for record in records]

    aget_by_ids = heard(awaiting(get_by_ids))


def refuse(unknown: Mapping[str, Any]) -> None:
    """Reject unknown arguments.

    Raises:
        ConfigurationError: an argument that other stores have.
        TypeError: any other argument.
    """
    refuse_names_of_peers(unknown, SEARCH)
    if unknown:
        raise TypeError(f"unknown argument {next(iter(unknown))!r}")
