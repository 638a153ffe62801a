"""The routes of text-embeddings-inference (TEI), for its clients."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from twinvec import __version__
from twinvec.engine.calls import Wanted
from twinvec.errors import ConfigurationError
from twinvec.server.service import Fields, RefusedError, Service, json_response
from twinvec.text.prompts import Role
from twinvec.vectors import EmbeddingBatch

# TEI's error types and their statuses; its validation errors are 413, and malformed JSON is 422
_TYPES = {413: "Validation", 429: "Overloaded", 503: "Unhealthy"}


def refused(refusal: RefusedError) -> Response:
    """Return an error in TEI's shape."""
    status = {400: 422, 500: 424, 504: 424}.get(refusal.status, refusal.status)
    default = "Backend" if status == 424 else "Tokenizer" if refusal.kind == "InvalidTextError" else "Validation"
    body = {"error": refusal.message, "error_type": _TYPES.get(status, default)}
    return JSONResponse(body, status, refusal.headers)


async def embed(service: Service, request: Request) -> Response:
    """Return dense vectors: a list of lists of numbers."""
    fields = await service.fields(request)
    if not fields.take("normalize", bool, default=True):
        raise RefusedError(400, "normalize=false: the vectors of this server have length 1", "normalize")
    service.need_dense()
    batch = await _embedded(service, request, fields, sparse=False)
    assert batch.dense is not None
    return await json_response("[", (row.tolist() for row in batch.dense), "]")


async def embed_sparse(service: Service, request: Request) -> Response:
    """Return sparse vectors: for each text, a list of {"index", "value"}."""
    fields = await service.fields(request)
    if not service.embedder.has_sparse:
        raise ConfigurationError(f"{service.name} has no sparse half")
    batch = await _embedded(service, request, fields, sparse=True)
    assert batch.sparse is not None
    rows = (row.to_dict().items() for row in batch.sparse)
    return await json_response("[", ([{"index": key, "value": value} for key, value in row] for row in rows), "]")


async def _embedded(service: Service, request: Request, fields: Fields, *, sparse: bool) -> EmbeddingBatch:
    """Embed ``inputs``. Fields that TEI does not know are ignored, as there."""
    texts = fields.texts("inputs")
    if not texts.texts:
        raise RefusedError(400, "`inputs` cannot be empty", "inputs")
    if fields.one_of("truncation_direction", "Right", "right", "Left", "left", default="Right").lower() == "left":
        raise RefusedError(400, "truncation_direction: only the tail of a text is cut", "truncation_direction")
    role, prompt = _prompt(service, fields.take("prompt_name", str, default=None))
    wanted = Wanted(
        prompt=prompt,
        dense=not sparse,
        sparse=sparse,
        dim=None if sparse else service.dimensions(fields),
        fail_on_overflow=not fields.take("truncate", bool, default=False),
    )
    try:
        return await service.embed(request, role, texts, wanted)
    except RefusedError as refusal:
        if refusal.kind == "TextTooLongError":
            refusal.message = refusal.message.replace('pass on_overflow="truncate"', "send truncate=true")
        raise


def _prompt(service: Service, name: str | None) -> tuple[Role, str]:
    if name is None:
        return Role.DOCUMENT, ""
    if name in (role.value for role in Role):
        return Role(name), service.embedder.prompt_for(name)
    return Role.QUERY, service.embedder.prompt_for(Role.QUERY, name)


async def info(service: Service, request: Request) -> Response:
    """Describe the model and the server."""
    embedder = service.embedder
    spec, limits = embedder.spec, service.limits
    pooling = "+".join(embedder._view.description.pooling) if embedder.dim is not None else "splade"
    return JSONResponse(
        {
            "model_id": service.name,
            "model_sha": spec.revision,
            "model_dtype": embedder.stats()["dtype"],
            "model_type": {"embedding": {"pooling": pooling}},
            "max_concurrent_requests": limits.max_requests,
            "max_input_length": embedder.max_length,
            "max_batch_tokens": embedder.stats()["token_budget"],
            "max_batch_requests": None,
            "max_client_batch_size": limits.max_texts,
            "auto_truncate": False,
            "tokenization_workers": 1,
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }
    )


async def health(service: Service, request: Request) -> Response:
    """Return whether requests can be answered."""
    if service.embedder.healthy:
        return JSONResponse({})
    raise RefusedError(503, "unhealthy: no device works any more, restart the server", kind="DeviceLostError")


async def metrics(service: Service, request: Request) -> Response:
    """Return counters for Prometheus."""
    try:
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    except ImportError:
        raise RefusedError(404, "metrics need an optional package: pip install 'twinvec[metrics]'") from None
    from twinvec.server.metrics import PrometheusCollector

    registry = CollectorRegistry()
    registry.register(PrometheusCollector(service.embedder, name=service.name))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
