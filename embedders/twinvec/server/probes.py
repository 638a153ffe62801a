"""Probes for operators: liveness, readiness, metrics."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from twinvec.server.answers import Json
from twinvec.server.errors import RefusedError
from twinvec.server.service import Service


async def health(service: Service, request: Request) -> Response:
    """Liveness: fails only when a device is lost for good, so that the process should be restarted."""
    service.serving.check_healthy()
    return Json({})


async def ready(service: Service, request: Request) -> Response:
    """Readiness: fails while a lost device is being restarted and before the server shuts down."""
    serving = service.serving
    if serving.draining:
        raise RefusedError(503, "not ready: the server is shutting down")
    if serving.restarting:
        raise RefusedError(503, "not ready: a lost device is being restarted")
    serving.check_healthy()
    return Json({})


async def metrics(service: Service, request: Request) -> Response:
    """Return the metrics for Prometheus."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    return Response(generate_latest(service.serving.metrics.registry), media_type=CONTENT_TYPE_LATEST)
