"""TwinVec's own routes: all that an Embedder says and does, for ``twinvec.RemoteEmbedder``."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from twinvec import __version__
from twinvec.engine.calls import Wanted
from twinvec.server.service import RefusedError, Service
from twinvec.server.wire import FINGERPRINT, PROTOCOL, VECTORS, pack_batch, pack_offsets, task_to_json
from twinvec.text.prompts import Role

_MAX_TERMS = 2**17
_BM25_COLUMNS = 2**31 - 1


def refused(refusal: RefusedError) -> Response:
    """Return an error as RemoteEmbedder reads it."""
    error = {
        "type": refusal.kind,
        "message": refusal.message,
        "field": refusal.field,
        "position": refusal.position,
        "reason": refusal.reason,
    }
    return JSONResponse({"error": error}, refusal.status, refusal.headers)


async def info(service: Service, request: Request) -> Response:
    """Return what makes a client behave as the same Embedder."""
    embedder = service.embedder
    document = embedder.prompt_for(Role.DOCUMENT)
    prompt_tokens = len(embedder.token_offsets([document])[0])
    return JSONResponse(
        {
            "protocol": PROTOCOL,
            "version": __version__,
            "spec": asdict(embedder.spec),
            "fingerprint": embedder.spec.fingerprint,
            "family": embedder.family,
            "dim": embedder.dim,
            "max_length": embedder.max_length,
            "has_sparse": embedder.has_sparse,
            "needs_idf": embedder.needs_idf,
            "vocabulary_size": _columns(service),
            "special_tokens": embedder.max_length - embedder.token_room(Role.DOCUMENT) - prompt_tokens,
            "template": {**asdict(embedder._prompts), "named": dict(embedder._prompts.named)},
            "prompts": dict(embedder.prompts),
            "task": task_to_json(embedder.task),
            "limits": asdict(service.limits),
        }
    )


def _columns(service: Service) -> int | None:
    """Return one more than the highest index that a sparse row can have."""
    embedder = service.embedder
    if not embedder.has_sparse:
        return None
    return _BM25_COLUMNS if embedder.needs_idf else embedder._views[-1].core.model.tokenizer.vocabulary_size


async def embed(service: Service, request: Request) -> Response:
    """Embed texts; the answer is safetensors, see ``twinvec.server.wire.pack_batch``."""
    fields = await service.fields(request)
    role = Role(fields.one_of("role", *(role.value for role in Role)))
    texts = fields.texts("texts")
    wanted = Wanted(
        task=fields.task("task"),
        prompt=fields.take("prompt", str, default=None),
        dense=fields.take("dense", bool, default=True),
        sparse=fields.take("sparse", bool, default=None),
        timeout=fields.seconds("timeout"),
    )
    fields.done()
    batch = await service.embed(request, role, texts, wanted)
    return _vectors(service, pack_batch(batch))


async def offsets(service: Service, request: Request) -> Response:
    """Return where the tokens of texts lie; see ``Embedder.token_offsets`` and ``twinvec.server.wire.pack_offsets``."""
    fields = await service.fields(request)
    texts = fields.texts("texts")
    fields.done()
    found = await asyncio.to_thread(service.embedder.token_offsets, texts.texts)
    return _vectors(service, pack_offsets(found))


async def terms(service: Service, request: Request) -> Response:
    """Return what sparse columns stand for; see ``Embedder.token_weights``."""
    fields = await service.fields(request)
    keys = fields.take("keys", list)
    fields.done()
    columns = _columns(service) or 0
    if len(keys) > _MAX_TERMS:
        raise RefusedError(413, f"keys has {len(keys)} items, the limit is {_MAX_TERMS}: send them in parts", "keys")
    for position, key in enumerate(keys):
        if not isinstance(key, int) or isinstance(key, bool) or not 0 <= key < columns:
            raise RefusedError(400, f"keys[{position}] must be a whole number from 0 to {columns - 1}", "keys")
    texts = await asyncio.to_thread(service.embedder._token_texts, keys)
    return JSONResponse({"terms": [texts[key] for key in keys]})


async def stats(service: Service, request: Request) -> Response:
    """Return the Embedder's counters."""
    counters: dict[str, Any] = service.embedder.stats()
    return JSONResponse(counters)


def _vectors(service: Service, content: bytes) -> Response:
    return Response(content, media_type=VECTORS, headers={FINGERPRINT: service.embedder.spec.fingerprint})
