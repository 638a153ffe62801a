"""The application on a port, until it is told to stop."""

from __future__ import annotations

import ipaddress
import socket
import warnings
from collections.abc import Callable

import uvicorn

from twinvec.embedder import Embedder
from twinvec.errors import ConfigurationError
from twinvec.server.app import create_app
from twinvec.server.service import Limits
from twinvec.settings import Settings

_KEEP_ALIVE = 75  # seconds, more than clients keep idle connections, so that they close them and not the server
_DRAIN = 60  # seconds that requests have to finish in when the server is told to stop


def run(
    embedder: Embedder,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    limits: Limits | None = None,
    on_start: Callable[[str], object] | None = None,
) -> None:
    """Serve a model until SIGINT or SIGTERM; what is being answered then has a minute to finish.

    Args:
        embedder: stays yours: close it afterwards.
        host: address to listen at; "0.0.0.0" for all of the machine's. Others than this machine's own need a key, or
            whoever can reach the port can use the model.
        port: 0 for any free one.
        api_key: see ``create_app``.
        limits: see ``create_app``.
        on_start: called with the url when clients can connect.

    Raises:
        ConfigurationError: the address cannot be listened at, for example because the port is taken.
    """
    key = api_key if api_key is not None else Settings.from_env().api_key
    app = create_app(embedder, api_key=key, limits=limits)
    with _listen(host, port) as listening:
        if key is None and not _is_loopback(listening):
            warnings.warn(
                f"listening at {host} without an API key: whoever can reach it can use the model. Set TWINVEC_API_KEY",
                stacklevel=2,
            )
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=_DRAIN,
        )
        if on_start is not None:
            on_start(_url(host, listening))
        uvicorn.Server(config).run([listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        made = socket.create_server((host, port), family=family, backlog=2048)
        # asyncio switches Nagle's delay of 40 ms off only where the socket says that it is TCP
        return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=made.detach())
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"cannot listen at {host}:{port}: {getattr(error, 'strerror', None) or error}. Choose another host or port"
        ) from None


def _is_loopback(listening: socket.socket) -> bool:
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def _url(host: str, listening: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}"
