"""LangChain's filters as filters of a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from twinvec_stores import Filter, parse_filter

FilterForm: TypeAlias = "Mapping[str, Any] | Filter | None"


def as_filter(form: FilterForm) -> Filter | None:
    """Return a filter as LangChain's stores share it, ``{"year": {"$gte": 2020}}``, or one of ``twinvec_stores``.

    Raises:
        FilterError: another form; says where.
    """
    return parse_filter(form) if isinstance(form, Mapping) else form
