"""Objects that hold something until they are closed, as context managers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

_Self = TypeVar("_Self", bound="Closing")
_AsyncSelf = TypeVar("_AsyncSelf", bound="AsyncClosing")


class Closing(ABC):
    """Closed at the end of a ``with`` block."""

    @abstractmethod
    def close(self) -> None:
        """Release everything."""

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


class AsyncClosing(Closing):
    """Closed at the end of a ``with`` or an ``async with`` block."""

    @abstractmethod
    async def aclose(self) -> None:
        """See ``close``."""

    async def __aenter__(self: _AsyncSelf) -> _AsyncSelf:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.aclose()
