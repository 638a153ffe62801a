"""Several devices share one queue."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.fakes import Forward, core_of, replace_forward
from support import dense_of
from twinvec import Embedder


def test_replicas_share_one_queue_and_the_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Embedder(folder, device="cpu,cpu", dtype="float32", memo_bytes=0, token_budget=16) as embedder:
        encoders = core_of(embedder).model.encoders
        assert len(encoders) == 2
        assert encoders[0].backbone is encoders[1].backbone
        both = threading.Barrier(2)

        def together(forward: Forward) -> Forward:
            def run(batch: Any) -> Any:
                both.wait(60)  # passes only when both devices work at the same time
                return forward(batch)

            return run

        with monkeypatch.context() as patch:
            replace_forward(embedder, patch, together)
            batch = embedder.embed_documents(["one two three four", "five six seven eight"])
        with Embedder(folder, dtype="float32", memo_bytes=0) as single:
            wanted = single.embed_documents(["one two three four", "five six seven eight"])
        np.testing.assert_allclose(dense_of(batch), dense_of(wanted), atol=1e-5)
        assert all(encoder.forwards == 1 for encoder in encoders)


def test_a_failing_replica_is_taken_out_and_its_work_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Embedder(folder, device="cpu,cpu", dtype="float32", memo_bytes=0, token_budget=16) as embedder:
        first, second = core_of(embedder).model.encoders

        def lost(*args: Any) -> Any:
            raise RuntimeError("CUDA error: device lost")

        monkeypatch.setattr(first, "start", lambda texts: lost)
        batch = embedder.embed_documents([f"text number {i}" for i in range(40)])
        while embedder.stats()["failures"] == 0:  # the healthy one may have been faster
            batch = embedder.embed_documents([f"text number {i}" for i in range(40)])
        assert len(batch) == 40
        assert embedder.healthy
        assert second.forwards > 0
        assert "was removed, 1 devices continue" in caplog.text
