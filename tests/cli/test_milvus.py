"""Commands on stores on a Milvus server, whose password they never print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.conftest import Run
from stores import milvus
from stores.embedded import contents, filled
from twinvec_stores import EmbeddedStore, open_store


def test_a_store_from_its_first_text_to_its_export(run: Run, gte: str, tmp_path: Path) -> None:
    texts = {"sort": "sort a list in python", "paris": "Paris is the capital of France", "old": "an old text"}
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": id, "text": text}) + "\n" for id, text in texts.items()))
    address = milvus.url().replace("://", "://user:hunter2@")
    place = (address, "--collection", milvus.new_name())
    printed = []

    def done(*arguments: object) -> str:
        result = run(*arguments)
        assert result.exit_code == 0, result.stderr
        printed.append(result.stdout + result.stderr)
        return str(result.stdout)

    done("ingest", rows, "--store", *place, "--model", gte)
    found = json.loads(done("search", *place, texts["sort"], "--json", "-k", 1))
    assert [result["id"] for result in found["results"]] == ["sort"]
    judged = tmp_path / "judged.jsonl"
    judged.write_text("".join(json.dumps({"query": text, "relevant": [id]}) + "\n" for id, text in texts.items()))
    done("eval", *place, "--queries", judged)
    done("store", "optimize", *place)
    assert json.loads(done("store", "info", *place, "--json"))["engine"] == "milvus"
    assert "3 of 3 records read: intact" in done("store", "verify", *place)
    done("store", "export", address, tmp_path / "file.jsonl.gz", *place[1:])
    assert "has 3" in done("store", "import", tmp_path / "file.jsonl.gz", address, "--collection", milvus.new_name())
    failed = run("search", "milvus://app:hunter2@localhost:1/db", "text")
    assert failed.exit_code != 0
    assert "localhost:1/db" in failed.stderr.replace("\n", "")
    assert "hunter2" not in "".join(printed) + failed.stderr


@pytest.mark.slow
def test_copies_to_a_server_and_back_are_the_same(run: Run, tmp_path: Path) -> None:
    filled(tmp_path / "index").close()
    address, name = milvus.url(), milvus.new_name()
    result = run("store", "copy", tmp_path / "index", address, "--to-collection", name)
    assert (result.exit_code, result.stderr) == (0, "")
    result = run("store", "copy", address, tmp_path / "back", "--collection", name)
    assert (result.exit_code, result.stderr) == (0, "")
    with (
        EmbeddedStore(tmp_path / "index") as one,
        EmbeddedStore(tmp_path / "back") as two,
        open_store(address, collection=name) as server,
    ):
        assert contents(one) == contents(server) == contents(two)
        assert one.config == server.config == two.config
