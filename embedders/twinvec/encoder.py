"""One model on one device: token batches in, vectors out, and recovery when memory runs out.

Nothing else touches the device.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from twinvec.attention import choose_attention
from twinvec.backbone import Backbone
from twinvec.errors import NonFiniteError, OutOfMemoryError
from twinvec.families import Description
from twinvec.heads import TokenWeightHead
from twinvec.packing import TokenBatch, plan
from twinvec.pooling import pool, reduce_token_weights, reduce_vocabulary_weights
from twinvec.tokenizer import TokenizedText
from twinvec.vectors import Float32, Int64, SparseBatch

logger = logging.getLogger(__name__)

_CPU_BUDGET = 2048  # activations stay near the caches; more tokens do not make the products faster
_CUDA_BUDGET = 32768
_LOGIT_BYTES = 2**28  # a masked language model makes a row of the whole vocabulary per token
_CPU_OOM = ("can't allocate memory", "not enough memory", "out of memory")


@dataclass(frozen=True)
class Request:
    """What to compute: ``dim`` dense dimensions (None: no dense half), sparse rows by ``keys`` (None: none)."""

    dim: int | None
    keys: Int64 | None


@dataclass(frozen=True)
class Encoded:
    """Vectors of one batch, on the host."""

    dense: Float32 | None
    sparse: SparseBatch | None


class Encoder:
    """A loaded model on its device.

    Attributes:
        token_budget: tokens per forward pass; falls when memory runs out.
        forwards, texts, tokens, out_of_memory: counters.
        attention: the packed attention in use, or "padded".
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
        vocabulary_size: int,
    ) -> None:
        self.device, self.dtype = device, dtype
        self.description = description
        self._backbone = backbone.to(device).eval()
        self._dense_layers = dense_layers.to(device).eval()
        self._head = head.to(device).eval() if head is not None else None
        self.attention = choose_attention(device, dtype) if backbone.packed else "padded"
        if backbone.packed:
            backbone.use_attention(self.attention)
        self.token_budget = token_budget or (_CUDA_BUDGET if device.type == "cuda" else _CPU_BUDGET)
        if backbone.output == "logits":
            self.token_budget = min(self.token_budget, max(_LOGIT_BYTES // (4 * vocabulary_size), 1))
        self.forwards = self.texts = self.tokens = self.out_of_memory = 0

    def encode(self, texts: Sequence[TokenizedText], positions: Sequence[int], request: Request) -> Encoded:
        """Encode one batch; when memory runs out, halve it and try again.

        Args:
            texts: not empty.
            positions: what to call each text in an error.
            request: what to compute.

        Raises:
            OutOfMemoryError: a single text does not fit.
            NonFiniteError: the model returned NaN or infinity.
        """
        try:
            encoded = self._forward(TokenBatch.pack(texts), request)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        else:
            self._check(encoded, positions)
            return encoded
        # outside of the except block: the traceback would keep the failed pass's tensors alive
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.out_of_memory += 1
        tokens = sum(len(t.ids) for t in texts)
        if len(texts) == 1:
            raise OutOfMemoryError(
                f"texts[{positions[0]}] alone ({tokens} tokens) does not fit into the memory of {self.device}: lower "
                f"max_length, split the text, or use a device with more memory. ({reason})"
            )
        self.token_budget = max(min(self.token_budget, tokens) // 2, 1)
        logger.warning("out of memory at %d tokens on %s; token budget now %d", tokens, self.device, self.token_budget)
        batches = plan([len(t.ids) for t in texts], self.token_budget)
        parts = [self.encode([texts[i] for i in b], [positions[i] for i in b], request) for b in batches]
        order = np.argsort([i for b in batches for i in b])
        dense = [p.dense for p in parts if p.dense is not None]
        sparse = [p.sparse for p in parts if p.sparse is not None]
        return Encoded(
            dense=np.concatenate(dense)[order] if dense else None,
            sparse=SparseBatch.concatenate(sparse)[order] if sparse else None,
        )

    def memory(self) -> int:
        """Return the bytes that torch holds on a CUDA device; 0 elsewhere."""
        return torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else 0

    @property
    def backbone(self) -> Backbone:
        """Return the model, for ``verify``."""
        return self._backbone

    @torch.inference_mode()
    def _forward(self, batch: TokenBatch, request: Request) -> Encoded:
        moved = batch.to(self.device)
        output = self._backbone(moved)
        self.forwards += 1
        self.texts += len(batch.lengths)
        self.tokens += batch.n_tokens
        dense = self._dense(output, moved, request.dim) if request.dim is not None else None
        sparse = self._sparse(output, batch, request.keys) if request.keys is not None else None
        return Encoded(dense.cpu().numpy() if dense is not None else None, sparse)

    def _dense(self, output: torch.Tensor, batch: TokenBatch, dim: int) -> torch.Tensor:
        if self._backbone.output == "pooled":
            pooled = output.float()
        else:
            pooled = pool(output, batch, self.description.pooling, self.description.include_prompt)
        return F.normalize(self._dense_layers(pooled)[:, :dim], dim=-1)

    def _sparse(self, output: torch.Tensor, batch: TokenBatch, keys: Int64) -> SparseBatch:
        if self._head is not None:
            weights = self._head(output).cpu().numpy()
            _finite(weights)
            # a prompt's words say nothing about the text
            weights[batch.position_ids.numpy() < np.repeat(batch.prompt_lengths, batch.lengths)] = 0
            return reduce_token_weights(weights, batch.input_ids.numpy(), batch.lengths, keys)
        parts = output[:, : len(keys)].split(list(batch.lengths))
        # log1p(relu(x)) rises with x, so the maximum may come first
        rows = torch.log1p(F.relu(torch.stack([part.amax(0) for part in parts]).float())).cpu().numpy()
        _finite(rows)
        return reduce_vocabulary_weights(rows, keys[: rows.shape[1]])

    def _check(self, encoded: Encoded, positions: Sequence[int]) -> None:
        if encoded.dense is None:
            return
        bad = np.flatnonzero(~np.isfinite(encoded.dense).all(axis=1))
        if len(bad):
            raise NonFiniteError(_NON_FINITE.format(f"texts[{positions[bad[0]]}]", self.dtype))


_NON_FINITE = "the model returned NaN or infinity for {} in {}: use dtype='float32' or 'bfloat16', or check the weights"


def _finite(weights: Float32) -> None:
    if not np.isfinite(weights).all():
        raise NonFiniteError(_NON_FINITE.format("the sparse half of a batch", "its lexical head"))


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(sign in str(error) for sign in _CPU_OOM)
