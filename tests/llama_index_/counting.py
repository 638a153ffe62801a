"""How much a model has computed since."""

from __future__ import annotations

from twinvec import BaseEmbedder


class Counter:
    """Forward passes and texts from now on."""

    def __init__(self, embedder: BaseEmbedder) -> None:
        self._embedder = embedder
        self._before = self._now()

    def _now(self) -> tuple[int, int]:
        stats = self._embedder.stats()
        return stats["forwards"], stats["texts"]

    @property
    def forwards(self) -> int:
        return self._now()[0] - self._before[0]

    @property
    def texts(self) -> int:
        return self._now()[1] - self._before[1]
