"""A real Milvus endpoint, milvus-lite's server, started once for all tests of a run, in a temporary folder."""

from __future__ import annotations

import atexit
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from functools import cache
from typing import Any

from pymilvus import MilvusClient

from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.milvus.store import MilvusStore

# the server, which ends with the tests even if they are killed
_SERVER = """
import os, sys, threading
from milvus_lite.cmdline import main
threading.Thread(target=lambda: os._exit(len(sys.stdin.read())), daemon=True).start()
main()
"""


class Server:
    """A server in a process and a folder of its own."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="twinvec-milvus-")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"milvus://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        """Start it, or start it again, and wait until it answers."""
        arguments = ["--data-dir", self._folder, "--host", "127.0.0.1", "--port", str(self._port)]
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-c", _SERVER, "server", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it listens

    def client(self) -> MilvusClient:
        """Return a client of its own."""
        return MilvusClient(uri=self.url.replace("milvus", "http"))

    def kill(self) -> None:
        """Kill it, as a power failure would."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it, and remove its folder."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


@cache
def server() -> Server:
    """Return the tests' server."""
    started = Server()
    atexit.register(started.stop)
    return started


def client() -> MilvusClient:
    return server().client()


def url() -> str:
    return server().url


def new_name() -> str:
    return f"test_{uuid.uuid4().hex[:12]}"


def new_store(config: StoreConfig, **options: Any) -> MilvusStore:
    return MilvusStore(url(), new_name(), config, **options)
