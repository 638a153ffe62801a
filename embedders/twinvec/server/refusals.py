"""Errors in the formats that clients expect: TwinVec's, OpenAI's, Cohere's and TEI's."""

from __future__ import annotations

from starlette.responses import Response

from twinvec.server.answers import Json
from twinvec.server.errors import RefusedError

_OPENAI_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
# TEI's error types and statuses; its validation errors are 413, malformed JSON is 422
_TEI_TYPES = {413: "Validation", 429: "Overloaded", 503: "Unhealthy"}


def refused(path: str, refusal: RefusedError) -> Response:
    """Return an error in the format expected by clients of a path."""
    if "/v1/twinvec/" in path or path.startswith("/v1/search"):
        return _native(refusal)
    if path in ("/v1/rerank", "/v2/rerank"):
        return Json({"message": refusal.message}, refusal.status, refusal.headers)
    return _openai(refusal) if "/v1/" in path else _tei(refusal)


def _native(refusal: RefusedError) -> Response:
    error = {
        "type": refusal.kind,
        "message": refusal.message,
        "field": refusal.field,
        "position": refusal.position,
        "reason": refusal.reason,
    }
    return Json({"error": error}, refusal.status, refusal.headers)


def _openai(refusal: RefusedError) -> Response:
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    error = {
        "message": refusal.message,
        "type": "requests" if refusal.status == 429 else kind,
        "param": refusal.field,
        "code": _OPENAI_CODES.get(refusal.status),
    }
    return Json({"error": error}, refusal.status, refusal.headers)


def _tei(refusal: RefusedError) -> Response:
    status = {400: 422, 500: 424, 504: 424}.get(refusal.status, refusal.status)
    default = "Backend" if status == 424 else "Tokenizer" if refusal.kind == "InvalidTextError" else "Validation"
    body = {"error": refusal.message, "error_type": _TEI_TYPES.get(status, default)}
    return Json(body, status, refusal.headers)
