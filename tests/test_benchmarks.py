"""The benchmark runs from end to end on tiny models, and what goes wrong in a part of it stays there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.speed_models import MODELS, REPOSITORY, answers, count, mixed, of_lengths, train_tokenizer
from benchmarks.speed_sections import BEST, OURS, OURS_SPARSE, SECTIONS, plan
from benchmarks.speed_work import Contestant, running


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer()


def test_models_have_the_published_sizes() -> None:
    assert MODELS["giga-480m"].parameters == pytest.approx(480e6, rel=0.01)
    assert MODELS["giga-3b"].parameters == pytest.approx(3.15e9, rel=0.01)
    gte = MODELS["gte-base"]
    by_hand = 12 * (2 * 100 * (4 * 768 * 768 + 3 * 768 * 3072) + 4 * 100 * 100 * 768)
    assert gte.flops([100, 100]) == 2 * by_hand


def test_texts_have_the_lengths_that_were_asked_for(tokenizer: Tokenizer) -> None:
    texts = of_lengths([128] * 20 + [8, 9, 512], tokenizer)
    assert [len(tokenizer.encode(text).ids) for text in texts] == [128] * 20 + [8, 9, 512]
    assert len(set(texts)) == 23


def test_mixed_texts_are_different_and_as_long_as_answers(tokenizer: Tokenizer) -> None:
    texts = mixed(400)
    assert len(set(texts)) == 400
    mean = sum(count(texts, tokenizer)) / 400
    assert mean == pytest.approx(sum(count(answers(), tokenizer)) / len(answers()), rel=0.2)


def test_every_section_is_planned_and_the_first_model_comes_first() -> None:
    planned = plan(list(MODELS))
    assert {section for section, _ in planned} == set(SECTIONS)
    assert planned[:2] == [("limit", "gte-base"), ("throughput", "gte-base")]
    assert {model for section, model in planned if section == "throughput"} == set(MODELS)


def test_a_contestant_that_cannot_be_loaded_is_noted(tmp_path: Path) -> None:
    errors: dict[str, str] = {}
    missing = Contestant("missing", "twinvec", "float32")
    with running([missing], tmp_path, "cpu", lambda: None, errors) as handles:
        assert not handles
    assert "CheckpointNotFoundError" in errors["missing"]


def test_a_contestant_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    errors: dict[str, str] = {}
    with running([Contestant("slow", "twinvec", "float32")], tmp_path, "cpu", lambda: 0.0, errors) as handles:
        assert not handles
    assert "did not answer" in errors["slow"]


def run(output: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(REPOSITORY / "benchmarks/throughput.py"), "--tiny", "--output", str(output)]
    subprocess.run([*command, "--device", "cpu", *arguments], check=True, capture_output=True, timeout=900)
    report: dict[str, Any] = json.loads((output / "throughput-cpu.json").read_text(encoding="utf-8"))
    return report


def test_a_run_without_time_says_what_it_left_out(tmp_path: Path) -> None:
    report = run(tmp_path, "--minutes", "0")
    assert {section["status"] for section in report["sections"].values()} == {"skipped: the time is up"}
    assert {target["met"] for target in report["targets"]} == {None}


@pytest.mark.slow
def test_a_tiny_run_measures_everything(tmp_path: Path) -> None:
    report = run(tmp_path, "--models", "gte-base", "--only", "TwinVec bf16", "best", "alone")
    sections = {key.split()[0]: section for key, section in report["sections"].items()}
    assert set(sections) == set(SECTIONS)
    assert {section["status"] for section in sections.values()} == {"done"}, sections
    result = {name: section["result"] for name, section in sections.items()}
    for name, measured in result.items():
        assert not measured.get("errors") or name == "int8", measured["errors"]
    rows = {(row["name"], row["profile"]) for row in result["throughput"]["rows"]}
    assert rows >= {(OURS, "mixed"), (OURS, "128"), (OURS, "512"), (OURS_SPARSE, "mixed"), (BEST, "mixed")}
    assert all(row["memory"]["peak_rss"] > 0 for row in result["throughput"]["rows"])
    assert all(row["p95"] >= row["p50"] > 0 for row in result["latency"]["rows"])
    assert {row["name"] for row in result["host"]["rows"]} == {"dense", "dense + sparse", "tokenizer alone"}
    assert result["deviation"]["TwinVec bf16, reproducible"]["bitwise"]
    assert [row["name"] for row in result["first"]["rows"]] == ["twinvec", "sentence-transformers"]
    assert (tmp_path / "throughput-cpu.png").stat().st_size > 0
    assert "target" in (tmp_path / "throughput-cpu.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_peers_of_a_cpu_compute_the_same(tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript", "openvino"):
        pytest.importorskip(package)
    command = [
        sys.executable,
        str(REPOSITORY / "benchmarks/cpu.py"),
        "--tiny",
        "--repeats",
        "1",
        "--output",
        str(tmp_path),
    ]
    subprocess.run([*command, "--models", "bert-base"], check=True, capture_output=True, timeout=300)
    report: dict[str, Any] = json.loads((tmp_path / "peers-cpu.json").read_text(encoding="utf-8"))
    found = report["models"]["bert-base"]
    assert found["errors"] == {}
    assert {name.split(",")[0] for name in found["rows"]} >= {
        "TwinVec fp32", "ONNX Runtime fp32", "OpenVINO fp32", "TwinVec int8", "ONNX Runtime int8",
    }  # fmt: skip
    for row in found["rows"].values():
        assert row["min_cosine"] > (0.99999 if row["precision"] == "float32" else 0.99)
    assert "TwinVec int8" in (tmp_path / "peers-cpu.txt").read_text(encoding="utf-8")
