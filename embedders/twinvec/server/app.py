"""The ASGI application: routes, models and access control put together."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twinvec.errors import OverloadedError
from twinvec.server.answers import Json, send_whole
from twinvec.server.body import decode, read_body
from twinvec.server.errors import ClientGoneError, RefusedError
from twinvec.server.front import Front, Keys
from twinvec.server.limits import Limits
from twinvec.server.metrics import PrometheusCollector
from twinvec.server.openapi import document
from twinvec.server.operations import OPERATIONS, Extension, Operation
from twinvec.server.page import page
from twinvec.server.refusals import refused
from twinvec.server.service import Service, public_name, while_connected
from twinvec.server.serving import Place, Serving
from twinvec.settings import Settings

if TYPE_CHECKING:
    from twinvec.embedder import Embedder

_CLIENT_GONE = 499  # nginx's code; no client ever sees it


def create_app(
    embedder: Embedder | Mapping[str, Embedder],
    *,
    api_key: str | Keys | None = None,
    limits: Limits | None = None,
    hosts: Iterable[str] | None = None,
    origins: Iterable[str] = (),
    extension: Extension | None = None,
) -> Starlette:
    """Return an ASGI application that serves models; see ``twinvec.server`` for its routes.

    Args:
        embedder: one embedder, or several keyed by the names that clients use; an empty mapping where an extension has
            models. The caller keeps ownership: close them after the server has stopped.
        api_key: bearer token that clients must send, except to ``/health`` and ``/ready``. Default: TWINVEC_API_KEY; if
            neither is set, the server is open to everyone.
        limits: request limits. Connection limits only apply with ``run``.
        hosts: accepted values of the Host header; None accepts any.
        origins: origins of web pages allowed to call the API (CORS): "https://example.org", or "*" for all.
        extension: additional routes, such as ``twinvec_stores.serving.search_extension``.

    Raises:
        ConfigurationError: a key that is empty or cannot be sent in a header.
    """
    key = api_key if api_key is not None else Settings.from_env().api_key
    keys = Keys({key: ""}) if isinstance(key, str) else key
    embedders = embedder if isinstance(embedder, Mapping) else {public_name(embedder.spec.model): embedder}
    extension = extension or Extension()
    serving = Serving(embedders, limits or Limits(), extension.models)
    allowed = None if hosts is None else frozenset(host.lower() for host in hosts)
    (name, model), *others = serving.held.items()
    collector = PrometheusCollector(model, name=name)
    for name, model in others:
        collector.add(model, name=name)
    serving.metrics.registry.register(collector)
    operations = [o for o in (*OPERATIONS, *extension.operations) if serving.models or not o.embeds]
    routes = _routes("", serving.first, operations)
    for name, service in serving.models.items():
        routes += _routes(f"/models/{name}", service, OPERATIONS)
    routes += [Route(path, Guest(serving, path, app), methods=["POST"]) for path, app in extension.apps.items()]
    described = document(operations)
    routes.append(Route("/openapi.json", lambda request: Json(described), methods=["GET"]))
    routes.append(Route("/docs", lambda request: HTMLResponse(page(described)), methods=["GET"]))
    open_paths = frozenset(["/docs", "/openapi.json", *(o.path for o in operations if o.open)])
    known = {
        (method, route.path): route.app for route in routes if "{" not in route.path for method in route.methods or ()
    }
    front = Middleware(Front, serving=serving, keys=keys, hosts=allowed, open_paths=open_paths, known=known)
    middleware = [front]
    if origins := list(origins):
        headers = ["Authorization", "Content-Type", "X-Request-Id"]
        middleware.insert(0, Middleware(CORSMiddleware, allow_origins=origins, allow_headers=headers))
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={HTTPException: functools.partial(_no_route, [o.path for o in operations])},
        lifespan=None if (lifespan := extension.lifespan) is None else lambda app: lifespan(),
    )
    app.state.serving, app.state.keys = serving, keys
    return app


def _routes(prefix: str, service: Service, operations: Iterable[Operation]) -> list[Route]:
    return [Route(prefix + o.path, Endpoint(service, o), methods=[o.method]) for o in operations]


class Endpoint:
    """One route of one model."""

    def __init__(self, service: Service, operation: Operation) -> None:
        self._service, self.path, self._operation = service, operation.path, operation
        self._decoder = None if operation.body is None else msgspec.json.Decoder(operation.body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        with Place(self._service.serving) as place:
            await send_whole(await self._answer(scope, receive, place), send)

    async def _answer(self, scope: Scope, receive: Receive, place: Place) -> Response:
        serving = self._service.serving
        try:
            if self._decoder is None:
                return await self._operation.answer(self._service, Request(scope, receive))
            body = await read_body(scope, receive, serving.limits)
            place.take()
            return await while_connected(receive, self._work(self._decoder, body))
        except ClientGoneError:
            return Response(status_code=_CLIENT_GONE)
        except Exception as error:
            refusal = RefusedError.of(error)
            refusal.message = self._service.public(refusal.message)
            return refused(scope["path"], refusal)

    async def _work(self, decoder: msgspec.json.Decoder[Any], body: bytes) -> Response:
        return await self._operation.answer(self._service, await decode(decoder, body))


class Guest:
    """A route of another application: its requests are counted and limited like all others."""

    def __init__(self, serving: Serving, path: str, app: ASGIApp) -> None:
        self._serving, self.path, self._app = serving, path, app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request to the application."""
        try:
            with Place(self._serving) as place:
                body = await read_body(scope, receive, self._serving.limits)
                place.take()
                await self._app(scope, _after(body, receive), send)
        except ClientGoneError:
            return
        except (RefusedError, OverloadedError) as error:
            await refused(scope["path"], RefusedError.of(error))(scope, receive, send)


def _after(body: bytes, receive: Receive) -> Receive:
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def again() -> Message:
        return next(messages, None) or await receive()

    return again


async def _no_route(paths: list[str], request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    known = f"{request.method} {path[:200]} is not a route; there are {', '.join(paths)}"
    return refused(path, RefusedError(error.status_code, known, headers=error.headers))
