"""Search results in LlamaIndex's form: nodes, scores, explanations, and the text around each node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.node_parser.text.sentence_window import DEFAULT_WINDOW_METADATA_KEY
from llama_index.core.schema import BaseNode, TextNode
from llama_index.core.vector_stores.types import VectorStoreQueryResult

from llama_index_twinvec.nodes import explanation_of, to_node
from twinvec.flows import call
from twinvec_stores import HybridStore, Record, Result


@dataclass
class ExplainedResult(VectorStoreQueryResult):
    """A result that also contains, with ``explain=True``, why each node was found.

    Attributes:
        explanations: see ``ExplainedNode``; None if not requested.
    """

    explanations: list[dict[str, Any]] | None = None

    @classmethod
    def of(cls, results: Sequence[Result], nodes: Sequence[BaseNode]) -> ExplainedResult:
        """Return the result of a search."""
        explanations = [explanation_of(result) for result in results if result.explanation is not None]
        return cls(
            nodes=nodes,
            similarities=[result.score for result in results],
            ids=[result.record.id for result in results],
            explanations=explanations if len(explanations) == len(results) else None,
        )

    @classmethod
    def unranked(cls, records: Sequence[Record]) -> ExplainedResult:
        """Return the result of a filter alone: nodes without scores."""
        return cls(nodes=[to_node(record) for record in records], ids=[record.id for record in records])


async def nodes_of(store: HybridStore, results: Sequence[Result], expand: int) -> list[BaseNode]:
    """Return, as a flow, the nodes found, with the text around each in the metadata "window".

    That is where LlamaIndex's MetadataReplacementPostProcessor looks for it; like the windows of its
    SentenceWindowNodeParser, it is excluded from prompts and embeddings.
    """
    nodes = [to_node(result.record) for result in results]
    if expand:
        linked = await _around(store, nodes, expand)
        for node, result, window in zip(nodes, results, linked, strict=True):
            node.metadata[DEFAULT_WINDOW_METADATA_KEY] = result.context or window
            for excluded in (node.excluded_embed_metadata_keys, node.excluded_llm_metadata_keys):
                excluded.append(DEFAULT_WINDOW_METADATA_KEY)
    return nodes


async def _around(store: HybridStore, nodes: Sequence[BaseNode], n: int) -> list[str]:
    """Return the texts of nodes with n neighbours on each side, along PREVIOUS and NEXT; one lookup per step."""
    known, runs = {node.node_id: node for node in nodes}, [[node] for node in nodes]
    for step in range(2 * n):
        ends = [_neighbour(run, forward=step % 2 == 0) for run in runs]
        if lacking := sorted({id for id in ends if id is not None} - known.keys()):
            known |= {record.id: to_node(record) for record in await call(store.get, store.aget, lacking)}
        for run, id in zip(runs, ends, strict=True):
            if id in known:
                run.insert(len(run) if step % 2 == 0 else 0, known[id])
    return [_joined(run) for run in runs]


def _neighbour(run: Sequence[BaseNode], *, forward: bool) -> str | None:
    link = run[-1].next_node if forward else run[0].prev_node
    return None if link is None or any(link.node_id == node.node_id for node in run) else link.node_id


def _joined(run: Sequence[BaseNode]) -> str:
    """Join consecutive nodes into one text, without repeating their overlap."""
    text, end = "", None
    for node in run:
        start = node.start_char_idx if isinstance(node, TextNode) else None
        shared = end - start if end is not None and start is not None and start <= end else None
        text += node.get_content()[shared:] if shared is not None else f"{' ' if text else ''}{node.get_content()}"
        end = node.end_char_idx if isinstance(node, TextNode) else None
    return text
