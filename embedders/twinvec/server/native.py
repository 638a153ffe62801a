"""TwinVec's own routes: the complete Embedder interface, for ``twinvec.RemoteEmbedder``."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from twinvec._version import __version__
from twinvec.server.answers import Encoded, Json
from twinvec.server.body import TaskBody, task_of
from twinvec.server.errors import RefusedError
from twinvec.server.service import EmbeddingService, public_name
from twinvec.server.wire import FINGERPRINT, PROTOCOL, VECTORS, multi_limit, pack_batch, pack_offsets, task_to_json
from twinvec.text.prompts import Role
from twinvec.workers import in_thread

_MAX_TERMS = 2**17


class EmbedBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """See ``Embedder.embed_queries`` and ``embed_documents``."""

    role: Literal["query", "document"]
    texts: list[str]
    task: str | TaskBody | None = None
    prompt: str | None = None
    dense: bool | None = True
    sparse: bool | None = None
    multi: bool = False
    timeout: Annotated[float, msgspec.Meta(gt=0)] | None = None


class OffsetsBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """See ``Embedder.token_offsets``."""

    texts: list[str]


class TermsBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Sparse columns; see ``Embedder.token_weights``."""

    keys: Annotated[list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)]], msgspec.Meta(max_length=_MAX_TERMS)]


class Terms(msgspec.Struct):
    """The terms of sparse columns."""

    terms: list[str]


async def info(service: EmbeddingService, request: Request) -> Response:
    """Return everything a client needs to act as the same Embedder, without local paths."""
    embedder = service.embedder
    spec, multi = embedder.spec, embedder.multi_vectors
    document = embedder.prompt_for(Role.DOCUMENT)
    prompt_tokens = len(embedder.token_offsets([document])[0])
    public = replace(spec, model=service.name, sparse=spec.sparse and public_name(spec.sparse))
    return Json(
        {
            "protocol": PROTOCOL,
            "version": __version__,
            "spec": asdict(public),
            "fingerprint": spec.fingerprint,
            "family": embedder.family,
            "dim": embedder.dim,
            "max_length": embedder.max_length,
            "has_sparse": embedder.has_sparse,
            "needs_idf": embedder.needs_idf,
            "vocabulary_size": service.columns or None,
            "multi": multi and {"mean": multi.mean, "dim": service.multi_dim},
            "special_tokens": embedder.max_length - embedder.token_room(Role.DOCUMENT) - prompt_tokens,
            "template": {**asdict(embedder._prompts), "named": dict(embedder._prompts.named)},
            "prompts": dict(embedder.prompts),
            "task": task_to_json(embedder.task),
            "limits": asdict(service.serving.limits),
        }
    )


async def embed(service: EmbeddingService, asked: EmbedBody) -> Response:
    """Embed texts; the response is safetensors, see ``twinvec.server.wire.pack_batch``."""
    if asked.texts:
        service.check_count("texts", len(asked.texts))
    role, task = Role(asked.role), task_of(asked.task)
    if asked.multi and (dim := service.multi_dim) is not None:
        prompt = service.embedder.prompt_for(role, task) if asked.prompt is None else asked.prompt
        await service.check_tokens("texts", asked.texts, prompt, multi_limit(dim, service.embedder.max_length))
    batch = await service.embed(
        "texts",
        asked.texts,
        role,
        task=task,
        prompt=asked.prompt,
        dense=asked.dense is not False,
        sparse=asked.sparse,
        multi=asked.multi,
        timeout=asked.timeout,
    )
    return _vectors(service, pack_batch(batch))


async def offsets(service: EmbeddingService, asked: OffsetsBody) -> Response:
    """Return the token offsets of texts; see ``Embedder.token_offsets`` and ``twinvec.server.wire.pack_offsets``."""
    if asked.texts:
        service.check_count("texts", len(asked.texts))
    found = await in_thread(service.embedder.token_offsets, asked.texts)
    return _vectors(service, pack_offsets(found))


async def terms(service: EmbeddingService, asked: TermsBody) -> Response:
    """Return the terms of sparse columns; see ``Embedder.token_weights``."""
    columns = service.columns
    for position, key in enumerate(asked.keys):
        if key >= columns:
            raise RefusedError(400, f"keys[{position}] must be an integer from 0 to {columns - 1}", "keys")
    texts = await in_thread(service.embedder._token_texts, asked.keys)
    return Json({"terms": [texts[key] for key in asked.keys]})


async def stats(service: EmbeddingService, request: Request) -> Response:
    """Return the Embedder's counters."""
    counters: dict[str, Any] = service.embedder.stats()
    return Json(counters)


def _vectors(service: EmbeddingService, content: bytes) -> Response:
    return Encoded(content, VECTORS, headers={FINGERPRINT: service.embedder.spec.fingerprint})
