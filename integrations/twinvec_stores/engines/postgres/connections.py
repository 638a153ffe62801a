"""Connections: a pool for threads, and one for each event loop; flows use both alike."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from psycopg_pool import AsyncConnectionPool, ConnectionPool

from twinvec.flows import Call

# prepared statements may be lost by a pooler in front of the server, and are planned without the filter's values
_OPTIONS = {"autocommit": True, "prepare_threshold": None}
# compiling a statement takes longer than running ours
# a graph is followed until enough records match the filter, however far that is; its order is not relied on
_SETTINGS = (
    "SELECT set_config('jit', 'off', false), "
    "set_config('hnsw.ef_search', '256', false), set_config('hnsw.iterative_scan', 'relaxed_order', false), "
    "set_config('hnsw.max_scan_tuples', '2147483647', false), set_config('hnsw.scan_mem_multiplier', '1000', false)"
)


def either(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Call[Any]:
    """Return the call of a method that psycopg's blocking and async objects have by one name."""
    work = partial(method, *args, **kwargs)
    return Call(work, work)


@asynccontextmanager
async def entered(manager: Any) -> AsyncIterator[Any]:
    """Enter one of psycopg's context managers, of either kind."""
    value = await Call(lambda: manager.__enter__(), lambda: manager.__aenter__())  # noqa: PLW0108
    try:
        yield value
    except BaseException as error:
        raised = type(error), error, error.__traceback__
        if not await Call(lambda: manager.__exit__(*raised), lambda: manager.__aexit__(*raised)):
            raise
    else:
        await Call(lambda: manager.__exit__(None, None, None), lambda: manager.__aexit__(None, None, None))


class Pools:
    """The connections of one store."""

    def __init__(self, conninfo: str, size: int, timeout: float) -> None:
        """Connect to nothing yet; ``size`` is the most connections of a pool."""
        self._options: dict[str, Any] = {
            "conninfo": conninfo,
            "kwargs": _OPTIONS,
            "min_size": 0,
            "max_size": size,
            "timeout": timeout,
            "open": False,
            "configure": lambda connection: connection.execute(_SETTINGS),
        }
        self._blocking: dict[int, ConnectionPool] = {}  # by process: a fork must not share its parent's sockets
        self._async: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncConnectionPool] = (
            weakref.WeakKeyDictionary()
        )

    def pool(self) -> Call[Any]:
        """Return an open pool."""
        return Call(self._of_process, self._of_loop)

    def _of_process(self) -> ConnectionPool:
        pool = self._blocking.get(os.getpid())
        if pool is None:
            pool = self._blocking.setdefault(os.getpid(), ConnectionPool(**self._options))
        pool.open()
        return pool

    async def _of_loop(self) -> AsyncConnectionPool:
        loop = asyncio.get_running_loop()
        if loop not in self._async:
            for other in [other for other in self._async if other.is_closed()]:
                self._async.pop(other, None)
            self._async[loop] = AsyncConnectionPool(**self._options)
        pool = self._async[loop]
        await pool.open()
        return pool

    def close(self) -> None:
        """Close this process's connections; those of event loops end with them."""
        self._async.clear()
        if pool := self._blocking.pop(os.getpid(), None):
            pool.close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop, too."""
        if pool := self._async.pop(asyncio.get_running_loop(), None):
            await pool.close()
