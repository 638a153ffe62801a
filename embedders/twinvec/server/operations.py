"""The routes: one table, from which the application and its OpenAPI document are built."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp

from twinvec.server import native, openai, probes, tei

if TYPE_CHECKING:
    from twinvec.local import LocalModel


@dataclass(frozen=True)
class Operation:
    """One route.

    Attributes:
        path: of the route.
        answer: the handler, of a service and a body or request; its docstring becomes the description in the OpenAPI
            document.
        body: type of a POST request's JSON; None for a GET request.
        result: type of the JSON response; None if the response is not JSON.
        open: whether it works without a key.
        embeds: whether it needs an Embedder.
    """

    path: str
    answer: Callable[[Any, Any], Awaitable[Response]]
    body: type[msgspec.Struct] | None = None
    result: Any = None
    open: bool = False
    embeds: bool = True

    @property
    def method(self) -> str:
        """Return the HTTP method."""
        return "GET" if self.body is None else "POST"


OPERATIONS = (
    Operation("/v1/embeddings", openai.embeddings, openai.EmbeddingsBody, openai.Embeddings),
    Operation("/v1/models", openai.models, result=openai.Models, embeds=False),
    Operation("/v1/models/{id:path}", openai.model, result=openai.Model, embeds=False),
    Operation("/embed", tei.embed, tei.EmbedBody, list[list[float]]),
    Operation("/", tei.embed, tei.EmbedBody, list[list[float]]),  # used by Hugging Face's InferenceClient
    Operation("/embed_all", tei.embed_all, tei.AllBody, list[list[list[float]]]),
    Operation("/embed_sparse", tei.embed_sparse, tei.SparseBody, list[list[tei.SparseValue]]),
    Operation("/similarity", tei.similarity, tei.SimilarityBody, list[float]),
    Operation("/tokenize", tei.tokenize, tei.TokenizeBody, list[list[tei.Token]]),
    Operation("/decode", tei.decode, tei.DecodeBody, list[str]),
    Operation("/info", tei.info, result=dict[str, Any], embeds=False),
    Operation("/v1/twinvec/embed", native.embed, native.EmbedBody),
    Operation("/v1/twinvec/offsets", native.offsets, native.OffsetsBody),
    Operation("/v1/twinvec/terms", native.terms, native.TermsBody, native.Terms),
    Operation("/v1/twinvec/info", native.info, result=dict[str, Any]),
    Operation("/v1/twinvec/stats", native.stats, result=dict[str, Any]),
    Operation("/health", probes.health, result=dict[str, Any], open=True, embeds=False),
    Operation("/ready", probes.ready, result=dict[str, Any], open=True, embeds=False),
    Operation("/metrics", probes.metrics, embeds=False),
)


@dataclass(frozen=True)
class Extension:
    """Routes that another package adds to a server, behind the same keys and limits.

    Attributes:
        operations: routes, served by the first model.
        apps: ASGI applications by path; they only receive POST requests.
        lifespan: entered before the first request and left after the last one.
        models: what these routes use besides the server's embedders, by name: listed, measured, watched and restarted
            together with them.
    """

    operations: tuple[Operation, ...] = ()
    apps: Mapping[str, ASGIApp] = field(default_factory=dict)
    lifespan: Callable[[], AbstractAsyncContextManager[None]] | None = None
    models: Mapping[str, LocalModel] = field(default_factory=dict)

    def __add__(self, other: Extension) -> Extension:
        """Return the routes of both; only one of them may have a lifespan."""
        assert self.lifespan is None or other.lifespan is None
        return Extension(
            self.operations + other.operations,
            {**self.apps, **other.apps},
            self.lifespan or other.lifespan,
            {**self.models, **other.models},
        )
