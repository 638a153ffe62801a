"""`twinvec ingest --watch`: a process that follows a folder until it is interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Run
from twinvec_stores import EmbeddedStore

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGINT")


def test_a_folder_is_followed(bert: str, tmp_path: Path) -> None:
    """Each line of the report is one round: what changed, came and went is in the store after it."""
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_text("apple")
    (folder / "b.txt").write_text("fig")
    index = folder / "index"  # a store within the folder does not set the next round off
    command = [sys.executable, "-c", "from twinvec_cli.main import run; run()", "ingest", str(folder)]
    options = ["--store", str(index), "--model", bert, "--sparse", "bm25", "--watch", "--prune", "--json"]
    process = subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "WATCHFILES_FORCE_POLLING": "0"},
    )
    assert process.stdout is not None

    def round_with(**counts: int) -> dict[str, Any]:
        """Wait for the round that says so: a change may take two, of which one has nothing to do."""
        while True:
            report: dict[str, Any] = json.loads(process.stdout.readline())  # type: ignore[union-attr]
            if counts.items() <= report.items():
                return report

    try:
        round_with(new=2)
        (folder / "c.txt").write_text("plum")
        round_with(new=1)
        (folder / "a.txt").unlink()
        round_with(unchanged=2, deleted=1)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert "Traceback" not in err
    with EmbeddedStore(index) as store:
        assert sorted(r.id for page in store.scroll_all() for r in page) == ["b.txt", "c.txt"]


@pytest.mark.parametrize("source", ["s3://bucket/docs", "{}/a.txt", "{}/none"])
def test_only_folders_here_are_watched(run: Run, bert: str, tmp_path: Path, source: str) -> None:
    (tmp_path / "a.txt").write_text("apple")
    store = tmp_path / "index"
    done = run("ingest", source.format(tmp_path), "--store", store, "--model", bert, "--sparse", "bm25", "--watch")
    assert done.exit_code == 2, done.output
    assert "--watch is for folders" in " ".join(done.stderr.split())
