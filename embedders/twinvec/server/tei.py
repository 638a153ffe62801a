"""The routes of text-embeddings-inference (TEI), for its clients."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from twinvec._version import __version__
from twinvec.errors import ConfigurationError
from twinvec.server.answers import Encoded, Json, rows_of_json, serialised
from twinvec.server.body import TokenId
from twinvec.server.errors import RefusedError
from twinvec.server.service import EmbeddingService, Service
from twinvec.text.prompts import TASKS, Role
from twinvec.text.tokenizer import TextToken
from twinvec.vectors import EmbeddingBatch
from twinvec.workers import in_thread

_Direction = Literal["Right", "right", "Left", "left"]


class _Inputs(msgspec.Struct, kw_only=True):
    inputs: str | list[str | TokenId | list[TokenId]]
    prompt_name: str | None = None
    truncate: bool | None = None
    truncation_direction: _Direction | None = "Right"


class EmbedBody(_Inputs, kw_only=True):
    """Texts, or token ids of this model's tokenizer."""

    normalize: bool | None = True
    dimensions: Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)] | None = None


class SparseBody(_Inputs, kw_only=True):
    """Texts, or token ids of this model's tokenizer."""


class AllBody(_Inputs, kw_only=True):
    """Texts, or token ids of this model's tokenizer."""


class Sentences(msgspec.Struct, kw_only=True):
    """A sentence, and those it is compared with."""

    source_sentence: str
    sentences: list[str]


class SimilarityParameters(msgspec.Struct, kw_only=True):
    """How to embed the sentences."""

    prompt_name: str | None = None
    truncate: bool | None = None
    truncation_direction: _Direction | None = "Right"


class SimilarityBody(msgspec.Struct, kw_only=True):
    """Sentences, and how to embed them."""

    inputs: Sentences
    parameters: SimilarityParameters | None = None


class TokenizeBody(msgspec.Struct, kw_only=True):
    """Texts to tokenize; special tokens are added unless told otherwise."""

    inputs: str | list[str]
    add_special_tokens: bool | None = True
    prompt_name: str | None = None


class DecodeBody(msgspec.Struct, kw_only=True):
    """Token ids of this model's tokenizer: for one text, or a list per text."""

    ids: list[TokenId | list[TokenId]]
    skip_special_tokens: bool | None = True


class Token(msgspec.Struct):
    """One token; ``start`` and ``stop`` are in characters of its text, null for special tokens."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class SparseValue(msgspec.Struct):
    """A sparse weight and its index."""

    index: int
    value: float


async def embed(service: EmbeddingService, asked: EmbedBody) -> Response:
    """Return dense vectors: a list of lists of numbers.

    Without ``normalize`` they are as the model gives them, whatever their length.
    """
    service.need_dense()
    normalize = asked.normalize is not False
    batch = await _embedded(service, asked, dim=service.check_dimensions(asked.dimensions), normalize=normalize)
    assert batch.dense is not None
    return await rows_of_json(row.tolist() for row in batch.dense)


async def embed_all(service: EmbeddingService, asked: AllBody) -> Response:
    """Return the state of every token, special ones included, without pooling: a list of rows per text."""
    batch = await _embedded(service, asked, states=True)
    assert batch.multi is not None
    texts = [await serialised(state.tolist() for state in states) for states in batch.multi]
    return Encoded(b"[" + b",".join(texts) + b"]", "application/json")


async def embed_sparse(service: EmbeddingService, asked: SparseBody) -> Response:
    """Return sparse vectors: a list of {"index", "value"} per text."""
    if not service.embedder.has_sparse:
        raise ConfigurationError(f"{service.name} has no sparse half")
    batch = await _embedded(service, asked, sparse=True)
    assert batch.sparse is not None
    rows = (row.to_dict().items() for row in batch.sparse)
    return await rows_of_json([SparseValue(key, value) for key, value in row] for row in rows)


async def similarity(service: EmbeddingService, asked: SimilarityBody) -> Response:
    """Return the cosine similarity of the source sentence with each of the others."""
    how = asked.parameters or SimilarityParameters()
    sentences = asked.inputs.sentences
    service.check_count("sentences", len(sentences))
    texts = _Inputs(
        inputs=[asked.inputs.source_sentence, *sentences],
        prompt_name=how.prompt_name,
        truncate=how.truncate,
        truncation_direction=how.truncation_direction,
    )
    service.need_dense()
    batch = await _embedded(service, texts)
    assert batch.dense is not None
    scores: list[float] = (batch.dense[1:] @ batch.dense[0]).astype(np.float32).tolist()
    return Json(scores)


async def tokenize(service: EmbeddingService, asked: TokenizeBody) -> Response:
    """Return the tokens of texts, without truncation."""
    _, prompt = _prompt(service, asked.prompt_name)
    texts = [prompt + text for text in service.texts("inputs", asked.inputs)]
    specials = asked.add_special_tokens is not False
    found = await in_thread(service.tokenizer.encodings, texts, specials=specials)
    rows = ([_token(token, text) for token in row] for row, text in zip(found, texts, strict=True))
    return await rows_of_json(rows)


def _token(token: TextToken, text: str) -> Token:
    shown = token.token if token.start is None else text[token.start : token.end]
    return Token(token.id, shown, token.start is None, token.start, token.end)


async def decode(service: EmbeddingService, asked: DecodeBody) -> Response:
    """Decode token ids into texts."""
    ids: list[Any] = asked.ids
    rows = [ids] if ids and all(isinstance(i, int) for i in ids) else ids
    service.check_count("ids", len(rows))
    size = service.tokenizer.vocabulary_size
    for position, row in enumerate(rows):
        if not isinstance(row, list) or max(row, default=0) >= size:
            raise RefusedError(422, f"ids[{position}] must be a list of token ids from 0 to {size - 1}", "ids")
    skip = asked.skip_special_tokens is not False
    return Json(await in_thread(lambda: [service.tokenizer.decode(row, skip_specials=skip) for row in rows]))


async def _embedded(
    service: EmbeddingService,
    asked: _Inputs,
    *,
    sparse: bool = False,
    states: bool = False,
    dim: int | None = None,
    normalize: bool = True,
) -> EmbeddingBatch:
    """Embed ``inputs``. Unknown fields are ignored, as in TEI."""
    role, prompt = _prompt(service, asked.prompt_name)
    texts = service.texts("inputs", asked.inputs)
    if states:
        await service.check_states("inputs", texts, prompt)
    truncate = service.truncates if asked.truncate is None else asked.truncate
    left = (asked.truncation_direction or "Right").lower() == "left"
    try:
        return await service.embed(
            "inputs",
            texts,
            role,
            prompt=prompt,
            dense=not (sparse or states),
            sparse=sparse,
            multi="states" if states else False,
            dim=dim,
            fail_on_overflow=left or not truncate,
            normalize=normalize,
        )
    except RefusedError as refusal:
        if refusal.kind == "TextTooLongError":
            advice = (
                "only the end of a text can be cut here: cut it yourself" if left and truncate else "send truncate=true"
            )
            refusal.message = refusal.message.replace('pass on_overflow="truncate"', advice)
        raise


def _prompt(service: EmbeddingService, name: str | None) -> tuple[Role, str]:
    """Return the role and prompt of a name: as in TEI, no name means no prompt; unknown names are refused."""
    embedder = service.embedder
    if name is None:
        return Role.DOCUMENT, ""
    if name in (role.value for role in Role):
        return Role(name), embedder.prompt_for(name)
    names = {*embedder._prompts.named, *(TASKS if embedder._prompts.instruct is not None else ())}
    if name not in names:
        known = ", ".join(sorted({*names, *(role.value for role in Role)}))
        raise RefusedError(400, f"prompt_name {name[:200]!r} is not one of {known}", "prompt_name", "PromptError")
    return Role.QUERY, embedder.prompt_for(Role.QUERY, name)


async def info(service: Service, request: Request) -> Response:
    """Describe the model and the server."""
    model, limits = service.model, service.serving.limits
    stats = model.stats()
    return Json(
        {
            "model_id": service.name,
            "model_sha": model.spec.revision,
            "model_dtype": stats["dtype"],
            "model_type": service.kind,
            "max_concurrent_requests": limits.max_requests,
            "max_input_length": model.spec.max_length,
            "max_batch_tokens": stats["token_budget"],
            "max_batch_requests": None,
            "max_client_batch_size": limits.max_texts,
            "auto_truncate": service.truncates,
            "tokenization_workers": 1,
            "version": __version__,
            "sha": None,
            "docker_label": None,
            "limits": limits,
        }
    )
