"""One model on one device: token batches in, vectors out, and recovery when memory runs out.

Nothing else touches the device. A batch is started and finished in two steps, so that a device that works by itself
gets the next one before the results of the last are read.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from twinvec.compute.attention import choose_attention
from twinvec.compute.backbone import Backbone
from twinvec.compute.graphs import Graphs, Outputs
from twinvec.compute.heads import TokenWeightHead
from twinvec.compute.kernels import use_triton
from twinvec.compute.linear import linear_in_use
from twinvec.compute.packing import TokenBatch, plan
from twinvec.compute.pooling import pool, reduce_token_weights, reduce_vocabulary_weights
from twinvec.compute.quantization import Int8Linear
from twinvec.errors import NonFiniteError, OutOfMemoryError
from twinvec.text.tokenizer import TokenizedText
from twinvec.vectors import Bool, Float32, Int64, SparseBatch

if TYPE_CHECKING:
    from twinvec.families import Description

logger = logging.getLogger(__name__)

_CPU_BUDGET = 1024  # at the full rate; a query that comes meanwhile waits for half as long as with 2048
_CUDA_BUDGETS = (4096, 16384)  # the products are at full speed from the first, and queries wait too long from the last
_CUDA_FLOPS = 2e13  # of a batch: some 40 ms on an H100; larger models get fewer tokens
_PROBE = 2048  # tokens of the batch that tells how much memory a token takes
_PROBE_TEXT = 256
_CALM = 256  # passes without running out of memory after which a lowered budget is doubled
_LOGIT_BYTES = 2**28  # a masked language model makes a row of the whole vocabulary per token
_CPU_OOM = ("can't allocate memory", "not enough memory", "out of memory")


@dataclass(frozen=True)
class Encoded:
    """Rows of one batch, on the host, before a caller's dims and keys are applied.

    Attributes:
        dense: float32 [texts, all dims], not normalised; None for a model that is only sparse.
        sparse: by token id; None for a model without a sparse half.
    """

    dense: Float32 | None
    sparse: SparseBatch | None


@dataclass(eq=False)
class Flight:
    """A batch on its way through the device.

    Attributes:
        texts: what it holds.
        positions: where an error finds each text in its caller's list.
        started: when, by the monotonic clock.
        batch: as packed, on the host; None where it was not launched.
        outputs: dense rows and sparse weights, on the host once ``ready``.
        ready: recorded behind the copies to the host; None where they are there already.
        no_memory: why it did not fit.
        failure: what else went wrong.
    """

    texts: Sequence[TokenizedText]
    positions: Sequence[int]
    started: float = field(default_factory=time.monotonic)
    batch: TokenBatch | None = None
    outputs: Outputs = (None, None)
    ready: torch.cuda.Event | None = None
    no_memory: str | None = None
    failure: BaseException | None = None


class Encoder:
    """A loaded model on its device.

    Attributes:
        token_budget: tokens per forward pass; falls when memory runs out.
        forwards, texts, tokens, out_of_memory, seconds: counters; seconds of forward passes, overlaps once.
        attention: the packed attention in use, or "padded".
        kernels: "triton" or "torch": what runs between the matrix products.
        linear: how most of them run: "packed", "packed int8", "int8" or "torch" (``linear``).
        predicted_memory: bytes that torch will hold at most, as far as a measured probe tells; 0 on a CPU.
    """

    def __init__(
        self,
        backbone: Backbone,
        description: Description,
        *,
        device: torch.device,
        dtype: torch.dtype,
        dense_layers: torch.nn.Module,
        head: TokenWeightHead | None,
        token_budget: int | None,
        id_keys: Int64,
    ) -> None:
        self.device, self.dtype = device, dtype
        self.description = description
        self._id_keys = id_keys
        self._backbone = backbone.to(device).eval()
        self._dense_layers = dense_layers.to(device).eval()
        self._head = head.to(device).eval() if head is not None else None
        self.attention = choose_attention(device, dtype) if backbone.packed else "padded"
        if backbone.packed:
            backbone.use_attention(self.attention)
        self.kernels = "triton" if use_triton(device) else "torch"
        self.linear = linear_in_use(backbone)
        self.forwards = self.texts = self.tokens = self.out_of_memory = 0
        self.predicted_memory = self._calm = 0
        self.seconds = self._finished = 0.0
        self._graphs: Graphs | None = None
        self.token_budget = token_budget or _CPU_BUDGET
        if device.type == "cuda":
            self._warm_up(token_budget)
        elif backbone.output == "logits":
            self.token_budget = min(self.token_budget, max(_LOGIT_BYTES // (4 * len(id_keys)), 1))
        self._full_budget = self.token_budget

    @property
    def asynchronous(self) -> bool:
        """Return whether ``start`` returns before the work is done."""
        return self.device.type == "cuda"

    @property
    def graphs(self) -> int:
        """Return how many sizes of small batches are replayed as CUDA graphs."""
        return len(self._graphs) if self._graphs is not None else 0

    def start(self, texts: Sequence[TokenizedText], positions: Sequence[int]) -> Flight:
        """Send one batch to the device; whatever fails is raised by ``finish``.

        Args:
            texts: not empty.
            positions: where an error finds each text in its caller's list.
        """
        flight = Flight(texts, positions)
        try:
            self._launch(flight, TokenBatch.pack(texts))
        except BaseException as error:
            if _is_out_of_memory(error):  # without the traceback, which would keep the pass's tensors alive
                flight.no_memory = str(error).partition("\n")[0]
            else:
                flight.failure = error
        return flight

    def finish(self, flight: Flight) -> Encoded:
        """Wait for a batch; when memory ran out, halve it and try again.

        Raises:
            OutOfMemoryError: a single text does not fit.
            NonFiniteError: the model returned NaN or infinity.
        """
        try:
            if flight.failure is not None:
                raise flight.failure
            if flight.ready is not None:
                flight.ready.synchronize()
        finally:
            now = time.monotonic()
            self.seconds += now - max(flight.started, self._finished)
            self._finished = now
        if flight.batch is None:
            return self._encode_parts(flight)
        encoded = self._read(flight, flight.batch)
        self._recover()
        return encoded

    def encode(self, texts: Sequence[TokenizedText], positions: Sequence[int]) -> Encoded:
        """Start and finish one batch."""
        return self.finish(self.start(texts, positions))

    def _encode_parts(self, flight: Flight) -> Encoded:
        texts, positions = flight.texts, flight.positions
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.out_of_memory += 1
        self._calm = 0
        tokens = sum(len(t.ids) for t in texts)
        if len(texts) == 1:
            raise OutOfMemoryError(
                f"alone ({tokens} tokens) does not fit into the memory of {self.device}: lower max_length, split the "
                f"text, or use a device with more memory. ({flight.no_memory})",
                position=positions[0],
            )
        self.token_budget = max(min(self.token_budget, tokens) // 2, 1)
        logger.warning("out of memory at %d tokens on %s; token budget now %d", tokens, self.device, self.token_budget)
        batches = plan([len(t.ids) for t in texts], self.token_budget)
        parts = [self.encode([texts[i] for i in b], [positions[i] for i in b]) for b in batches]
        order = np.argsort([i for b in batches for i in b])
        dense = [p.dense for p in parts if p.dense is not None]
        sparse = [p.sparse for p in parts if p.sparse is not None]
        return Encoded(
            dense=np.concatenate(dense)[order] if dense else None,
            sparse=SparseBatch.stack(sparse)[order] if sparse else None,
        )

    def _recover(self) -> None:
        """Win a lowered budget back step by step: what took the memory may be gone."""
        self._calm += 1
        if self._calm % _CALM == 0 and self.token_budget < self._full_budget:
            self.token_budget = min(2 * self.token_budget, self._full_budget)

    def memory(self) -> int:
        """Return the bytes that torch holds on a CUDA device; 0 elsewhere."""
        return torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else 0

    @property
    def backbone(self) -> Backbone:
        """Return the model, for ``verify``."""
        return self._backbone

    # --- on the device

    @torch.inference_mode()
    def _launch(self, flight: Flight, batch: TokenBatch) -> None:
        with self._current():
            outputs = self._graphs.replay(batch) if self._graphs is not None else None
            if outputs is None:
                outputs = self._forward(batch.to(self.device))
            flight.outputs = (_to_host(outputs[0]), _to_host(outputs[1]))
            if self.device.type == "cuda":
                flight.ready = torch.cuda.Event()
                flight.ready.record()
        flight.batch = batch
        self.forwards += 1
        self.texts += len(batch.lengths)
        self.tokens += batch.n_tokens

    def _forward(self, batch: TokenBatch) -> Outputs:
        """Return dense rows [texts, dim], and weights per token [tokens] or per vocabulary entry [texts, vocabulary].

        With ``graphs`` everything here only queues work for the device.
        """
        output = self._backbone(batch)
        dense = self._dense(output, batch) if self.description.dim is not None else None
        if self._head is not None:
            return dense, self._head(output)
        if self._backbone.output != "logits":
            return dense, None
        parts = output[:, : len(self._id_keys)].split(list(batch.lengths))
        # log1p(relu(x)) rises with x, so the maximum may come first
        return dense, torch.log1p(F.relu(torch.stack([part.amax(0) for part in parts]).float()))

    def _dense(self, output: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        if self._backbone.output == "pooled":
            pooled = output.float()
        else:
            pooled = pool(output, batch, self.description.pooling, self.description.include_prompt)
        vectors: torch.Tensor = self._dense_layers(pooled)[:, : self.description.dim]
        return vectors

    def _current(self) -> contextlib.AbstractContextManager[object]:
        """Make the device the thread's own: events and Triton go where the thread is."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    # --- on the host

    def _read(self, flight: Flight, batch: TokenBatch) -> Encoded:
        dense, weights = flight.outputs
        rows = None
        if dense is not None:
            rows = dense.numpy()
            self._check(np.isfinite(rows).all(axis=1), flight.positions)
        if weights is None:
            return Encoded(rows, None)
        values = weights.numpy()
        if self._head is None:
            self._check(np.isfinite(values).all(axis=1), flight.positions)
            return Encoded(rows, reduce_vocabulary_weights(values, self._id_keys[: values.shape[1]]))
        self._check(np.isfinite(np.add.reduceat(values, batch.cu_seqlens[:-1].numpy())), flight.positions)
        # a prompt's words say nothing about the text
        values[batch.position_ids.numpy() < np.repeat(batch.prompt_lengths, batch.lengths)] = 0
        return Encoded(rows, reduce_token_weights(values, batch.input_ids.numpy(), batch.lengths, self._id_keys))

    def _check(self, finite: Bool, positions: Sequence[int]) -> None:
        if not finite.all():
            raise NonFiniteError(
                f"got NaN or infinity from the model in {self.dtype}: use dtype='float32' or 'bfloat16', or check the "
                "weights",
                position=positions[int(np.argmin(finite))],
            )

    # --- once, at the start, on CUDA

    def _warm_up(self, token_budget: int | None) -> None:
        """Build kernels, measure what a token takes, choose the budget by it, and record graphs of small batches."""
        try:
            small, large = self._peak(_PROBE // 2), self._peak(_PROBE)
            per_token = max(large - small, 1) / (_PROBE - _PROBE // 2)
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            self.token_budget = token_budget or _PROBE // 4
            logger.warning("%s has hardly any memory left beside the model; token budget %d", self.device, _PROBE // 4)
            return
        with self._current():
            free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
            self.token_budget = token_budget or choose_budget(free, per_token, _matrix_weights(self._backbone))
            longest = max(self.token_budget, self.description.max_length)
            self.predicted_memory = int(torch.cuda.memory_allocated() + longest * per_token)
            if self.attention in ("varlen", "flash") and self._backbone.output == "states":
                self._record_graphs()

    @torch.inference_mode()
    def _peak(self, tokens: int) -> int:
        """Return the bytes that one batch takes at most beside the model."""
        length = min(_PROBE_TEXT, self.description.max_length)
        ids = np.zeros(length, dtype=np.int32)
        batch = TokenBatch.pack([TokenizedText(ids, 0, length)] * max(tokens // length, 1))
        with self._current():
            self._forward(batch.to(self.device))  # what is built once does not count
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self._forward(batch.to(self.device))
            torch.cuda.synchronize()
            return int(torch.cuda.max_memory_allocated() - before)

    def _record_graphs(self) -> None:
        if not self.description.include_prompt:
            return  # pooling then needs the prompts' lengths from the host
        graphs = Graphs(self._forward, self.device, self.description.position_limit)
        try:
            with torch.inference_mode():
                graphs.record()
        except Exception as error:  # the same passes run without them, with more work for the host
            torch.cuda.empty_cache()
            logger.warning("%s: no CUDA graphs of this model: %s", self.device, error)
            return
        self._graphs = graphs


def choose_budget(free: int, bytes_per_token: float, weights: int) -> int:
    """Return the tokens of a batch on a CUDA device.

    Args:
        free: bytes beside the model.
        bytes_per_token: what a token takes at most while the batch runs.
        weights: of matrices that every token is multiplied with.
    """
    least, most = _CUDA_BUDGETS
    wanted = min(max(int(_CUDA_FLOPS / (2 * max(weights, 1))), least), most)
    return max(min(wanted, int(0.8 * free / bytes_per_token)), 1)


def _matrix_weights(module: torch.nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, (torch.nn.Linear, Int8Linear)))


def _to_host(rows: torch.Tensor | None) -> torch.Tensor | None:
    if rows is None or rows.device.type == "cpu":
        return rows
    return torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(rows, non_blocking=True)


def is_device_lost(error: BaseException) -> bool:
    """Return whether an error means that the device answers no more calls."""
    if isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in str(error):
        return not _is_out_of_memory(error)
    return False


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(sign in str(error) for sign in _CPU_OOM)
