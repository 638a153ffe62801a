"""TwinVecRerank: LlamaIndex's node postprocessor over a Reranker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from llama_index.core.bridge.pydantic import ConfigDict, Field
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from llama_index_instrumentation import get_dispatcher

from twinvec import BaseReranker, Reranker, Task
from twinvec.errors import ConfigurationError
from twinvec.flows import awaiting, blocking, call
from twinvec.overriding import heard
from twinvec.scoring import Activation, rank

_DISPATCHER = get_dispatcher(__name__)


class TwinVecRerank(BaseNodePostprocessor):
    """Keeps the nodes that are most relevant according to a model that reads them together with the query.

    The async method waits for the shared queue without occupying a thread, so concurrent queries share forward passes.
    The given nodes are not modified; those returned have the reranker's score.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    model_name: str = Field(default="", description="folder or hub id; to set other options, pass ``reranker``")
    reranker: BaseReranker = Field(
        default=cast("BaseReranker", None),
        exclude=True,
        repr=False,
        description="a Reranker or a RemoteReranker to share instead of ``model_name``; always set afterwards",
    )
    top_n: int = Field(default=5, ge=1, description="number of nodes to keep")
    min_score: float | None = Field(default=None, description="keep only nodes with at least this score")
    task: Task | str | None = Field(default=None, description="an instruction, for models trained with them")
    activation: Activation | None = Field(default=None, description='None for raw logits, "sigmoid" or "model"')
    windows: bool = Field(default=False, description="score long nodes in windows")
    keep_retrieval_score: bool = Field(
        default=False, description='keep the previous score in ``metadata["retrieval_score"]``'
    )

    def __init__(self, **fields: Any) -> None:
        """Share a reranker, or load it."""
        super().__init__(**fields)
        if self.reranker is None:
            if not self.model_name:
                raise ConfigurationError("TwinVecRerank needs model_name= (a folder or a hub id) or reranker=")
            self.reranker = Reranker(self.model_name)
        self.model_name = self.reranker.spec.model

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex serialises it."""
        return cls.__name__

    @blocking
    async def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        model = self.reranker
        with self._told(nodes, query_bundle) as (query, best):
            pairs = [(query, node.node.get_content(metadata_mode=MetadataMode.EMBED)) for node in nodes]
            scores = await call(
                model.score, model.ascore, pairs, task=self.task, activation=self.activation, windows=self.windows
            )
            best.extend(self._best(nodes, scores.tolist()))
        return best

    _apostprocess_nodes = heard(awaiting(_postprocess_nodes))

    @contextmanager
    def _told(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None
    ) -> Iterator[tuple[str, list[NodeWithScore]]]:
        """Report one run to LlamaIndex's callbacks and instrumentation; its result goes into the list."""
        if query_bundle is None:
            raise ConfigurationError("TwinVecRerank needs the query: pass query_bundle= or query_str=")
        query, best = query_bundle.query_str, list[NodeWithScore]()
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model_name,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: self.top_n,
        }
        _DISPATCHER.event(
            ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=self.top_n, model_name=self.model_name)
        )
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            yield query, best
            event.on_end(payload={EventPayload.NODES: best})
        _DISPATCHER.event(ReRankEndEvent(nodes=best))

    def _best(self, nodes: list[NodeWithScore], scores: list[float]) -> list[NodeWithScore]:
        kept = [one for one in rank(scores) if self.min_score is None or one.score >= self.min_score]
        return [self._scored(nodes[index], score) for index, score in kept[: self.top_n]]

    def _scored(self, found: NodeWithScore, score: float) -> NodeWithScore:
        if not self.keep_retrieval_score:
            return NodeWithScore(node=found.node, score=score)
        metadata = {**found.node.metadata, "retrieval_score": found.score}
        return NodeWithScore(node=found.node.model_copy(update={"metadata": metadata}), score=score)
