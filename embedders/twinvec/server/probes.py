"""What operators ask: is it alive, is it ready, what does it do."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from twinvec.server.answers import Json
from twinvec.server.errors import RefusedError
from twinvec.server.service import Service


async def health(service: Service, request: Request) -> Response:
    """Say whether the process lives: no only when a device is lost for good, so that it should be started again."""
    service.serving.check_healthy()
    return Json({})


async def ready(service: Service, request: Request) -> Response:
    """Say whether requests should be sent here: not while a lost device is restarted, and not before the end."""
    serving = service.serving
    if serving.draining:
        raise RefusedError(503, "not ready: the server is about to stop")
    if serving.restarting:
        raise RefusedError(503, "not ready: a lost device is being restarted")
    serving.check_healthy()
    return Json({})


async def metrics(service: Service, request: Request) -> Response:
    """Return counters for Prometheus."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    return Response(generate_latest(service.serving.metrics.registry), media_type=CONTENT_TYPE_LATEST)
