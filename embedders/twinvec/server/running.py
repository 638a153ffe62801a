"""Run the application on a port until it is told to stop."""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from twinvec.errors import ConfigurationError, DeviceLostError, TwinVecError
from twinvec.server.app import create_app
from twinvec.server.front import Keys
from twinvec.server.limits import Limits
from twinvec.server.logs import quiet_floods
from twinvec.server.metrics import ConnectionCollector
from twinvec.server.operations import Extension
from twinvec.server.protocol import Connections, protocol_factory
from twinvec.server.serving import Serving
from twinvec.settings import Settings

if TYPE_CHECKING:
    from twinvec.embedder import Embedder

logger = logging.getLogger("twinvec.server")

_SPARE_FILES = 64  # for files other than connections
_COLLECTED = 20_000  # objects of the requests at work, most of which end by themselves


def run(
    embedder: Embedder | Mapping[str, Embedder],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | Keys | None = None,
    limits: Limits | None = None,
    hosts: Iterable[str] | None = None,
    origins: Iterable[str] = (),
    extension: Extension | None = None,
    on_start: Callable[[str], object] | None = None,
    reserved: socket.socket | None = None,
) -> None:
    """Serve models until SIGINT or SIGTERM; requests in progress are finished within ``limits.drain_seconds``.

    A lost device is restarted once. Until the end, Python's garbage collector leaves alone what is there at the start.

    Args:
        embedder: see ``create_app``.
        host: address to listen on; "0.0.0.0" for all interfaces. Use a key with anything but a loopback address, since
            whoever can reach the port can use the model.
        port: 0 picks a free one.
        api_key: see ``create_app``.
        limits: request and connection limits.
        hosts: see ``create_app``. Default: on a loopback address without a key only that address's own names, so that a
            web page cannot reach the server through DNS rebinding; otherwise any.
        origins: see ``create_app``.
        extension: see ``create_app``.
        on_start: called with the URL once clients can connect.
        reserved: the result of ``reserve(host, port)``, called before the models were loaded.

    Raises:
        ConfigurationError: the address is not available, for example because the port is in use.
        DeviceLostError: a device was lost again after its restart.
        KeyboardInterrupt: after SIGINT, once all requests are finished.
    """
    key = api_key if api_key is not None else Settings.from_env().api_key
    with reserved or reserve(host, port) as listening:
        _listen(listening, host, port)
        limits, backlog = _within_open_files(limits or Limits())
        loopback = ipaddress.ip_address(listening.getsockname()[0]).is_loopback
        if key is None and not loopback:
            warnings.warn(
                f"listening on {host} without an API key: whoever can reach it can use the model. Set TWINVEC_API_KEY",
                stacklevel=2,
            )
        if hosts is None and key is None and loopback:
            hosts = {"localhost", "127.0.0.1", "[::1]", host.lower(), listening.getsockname()[0]}
        app = create_app(embedder, api_key=key, limits=limits, hosts=hosts, origins=origins, extension=extension)
        url = _url(host, listening)
        server = Server(app, limits, backlog, lambda: on_start(url) if on_start is not None else None)
        with quiet_floods(), _models_uncollected():
            server.run([listening])
        if server.lost is not None:
            raise server.lost


def reserve(host: str, port: int) -> socket.socket:
    """Reserve a port before the server is ready; until then connections are refused.

    Raises:
        ConfigurationError: the port is in use or not permitted.
    """
    with _named(host, port):
        if not 0 <= port < 2**16:  # getaddrinfo would reduce it modulo 2**16
            raise OverflowError("port must be 0 to 65535")
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio disables Nagle's algorithm (a delay of 40 ms) only if the socket is declared as TCP
        taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            if os.name == "posix":
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken.bind(address)
        except BaseException:
            taken.close()
            raise
        return taken


class Server(uvicorn.Server):
    """uvicorn's server with bounded connections, a two-phase shutdown and supervision of the devices.

    Attributes:
        lost: the reason it stopped, if a device was lost a second time.
    """

    def __init__(self, app: Any, limits: Limits, backlog: int, on_start: Callable[[], object]) -> None:
        self.serving: Serving = app.state.serving
        self._keys: Keys | None = app.state.keys
        self.lost: DeviceLostError | None = None
        self._limits, self._on_start = limits, on_start
        self._connections = Connections(limits)
        self._restarted = False
        self._stop_at: float | None = None
        self._end_by = 0.0
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol_factory(self._connections),  # type: ignore[arg-type]
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                lifespan="on",
                ws="none",
                backlog=backlog,
                timeout_keep_alive=limits.idle_seconds,  # type: ignore[arg-type]
            )
        )
        self.serving.metrics.registry.register(
            ConnectionCollector(lambda: len(self.server_state.connections), self._connections.closed)
        )

    def stop(self, unready_seconds: float = 0) -> None:
        """Become unready now, and stop after the given number of seconds. Safe in signal handlers and on any thread."""
        self.serving.draining = True
        now = time.monotonic()
        self._stop_at, self._end_by = now + unready_seconds, now + self._limits.drain_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; on the second signal, at once."""
        if self._stop_at is not None:
            self.should_exit = self.force_exit = True
        self.stop(self._limits.unready_seconds if sig == signal.SIGTERM else 0)
        if sig == signal.SIGINT:
            self._captured_signals[:] = [sig]  # raised again at the end as KeyboardInterrupt

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and report once signals are handled and clients can connect."""
        await super().startup(sockets)
        self._on_start()

    async def on_tick(self, counter: int) -> bool:
        """Check ten times a second whether to stop and whether the devices work, and once a second for new keys."""
        ends = await super().on_tick(counter)
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            left = self._end_by - time.monotonic()
            self.config.timeout_graceful_shutdown = max(left, 0.1)  # type: ignore[assignment]
            return True
        if counter % 10 == 0 and self._keys is not None:
            self._keys.refresh()
        if not (self.serving.healthy or self.serving.restarting or self.serving.draining):
            self._revive()
        return ends or self.lost is not None

    def _revive(self) -> None:
        if self._restarted:
            self.lost = DeviceLostError("a device was lost again after its restart: restart the process")
            return
        logger.error("a device was lost: restarting its model (once)")
        self._restarted = self.serving.restarting = True
        threading.Thread(target=self._restart, name="twinvec-restart", daemon=True).start()

    def _restart(self) -> None:
        gc.unfreeze()  # the lost model's memory is needed again
        try:
            for model in self.serving.held.values():
                if not model.healthy:
                    model.restart()
        except (TwinVecError, RuntimeError) as error:
            logger.error("the restart failed: %s", error)
        finally:
            self.serving.restarting = False


def leave_models_uncollected() -> None:
    """Leave what is there already to itself, in a process that only serves: with a model, a full collection stops all
    threads for a fifth of a second, and requests bring one about every few seconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED, *gc.get_threshold()[1:])


@contextlib.contextmanager
def _models_uncollected() -> Iterator[None]:
    thresholds = gc.get_threshold()
    leave_models_uncollected()
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def _listen(taken: socket.socket, host: str, port: int) -> None:
    with _named(host, port):
        taken.listen(128)


@contextlib.contextmanager
def _named(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}. Choose another host or port"
        ) from None


def _within_open_files(limits: Limits) -> tuple[Limits, int]:
    """Return limits whose connections the system can provide, and the length of the accept queue."""
    try:
        import resource

        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        used = len(os.listdir("/dev/fd"))
    except (ImportError, OSError):  # Windows
        return limits, 128
    if files == resource.RLIM_INFINITY:
        return limits, 512
    backlog = max(8, min(512, files // 8))
    room = max(1, files - used - backlog - min(_SPARE_FILES, files // 8))
    if room < limits.max_connections:
        logger.warning("limited to %d connections: this process may open at most %d files", room, files)
        limits = replace(limits, max_connections=room)
    return limits, backlog


def _url(host: str, listening: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}"
