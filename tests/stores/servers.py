"""What tests of engines on a server share."""

from __future__ import annotations

import pytest

from stores.oracle import Row
from twinvec.errors import TwinVecError
from twinvec_stores import StoreConfig, open_store

CONFIG = StoreConfig(fingerprint="one", model="models/one", dim=4, idf=True, fields={"i": "integer", "kw": "keyword"})
ROWS = [Row(f"r{i}", f"text {i}", {"i": i, "kw": "even"[: 4 * (1 - i % 2)]}, sparse={i % 3: 1.0}) for i in range(5)]


def assert_is_not_repeated(url: str) -> None:
    """An address that cannot be read is refused, and neither its password "hunter2" nor "extra" is shown."""
    with pytest.raises(TwinVecError) as caught:
        open_store(url, CONFIG)
    for secret in ("hunter2", "extra"):
        assert secret not in f"{caught.value} {caught.value.__cause__!r}"
