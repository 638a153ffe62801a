"""OpenAI's embedding routes, for its clients and everything compatible with them."""

from __future__ import annotations

import base64
import time
from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from twinvec.server.answers import Json, rows_of_json
from twinvec.server.body import TaskBody, TokenId, task_of
from twinvec.server.service import EmbeddingService, Service, find_name
from twinvec.text.prompts import Role

_STARTED = int(time.time())


class EmbeddingsBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """OpenAI's fields, plus ``input_type`` and ``task``."""

    input: str | list[str | TokenId | list[TokenId]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)] | None = None
    user: str | None = None
    input_type: Literal["query", "document"] | None = "document"
    task: str | TaskBody | None = None


class Model(msgspec.Struct):
    """One model."""

    id: str
    object: str = "model"
    created: int = _STARTED
    owned_by: str = "twinvec"


class Models(msgspec.Struct):
    """The models of this server."""

    data: list[Model]
    object: str = "list"


class Embedding(msgspec.Struct):
    """One text's vector: numbers, or base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class Usage(msgspec.Struct):
    """Tokens used by a request."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(msgspec.Struct, omit_defaults=False):
    """Vectors in the order of the texts; ``truncated`` lists the positions of texts that were cut."""

    data: list[Embedding]
    model: str
    usage: Usage
    object: str = "list"
    truncated: list[int] | msgspec.UnsetType = msgspec.UNSET


async def models(service: Service, request: Request) -> Response:
    """List the models."""
    return Json(Models([Model(name) for name in service.serving.held]))


async def model(service: Service, request: Request) -> Response:
    """Describe one model."""
    return Json(Model(find_name(request.path_params["id"], service.serving.held, "model")))


async def embeddings(service: EmbeddingService, asked: EmbeddingsBody) -> Response:
    """Embed texts as OpenAI does, with the given model, or the server's first if none is named.

    Texts are treated as documents unless ``input_type`` is "query". Token ids must come from this model's tokenizer,
    special tokens included.
    """
    if asked.model is not None:
        service = service.serving.named(asked.model)
    service.need_dense()
    batch = await service.embed(
        "input",
        service.texts("input", asked.input, foreign=True),
        Role(asked.input_type or "document"),
        task=task_of(asked.task),
        sparse=False,
        dim=service.check_dimensions(asked.dimensions),
    )
    assert batch.dense is not None
    rows = batch.dense.astype("<f4", copy=False)
    values: Any = (row.tolist() for row in rows)
    if asked.encoding_format == "base64":
        values = (base64.b64encode(row.tobytes()).decode() for row in rows)
    tokens = sum(batch.token_counts.tolist())
    cut = [i for i, truncated in enumerate(batch.truncated.tolist()) if truncated] or msgspec.UNSET
    rest = msgspec.json.encode(Embeddings([], service.name, Usage(tokens, tokens), truncated=cut))
    before, after = rest.split(b'"data":[]', 1)
    data = (Embedding(i, value) for i, value in enumerate(values))
    return await rows_of_json(data, before + b'"data":[', b"]" + after)
