"""Processes killed with signal 9; tests/kill_ingest.py does it on a larger scale."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from kill_ingest import rounds


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no fork server")
@pytest.mark.parametrize("engine", ["embedded", "postgres"])
def test_kill_9_loses_and_doubles_nothing(engine: str, tmp_path: Path) -> None:
    told = list(rounds(tmp_path, documents=600, kills=2, rng=random.Random(9), batch_size=25, engine=engine))
    assert sum("killed in operation" in line for line in told) >= 2
    assert [line for line in told if "records are equal" in line]
