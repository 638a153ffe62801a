"""From a token batch to token states: transformers classes, packed if possible and padded otherwise."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F

from twinvec.checkpoints.files import Checkpoint
from twinvec.compute.attention import PREFIX
from twinvec.compute.fused import fuse
from twinvec.compute.linear import filled_rows, pack
from twinvec.compute.packing import TokenBatch
from twinvec.errors import CheckpointError, CheckpointMismatchError
from twinvec.workers import executors_work

# parts that embedding never uses: poolers, language-model heads, position counters
_UNUSED = re.compile(
    r"(^|\.)(pooler|lm_head|cls|generator_predictions|discriminator_predictions|vocab_\w+)\.|"
    r"(^|\.)(position_ids|inv_freq|original_inv_freq|masked_bias)$"
)


# config fields about code, labels, memory and results rather than the computation
_NO_FORMULA = frozenset(
    [
        "auto_map",
        "model_type",
        "torch_dtype",
        "dtype",
        "quantization_config",
        "attn_implementation",
        "chunk_size_feed_forward",
        "use_cache",
        "return_dict",
        "output_hidden_states",
        "output_attentions",
        "torchscript",
        "gradient_checkpointing",
        "is_encoder_decoder",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "finetuning_task",
        "task_specific_params",
        "transformers_version",
    ]
)
_QUIET = threading.Lock()  # transformers' verbosity is global to the process


class Backbone(torch.nn.Module):
    """A model that turns a packed batch into rows.

    Attributes:
        output: "states": token states [tokens, hidden]; "logits": vocabulary logits [tokens, vocabulary];
            "pooled": finished vectors [texts, dim].
        packed: False if the model pads internally.
        token_types: whether the model is told which tokens belong to a pair's text.
    """

    output: Literal["states", "logits", "pooled"] = "states"
    packed = True
    token_types = False

    def use_attention(self, name: str) -> None:
        """Choose the packed attention: "sdpa", "varlen" or "flash"."""

    def fuse(self, device: torch.device) -> None:
        """Replace known layers by faster ones for a device (``fused``); once."""

    def pack(self) -> None:
        """Lay out the weights of linear layers for a CPU (``linear``); the last of all changes.

        Does nothing for models with their own code, which may read the weights of their layers.
        """

    def rope_variants(self) -> tuple[str, ...]:
        """Return the rotations that ``verify`` may try; empty if the checkpoint leaves no choice."""
        return ()

    def use_rope(self, variant: str) -> None:
        """Select one of ``rope_variants``."""

    def forward(self, batch: TokenBatch) -> torch.Tensor:
        """Run one batch."""
        raise NotImplementedError


class PackedTransformer(Backbone):
    """An unmodified transformers model on one packed row [1, tokens]."""

    def __init__(
        self, model: Any, *, padding_idx: int | None = None, causal: bool | None = None, token_types: bool = False
    ) -> None:
        """Take a loaded model.

        Args:
            model: in evaluation mode.
            padding_idx: positions count from padding_idx + 1 (XLM-R, RoBERTa).
            causal: force causal or bidirectional attention; None keeps the class's own.
            token_types: give a pair's text the token type 1.
        """
        super().__init__()
        self.model = model
        self.token_types = token_types
        self._padding_idx = padding_idx
        self._options = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
        if causal is not None:
            for module in model.modules():
                if hasattr(module, "is_causal"):
                    module.is_causal = causal

    def use_attention(self, name: str) -> None:
        """Choose the packed attention."""
        self.model.config._attn_implementation = PREFIX + name

    def fuse(self, device: torch.device) -> None:
        """Replace the layers that ``fused`` knows."""
        fuse(self.model, device, packed=True)

    def pack(self) -> None:
        """Pack every linear layer; transformers' classes call theirs."""
        pack(self)

    def forward(self, batch: TokenBatch) -> torch.Tensor:
        """Return token states [tokens, hidden], or logits if the model ends in a language-model head."""
        tokens = len(batch.input_ids)
        types = batch.token_types() if self.token_types else None
        batch = replace(batch, position_ids=self._positions(batch))
        if batch.input_ids.device.type == "cpu":
            batch = batch.filled(filled_rows(tokens))
        options: dict[str, Any] = dict(self._options)
        if types is not None:
            options["token_type_ids"] = F.pad(types, (0, len(batch.input_ids) - tokens))[None]
        result = self.model(
            input_ids=batch.input_ids[None], position_ids=batch.position_ids[None], packed=batch, **options
        )
        states: torch.Tensor = result.logits if self.output == "logits" else result.last_hidden_state
        return states[0, :tokens]

    def _positions(self, batch: TokenBatch) -> torch.Tensor:
        """Number positions as the class does; RoBERTa does not count a pad token within the text."""
        if self._padding_idx is None:
            return batch.position_ids
        counted = (batch.input_ids != self._padding_idx).long()
        total = counted.cumsum(0)
        starts = batch.cu_seqlens[:-1].long().clamp_max(len(total) - 1)
        before = (total - counted)[starts]
        lengths = batch.cu_seqlens.diff()
        return (total - torch.repeat_interleave(before, lengths, output_size=len(total))) * counted + self._padding_idx


class PackedMaskedLM(PackedTransformer):
    """A masked language model: one row of vocabulary logits per token (SPLADE)."""

    output = "logits"


class PaddedTransformer(Backbone):
    """A transformers model that cannot be packed (relative position biases): padded inside, ragged outside."""

    packed = False

    def __init__(self, model: Any, pad_id: int, *, token_types: bool = False) -> None:
        super().__init__()
        self.model = model
        self.token_types = token_types
        self._pad_id = pad_id

    def fuse(self, device: torch.device) -> None:
        """Replace the layers that ``fused`` knows, except attention."""
        fuse(self.model, device, packed=False)

    def pack(self) -> None:
        """Pack every linear layer; transformers' classes call theirs."""
        pack(self)

    def forward(self, batch: TokenBatch) -> torch.Tensor:
        """Return token states [tokens, hidden]."""
        ids, mask = pad(batch, self._pad_id)
        options = {}
        if self.token_types:
            options["token_type_ids"] = torch.zeros_like(ids).masked_scatter(mask, batch.token_types())
        result = self.model(input_ids=ids, attention_mask=mask.long(), **options)
        rows: torch.Tensor = result.logits if self.output == "logits" else result.last_hidden_state
        return rows[mask]


class PaddedMaskedLM(PaddedTransformer):
    """A masked language model that cannot be packed."""

    output = "logits"


def pad(batch: TokenBatch, pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids [texts, longest] and the mask of real tokens, which is never derived from token ids."""
    lengths = torch.tensor(batch.lengths, device=batch.input_ids.device)
    mask = torch.arange(max(batch.lengths), device=lengths.device)[None] < lengths[:, None]
    ids = torch.full(mask.shape, pad_id, dtype=torch.int64, device=lengths.device)
    ids[mask] = batch.input_ids
    return ids, mask


def load_native(
    model_class: Any,
    config: Any,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    *,
    ignore: Iterable[str] = (),
) -> Any:
    """Load a native transformers class, strictly.

    Args:
        model_class: a class, not an Auto class.
        config: its configuration, built by the family.
        checkpoint: the source of the weights.
        dtype: of the parameters; position buffers stay fp32.
        device: where the weights go, straight from the file.
        ignore: regular expressions of tensors that the family knows to be unused.

    Raises:
        CheckpointMismatchError: any missing, unexpected or mismatched tensor; transformers would only log it.
        CheckpointError: the weights cannot be read, or the config does not describe a working model.
    """
    checkpoint.tensors  # noqa: B018  reading the headers first gives clear errors for damaged files
    options = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(model_class).parameters else {}
    load = functools.partial(
        model_class.from_pretrained,
        checkpoint.folder,
        config=config,
        dtype=dtype,
        device_map={"": device},
        attn_implementation="sdpa" if model_class._supports_sdpa else "eager",
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        weights_only=True,
        use_safetensors=checkpoint.weight_files[0].suffix == ".safetensors",
        **options,
    )
    with _QUIET, _silence():
        try:
            try:
                model, info = load()
            except RuntimeError:
                if executors_work():
                    raise
                os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # makes transformers do without its executor
                model, info = load()
        except Exception as error:  # transformers raises many types, all of which mean that there is no model
            raise CheckpointError(f"{checkpoint.name}: {model_class.__name__} cannot be loaded: {error}") from error
    unused = re.compile("|".join([_UNUSED.pattern, *ignore]))
    missing = [k for k in info["missing_keys"] if not unused.search(k)]
    unexpected = [k for k in info["unexpected_keys"] if not unused.search(k)]
    mismatched = {k: (tuple(a), tuple(b)) for k, a, b in info["mismatched_keys"]}
    if missing or unexpected or mismatched:
        raise CheckpointMismatchError(checkpoint.name, missing=missing, unexpected=unexpected, mismatched=mismatched)
    return model.eval()


def native_config(config_class: Any, raw: dict[str, Any], checkpoint: Checkpoint) -> Any:
    """Build a native configuration from raw values.

    Raises:
        CheckpointError: the class refuses a value.
    """
    values = {k: v for k, v in raw.items() if k not in _NO_FORMULA and not k.startswith("_") and "dropout" not in k}
    try:
        with _QUIET, _silence():
            return config_class(**json.loads(json.dumps(values)))
    except Exception as error:  # transformers validates with several error types
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'}: not a valid {config_class.__name__}: {error}"
        ) from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep transformers from logging and drawing progress for things that are errors here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(50)  # logging.CRITICAL
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
