"""OpenAI's embedding routes, for its clients and all that imitate them."""

from __future__ import annotations

import base64
import json
import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from twinvec.engine.calls import Wanted
from twinvec.server.service import RefusedError, Service, json_response
from twinvec.text.prompts import Role

_STARTED = int(time.time())
_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


def refused(refusal: RefusedError) -> Response:
    """Return an error in OpenAI's shape."""
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    error = {
        "message": refusal.message,
        "type": "requests" if refusal.status == 429 else kind,
        "param": refusal.field,
        "code": _CODES.get(refusal.status),
    }
    return JSONResponse({"error": error}, refusal.status, refusal.headers)


async def models(service: Service, request: Request) -> Response:
    """List the one model."""
    model = {"id": service.name, "object": "model", "created": _STARTED, "owned_by": "twinvec"}
    return JSONResponse({"object": "list", "data": [model]})


async def embeddings(service: Service, request: Request) -> Response:
    """Embed texts as OpenAI does; the positions of those that were cut are in ``truncated``, where there are any."""
    fields = await service.fields(request)
    model = fields.take("model", str, default=service.name)
    if model not in (service.name, service.embedder.spec.model):
        raise RefusedError(404, f"there is no model {model!r} here, only {service.name!r}", "model")
    service.need_dense()
    texts = fields.texts("input")
    if not texts.texts:
        raise RefusedError(400, "input must have at least one text", "input")
    form = fields.one_of("encoding_format", "float", "base64", default="float")
    role = Role(fields.one_of("input_type", *(role.value for role in Role), default=Role.DOCUMENT.value))
    wanted = Wanted(task=fields.task("task"), sparse=False, dim=service.dimensions(fields))
    fields.take("user", str, default=None)
    fields.done()
    batch = await service.embed(request, role, texts, wanted)
    assert batch.dense is not None
    rows = batch.dense.astype("<f4", copy=False)
    values = (base64.b64encode(row.tobytes()).decode() if form == "base64" else row.tolist() for row in rows)
    data = ({"object": "embedding", "index": i, "embedding": value} for i, value in enumerate(values))
    tokens = int(batch.token_counts.sum())
    rest = {"model": service.name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    if batch.truncated.any():
        rest["truncated"] = batch.truncated.nonzero()[0].tolist()
    return await json_response('{"object":"list","data":[', data, "]," + json.dumps(rest)[1:])
