"""Processes killed with signal 9; tests/kill_ingest.py and tests/kill_reembed.py do it on a larger scale."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

import kill_ingest
import kill_reembed

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="no fork server")]


@pytest.mark.parametrize("engine", ["embedded", "postgres"])
def test_kill_9_loses_and_doubles_nothing(engine: str, tmp_path: Path) -> None:
    told = list(kill_ingest.rounds(tmp_path, 600, 2, random.Random(9), batch_size=25, engine=engine))
    assert sum("killed in operation" in line for line in told) >= 2
    assert [line for line in told if "records are equal" in line]


@pytest.mark.parametrize("engine", ["embedded", "postgres", "qdrant"])
def test_a_killed_reembedding_ends_equal_and_no_reader_sees_a_mixture(engine: str, tmp_path: Path) -> None:
    told = list(kill_reembed.rounds(tmp_path, 200, 2, random.Random(9), page=10, engine=engine))
    assert sum("killed in operation" in line for line in told) >= 2
    assert sum("records are equal" in line for line in told) == 2
