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
from twinvec.vectors import Bool, Float32, Int64, SparseBatch

logger = logging.getLogger(__name__)

_CPU_BUDGET = 2048  # activations stay near the caches; more tokens do not make the products faster
_CUDA_BUDGET = 32768
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
        self.token_budget = token_budget or (_CUDA_BUDGET if device.type == "cuda" else _CPU_BUDGET)
        if backbone.output == "logits":
            self.token_budget = min(self.token_budget, max(_LOGIT_BYTES // (4 * len(id_keys)), 1))
        self._full_budget, self._calm = self.token_budget, 0
        self.forwards = self.texts = self.tokens = self.out_of_memory = 0

    def encode(self, texts: Sequence[TokenizedText], names: Sequence[str]) -> Encoded:
        """Encode one batch; when memory runs out, halve it and try again.

        Args:
            texts: not empty.
            names: what to call each text in an error.

        Raises:
            OutOfMemoryError: a single text does not fit.
            NonFiniteError: the model returned NaN or infinity.
        """
        try:
            encoded = self._forward(TokenBatch.pack(texts), names)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        else:
            self._recover()
            return encoded
        # outside of the except block: the traceback would keep the failed pass's tensors alive
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.out_of_memory += 1
        self._calm = 0
        tokens = sum(len(t.ids) for t in texts)
        if len(texts) == 1:
            raise OutOfMemoryError(
                f"{names[0]} alone ({tokens} tokens) does not fit into the memory of {self.device}: lower "
                f"max_length, split the text, or use a device with more memory. ({reason})"
            )
        self.token_budget = max(min(self.token_budget, tokens) // 2, 1)
        logger.warning("out of memory at %d tokens on %s; token budget now %d", tokens, self.device, self.token_budget)
        batches = plan([len(t.ids) for t in texts], self.token_budget)
        parts = [self.encode([texts[i] for i in b], [names[i] for i in b]) for b in batches]
        order = np.argsort([i for b in batches for i in b])
        dense = [p.dense for p in parts if p.dense is not None]
        sparse = [p.sparse for p in parts if p.sparse is not None]
        return Encoded(
            dense=np.concatenate(dense)[order] if dense else None,
            sparse=SparseBatch.concatenate(sparse)[order] if sparse else None,
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

    @torch.inference_mode()
    def _forward(self, batch: TokenBatch, names: Sequence[str]) -> Encoded:
        moved = batch.to(self.device)
        output = self._backbone(moved)
        self.forwards += 1
        self.texts += len(batch.lengths)
        self.tokens += batch.n_tokens
        dense = None
        if self.description.dim is not None:
            dense = self._dense(output, moved).cpu().numpy()
            self._check(np.isfinite(dense).all(axis=1), names)
        return Encoded(dense, self._sparse(output, batch, names))

    def _dense(self, output: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        if self._backbone.output == "pooled":
            pooled = output.float()
        else:
            pooled = pool(output, batch, self.description.pooling, self.description.include_prompt)
        vectors: torch.Tensor = self._dense_layers(pooled)[:, : self.description.dim]
        return vectors

    def _sparse(self, output: torch.Tensor, batch: TokenBatch, names: Sequence[str]) -> SparseBatch | None:
        if self._head is not None:
            weights = self._head(output).cpu().numpy()
            self._check(np.isfinite(np.add.reduceat(weights, batch.cu_seqlens[:-1].numpy())), names)
            # a prompt's words say nothing about the text
            weights[batch.position_ids.numpy() < np.repeat(batch.prompt_lengths, batch.lengths)] = 0
            return reduce_token_weights(weights, batch.input_ids.numpy(), batch.lengths, self._id_keys)
        if self._backbone.output != "logits":
            return None
        parts = output[:, : len(self._id_keys)].split(list(batch.lengths))
        # log1p(relu(x)) rises with x, so the maximum may come first
        rows = torch.log1p(F.relu(torch.stack([part.amax(0) for part in parts]).float())).cpu().numpy()
        self._check(np.isfinite(rows).all(axis=1), names)
        return reduce_vocabulary_weights(rows, self._id_keys[: rows.shape[1]])

    def _check(self, finite: Bool, names: Sequence[str]) -> None:
        if not finite.all():
            raise NonFiniteError(
                f"the model returned NaN or infinity for {names[int(np.argmin(finite))]} in {self.dtype}: use "
                "dtype='float32' or 'bfloat16', or check the weights"
            )


def is_device_lost(error: BaseException) -> bool:
    """Return whether an error means that the device answers no more calls."""
    if isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in str(error):
        return not _is_out_of_memory(error)
    return False


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(sign in str(error) for sign in _CPU_OOM)
