"""The ASGI application: which route does what, who may ask, and how each answers an error."""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from twinvec.embedder import Embedder
from twinvec.errors import ConfigurationError
from twinvec.server import native, openai, tei
from twinvec.server.service import ClientGoneError, Limits, RefusedError, Service
from twinvec.settings import Settings

_Answer = Callable[[Service, Request], Awaitable[Response]]
_POST: dict[str, _Answer] = {
    "/v1/twinvec/embed": native.embed,
    "/v1/twinvec/offsets": native.offsets,
    "/v1/twinvec/terms": native.terms,
    "/v1/embeddings": openai.embeddings,
    "/embed": tei.embed,
    "/": tei.embed,  # where Hugging Face's InferenceClient sends texts, to TEI and here
    "/embed_sparse": tei.embed_sparse,
}
_GET: dict[str, _Answer] = {
    "/v1/twinvec/info": native.info,
    "/v1/twinvec/stats": native.stats,
    "/v1/models": openai.models,
    "/info": tei.info,
    "/health": tei.health,
    "/metrics": tei.metrics,
}
_OPEN = "/health"  # the one route without a key: load balancers have none
_CLIENT_GONE = 499  # nginx's number; nobody reads it


def create_app(embedder: Embedder, *, api_key: str | None = None, limits: Limits | None = None) -> Starlette:
    """Return an ASGI application that serves a model; see ``twinvec.server`` for its routes.

    Args:
        embedder: stays yours: close it after the server.
        api_key: what clients must send as bearer token, except to ``/health``. Default: TWINVEC_API_KEY, else anybody
            may ask.
        limits: of requests.

    Raises:
        ConfigurationError: an empty key, or one that no header can carry.
    """
    key = api_key if api_key is not None else Settings.from_env().api_key
    service = Service(embedder, limits or Limits())
    routes = [Route(path, _endpoint(service, answer), methods=["POST"]) for path, answer in _POST.items()]
    routes += [Route(path, _endpoint(service, answer), methods=["GET"]) for path, answer in _GET.items()]
    return Starlette(
        routes=routes,
        middleware=[] if key is None else [Middleware(_KeyGate, key=check_key(key))],
        exception_handlers={HTTPException: _no_route},
    )


def check_key(key: str) -> str:
    """Return an API key that can be sent in a header.

    Raises:
        ConfigurationError: it cannot, or is empty; it is not shown.
    """
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError("the API key must be printable ASCII without spaces, and not empty")
    return key


def _endpoint(service: Service, answer: _Answer) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        counted = service.admitted() if request.method == "POST" else contextlib.nullcontext()
        try:
            with counted:
                return await answer(service, request)
        except ClientGoneError:
            return Response(status_code=_CLIENT_GONE)
        except Exception as error:
            return _refused(request.url.path, RefusedError.of(error))

    return respond


def _refused(path: str, refusal: RefusedError) -> Response:
    if path.startswith("/v1/twinvec/"):
        return native.refused(refusal)
    return openai.refused(refusal) if path.startswith("/v1/") else tei.refused(refusal)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    known = f"{request.method} {path} is not a route; there are {', '.join((*_POST, *_GET))}"
    return _refused(path, RefusedError(error.status_code, known, headers=error.headers))


class _KeyGate:
    """Lets nobody in without the key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == _OPEN or self._has_key(dict(scope["headers"])):
            await self._app(scope, receive, send)
            return
        message = "send the server's API key: Authorization: Bearer KEY"
        refusal = RefusedError(401, message, headers={"WWW-Authenticate": "Bearer"})
        await _refused(scope["path"], refusal)(scope, receive, send)

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._key)
