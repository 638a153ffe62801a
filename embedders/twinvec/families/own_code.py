"""The opt-in path for checkpoints that only run with their own code.

``from_pretrained`` of transformers 5 breaks such code in several ways (tied-weight bookkeeping, uninitialised buffers).
Here the classes are taken from the checkpoint, built on the CPU from their config, and filled strictly.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from twinvec.checkpoints.fields import CONFIG, check_fields
from twinvec.checkpoints.files import Checkpoint
from twinvec.checkpoints.tensors import load_strict, load_tensors
from twinvec.errors import CheckpointError, RemoteCodeRequiredError, UnsupportedCheckpointError
from twinvec.families.base import Description, Family, Supported
from twinvec.families.modules import output_dim, read_modules

if TYPE_CHECKING:
    import torch

    from twinvec.compute.backbone import Backbone


class Remote(Family):
    """Any other checkpoint with its own code; the last family to be tried."""

    name = "remote code"
    supported = (Supported("any checkpoint with its own code, opt-in", "its own", "its own", "-", "its prompts"),)

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether the checkpoint refers to its own code."""
        return "AutoModel" in (checkpoint.config.get("auto_map") or {})

    def describe(self, checkpoint: Checkpoint) -> Description:
        """Read the sentence-transformers files; everything else is up to the code."""
        if not checkpoint.trusted:
            raise RemoteCodeRequiredError(
                f"{checkpoint.name}: TwinVec has no native family for model_type {checkpoint.model_type!r}, and the "
                "checkpoint brings its own code. Read that code, then pass trust_remote_code=True with revision= set "
                "to its full commit, or with a local folder. `twinvec models` lists what runs natively."
            )
        sizes = {name: CONFIG[name] for name in ("hidden_size", "max_position_embeddings", "vocab_size")}
        check_fields(checkpoint.folder / "config.json", checkpoint.config, sizes, [*sizes][:2])
        modules = read_modules(checkpoint)
        hidden, positions = checkpoint.config["hidden_size"], checkpoint.config["max_position_embeddings"]
        pooling = modules.pooling or ("mean",)
        return Description(
            family=self.name,
            hidden=hidden,
            vocabulary=checkpoint.config.get("vocab_size"),
            dim=output_dim(hidden, modules, pooling),
            max_length=min(modules.max_length or positions, positions),
            position_limit=positions,
            prompts=modules.prompts,
            pooling=pooling,
            include_prompt=modules.include_prompt,
            dense_layers=modules.dense,
            lower_case=modules.lower_case,
        )

    def runs_own_code(self, checkpoint: Checkpoint) -> bool:
        """Return True."""
        return True

    def build(
        self, checkpoint: Checkpoint, description: Description, dtype: torch.dtype, device: torch.device
    ) -> Backbone:
        """Build the checkpoint's own class."""
        return build_remote(checkpoint, dtype)


def build_remote(checkpoint: Checkpoint, dtype: torch.dtype) -> Backbone:
    """Build and fill the checkpoint's own model class.

    Raises:
        UnsupportedCheckpointError: the code is in another repository, or fails.
        CheckpointMismatchError: the tensors do not fit it.
    """
    import torch
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    from twinvec.compute.backbone import Backbone, pad
    from twinvec.compute.packing import TokenBatch

    class RemoteModel(Backbone):
        packed = False

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model
            parameters = inspect.signature(model.forward).parameters
            self._options = {"return_embeddings": True} if "return_embeddings" in parameters else {}
            one = torch.zeros(1, dtype=torch.int64)
            probe = TokenBatch(one, one, torch.tensor([0, 1], dtype=torch.int32), (1,), (0,))
            with torch.inference_mode():
                self.output = "pooled" if self._run(probe)[0].ndim == 2 else "states"

        def forward(self, batch: TokenBatch) -> torch.Tensor:
            result, mask = self._run(batch)
            return result if self.output == "pooled" else result[mask]

        def _run(self, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
            ids, mask = pad(batch, 0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # autocast("cuda") on a CPU, deprecated arguments
                result = self.model(input_ids=ids, attention_mask=mask.long(), **self._options)
            return _tensor(result), mask

    auto_map = checkpoint.config["auto_map"]
    if foreign := [ref for ref in auto_map.values() if isinstance(ref, str) and "--" in ref]:
        raise UnsupportedCheckpointError(
            f"{checkpoint.name}: its code is in another, unpinned repository ({foreign[0]}), which TwinVec does not run"
        )
    tensors = {k: v for file in checkpoint.weight_files for k, v in load_tensors(file).items()}
    try:
        with _missing_pieces():
            model_class: Any = get_class_from_dynamic_module(auto_map["AutoModel"], str(checkpoint.folder))
            _register_nested(model_class)
            config = model_class.config_class(**{k: v for k, v in checkpoint.config.items() if k != "auto_map"})
            with torch.device("cpu"):
                model = model_class(config).to(dtype)
        load_strict(model, tensors, checkpoint.name, dtype)
        return RemoteModel(model.eval())
    except CheckpointError:
        raise
    except Exception as error:  # third-party code may fail in any way
        raise UnsupportedCheckpointError(
            f"{checkpoint.name}: its own code fails with this version of transformers: {type(error).__name__}: {error}"
        ) from error


@contextlib.contextmanager
def _missing_pieces() -> Iterator[None]:
    """Restore for third-party code what transformers 5 removed, and only that."""
    import torch
    from transformers import modeling_rope_utils

    functions: Any = modeling_rope_utils.ROPE_INIT_FUNCTIONS
    added = "default" not in functions
    if added:

        def default(config: Any, device: Any = None, *unused: Any, **ignored: Any) -> tuple[torch.Tensor, float]:
            """Unscaled rope: inv_freq_i = theta^(-2i/d) (Su et al. 2021)."""
            head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            parameters = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta}
            exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
            return parameters["rope_theta"] ** -exponents, 1.0

        functions["default"] = default
    try:
        yield
    finally:
        if added:
            del functions["default"]


def _register_nested(model_class: Any) -> None:
    """Register the configurations and models of the checkpoint's module, which its code builds by AutoModel."""
    from transformers import AutoConfig, AutoModel, PreTrainedModel

    for candidate in vars(sys.modules[model_class.__module__]).values():
        if not (inspect.isclass(candidate) and issubclass(candidate, PreTrainedModel)):
            continue
        config: Any = candidate.config_class
        if config is not None and config.__module__.startswith("transformers_modules") and config.model_type:
            AutoConfig.register(config.model_type, config, exist_ok=True)
            AutoModel.register(config, candidate, exist_ok=True)


def _tensor(result: Any) -> torch.Tensor:
    import torch

    for name in ("sentence_embeddings", "sentence_embedding", "embeddings", "last_hidden_state"):
        value = result.get(name) if hasattr(result, "get") else getattr(result, name, None)
        if isinstance(value, torch.Tensor):
            return value
    if isinstance(result, (tuple, list)):
        result = result[0]
    if not isinstance(result, torch.Tensor):
        raise TypeError(f"forward returned {type(result).__name__}, expected vectors or token states")
    return result
