"""Traces: OpenTelemetry spans of embedding, retrieval and reranking, following OpenInference's conventions.

Off until the program sets a tracer provider; until then a call costs a few microseconds. Vectors are not recorded, and
of many texts or documents only the first 24, since a span holds 128 attributes. Names:
https://arize-ai.github.io/openinference/spec/.

OPENINFERENCE_HIDE_INPUTS, _HIDE_INPUT_TEXT and _HIDE_EMBEDDINGS_TEXT hide embedded texts (the first two also queries,
and the texts that a reranker reads); OPENINFERENCE_HIDE_OUTPUTS and _HIDE_OUTPUT_TEXT hide the documents found.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from twinvec._version import __version__

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from twinvec.base import CheckedCall
    from twinvec.scoring import Scores
    from twinvec.spec import ModelSpec
    from twinvec.vectors import EmbeddingBatch

_T = TypeVar("_T")
Attributes: TypeAlias = "dict[str, str | int | float]"
FoundDocument: TypeAlias = "tuple[str, float, str, Mapping[str, Any]]"  # id, score, text, metadata

_MOST = 24
_HIDDEN = "__REDACTED__"
_OF_CALLERS = ("session.id", "user.id", "metadata", "tag.tags")  # attributes that OpenInference keeps in the context
_SUPPRESSED = "suppress_instrumentation"
_CARRIED = ("traceparent", "tracestate")


def traced_embedding(
    spec: ModelSpec, asked: CheckedCall
) -> AbstractContextManager[Callable[[EmbeddingBatch], EmbeddingBatch]]:
    """Trace one call; yields a function that records the result and returns it."""
    return _embedding(spec, asked) if _on() else nullcontext(_unseen)


def traced_search(queries: Sequence[str]) -> AbstractContextManager[Callable[[Iterable[FoundDocument]], object]]:
    """Trace one search; yields a function that records what was found, query by query.

    ``queries`` is empty if only vectors are known.
    """
    return _search(queries) if _on() else nullcontext(_unseen)


def traced_scores(
    spec: ModelSpec, pairs: Sequence[tuple[str, str]]
) -> AbstractContextManager[Callable[[Scores], Scores]]:
    """Trace the scoring of (query, text) pairs; yields a function that records the scores and returns them."""
    return _scoring(spec, pairs) if _on() else nullcontext(_unseen)


@contextmanager
def _embedding(spec: ModelSpec, asked: CheckedCall) -> Iterator[Callable[[EmbeddingBatch], EmbeddingBatch]]:
    with _span("CreateEmbeddings", "EMBEDDING", lambda: _asked(spec, asked)) as span:

        def answered(batch: EmbeddingBatch) -> EmbeddingBatch:
            if span is not None and (tokens := int(batch.token_counts.sum())):  # 0: someone else's model, count unknown
                span.set_attributes({**_tokens(tokens), "twinvec.truncated": int(batch.truncated.sum())})
            return batch

        yield answered


@contextmanager
def _scoring(spec: ModelSpec, pairs: Sequence[tuple[str, str]]) -> Iterator[Callable[[Scores], Scores]]:
    with _span("Rerank", "RERANKER", lambda: _compared(spec, pairs)) as span:

        def answered(scores: Scores) -> Scores:
            if span is not None:
                span.set_attributes(_ranking(pairs, scores))
            return scores

        yield answered


@contextmanager
def _search(queries: Sequence[str]) -> Iterator[Callable[[Iterable[FoundDocument]], None]]:
    with _span("Retrieve", "RETRIEVER", lambda: _wanted(queries)) as span:

        def found(documents: Iterable[FoundDocument]) -> None:
            if span is not None:
                for i, document in enumerate(islice(documents, _MOST)):
                    span.set_attributes(_document(f"retrieval.documents.{i}.document", *document))

        yield found


def trace_work(figures: Callable[[], Mapping[str, float]]) -> None:
    """Record the engine's work in the current span."""
    if (span := _recording()) is not None:
        span.set_attributes({f"twinvec.{name}": value for name, value in figures().items()})


def trace_headers() -> dict[str, str]:
    """Return the headers with which a server can continue the current trace."""
    headers: dict[str, str] = {}
    if _recording() is not None:
        from opentelemetry.propagate import inject

        inject(headers)
    return headers


def joined_trace(headers: Mapping[bytes, bytes]) -> AbstractContextManager[object]:
    """Make spans part of the trace that a request belongs to."""
    if b"traceparent" not in headers or not _on():
        return nullcontext()
    return _continued({name: headers[name.encode()].decode("latin-1") for name in _CARRIED if name.encode() in headers})


@contextmanager
def _continued(carrier: dict[str, str]) -> Iterator[None]:
    from opentelemetry import context
    from opentelemetry.propagate import extract

    token = context.attach(extract(carrier))
    try:
        yield
    finally:
        context.detach(token)


@contextmanager
def _span(name: str, kind: str, describe: Callable[[], Attributes]) -> Iterator[Span | None]:
    from opentelemetry import context, trace

    if context.get_value(_SUPPRESSED):
        yield None
        return
    with trace.get_tracer("twinvec", __version__).start_as_current_span(name) as span:
        if not span.is_recording():
            yield None
            return
        span.set_attribute("openinference.span.kind", kind)
        for key in _OF_CALLERS:
            if (value := context.get_value(key)) is not None:
                span.set_attribute(key, value)  # type: ignore[arg-type]
        span.set_attributes(describe())
        yield span
        span.set_status(trace.StatusCode.OK)


def _on() -> bool:
    trace = sys.modules.get("opentelemetry.trace")
    return trace is not None and not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _unseen(result: _T) -> _T:
    return result


def _recording() -> Span | None:
    if not _on():
        return None
    from opentelemetry import trace

    span = trace.get_current_span()
    return span if span.is_recording() else None


def _asked(spec: ModelSpec, asked: CheckedCall) -> Attributes:
    hidden = _hides("INPUTS", "INPUT_TEXT", "EMBEDDINGS_TEXT")
    halves = {"role": asked.role.value, "dense": asked.dense, "sparse": asked.sparse}
    given = asked.texts[:_MOST]
    return {
        "embedding.model_name": spec.model,
        "embedding.invocation_parameters": json.dumps({**halves, "dim": spec.dim, "max_length": spec.max_length}),
        "input.value": _HIDDEN if hidden else json.dumps(given, ensure_ascii=False),
        "input.mime_type": "application/json",
        "twinvec.texts": len(asked.texts),
        "twinvec.prompt": _HIDDEN if hidden else asked.prompt,
        **{
            f"embedding.embeddings.{i}.embedding.text": _HIDDEN if hidden else asked.prompt + text
            for i, text in enumerate(given)
        },
    }


def _wanted(queries: Sequence[str]) -> Attributes:
    if not queries:
        return {}
    one = len(queries) == 1
    value = queries[0] if one else json.dumps(list(queries)[:_MOST], ensure_ascii=False)
    return {
        "input.value": _HIDDEN if _hides("INPUTS", "INPUT_TEXT") else value,
        "input.mime_type": "text/plain" if one else "application/json",
        "twinvec.queries": len(queries),
    }


def _compared(spec: ModelSpec, pairs: Sequence[tuple[str, str]]) -> Attributes:
    asked = _wanted(list(dict.fromkeys(query for query, _ in pairs)))
    one = {"reranker.query": asked["input.value"]} if asked.get("twinvec.queries") == 1 else {}
    hidden = _hides("INPUTS", "INPUT_TEXT")
    given = {
        f"reranker.input_documents.{i}.document.content": _HIDDEN if hidden else text
        for i, (_, text) in enumerate(pairs[:_MOST])
    }
    return {"reranker.model_name": spec.model, "twinvec.pairs": len(pairs), **asked, **one, **given}


def _ranking(pairs: Sequence[tuple[str, str]], scores: Scores) -> Attributes:
    """Return the first texts in the order of their scores."""
    hidden, values = _hides("OUTPUTS", "OUTPUT_TEXT"), scores.values.tolist()
    made: Attributes = {"twinvec.truncated": int(scores.truncated.sum())}
    made |= _tokens(scores.tokens) if scores.tokens else {}
    for i, best in enumerate(sorted(range(len(pairs)), key=lambda pair: -values[pair])[:_MOST]):
        name = f"reranker.output_documents.{i}.document"
        made |= {f"{name}.content": _HIDDEN if hidden else pairs[best][1], f"{name}.score": values[best]}
    return made


def _tokens(n: int) -> Attributes:
    return {"llm.token_count.prompt": n, "llm.token_count.total": n}


def _document(name: str, id: str, score: float, text: str, metadata: Mapping[str, Any]) -> Attributes:
    hidden = _hides("OUTPUTS", "OUTPUT_TEXT")
    return {
        f"{name}.id": id,
        f"{name}.score": score,
        f"{name}.content": _HIDDEN if hidden else text,
        f"{name}.metadata": _HIDDEN if hidden else json.dumps(dict(metadata), ensure_ascii=False),
    }


def _hides(*what: str) -> bool:
    return any(os.environ.get(f"OPENINFERENCE_HIDE_{name}", "").lower() in ("true", "1") for name in what)
