"""Converting LangChain's filters to those of a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from twinvec_stores import Filter, parse_filter

FilterForm: TypeAlias = "Mapping[str, Any] | Filter | None"


def as_filter(form: FilterForm) -> Filter | None:
    """Convert a filter in the form common to LangChain's stores, ``{"year": {"$gte": 2020}}``, or of
    ``twinvec_stores``.

    Raises:
        FilterError: the form is invalid; says where.
    """
    return parse_filter(form) if isinstance(form, Mapping) else form
