"""Each row of docs/server.md about a field of OpenAI's and TEI's routes has a test, and each field has a row."""

from __future__ import annotations

import re
from pathlib import Path

from server import test_native, test_openai, test_rerank, test_tei
from twinvec.server.operations import OPERATIONS
from twinvec.server.reranking import rerank_extension

PAGE = Path(__file__).parents[2] / "docs" / "server.md"
# route and field -> the test of what the row says
TESTS = {
    "/v1/embeddings input": test_openai.test_token_ids_of_this_model,
    "/v1/embeddings model": test_openai.test_several_models,
    "/v1/embeddings encoding_format": test_openai.test_base64_is_float32_little_endian,
    "/v1/embeddings dimensions": test_openai.test_dimensions_are_those_of_an_embedder_with_so_many,
    "/v1/embeddings user": test_openai.test_the_answer_has_openais_shape,
    "/v1/embeddings input_type": test_openai.test_roles_and_tasks,
    "/v1/embeddings task": test_openai.test_roles_and_tasks,
    "/v1/models": test_openai.test_models,
    "/v1/models/{id}": test_openai.test_one_model,
    "/embed inputs": test_tei.test_token_ids_in_place_of_texts,
    "/embed prompt_name": test_tei.test_a_prompt_goes_before_a_text_only_where_it_is_asked_for,
    "/embed truncate": test_tei.test_truncate,
    "/embed truncation_direction": test_tei.test_truncate,
    "/embed dimensions": test_tei.test_dimensions_and_normalize,
    "/embed normalize": test_tei.test_dimensions_and_normalize,
    "/": test_tei.test_one_text_or_a_list,
    "/embed_sparse inputs": test_tei.test_sparse,
    "/embed_sparse prompt_name": test_tei.test_a_prompt_goes_before_a_text_only_where_it_is_asked_for,
    "/embed_sparse truncate": test_tei.test_truncate,
    "/embed_sparse truncation_direction": test_tei.test_truncate,
    "/embed_all inputs": test_tei.test_states_of_tokens,
    "/embed_all prompt_name": test_tei.test_states_of_tokens,
    "/embed_all truncate": test_tei.test_truncate,
    "/embed_all truncation_direction": test_tei.test_truncate,
    "/similarity inputs": test_tei.test_similarity,
    "/similarity parameters": test_tei.test_similarity,
    "/tokenize inputs": test_tei.test_tokenize_and_decode,
    "/tokenize add_special_tokens": test_tei.test_tokenize_and_decode,
    "/tokenize prompt_name": test_tei.test_tokenize_and_decode,
    "/decode ids": test_tei.test_tokenize_and_decode,
    "/decode skip_special_tokens": test_tei.test_tokenize_and_decode,
    "/info": test_tei.test_info_and_health,
    "/health": test_tei.test_info_and_health,
    "/metrics": test_tei.test_metrics_are_the_embedders_counters,
    "/rerank query": test_rerank.test_tei,
    "/rerank texts": test_rerank.test_refusals,
    "/rerank truncate": test_rerank.test_tei_cuts_texts_where_it_may,
    "/rerank truncation_direction": test_rerank.test_tei_cuts_texts_where_it_may,
    "/rerank raw_scores": test_rerank.test_tei,
    "/rerank return_text": test_rerank.test_tei,
    **{
        f"/rerank {field}": test_rerank.test_documents_at_teis_path
        for field in ("documents", "top_n", "return_documents")
    },
    "/rerank model": test_rerank.test_tei_of_several_rerankers,
    **{
        f"{path} {field}": test
        for path in ("/v1/rerank", "/v2/rerank")
        for field, test in {
            "model": test_rerank.test_refusals,
            "query": test_rerank.test_jina_and_cohere,
            "documents": test_rerank.test_jina_and_cohere,
            "top_n": test_rerank.test_jina_and_cohere,
            "return_documents": test_rerank.test_jina_and_cohere,
        }.items()
    },
    "/predict": test_native.test_unknown_routes_and_methods_say_what_there_is,
}


def rows() -> list[str]:
    """Return the rows of the page's tables of routes: a route, and a field where there is one."""
    found, route = [], ""
    for line in PAGE.read_text("utf-8").splitlines():
        if (cells := re.fullmatch(r"\| (?:`(/[^`]*)`)? ?\| (?:`(\w+)`)? ?\|.*", line)) is not None:
            route = cells[1] or route
            found.append(" ".join(filter(None, (route, cells[2]))))
    return found


def test_each_row_has_a_test_and_each_test_a_row() -> None:
    assert sorted(rows()) == sorted(TESTS)


def test_each_field_of_the_routes_has_a_row() -> None:
    documented = rows()
    for operation in (*OPERATIONS, *rerank_extension({}).operations):
        if operation.path.startswith("/v1/twinvec/") or operation.path in ("/", "/ready"):
            continue
        route = operation.path.replace(":path", "")
        names = () if operation.body is None else operation.body.__struct_fields__
        wanted = [f"{route} {name}" for name in names] or [route]
        assert [row for row in documented if row == route or row.startswith(f"{route} ")] == wanted, route
