"""One model on one device: token batches in, vectors out.

Nothing else touches the device. A batch is started and finished in two steps, so that an asynchronous device gets the
next batch before the results of the last one are read.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F

from twinvec.cache.rows import STATES, Row
from twinvec.compute.attention import choose_attention
from twinvec.compute.backbone import Backbone
from twinvec.compute.graphs import Graphs, Outputs
from twinvec.compute.heads import TokenVectorHead, TokenWeightHead
from twinvec.compute.kernels import use_triton
from twinvec.compute.linear import linear_in_use
from twinvec.compute.out_of_memory import free_memory, is_out_of_memory
from twinvec.compute.packing import TokenBatch
from twinvec.compute.pooling import pool
from twinvec.compute.quantization import Int8Linear
from twinvec.compute.sparse import reduce_token_weights, reduce_vocabulary_weights
from twinvec.text.tokenizer import TokenizedText
from twinvec.vectors import Bool, Float32, Int64, SparseBatch

if TYPE_CHECKING:
    from twinvec.families import Description

logger = logging.getLogger(__name__)

_CPU_BUDGET = 1024  # a smaller pass keeps queries from waiting long; see benchmarks/NOTES.md
_CPU_SMALL = 256
_CUDA_BUDGETS = (4096, 16384)  # products run at full speed from the first on; beyond the last, queries wait too long
_CUDA_FLOPS = 2e13  # per batch: about 40 ms on an H100; larger models get fewer tokens
_PROBE = 2048  # tokens of the batch that measures memory per token
_PROBE_TEXT = 256
_LOGIT_BYTES = 2**28  # a masked language model outputs a row of the whole vocabulary per token


Finish: TypeAlias = Callable[[], "list[Row | None]"]


class Encoder:
    """A loaded model on its device.

    Attributes:
        token_budget: tokens per forward pass, as long as memory does not run out.
        forwards, texts, tokens, seconds: counters; seconds spent in forward passes, overlaps counted once.
        attention: the packed attention in use, or "padded".
        kernels: "triton" or "torch": what runs between the matrix products.
        linear: how most matrix products run: "packed", "packed int8", "int8" or "torch" (``linear``).
        multi_dim: width of the vectors of single tokens, if the model has them.
        predicted_memory: expected maximum of bytes held by torch, from a measured probe; 0 on a CPU.
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
        multi: TokenVectorHead | None = None,
        token_budget: int | None,
        id_keys: Int64,
    ) -> None:
        self.device, self.dtype = device, dtype
        self.description = description
        self._id_keys = id_keys
        self._backbone = backbone.to(device).eval()
        self._dense_layers = dense_layers.to(device).eval()
        self._head = head.to(device).eval() if head is not None else None
        self._multi = multi.to(device).eval() if multi is not None else None
        self.multi_dim = multi.dim if multi is not None else None
        self.attention = choose_attention(device, dtype) if backbone.packed else "padded"
        if backbone.packed:
            backbone.use_attention(self.attention)
        self.kernels = "triton" if use_triton(device) else "torch"
        self.linear = linear_in_use(backbone)
        self.forwards = self.texts = self.tokens = self.predicted_memory = 0
        self.seconds = self._finished = 0.0
        self._graphs: Graphs | None = None
        self.token_budget = token_budget or _CPU_BUDGET
        if device.type == "cuda":
            self._warm_up(token_budget)
        elif backbone.output == "logits":
            self.token_budget = min(self.token_budget, max(_LOGIT_BYTES // (4 * len(id_keys)), 1))

    @property
    def asynchronous(self) -> bool:
        """Return whether ``start`` returns before the work is done."""
        return self.device.type == "cuda"

    @property
    def small_budget(self) -> int:
        """Return the tokens of a pass that a query can wait for; on CUDA any pass qualifies."""
        return min(self.token_budget, _CPU_SMALL) if self.device.type == "cpu" else self.token_budget

    @property
    def graphs(self) -> int:
        """Return how many sizes of small batches are replayed as CUDA graphs."""
        return len(self._graphs) if self._graphs is not None else 0

    def start(self, texts: Sequence[TokenizedText]) -> Finish:
        """Send one batch to the device; ``texts`` must not be empty.

        Returns:
            A function that waits for the batch and returns the row of each text, None where it is not finite.
        """
        started = time.monotonic()
        try:
            batch = TokenBatch.pack(texts)
            outputs, ready = self._launch(batch)
            return functools.partial(self._finish, texts, batch, outputs, ready, started)
        except BaseException:
            self._count_time(started)
            raise

    def _finish(
        self,
        texts: Sequence[TokenizedText],
        batch: TokenBatch,
        outputs: Outputs,
        ready: torch.cuda.Event | None,
        started: float,
    ) -> list[Row | None]:
        try:
            if ready is not None:
                ready.synchronize()
        finally:
            self._count_time(started)
        pooled, batch = (texts, batch) if batch.spans is None else (batch.spans.texts, batch.spans.batch)
        dense, sparse, finite = self._read(outputs, batch)
        multi = self._token_vectors(pooled, batch, outputs[2:], finite)
        # copies: a stored row would keep the rows of the whole batch alive
        rows = (
            Row(
                None if dense is None else dense[i].copy(),
                None if sparse is None else sparse[i].copy(),
                tokens,
                tokens,
                multi[i],
            )
            if finite[i]
            else None
            for i, tokens in enumerate(batch.lengths)
        )
        return [_row_of(text, list(islice(rows, len(text.spans) or 1))) for text in texts]

    def release(self) -> None:
        """Drop the weights, even if someone still holds this for its counters; nothing can be started any more."""
        del self._backbone, self._dense_layers
        self._head = self._multi = self._graphs = None

    def _count_time(self, started: float) -> None:
        now = time.monotonic()
        self.seconds += now - max(started, self._finished)
        self._finished = now

    def memory(self) -> int:
        """Return the bytes held by torch on a CUDA device; 0 elsewhere."""
        return torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else 0

    @property
    def backbone(self) -> Backbone:
        """Return the model, for ``verify``."""
        return self._backbone

    # --- on the device

    @torch.inference_mode()
    def _launch(self, batch: TokenBatch) -> tuple[Outputs, torch.cuda.Event | None]:
        """Return the outputs, which are on the host once the event has occurred; None: they already are."""
        ready = None
        with self._current():
            graphs = None if batch.multi or batch.spans is not None else self._graphs
            outputs = graphs.replay(batch) if graphs is not None else None
            if outputs is None:
                outputs = self._forward(batch.to(self.device))
            outputs = tuple(map(_to_host, outputs))
            if self.device.type == "cuda":
                ready = torch.cuda.Event()
                ready.record()
        self.forwards += 1
        self.texts += len(batch.lengths)
        self.tokens += batch.n_tokens
        return outputs, ready

    def _forward(self, batch: TokenBatch) -> Outputs:
        """Return dense rows [texts, dim], weights per token [tokens] or per vocabulary entry [texts, vocabulary], and
        if ``batch.multi`` vectors and states of tokens [tokens, dim], each where it is requested.

        Of texts with spans, these are the texts.

        With ``graphs`` everything in here only queues work for the device.
        """
        output = self._backbone(batch)
        if (spans := batch.spans) is not None:
            output, batch = output[spans.places.to(self.device)], spans.batch.to(self.device)
        dense = self._dense(output, batch) if self.description.dim is not None else None
        outputs = (dense, self._weights(output, batch))
        if not batch.multi:
            return outputs
        vectors = self._multi(output) if self._multi is not None and batch.multi - {STATES} else None
        return (*outputs, vectors, output.float() if STATES in batch.multi else None)

    def _weights(self, output: torch.Tensor, batch: TokenBatch) -> torch.Tensor | None:
        if self._head is not None:
            weights: torch.Tensor = self._head(output)
            return weights
        if self._backbone.output != "logits":
            return None
        parts = output[:, : len(self._id_keys)].split(list(batch.lengths))
        # log1p(relu(x)) is monotonic, so the maximum may come first
        return torch.log1p(F.relu(torch.stack([part.amax(0) for part in parts]).float()))

    def _dense(self, output: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        if self._backbone.output == "pooled":
            pooled = output.float()
        else:
            pooled = pool(output, batch, self.description.pooling, self.description.include_prompt)
        vectors: torch.Tensor = self._dense_layers(pooled)[:, : self.description.dim]
        return vectors

    def _current(self) -> contextlib.AbstractContextManager[object]:
        """Make the device current on this thread, for events and Triton."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    # --- on the host

    def _read(self, outputs: Outputs, batch: TokenBatch) -> tuple[Float32 | None, SparseBatch | None, Bool]:
        """Return dense rows [texts, all dims], not normalised; sparse ones by token id; and which are finite."""
        dense, weights = outputs[:2]
        finite = np.ones(len(batch.lengths), dtype=np.bool_)
        rows = None
        if dense is not None:
            rows = dense.numpy()
            finite &= np.isfinite(rows).all(axis=1)
        if weights is None:
            return rows, None, finite
        values = weights.numpy()
        if self._head is None:
            finite &= np.isfinite(values).all(axis=1)
            values[~finite] = 0
            return rows, reduce_vocabulary_weights(values, self._id_keys[: values.shape[1]]), finite
        finite &= np.isfinite(np.add.reduceat(values, batch.cu_seqlens[:-1].numpy()))
        values[np.repeat(~finite, batch.lengths)] = 0
        # the words of a prompt say nothing about the text
        values[batch.position_ids.numpy() < np.repeat(batch.prompt_lengths, batch.lengths)] = 0
        ids, keys = batch.input_ids.numpy(), self._id_keys
        return rows, reduce_token_weights(values, ids, batch.lengths, keys), finite

    def _token_vectors(
        self, texts: Sequence[TokenizedText], batch: TokenBatch, outputs: Outputs, finite: Bool
    ) -> list[Float32 | None]:
        """Return each text's vectors or states of tokens where requested; marks texts with one that is not finite."""
        kept: list[Float32 | None] = [None] * len(texts)
        if not outputs:
            return kept
        vectors, states = outputs
        starts = batch.cu_seqlens.tolist()
        for i, text in enumerate(texts):
            rows = states if text.multi == STATES else vectors
            if text.multi and rows is not None:
                chosen: Float32 = rows[starts[i] : starts[i + 1]].numpy()[self._has_vectors(text)]
                kept[i] = chosen
                finite[i] &= np.isfinite(chosen).all()
        return kept

    def _has_vectors(self, text: TokenizedText) -> Bool:
        """Return which tokens have the vectors that are requested of a text."""
        mask, rules = np.ones(len(text.ids), dtype=np.bool_), self.description.multi
        if text.multi != STATES and rules is not None:
            mask = ~np.isin(text.ids, list(rules.skipped.get(text.multi, ())))
            mask[: rules.left_out] = False
        return mask

    # --- once, at the start, on CUDA

    def _warm_up(self, token_budget: int | None) -> None:
        """Build kernels, measure memory per token, choose the budget from it, and record graphs of small batches."""
        try:
            small, large = self._peak(_PROBE // 2), self._peak(_PROBE)
            per_token = max(large - small, 1) / (_PROBE - _PROBE // 2)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            free_memory(self.device)
            self.token_budget = token_budget or _PROBE // 4
            logger.warning("%s has hardly any memory left besides the model; token budget %d", self.device, _PROBE // 4)
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
        """Return the peak memory of one batch, besides the model, in bytes."""
        length = min(_PROBE_TEXT, self.description.max_length)
        ids = np.zeros(length, dtype=np.int32)
        batch = TokenBatch.pack([TokenizedText(ids, 0, length)] * max(tokens // length, 1))
        with self._current():
            self._forward(batch.to(self.device))  # one-time allocations do not count
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self._forward(batch.to(self.device))
            torch.cuda.synchronize()
            return int(torch.cuda.max_memory_allocated() - before)

    def _record_graphs(self) -> None:
        if not self.description.include_prompt or self._backbone.token_types:
            return  # the lengths of prompts come from the host in that case
        graphs = Graphs(self._forward, self.device, self.description.position_limit)
        try:
            with torch.inference_mode():
                graphs.record()
        except Exception as error:  # the passes also run without graphs, with more work for the host
            torch.cuda.empty_cache()
            logger.warning("%s: no CUDA graphs of this model: %s", self.device, error)
            return
        self._graphs = graphs


def choose_budget(free: int, bytes_per_token: float, weights: int) -> int:
    """Return the tokens per batch on a CUDA device.

    Args:
        free: bytes available besides the model.
        bytes_per_token: peak memory per token while a batch runs.
        weights: number of weights in matrices that every token is multiplied by.
    """
    least, most = _CUDA_BUDGETS
    wanted = min(max(int(_CUDA_FLOPS / (2 * max(weights, 1))), least), most)
    return max(min(wanted, int(0.8 * free / bytes_per_token)), 1)


def _matrix_weights(module: torch.nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, (torch.nn.Linear, Int8Linear)))


def _row_of(text: TokenizedText, pooled: Sequence[Row | None]) -> Row | None:
    """Return the row of a text whose spans, or all of which, gave these."""
    rows = tuple(row for row in pooled if row is not None)
    if len(rows) < len(pooled):
        return None
    if text.spans:
        return Row(None, None, len(text.ids), text.full_length, parts=rows)
    return Row(rows[0].dense, rows[0].sparse, rows[0].tokens, text.full_length, rows[0].multi)


def _to_host(rows: torch.Tensor | None) -> torch.Tensor | None:
    if rows is None or rows.device.type == "cpu":
        return rows
    return torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(rows, non_blocking=True)


def is_device_lost(error: BaseException) -> bool:
    """Return whether an error means that the device no longer responds."""
    if isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in str(error):
        return not is_out_of_memory(error)
    return False
