"""Which text goes before a query or a document: every rule of PromptTemplate. No torch: ``make quick``."""

from collections.abc import Callable
from typing import Any

import pytest

from reference.prompts import GEMMA_PROMPTS, WEB_SEARCH
from twinvec import Task
from twinvec.errors import ConfigurationError, PromptError
from twinvec.text.prompts import TASKS, PromptTemplate, Role

GIGA = PromptTemplate(instruct="Instruct: {task}\nQuery: ", query="Instruct: default\nQuery: ", document="")
E5 = PromptTemplate.from_prompts({"query": "query: ", "passage": "passage: "})
QUESTION = "Given a question, find a paragraph with the answer"
INSTRUCTED = f"Instruct: {QUESTION}\nQuery: "


def test_without_a_task_each_role_has_its_prompt() -> None:
    assert (GIGA.prefix("query"), GIGA.prefix("document")) == ("Instruct: default\nQuery: ", "")
    assert (E5.prefix(Role.QUERY), E5.prefix(Role.DOCUMENT)) == ("query: ", "passage: ")
    assert (PromptTemplate().prefix("query"), PromptTemplate().prefix("document")) == ("", "")


def test_an_asymmetric_task_wraps_queries_only() -> None:
    template = PromptTemplate(instruct="Instruct: {task}\nQuery: ", query="q: ", document="d: ")
    task = Task(QUESTION)
    assert (template.prefix("query", task), template.prefix("document", task)) == (INSTRUCTED, "d: ")


def test_a_symmetric_task_wraps_both_roles() -> None:
    task = Task(QUESTION, symmetric=True)
    assert GIGA.prefix("query", task) == GIGA.prefix("document", task) == INSTRUCTED


def test_a_string_is_an_instruction_for_queries() -> None:
    assert (GIGA.prefix("query", QUESTION), GIGA.prefix("document", QUESTION)) == (INSTRUCTED, "")


@pytest.mark.parametrize("name", TASKS)
def test_a_known_name_stands_for_its_task(name: str) -> None:
    wrapped = f"Instruct: {TASKS[name].instruction}\nQuery: "
    assert GIGA.prefix("query", name) == wrapped
    assert GIGA.prefix("document", name) == (wrapped if TASKS[name].symmetric else "")


def test_the_names_of_similarity_and_clustering_are_symmetric_and_those_of_retrieval_are_not() -> None:
    symmetric = {name for name, task in TASKS.items() if task.symmetric}
    assert {"similarity", "similarity_ru", "paraphrase_ru", "clustering"} <= symmetric
    assert not symmetric & {"retrieval", "web_search", "question_answering", "question_answering_ru"}


@pytest.mark.parametrize(
    "instruction",
    ["use {braces} and {0} and {task}", "two\nlines", "100 % of %s", r"back\slash \1 \g<0>", " spaces ", "Найди ответ"],
)
def test_the_instruction_arrives_byte_for_byte(instruction: str) -> None:
    assert GIGA.prefix("query", Task(instruction)) == "Instruct: " + instruction + "\nQuery: "


def test_other_braces_of_the_template_stay() -> None:
    template = PromptTemplate(instruct='{"a": 1} {} {task}: ')
    assert template.prefix("query", Task("find {x}")) == '{"a": 1} {} find {x}: '


@pytest.mark.parametrize("instruction", ["", "  ", "\n"])
def test_an_empty_instruction_is_refused(instruction: str) -> None:
    with pytest.raises(PromptError, match="instruction"):
        Task(instruction)
    with pytest.raises(PromptError, match="instruction"):
        GIGA.prefix("query", instruction)


def test_an_instruction_must_be_a_string_and_a_task_a_task() -> None:
    wrong: Any = 5
    with pytest.raises(PromptError):
        Task(wrong)
    with pytest.raises(TypeError, match="int"):
        GIGA.prefix("query", wrong)


@pytest.mark.parametrize("task", [QUESTION, Task(QUESTION), "retrieval"])
@pytest.mark.parametrize("role", ["query", "document"])
def test_a_task_on_a_model_without_instructions_is_an_error(task: Task | str, role: str) -> None:
    with pytest.raises(PromptError, match="not trained with instructions"):
        E5.prefix(role, task)


def test_the_error_names_the_prompts_that_the_model_has() -> None:
    template = PromptTemplate.from_prompts(GEMMA_PROMPTS)
    with pytest.raises(PromptError, match="Clustering, Classification, InstructionRetrieval, STS"):
        template.prefix("query", QUESTION)


def test_prompt_errors_are_configuration_errors_and_value_errors() -> None:
    assert issubclass(PromptError, ConfigurationError)
    assert issubclass(PromptError, ValueError)


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ValueError, match="passage"):
        E5.prefix("passage")


def test_a_prompt_of_the_checkpoint_is_chosen_by_name_for_both_roles() -> None:
    template = PromptTemplate.from_prompts(GEMMA_PROMPTS)
    assert template.prefix("query", "STS") == template.prefix("document", "STS") == GEMMA_PROMPTS["STS"]
    assert template.prefix("query") == "task: search result | query: "
    assert template.prefix("document") == "title: none | text: "


def test_a_prompt_of_the_checkpoint_wins_over_a_task_of_the_same_name() -> None:
    template = PromptTemplate.from_prompts({"query": WEB_SEARCH, "clustering": "cluster: "})
    assert template.prefix("document", "clustering") == "cluster: "


@pytest.mark.parametrize("name", ["query", "document"])
def test_the_name_of_a_role_is_never_taken_for_an_instruction(name: str) -> None:
    template = PromptTemplate.from_prompts({"query": WEB_SEARCH, "document": ""})
    try:
        prefix = template.prefix("query", name)
    except PromptError:
        return
    assert prefix == template.named[name]


@pytest.mark.parametrize(
    ("query", "instruct"),
    [
        pytest.param(WEB_SEARCH, "Instruct: {task}\nQuery:", id="Qwen3-Embedding"),
        pytest.param(WEB_SEARCH + " ", "Instruct: {task}\nQuery: ", id="e5-mistral, gte-Qwen2, Giga"),
        pytest.param("Instruct: two\nlines {x}\nQuery: ", "Instruct: {task}\nQuery: ", id="newline and braces"),
        pytest.param("query: ", None, id="E5"),
        pytest.param("Represent this sentence for searching relevant passages: ", None, id="bge, arctic"),
        pytest.param("Instruct: \nQuery: ", None, id="no instruction inside"),
        pytest.param("Please Instruct: a\nQuery: ", None, id="something before"),
        pytest.param("", None, id="empty"),
    ],
)
def test_the_instruct_template_is_read_off_the_query_prompt(query: str, instruct: str | None) -> None:
    template = PromptTemplate.from_prompts({"query": query, "document": ""})
    assert (template.instruct, template.query, template.document) == (instruct, query, "")
    if instruct is not None:
        assert template.prefix("query", QUESTION) == instruct.replace("{task}", QUESTION)
        assert template.prefix("query") == query


@pytest.mark.parametrize(
    ("prompts", "query", "document"),
    [
        pytest.param({}, "", "", id="none"),
        pytest.param({"query": "q: ", "document": "d: "}, "q: ", "d: ", id="sentence-transformers"),
        pytest.param({"query": "q: ", "passage": "p: "}, "q: ", "p: ", id="E5"),
        pytest.param({"query": "q: ", "corpus": "c: "}, "q: ", "c: ", id="corpus"),
        pytest.param(
            {"search_query": "search_query: ", "search_document": "search_document: ", "clustering": "clustering: "},
            "search_query: ",
            "search_document: ",
            id="Nomic",
        ),
        pytest.param({"retrieval.query": "rq: ", "retrieval.passage": "rp: "}, "rq: ", "rp: ", id="Jina"),
        pytest.param({"query": "q: "}, "q: ", "", id="arctic"),
        pytest.param({"s2p_query": "x", "s2s_query": "y"}, "", "", id="names that say no role"),
    ],
)
def test_prompts_of_known_checkpoints_find_their_roles(prompts: dict[str, str], query: str, document: str) -> None:
    template = PromptTemplate.from_prompts(prompts)
    assert (template.prefix("query"), template.prefix("document")) == (query, document)
    assert dict(template.named) == prompts


def test_the_default_prompt_serves_roles_without_one_of_their_own() -> None:
    template = PromptTemplate.from_prompts({"s2p": "Find: ", "passage": "p: "}, "s2p")
    assert (template.query, template.document) == ("Find: ", "p: ")


def test_a_default_that_is_not_there_is_an_error_that_lists_what_is() -> None:
    with pytest.raises(PromptError, match=r"'gone'.*\['passage', 'query'\]"):
        PromptTemplate.from_prompts({"query": "q: ", "passage": "p: "}, "gone")


def test_the_callers_prompts_lie_over_the_checkpoints() -> None:
    template = PromptTemplate.from_prompts({"query": "q: ", "passage": "p: ", "STS": "s: ", "kept": "k: "})
    changed = template.override({"query": "search: ", "STS": "similar: ", "new": "n: "})
    assert changed.prefix("query", "kept") == "k: "
    assert (changed.query, changed.document) == ("search: ", "p: ")
    assert changed.prefix("document", "STS") == "similar: "
    assert changed.prefix("query", "new") == "n: "
    assert (template.query, template.prefix("query", "STS")) == ("q: ", "s: "), "the original stays"


def test_an_empty_prompt_takes_the_checkpoints_away() -> None:
    changed = E5.override({"query": "", "document": ""})
    assert (changed.prefix("query"), changed.prefix("document")) == ("", "")


def test_an_override_by_any_name_of_the_role_counts() -> None:
    assert E5.override({"search_query": "s: ", "document": "d: "}).prefix("query") == "s: "
    assert E5.override({"document": "d: "}).prefix("document") == "d: "


def test_an_instruction_in_an_override_makes_tasks_possible() -> None:
    changed = E5.override({"query": "Instruct: a\nQuery: "})
    assert changed.prefix("query", QUESTION) == INSTRUCTED
    assert changed.prefix("document") == "passage: "


def test_an_override_without_an_instruction_keeps_the_template() -> None:
    assert GIGA.override({"document": "d: "}).prefix("query", QUESTION) == INSTRUCTED
    assert GIGA.override({"document": "d: "}).prefix("document") == "d: "


@pytest.mark.parametrize("prompts", [{"query": None}, {"query": 5}, {5: "x"}])
def test_prompts_must_map_names_to_strings(prompts: Any) -> None:
    with pytest.raises(PromptError, match="names to strings"):
        E5.override(prompts)


def test_a_template_does_not_change_with_the_callers_dictionary() -> None:
    prompts = {"query": "q: ", "STS": "s: "}
    template = PromptTemplate.from_prompts(prompts)
    prompts["STS"] = "changed"
    assert template.prefix("query", "STS") == "s: "


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("write", [str, str.upper, "{}.".format, "  {}\n".format], ids=["as it is", "A", "a.", " a "])
def test_the_sentence_of_a_symmetric_task_wraps_documents_too(name: str, write: Callable[[str], str]) -> None:
    sentence = write(TASKS[name].instruction)
    wrapped = f"Instruct: {sentence}\nQuery: "
    assert GIGA.prefix("query", sentence) == wrapped, "as the caller wrote it"
    assert GIGA.prefix("document", sentence) == (wrapped if TASKS[name].symmetric else "")


def test_a_task_object_decides_for_itself() -> None:
    assert GIGA.prefix("document", Task(TASKS["similarity"].instruction)) == ""


def test_a_short_prefix_counts_as_a_prompt_only_where_it_is_whole() -> None:
    assert E5.begins("query: what", "query: ")
    assert not E5.begins("query what", "query: ")
    assert not E5.begins("anything", "")
    assert not PromptTemplate(query=" ").begins(" x", " ")
