"""Subclass overrides are honoured: a fast path bypasses a framework's methods only if nobody has overridden them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from twinvec.workers import in_thread

_F = TypeVar("_F", bound=Callable[..., Awaitable[Any]])


def overridden(value: object, base: type, *names: str) -> bool:
    """Return whether a subclass of ``base``, or the object itself, overrides one of these methods."""
    kept = getattr(value, "__dict__", {})
    return any(name in kept or _defined(type(value), name) is not _defined(base, name) for name in names)


def changed_alone(value: object, blocking: str, awaiting: str) -> bool:
    """Return whether a method was overridden without its async twin, which then has to call it.

    Async methods of the frameworks call the blocking ones by default, so users often override only those. A class that
    overrides both has defined both.
    """
    kept = getattr(value, "__dict__", {})
    if not isinstance(value, type) and blocking in kept:
        return awaiting not in kept
    cls = value if isinstance(value, type) else type(value)
    changed = next((each for each in cls.__mro__ if blocking in vars(each)), object)
    return awaiting not in vars(changed)


def twin_of(blocking: str) -> Callable[[_F], _F]:
    """Make an async method call its blocking twin, on a thread, if a subclass has overridden only that one."""

    def decorate(method: _F) -> _F:
        @functools.wraps(method)
        async def heard(self: Any, *args: Any, **kwargs: Any) -> Any:
            if changed_alone(self, blocking, method.__name__):
                return await in_thread(getattr(self, blocking), *args, **kwargs)
            return await method(self, *args, **kwargs)

        return heard  # type: ignore[return-value]

    return decorate


def heard(twin: _F) -> _F:
    """Make the result of ``awaiting`` respect an override of its blocking method; see ``twin_of``."""
    return twin_of(inspect.unwrap(twin).__name__)(twin)


def _defined(cls: type, name: str) -> Any:
    return next((vars(each)[name] for each in cls.__mro__ if name in vars(each)), None)
