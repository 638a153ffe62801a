"""Rerankers behind a server: the routes of TEI, Jina and Cohere, and TwinVec's own for ``twinvec.RemoteReranker``."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from twinvec._version import __version__
from twinvec.errors import TwinVecError
from twinvec.flows import wait
from twinvec.scoring import Activation, ScoreOptions, Scores, check_pairs, rank
from twinvec.server.answers import Json
from twinvec.server.body import TaskBody, task_of
from twinvec.server.errors import RefusedError
from twinvec.server.operations import Extension, Operation
from twinvec.server.service import Service, find_name, public_name
from twinvec.server.wire import PROTOCOL, task_to_json

if TYPE_CHECKING:
    from twinvec.reranker import Reranker

_TOO_LONG = "is too long and would be cut: send truncate=true, or fewer words"


class Rank(msgspec.Struct):
    """A text's position in the request, its score and, on request, the text."""

    index: int
    score: float
    text: str | msgspec.UnsetType = msgspec.UNSET


class Document(msgspec.Struct):
    """The text of a document."""

    text: str


class DocumentsBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Jina's and Cohere's fields: a query, and documents to rank."""

    model: str | None = None
    query: str
    documents: list[str | Document]
    top_n: Annotated[int, msgspec.Meta(ge=1)] | None = None
    return_documents: bool | None = None


class RerankBody(msgspec.Struct, kw_only=True):
    """TEI's fields: a query, and texts to rank; or Jina's, with documents, as vLLM has it here."""

    query: str
    texts: list[str] | msgspec.UnsetType = msgspec.UNSET
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = "Right"
    raw_scores: bool = False
    return_text: bool = False
    model: str | None = None
    documents: list[str | Document] | msgspec.UnsetType = msgspec.UNSET
    top_n: Annotated[int, msgspec.Meta(ge=1)] | None = None
    return_documents: bool | None = None


class Relevance(msgspec.Struct):
    """A document's position in the request, its score from 0 to 1 and, on request, the document."""

    index: int
    relevance_score: float
    document: Document | msgspec.UnsetType = msgspec.UNSET


class Relevances(msgspec.Struct):
    """The documents, best first."""

    id: str
    model: str
    results: list[Relevance]


class ScoreBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """See ``Reranker.score``."""

    pairs: list[tuple[str, str]]
    model: str | None = None
    task: str | TaskBody | None = None
    activation: Activation | None = None
    windows: bool = False
    timeout: Annotated[float, msgspec.Meta(gt=0)] | None = None


class ScoresAnswer(msgspec.Struct):
    """The score of each pair, and whether its text was cut."""

    scores: list[float]
    truncated: list[bool]


def rerank_extension(rerankers: Mapping[str, Reranker]) -> Extension:
    """Return the routes of rerankers by the names that clients use; the caller closes them after the server."""
    routes = _Routes(rerankers)
    return Extension(
        operations=(
            Operation("/rerank", routes.tei, RerankBody, list[Rank] | Relevances, embeds=False),
            Operation("/v1/rerank", routes.jina, DocumentsBody, Relevances, embeds=False),
            Operation("/v2/rerank", routes.cohere, DocumentsBody, Relevances, embeds=False),
            Operation("/v1/twinvec/score", routes.score, ScoreBody, ScoresAnswer, embeds=False),
            Operation("/v1/twinvec/rerankers", routes.info, result=dict[str, Any], embeds=False),
        ),
        models=rerankers,
    )


class _Routes:
    def __init__(self, rerankers: Mapping[str, Reranker]) -> None:
        self._rerankers = rerankers

    async def tei(self, service: Service, asked: RerankBody) -> Response:
        """Rank texts for a query, best first; with documents instead of texts, the response is that of /v1/rerank."""
        if asked.documents is not msgspec.UNSET:
            if asked.texts is not msgspec.UNSET:
                raise RefusedError(400, "send either texts or documents, not both", "documents")
            fields = ("query", "documents", "model", "top_n", "return_documents")
            return await self.jina(service, DocumentsBody(**{name: getattr(asked, name) for name in fields}))
        if asked.texts is msgspec.UNSET:
            raise RefusedError(400, "texts: object missing required field `texts`", "texts")
        service.check_count("texts", len(asked.texts))
        _, reranker = self._named(asked.model)
        activation: Activation | None = None if asked.raw_scores else "sigmoid"
        pairs = [(asked.query, text) for text in asked.texts]
        scores = await _scored(reranker, pairs, "texts", ScoreOptions(activation=activation))
        truncate = reranker.options.on_overflow == "truncate" if asked.truncate is None else asked.truncate
        if scores.truncated.any() and not (truncate and (asked.truncation_direction or "Right").lower() == "right"):
            raise RefusedError(413, f"texts[{int(scores.truncated.argmax())}] {_TOO_LONG}", "texts", "TextTooLongError")
        texts = asked.texts if asked.return_text else [msgspec.UNSET] * len(asked.texts)
        return Json([Rank(index, score, texts[index]) for index, score in rank(scores.values)])

    async def jina(self, service: Service, asked: DocumentsBody) -> Response:
        """Rank documents as Jina does; they are returned unless ``return_documents`` is false."""
        return await self._relevances(service, asked, with_documents=asked.return_documents is not False)

    async def cohere(self, service: Service, asked: DocumentsBody) -> Response:
        """Rank documents as Cohere does; they are returned if ``return_documents`` is true."""
        return await self._relevances(service, asked, with_documents=asked.return_documents is True)

    async def score(self, service: Service, asked: ScoreBody) -> Response:
        """Score pairs of a query and a text; see ``Reranker.score``."""
        if asked.pairs:
            service.check_count("pairs", len(asked.pairs))
        _, reranker = self._named(asked.model)
        options = ScoreOptions(task_of(asked.task), asked.activation, asked.windows, asked.timeout)
        scores = await _scored(reranker, asked.pairs, "pairs", options)
        return Json(ScoresAnswer(scores.values.tolist(), scores.truncated.tolist()))

    async def info(self, service: Service, request: Request) -> Response:
        """Return everything a client needs to act as the same rerankers, without local paths."""
        limits = service.serving.limits
        return Json(
            {
                "protocol": PROTOCOL,
                "version": __version__,
                "limits": {"max_texts": limits.max_texts, "max_body_bytes": limits.max_body_bytes},
                "rerankers": {
                    name: {
                        "spec": asdict(replace(reranker.spec, model=name)),
                        "fingerprint": reranker.spec.fingerprint,
                        "family": reranker.family,
                        "task": task_to_json(reranker.task),
                        "stats": reranker.stats(),
                    }
                    for name, reranker in self._rerankers.items()
                },
            }
        )

    async def _relevances(self, service: Service, asked: DocumentsBody, *, with_documents: bool) -> Response:
        service.check_count("documents", len(asked.documents))
        name, reranker = self._named(asked.model)
        texts = [document if isinstance(document, str) else document.text for document in asked.documents]
        pairs = [(asked.query, text) for text in texts]
        scores = await _scored(reranker, pairs, "documents", ScoreOptions(activation="sigmoid"))
        results = [
            Relevance(index, score, Document(texts[index]) if with_documents else msgspec.UNSET)
            for index, score in rank(scores.values)[: asked.top_n]
        ]
        return Json(Relevances(str(uuid.uuid4()), name, results))

    def _named(self, name: str | None) -> tuple[str, Reranker]:
        known = find_name(name, self._rerankers, "reranker")
        return known, self._rerankers[known]


async def _scored(reranker: Reranker, pairs: Sequence[tuple[str, str]], field: str, options: ScoreOptions) -> Scores:
    """Score the pairs of a field.

    Raises:
        RefusedError: see the errors of ``Reranker.score``; it refers to the texts as the request does.
    """
    try:
        # not the public methods: their warnings about cut texts would end up on the server
        return await wait(reranker._traced(check_pairs(pairs), options))
    except TwinVecError as error:
        refusal = RefusedError.of(error, field)
        refusal.message = refusal.message.replace(reranker.spec.model, public_name(reranker.spec.model))
        raise refusal from error
