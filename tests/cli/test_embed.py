"""`twinvec embed`: what goes in and what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.conftest import Run
from support import dense_of, sparse_of
from twinvec import Embedder, SparseBatch
from twinvec_cli import embed as embed_command

# what texts_file holds: no byte order mark, no line ends, nothing else stripped
LINES = ["hello world", "", "  Столица России\t", "what is python?"]


def rows(result: Any) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_arguments_to_json_lines(run: Run, gte: str) -> None:
    texts = ["hello world", "", "北京 hello hello"]
    found = rows(run("embed", gte, *texts, "--dtype", "float32", "--with-text"))
    with Embedder(gte, dtype="float32") as embedder:
        batch = embedder.embed_documents(texts)
    assert [row["index"] for row in found] == [0, 1, 2]
    assert [row["text"] for row in found] == texts
    assert [row["tokens"] for row in found] == batch.token_counts.tolist()
    assert [row["truncated"] for row in found] == [False] * 3
    # the decimal digits give back the very same float32
    np.testing.assert_array_equal(np.array([row["dense"] for row in found], dtype=np.float32), dense_of(batch))
    sparse = SparseBatch.from_dicts([{int(k): v for k, v in row["sparse"].items()} for row in found])
    np.testing.assert_array_equal(sparse.indices, sparse_of(batch).indices)
    np.testing.assert_array_equal(sparse.values, sparse_of(batch).values)


def test_file_and_stdin_are_read_alike(run: Run, bert: str, texts_file: Path) -> None:
    found = rows(run("embed", bert, "--input", texts_file, "--with-text"))
    assert [row["text"] for row in found] == LINES
    assert "sparse" not in found[0]
    piped = run("embed", bert, "-", "--with-text", stdin=texts_file.read_bytes())
    assert rows(piped) == found
    assert rows(run("embed", bert, "--input", "-", "--with-text", stdin=texts_file.read_bytes())) == found


@pytest.mark.parametrize(("name", "option"), [("a.jsonl", ()), ("a.data", ("--field", "body"))])
def test_json_lines_in(run: Run, bert: str, tmp_path: Path, name: str, option: tuple[str, ...]) -> None:
    field = "body" if option else "text"
    path = tmp_path / name
    path.write_text("".join(json.dumps({"_id": i, field: text}) + "\n\n" for i, text in enumerate(LINES)))
    found = rows(run("embed", bert, "--input", path, *option, "--with-text"))
    assert [row["text"] for row in found] == LINES


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"text": "a"}\n{"text": 3}\n', "line 2: the field 'text' must be a string, not int"),
        (b'{"body": "a"}\n', "line 1: no field 'text' (its fields: body); select another with --field"),
        (b"[1]\n", "line 1: no field 'text' (not an object)"),
        (b"{broken\n", "line 1: not JSON"),
        (b'{"text": "\xff"}\n', "line 1: not UTF-8"),
        (b'{"text": "a\\ud800"}\n', "texts[0] has a lone surrogate"),
    ],
)
def test_damaged_json_lines(run: Run, bert: str, tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "damaged.jsonl"
    path.write_bytes(content)
    result = run("embed", bert, "--input", path)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1


def test_npz(run: Run, gte: str, texts_file: Path, tmp_path: Path) -> None:
    result = run("embed", gte, "-i", texts_file, "-o", tmp_path / "out.npz", "--dim", "32", "--dtype", "float32")
    assert (result.exit_code, result.stdout) == (0, "")
    arrays = np.load(tmp_path / "out.npz")
    with Embedder(gte, dim=32, dtype="float32") as embedder:
        batch = embedder.embed_documents(LINES)
    np.testing.assert_array_equal(arrays["dense"], dense_of(batch))
    np.testing.assert_array_equal(arrays["token_counts"], batch.token_counts)
    np.testing.assert_array_equal(arrays["truncated"], batch.truncated)
    for name in ("indptr", "indices", "values"):
        np.testing.assert_array_equal(arrays[f"sparse_{name}"], getattr(sparse_of(batch), name))


def test_no_texts_at_all(run: Run, gte: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    assert rows(run("embed", gte, "-i", empty)) == []
    assert run("embed", gte, "-i", empty, "-o", tmp_path / "out.npz").exit_code == 0
    arrays = np.load(tmp_path / "out.npz")
    assert arrays["dense"].shape == (0, 64)
    assert arrays["sparse_indptr"].tolist() == [0]


@pytest.mark.parametrize("limit", ["_CHUNK_TEXTS", "_CHUNK_CHARACTERS"])
def test_chunks_do_not_show(run: Run, bert: str, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    texts = [f"text number {i}" for i in range(7)]
    whole = rows(run("embed", bert, *texts, "--dtype", "float32"))
    monkeypatch.setattr(embed_command, limit, 3)
    parts = rows(run("embed", bert, *texts, "--dtype", "float32"))
    assert [row["index"] for row in parts] == list(range(7))
    np.testing.assert_allclose([r["dense"] for r in parts], [r["dense"] for r in whole], atol=1e-5)


def test_truncation_is_one_line_over_all_chunks(run: Run, bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_command, "_CHUNK_TEXTS", 1)
    long = "hello " * 50
    result = run("embed", bert, "short", long, "short", long + "world")
    assert [row["truncated"] for row in rows(result)] == [False, True, False, True]
    assert result.stderr == "warning: 2 of 4 texts were cut at 32 tokens (first: index 1)\n"


def test_overflow_error_counts_over_all_chunks(run: Run, bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_command, "_CHUNK_TEXTS", 1)
    result = run("embed", bert, "short", "hello " * 50, "--on-overflow", "error")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: texts[1] has 202 tokens")


def test_role_and_prompt(run: Run, tmp_path: Path) -> None:
    from reference.sentence_layouts import build_multilingual_e5

    folder = build_multilingual_e5(tmp_path, with_prompts=True)
    with Embedder(folder, dtype="float32") as embedder:
        expected = {
            "query": dense_of(embedder.embed_queries(["hello"])),
            "document": dense_of(embedder.embed_documents(["hello"])),
        }
    assert np.abs(expected["query"] - expected["document"]).max() > 1e-3
    for role, vectors in expected.items():
        row = rows(run("embed", folder, "hello", "--role", role, "--dtype", "float32"))[0]
        np.testing.assert_allclose([row["dense"]], vectors, atol=1e-6)
    row = rows(run("embed", folder, "hello", "--prompt", "query: ", "--dtype", "float32"))[0]
    np.testing.assert_allclose([row["dense"]], expected["query"], atol=1e-6)


def test_sparse_choices(run: Run, bert: str, bge: str, splade: str) -> None:
    assert "sparse" in rows(run("embed", bge, "hello"))[0]
    assert "sparse" not in rows(run("embed", bge, "hello", "--sparse", "none"))[0]
    assert rows(run("embed", bert, "hello", "--sparse", splade))[0]["sparse"]
    only = rows(run("embed", splade, "hello"))[0]
    assert only["sparse"]
    assert "dense" not in only
    refused = run("embed", bert, "hello", "--sparse", "head")
    assert refused.exit_code == 2
    assert "has no lexical head" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["/nowhere/at/all", "a"], "error: /nowhere/at/all: no such folder"),
        (["MODEL"], "error: no texts"),
        (["MODEL", "a", "--input", "b"], "error: pass texts as arguments or with --input, not both"),
        (["MODEL", "a", "--field", "b"], "error: --field is for JSON lines"),
        (["MODEL", "--input", "/nowhere.txt"], "error: /nowhere.txt: No such file or directory"),
        (["MODEL", "--input", "/"], "error: /: Is a directory"),
        (["MODEL", "a", "--output", "vectors.csv"], "error: --output vectors.csv: the name must end in"),
        (["MODEL", "a", "--output", "/nowhere/a.npz"], "error: --output /nowhere/a.npz: the folder /nowhere does not"),
        (["MODEL", "a", "--dim", "8"], "error: dim=8: "),
        (["MODEL", "a", "--task", "Find it"], "error: this model was not trained with instructions"),
        (["MODEL", "a", "--device", "abacus"], "error: device='abacus' is not a device"),
        (["MODEL", "a", "--role", "reader"], "'reader' is not one of"),
        (["MODEL", "a", "--dtype", "int3"], "'int3' is not one of"),
    ],
)
def test_refusals(run: Run, bert: str, arguments: list[str], reason: str) -> None:
    result = run("embed", *(bert if a == "MODEL" else a for a in arguments))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert reason in result.stderr
    assert "Traceback" not in result.stderr
