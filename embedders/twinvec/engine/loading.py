"""From an opened checkpoint to a model in memory: a tokenizer, and an encoder per device."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from twinvec.checkpoints.files import Checkpoint
from twinvec.checkpoints.tensors import load_tensors
from twinvec.compute.encoder import Encoder
from twinvec.engine.opening import Opened
from twinvec.errors import CheckpointError, CheckpointFieldError
from twinvec.families import Description, Family
from twinvec.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from twinvec.compute.backbone import Backbone
    from twinvec.compute.heads import TokenVectorHead, TokenWeightHead

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A model in memory: one encoder per device, and the means to build it again.

    Attributes:
        seconds: how long loading took.
    """

    family: Family
    description: Description
    tokenizer: TextTokenizer
    encoders: tuple[Encoder, ...]
    seconds: float
    rebuild: Callable[[], Model]

    @property
    def encoder(self) -> Encoder:
        """Return the first encoder."""
        return self.encoders[0]


def build_model(opened: Opened, token_budget: int | None) -> Model:
    """Load the weights, once per distinct device; replicas on one device share them.

    Loading runs on a temporary thread: OpenMP keeps workers for every thread that has computed anything, and when there
    are more workers than cores, they sleep between steps, which made single queries twice as slow.

    Raises:
        CheckpointError: the weights cannot be read or do not fit.
    """
    built: Future[Model] = Future()

    def build() -> None:
        try:
            built.set_result(_build_model(opened, token_budget))
        except BaseException as error:
            built.set_exception(error)

    thread = threading.Thread(target=build, name="twinvec-loading", daemon=True)
    thread.start()
    model = built.result()
    thread.join()
    return model


def _build_model(opened: Opened, token_budget: int | None) -> Model:
    start = time.perf_counter()
    checkpoint, description = opened.checkpoint, opened.description
    if description.experimental:
        logger.warning(
            "%s: support is experimental; its vectors have not been checked against published numbers yet: run "
            "`twinvec verify`",
            checkpoint.name,
        )
    tokenizer = opened.family.build_tokenizer(checkpoint, description)
    _check_tokenizer(tokenizer, description, checkpoint)
    parts: dict[torch.device, tuple[Backbone, torch.nn.Module, TokenWeightHead | None, TokenVectorHead | None]] = {}
    encoders = []
    for device in opened.devices:
        if device not in parts:
            parts[device] = (
                _build_backbone(opened, device),
                opened.family.build_layers(checkpoint, description),
                _build_head(opened),
                opened.family.build_multi(checkpoint, description) if description.multi is not None else None,
            )
            for module in parts[device][1:]:
                if module is not None and device.type == "cpu":
                    _own_memory(module)
        backbone, dense_layers, head, multi = parts[device]
        encoders.append(
            Encoder(
                backbone,
                description,
                device=device,
                dtype=opened.dtype,
                dense_layers=dense_layers,
                head=head,
                multi=multi,
                token_budget=1 if opened.spec.reproducible else token_budget,
                id_keys=tokenizer.id_keys,
            )
        )
    opened.check_unchanged()
    rebuild = functools.partial(build_model, opened, token_budget)
    seconds = time.perf_counter() - start
    return Model(opened.family, description, tokenizer, tuple(encoders), seconds, rebuild)


def _check_tokenizer(tokenizer: TextTokenizer, description: Description, checkpoint: Checkpoint) -> None:
    file, most = checkpoint.folder / "tokenizer.json", tokenizer.vocabulary_size - 1
    if description.vocabulary is not None and most >= description.vocabulary:
        raise CheckpointError(
            f"{file}: has ids up to {most}, but the model embeds {description.vocabulary} tokens (vocab_size): it "
            "belongs to another model, or tokens were added to it"
        )
    if description.padding_idx is not None and tokenizer.pad_id not in (None, description.padding_idx):
        raise CheckpointFieldError(
            checkpoint.folder / "config.json",
            "pad_token_id",
            description.padding_idx,
            f"determines all positions, but the tokenizer's is {tokenizer.pad_id}",
        )


def _build_backbone(opened: Opened, device: torch.device) -> Backbone:
    quantized = opened.spec.quantization is not None
    # layers to be quantised need not fit unquantised
    place = torch.device("cpu") if quantized else device
    backbone = opened.family.build(opened.checkpoint, opened.description, opened.dtype, place)
    backbone.fuse(device)
    if quantized:
        from twinvec.compute.quantization import quantize

        quantize(backbone)
    if device.type == "cpu":
        _own_memory(backbone)
        backbone.pack()
    return backbone


def _build_head(opened: Opened) -> TokenWeightHead | None:
    """Build the lexical head even for callers without a sparse half: it is nearly free, and all can share the model."""
    from twinvec.compute.heads import TokenWeightHead

    if opened.head_file is not None:
        tensors = load_tensors(opened.head_file)
        return TokenWeightHead(opened.description.hidden, tensors, str(opened.head_file))
    if opened.description.sparse == "token_weights":
        return opened.family.build_head(opened.checkpoint, opened.description)
    return None


def _own_memory(module: torch.nn.Module) -> None:
    """Copy tensors that may be memory-mapped: rewriting the file would change an open model."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()
