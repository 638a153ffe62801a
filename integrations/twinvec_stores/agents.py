"""An MCP server: lets agents search an index as a tool, over stdio or HTTP."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from twinvec import BaseReranker, __version__
from twinvec.errors import ConfigurationError, TwinVecError
from twinvec_stores.filters.as_json import parse_filter
from twinvec_stores.search.fusion import Fusion, Method
from twinvec_stores.search.index import HybridIndex
from twinvec_stores.search.options import Mode, SearchKeywords

try:
    from mcp.server import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.server.transport_security import TransportSecuritySettings
    from mcp.types import CallToolResult, TextContent, ToolAnnotations
    from pydantic import Field
except ImportError as error:
    raise ConfigurationError("an MCP server needs an optional package: pip install 'twinvec[mcp]'") from error

if TYPE_CHECKING:
    from twinvec.server.operations import Extension

_INSTRUCTIONS = """Search a collection of documents by meaning and by words, in any language that its model supports \
(including Russian and English). Ask in the language of the documents, in full questions or phrases."""

Query = Annotated[str, Field(min_length=1, max_length=20_000, description="The query: a question or a phrase.")]
Number = Annotated[int, Field(ge=1, le=100, description="Number of results.")]
FilterForm = Annotated[
    dict[str, Any] | None,
    Field(
        description='Only return records with matching metadata, e.g. {"lang": "ru", "year": {"$gte": 2020}}. '
        "Operators: $eq, $ne, $in, $nin, $gt, $gte, $lt, $lte, $between, $exists, $contains, $icontains, "
        "$startswith, $words; $and, $or, $not combine filters. Dates are ISO 8601 strings."
    ),
]
ModeOf = Annotated[
    Mode | None,
    Field(
        description='"dense" searches by meaning, "sparse" by words, "hybrid" by both. Default: everything available.'
    ),
]
FusionOf = Annotated[Method | None, Field(description="How hybrid search merges both. Default: the collection's own.")]
Weight = Annotated[float | None, Field(ge=0, description="Weight of this half in a hybrid search.")]
Least = Annotated[float | None, Field(description="Only return records with at least this score in this half.")]
Group = Annotated[
    str | None,
    Field(
        description='"document": only the best part of each document; or a metadata field: the best record per value.'
    ),
]
Around = Annotated[
    int, Field(ge=0, le=20, description="Number of neighbouring parts of the document to include on each side.")
]
Explain = Annotated[
    bool, Field(description="Explain why each was found: scores and ranks of both halves, matching terms.")
]


Reordered = Annotated[
    bool, Field(description="Reorder the best results with a model that reads them with the query: better, but slower.")
]


def mcp_server(index: HybridIndex, reranker: BaseReranker | None = None) -> MCPServer:
    """Return an MCP server with the tool ``search`` over an index, which the caller closes, as well as the reranker."""
    server: MCPServer = MCPServer("twinvec", instructions=_INSTRUCTIONS, version=__version__, log_level="WARNING")

    async def search(
        query: Query,
        k: Number = 5,
        filter: FilterForm = None,
        mode: ModeOf = None,
        fusion: FusionOf = None,
        dense_weight: Weight = None,
        sparse_weight: Weight = None,
        min_dense: Least = None,
        min_sparse: Least = None,
        group_by: Group = None,
        expand: Around = 0,
        explain: Explain = False,
        rerank: Reordered = False,
    ) -> CallToolResult:
        """Search the documents by meaning and by words.

        Returns records, best first: id, score, text, metadata, and their origin.
        """
        options: SearchKeywords = {"k": k, "mode": mode, "min_sparse": min_sparse, "group_by": group_by}
        options |= {"expand": expand, "explain": explain}
        try:
            if filter is not None:
                options["filter"] = parse_filter(filter)
            if fusion is not None or dense_weight is not None or sparse_weight is not None:
                options["fusion"] = Fusion(fusion or "relative", dense_weight, sparse_weight)
            if rerank and reranker is None:
                raise ToolError("rerank: there is no reranker here, search without it")
            if rerank:
                options["rerank"] = reranker
            if min_dense is not None:
                options["min_dense"] = min_dense
            found = await index.asearch(query, **options)
        except TwinVecError as error:
            raise ToolError(str(error)) from error
        answer = {"results": [result.to_dict() for result in found]}
        text = json.dumps(answer, ensure_ascii=False)
        return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=answer)

    server.add_tool(search, annotations=ToolAnnotations(title="Search documents", read_only_hint=True))
    return server


def mcp_extension(index: HybridIndex, reranker: BaseReranker | None = None, *, path: str = "/mcp") -> Extension:
    """Return the route for MCP over HTTP ("streamable"), without sessions."""
    from twinvec.server.operations import Extension

    server = mcp_server(index, reranker)
    server.streamable_http_app(  # creates the session manager
        json_response=True,
        stateless_http=True,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),  # the server has its own
    )
    return Extension(apps={path: server.session_manager.handle_request}, lifespan=server.session_manager.run)
