"""Commands on stores in PostgreSQL, whose password they never print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.conftest import Run
from stores import postgres
from twinvec_cli.opening import searched
from twinvec_cli.serve import _started

QUESTIONS = {"q1": "sort a list", "q2": "capital of France"}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    texts = {"sort": "sort a list in python", "paris": "Paris is the capital of France", "old": "an old text"}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": id, "text": text}) + "\n" for id, text in texts.items()))
    return path


def test_a_store_from_its_first_text_to_its_export(run: Run, gte: str, rows: Path, tmp_path: Path) -> None:
    address = postgres.url().replace("postgres:@", "postgres:hunter2@")
    place = (address, "--collection", postgres.new_name())
    printed = []

    def done(*arguments: object) -> str:
        result = run(*arguments)
        assert result.exit_code == 0, result.stderr
        printed.append(result.stdout + result.stderr)
        return str(result.stdout)

    done("ingest", rows, "--store", *place, "--model", gte)
    found = json.loads(done("search", *place, "sort a list in python", "--json", "-k", 1))
    assert [result["id"] for result in found["results"]] == ["sort"]
    judged = tmp_path / "judged.jsonl"
    lines = [
        {"id": id, "text": text, "relevant": ["sort" if id == "q1" else "paris"]} for id, text in QUESTIONS.items()
    ]
    judged.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = tmp_path / "report.html"
    done("eval", *place, "--queries", judged, "--html", report)
    printed.append(report.read_text(encoding="utf-8"))
    done("store", "optimize", *place)
    assert json.loads(done("store", "info", *place, "--json"))["has_graph"] is True
    done("store", "reset-search", *place)
    assert "3 of 3 records read: intact" in done("store", "verify", *place)
    done("store", "export", address, tmp_path / "file.jsonl.gz", *place[1:])
    other = (address, "--collection", postgres.new_name())
    assert "has 3" in done("store", "import", tmp_path / "file.jsonl.gz", *other)
    with searched(address, collection=place[2]) as index:
        assert index.search("capital of France", k=1)[0].record.id == "paris"
    failed = run("search", "postgresql://app:hunter2@localhost:1/db", "text")
    assert failed.exit_code != 0
    assert "localhost:1/db" in failed.stderr.replace("\n", "")
    assert "hunter2" not in "".join(printed) + failed.stderr


def test_a_server_does_not_show_the_password(capsys: pytest.CaptureFixture[str]) -> None:
    _started(["model"], "postgresql://app:hunter2@host/db")("http://127.0.0.1:8000")
    shown = capsys.readouterr().err
    assert "postgresql://host/db" in shown, "a user may be a token"
    assert "hunter2" not in shown
