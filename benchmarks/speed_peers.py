"""What else a user without a GPU would pick: ONNX Runtime and OpenVINO, on the same weights, texts and threads.

The graphs come from torch's exporter; int8 is ONNX Runtime's dynamic quantization. sentence-transformers' own onnx and
openvino backends need optimum, no version of which installs beside our transformers: they take part from another
environment.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.speed_models import PEER

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]
    Ids = NDArray[np.int64]

GRAPH, GRAPH_INT8 = "model.onnx", "model-int8.onnx"


class Graph:
    """A graph of the model behind a tokenizer: batches of texts, padded to their longest.

    Attributes:
        batch_size: texts per pass, of like length unless told to keep the order (fastembed's way).
    """

    batch_size = 32

    def __init__(self, folder: str, *, in_order: bool = False) -> None:
        from tokenizers import Tokenizer

        place = Path(folder)
        self.tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(_max_length(place))
        pooling = json.loads((place / "1_Pooling/config.json").read_text(encoding="utf-8"))
        self.cls = bool(pooling.get("pooling_mode_cls_token")) or pooling.get("pooling_mode") == "cls"
        self.in_order = in_order

    def run(self, ids: Ids, mask: Ids) -> Vectors:
        """Return token states [texts, longest, hidden]."""
        raise NotImplementedError

    def embed(self, texts: list[str]) -> Vectors:
        """Return unit vectors."""
        import numpy as np

        rows = [encoded.ids for encoded in self.tokenizer.encode_batch(texts)]
        order = list(range(len(rows))) if self.in_order else sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        pooled: dict[int, Any] = {}
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            ids = np.zeros((len(chosen), max(len(rows[i]) for i in chosen)), dtype=np.int64)
            mask = np.zeros_like(ids)
            for row, i in enumerate(chosen):
                ids[row, : len(rows[i])], mask[row, : len(rows[i])] = rows[i], 1
            states = self.run(ids, mask)
            means = states[:, 0] if self.cls else (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
            pooled |= dict(zip(chosen, means, strict=True))
        vectors = np.stack([pooled[i] for i in range(len(rows))])
        unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        return unit

    def query(self, text: str) -> Any:
        """Return the vector of one text."""
        return self.embed([text])

    def stats(self) -> dict[str, Any]:
        """Return what was chosen."""
        return {"batch_size": self.batch_size}


def onnx_session(file: Path) -> Any:
    """Return a graph in ONNX Runtime, on all cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def openvino_model(file: Path, precision: str) -> Any:
    """Return a graph in OpenVINO, on all cores."""
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": os.cpu_count() or 1,
    }  # fmt: skip
    return openvino.Core().compile_model(file, "CPU", settings)


class OnnxRuntime(Graph):
    """ONNX Runtime, all its graph optimisations on (its default)."""

    def __init__(self, folder: str, device: str, *, file: str = GRAPH, in_order: bool = False) -> None:
        super().__init__(folder, in_order=in_order)
        if in_order:
            self.batch_size = 256  # fastembed's default
        self.session = onnx_session(Path(folder) / file)

    def run(self, ids: Ids, mask: Ids) -> Vectors:
        states: Vectors = self.session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return states


class OpenVino(Graph):
    """OpenVINO on all cores, one request at a time."""

    def __init__(self, folder: str, device: str, *, precision: str) -> None:
        super().__init__(folder)
        self.model = openvino_model(Path(folder) / GRAPH, precision)

    def run(self, ids: Ids, mask: Ids) -> Vectors:
        states: Vectors = self.model([ids, mask])[0]
        return states


class SentenceTransformersGraph:
    """sentence-transformers with its onnx or openvino backend, in its defaults; optimum exports the graph."""

    batch_size = 32

    def __init__(self, folder: str, device: str, *, backend: Literal["onnx", "openvino"]) -> None:
        from sentence_transformers import SentenceTransformer

        self._place = tempfile.TemporaryDirectory()  # without our own graphs, which it would take for optimum's
        for file in Path(folder).iterdir():
            if file.name not in (GRAPH, GRAPH_INT8, f"{GRAPH}.data", PEER):
                (Path(self._place.name) / file.name).symlink_to(file)
        self.model = SentenceTransformer(self._place.name, device=device, backend=backend)

    def embed(self, texts: list[str]) -> Vectors:
        """Return unit vectors."""
        vectors: Vectors = self.model.encode(texts, batch_size=self.batch_size, normalize_embeddings=True)
        return vectors

    def query(self, text: str) -> Any:
        """Return the vector of one text."""
        return self.embed([text])

    def stats(self) -> dict[str, Any]:
        """Return what was chosen."""
        return {"batch_size": self.batch_size}


def _max_length(folder: Path) -> int:
    path = folder / "sentence_bert_config.json"
    length = json.loads(path.read_text(encoding="utf-8")).get("max_seq_length") if path.is_file() else None
    return length or int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"])


def export(folder: Path) -> None:
    """Write ``GRAPH`` and ``GRAPH_INT8`` beside a checkpoint's weights."""
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModel

    place = folder / PEER if (folder / PEER).is_dir() else folder
    model = AutoModel.from_pretrained(place, dtype=torch.float32, attn_implementation="sdpa").eval()

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return states

    ids = torch.randint(5, 1000, (2, 7))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    names = ("input_ids", "attention_mask")
    program = torch.onnx.export(
        States(), (ids, mask), input_names=names, output_names=("states",), dynamo=True, verbose=False,
        dynamic_shapes=dict.fromkeys(names, sizes),
    )  # fmt: skip
    assert program is not None
    program.save(folder / GRAPH)
    quantize_dynamic(folder / GRAPH, folder / GRAPH_INT8, weight_type=QuantType.QInt8)


def product_rates(hidden: int, intermediate: int) -> dict[str, dict[str, float]]:
    """Return operations/s of [rows, hidden] x [hidden, intermediate] by precision and library: the best of the rows."""
    import torch

    from twinvec.compute.linear import PackedInt8Linear, PackedLinear, product
    from twinvec.compute.quantization import Int8Linear

    layer = torch.nn.Linear(hidden, intermediate)
    packed, int8 = PackedLinear(layer), Int8Linear(layer)
    packed_int8, graph = PackedInt8Linear(int8), _product_graph(hidden, intermediate)
    onnxruntime_run, openvino_run = _graph_runs(graph)
    found: dict[str, dict[str, float]] = {"float32": {}, "int8": {}, "bfloat16": {}}
    with torch.inference_mode():
        for rows in (128, 512, 2048):
            x = torch.randn(rows, hidden)
            array, half = x.numpy(), (x.bfloat16(), layer.weight.bfloat16())
            integers = torch.randint(-127, 127, (rows, hidden), dtype=torch.int8)
            runs: list[tuple[str, str, Callable[[], object]]] = [
                ("float32", "torch", partial(layer, x)),
                ("float32", "torch, packed", partial(product, packed, x)),
                ("float32", "onnxruntime", partial(onnxruntime_run, array)),
                ("float32", "openvino", partial(openvino_run, array)),
                ("int8", "torch._int_mm", partial(torch._int_mm, integers, int8.weight.t())),
                ("int8", "torch, packed, with its scales", partial(product, packed_int8, x)),
                ("bfloat16", "torch", partial(torch.nn.functional.linear, *half)),
            ]
            for precision, library, run in runs:
                rate = 2 * rows * hidden * intermediate / _seconds(run)
                found[precision][library] = max(found[precision].get(library, 0.0), rate)
    return found


def _seconds(run: Callable[[], object]) -> float:
    run()
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _product_graph(hidden: int, intermediate: int) -> bytes:
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.random.default_rng(0).random((hidden, intermediate), np.float32), "w")
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])
        for name, width in (("x", hidden), ("y", intermediate))
    )
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "product", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    serialized: bytes = model.SerializeToString()
    return serialized


def _graph_runs(graph: bytes) -> Iterator[Callable[[Any], object]]:
    import onnxruntime
    import openvino

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    core = openvino.Core()
    model = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    yield lambda x: session.run(None, {"x": x})
    yield lambda x: model([x])


def main(arguments: Sequence[str]) -> None:
    """Export, in a process of its own: the exporter's memory is nobody's."""
    export(Path(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
