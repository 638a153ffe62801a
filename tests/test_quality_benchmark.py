"""benchmarks/quality.py: shares are chosen by one half of the questions, and measured on the other."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from reference.gte import build_gte
from twinvec_stores.evaluation import read_questions, split

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import quality


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    folder = tmp_path / "list-en"
    (folder / "qrels").mkdir(parents=True)
    subjects = ["sort", "read a file", "open a socket", "parse dates", "count words"]
    rows = [{"_id": f"d{i}", "title": "", "text": f"{subjects[i % 5]}, step {i} of the list"} for i in range(60)]
    asked = [{"_id": f"q{i}", "text": f"{subjects[i % 5]} {i}"} for i in range(50)]
    for name, lines in (("corpus", rows), ("queries", asked)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    judged = [f"q{i}\td{i}\t1" for i in range(50)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]), encoding="utf-8")
    return folder


def test_a_tiny_run(collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_gte(tmp_path / "gte", dtype="float32")
    options = ["--model", str(model), "--sparse", "head=head", "--sparse", "BM25=bm25", "--questions", "44"]
    output = tmp_path / "out.json"
    options += ["--documents", "50", "--output", str(output), str(collection)]
    monkeypatch.setattr(sys, "argv", ["quality.py", *options])
    monkeypatch.setattr(quality, "BY_SHARE", {share: quality.BY_SHARE[share] for share in ("0.1", "0.25", "0.5")})
    quality.main()
    facts = json.loads(output.read_text(encoding="utf-8"))
    assert set(facts["kinds"]) == {"head", "BM25"}
    for kind in facts["kinds"].values():
        (found,) = kind["collections"]
        assert (found["documents"], found["queries"]) == (50, 22)
        assert kind["tuning"] == found["tuning"]
        assert kind["tuning"][kind["best"]] == max(kind["tuning"].values())
        gain = found["ndcg"]["hybrid"] - found["ndcg"][found["better half"]]
        assert found["gain"]["difference"] == pytest.approx(gain)
        gain = found["ndcg"][facts["common"]] - found["ndcg"][found["better half"]]
        assert found["gain of common"]["difference"] == pytest.approx(gain)
        assert kind["best minus common"]["difference"] == pytest.approx(
            found["ndcg"][kind["best"]] - found["ndcg"][facts["common"]]
        )
    both = [sum(kind["tuning"][share] for kind in facts["kinds"].values()) for share in quality.BY_SHARE]
    assert both[list(quality.BY_SHARE).index(facts["common"])] == pytest.approx(max(both))


def test_a_sample_has_the_relevant_documents(collection: Path) -> None:
    documents, questions = quality.sample(collection, 44, 50)
    assert (len(documents), len(questions.asked)) == (50, 44)
    assert set(questions.documents) <= set(documents)
    again, _ = quality.sample(collection, 44, 50)
    assert list(again) == list(documents)
    tuning, held_back = split(questions)
    assert not set(tuning) & set(held_back)
    assert quality.sample(collection, None, None)[1].texts == read_questions(collection).texts
