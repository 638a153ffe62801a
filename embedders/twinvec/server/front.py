"""Middleware around every route: checks keys, hosts and headers first; counts and logs afterwards."""

from __future__ import annotations

import asyncio
import functools
import hmac
import json
import logging
import random
import re
import time
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twinvec.errors import ConfigurationError
from twinvec.server.errors import RefusedError
from twinvec.server.refusals import refused
from twinvec.server.serving import Serving
from twinvec.tracing import joined_trace

logger = logging.getLogger("twinvec.server")
access = logging.getLogger("twinvec.server.access")

_UNANSWERED = 499  # nginx's code for a client that disconnected
# not os.urandom, which lets go of the interpreter's lock and then waits for it
_NUMBERS = random.Random()  # noqa: S311 - an id is no secret
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Keys:
    """The API keys that clients may send, and the tenant of each.

    Args:
        keys: key -> tenant.

    Raises:
        ConfigurationError: a key that cannot be sent in a header; the message does not show it.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        self.replace(keys)

    def replace(self, keys: Mapping[str, str]) -> None:
        """Replace the keys."""
        for key in keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigurationError("the API key must be printable ASCII without spaces, and not empty")
        self._keys = {key.encode(): tenant for key, tenant in keys.items()}

    def refresh(self) -> None:
        """Check whether the keys have changed."""

    def tenant(self, authorization: bytes) -> str | None:
        """Return the tenant of an Authorization header; None if unknown. All keys are compared, in constant time."""
        scheme, _, token = authorization.partition(b" ")
        found = None
        for key, tenant in self._keys.items():
            if hmac.compare_digest(token.strip(), key) and scheme.lower() == b"bearer":
                found = tenant
        return found


class KeysFile(Keys):
    """Keys from a file, which is read again when it changes: one per line, ``KEY`` or ``TENANT KEY``; "#" starts a
    comment.

    Args:
        path: the key file.

    Raises:
        ConfigurationError: the file has no keys, or a line has more than two words.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._seen = path, _state(path)
        super().__init__(self._read())

    def refresh(self) -> None:
        """Read the file again if it has changed. If that fails, keep the current keys and log the error."""
        try:
            if (state := _state(self._path)) != self._seen:
                self._seen = state
                self.replace(self._read())
        except (OSError, UnicodeDecodeError, ConfigurationError) as error:
            logger.error("keeping the current API keys: %s", error)

    def _read(self) -> dict[str, str]:
        keys = {}
        for number, line in enumerate(self._path.read_text(encoding="utf-8").splitlines(), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) > 2:
                raise ConfigurationError(f"{self._path}: line {number} must hold a key, or a tenant and a key")
            keys[words[-1]] = words[0] if len(words) == 2 else ""
        if not keys:
            raise ConfigurationError(f"{self._path}: contains no API keys: write one per line")
        return keys


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


class Front:
    """Admits requests and keeps the accounts.

    Args:
        app: the routes.
        serving: the server's models and limits.
        keys: accepted keys; None admits everyone.
        hosts: accepted values of the Host header; None accepts any.
        open_paths: paths that need no key.
        known: routes by method and path, looked up here instead of tried one by one.
    """

    def __init__(
        self,
        app: ASGIApp,
        serving: Serving,
        keys: Keys | None,
        hosts: frozenset[str] | None,
        open_paths: frozenset[str],
        known: Mapping[tuple[str, str], ASGIApp],
    ) -> None:
        self._app, self._serving, self._keys, self._hosts = app, serving, keys, hosts
        self._open, self._known = open_paths, known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it to its route."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), _UNANSWERED
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = b"%032x" % _NUMBERS.getrandbits(128)

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        tenant, refusal = self._judge(scope, headers)
        app: ASGIApp
        if refusal is not None:
            app = refused(scope["path"], refusal)
        elif (app := self._known.get((scope["method"], scope["path"]), self._app)) is not self._app:
            scope["endpoint"] = app
        try:
            with joined_trace(headers):
                await app(scope, receive, note)
        except asyncio.CancelledError:
            if not self._serving.draining or status != _UNANSWERED:
                raise
            stopping = RefusedError(503, "the server is shutting down and could not finish this request in time")
            await refused(scope["path"], stopping)(scope, receive, note)
        finally:
            self._book(scope, request_id, tenant, status, time.perf_counter() - started)

    def _judge(self, scope: Scope, headers: Mapping[bytes, bytes]) -> tuple[str, RefusedError | None]:
        limit = self._serving.limits.max_header_bytes
        line = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if line + sum(map(len, chain.from_iterable(scope["headers"]))) + 4 * len(scope["headers"]) > limit:
            return "", RefusedError(431, f"the headers exceed {limit} bytes")
        if self._hosts is not None and _host(headers.get(b"host", b"")) not in self._hosts:
            return "", RefusedError(421, "the Host header does not match this server: see --allowed-host")
        if self._keys is None or scope["path"] in self._open:
            return "", None
        tenant = self._keys.tenant(headers.get(b"authorization", b""))
        if tenant is None:
            message = "send the server's API key: Authorization: Bearer KEY"
            return "", RefusedError(401, message, headers={"WWW-Authenticate": "Bearer"})
        return tenant, None

    def _book(self, scope: Scope, request_id: bytes, tenant: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("endpoint"), "path", "other")
        self._serving.metrics.count(route, status, tenant, seconds)
        if access.isEnabledFor(logging.INFO):
            client = scope.get("client") or ("", 0)
            facts = {
                "request_id": request_id.decode(),
                "client": client[0],
                "tenant": tenant,
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": status,
                "seconds": round(seconds, 6),
            }
            access.info("%s", json.dumps(facts), extra={"facts": facts})


@functools.lru_cache(64)
def _host(header: bytes) -> str:
    name = header.decode("latin-1").lower()
    return name.rpartition(":")[0] if re.search(r":\d*$", name) else name
