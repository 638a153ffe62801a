"""schemathesis over the OpenAPI document of a real server: for ``make fuzz-server``; the suite has ``test_fuzz``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.test_running import Running
from twinvec import Embedder
from twinvec.server import Limits
from twinvec_stores import HybridIndex, MemoryStore, StoreConfig
from twinvec_stores.serving import search_extension

EXAMPLES = int(os.environ.get("TWINVEC_FUZZ", "0"))
# 504: the deadline that a body asks for, which may be any
SETTINGS = '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "3xx", "4xx", "504"]\n'
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.skipif(not EXAMPLES, reason="takes minutes: make fuzz-server")
def test_the_server_is_what_its_document_says(gte: Embedder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    index = HybridIndex(gte, MemoryStore(StoreConfig.for_embedder(gte)))
    index.add(["a text", "столица России"], metadata=[{"lang": "en"}, {"lang": "ru"}])
    limits = Limits(max_texts=16, unready_seconds=0)
    server = Running(gte, monkeypatch, extension=search_extension(index), limits=limits)
    (tmp_path / "schemathesis.toml").write_text(SETTINGS, "utf-8")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--checks", CHECKS]
    options = ["--max-examples", str(max(EXAMPLES // 50, 1)), "--seed", "1", "--no-color", "--continue-on-failure"]
    try:
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, cwd=tmp_path, check=False, encoding="utf-8"
        )
    finally:
        server.stop()
        server.thread.join(60)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
