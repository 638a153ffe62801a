"""Where checkpoints come from: a folder, the Hugging Face hub, ModelScope."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from twinvec.checkpoints.files import BGE_HEAD, BGE_MULTI_HEAD, Checkpoint, read_checkpoint
from twinvec.errors import (
    CheckpointNotFoundError,
    ConfigurationError,
)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_MODELSCOPE = "modelscope:"
_SMALL_FILES = ["*.json", "*.txt", "*.jinja"]
_WEIGHT_FILES = ["*.safetensors", BGE_HEAD, BGE_MULTI_HEAD, "*_Dense/pytorch_model.bin"]
_PICKLES = ["pytorch_model*.bin", "*/pytorch_model.bin"]
_NOT_NEEDED = ["onnx/*", "openvino/*", "original/*", "*.onnx", "*/optimizer*"]


def open_checkpoint(
    model: str,
    *,
    revision: str | None = None,
    cache_dir: str | None = None,
    token: str | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Resolve a folder or hub id and read its configuration.

    Args:
        model: a folder; a hub id ("owner/name", or a bare name of the sentence-transformers organisation);
            or "modelscope:owner/name".
        revision: branch, tag or commit; not for folders.
        cache_dir: where downloads are kept.
        token: hub access token, for private and gated repositories.
        offline: use only what is cached.
        trust_remote_code: also download the checkpoint's Python files and allow running them; a hub id then needs a
            full commit as revision.

    Raises:
        CheckpointNotFoundError: no such folder or repository, or no access; says what to do.
        CheckpointError: the configuration is unreadable.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ConfigurationError(f"revision={revision!r} is for hub ids, but {model} is a folder")
        return read_checkpoint(model, path, None, trusted=trust_remote_code, cache_dir=cache_dir)
    if path.exists():
        raise CheckpointNotFoundError(f"{model} is a file; pass the folder that contains config.json and the weights")
    if trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise ConfigurationError(
            f"{model}: trust_remote_code=True runs the repository's code, so it needs revision= with the full commit "
            "(40 hex digits) that you have reviewed"
        )
    patterns = _SMALL_FILES + _WEIGHT_FILES + (["*.py"] if trust_remote_code else [])
    if model.startswith(_MODELSCOPE):
        root = _from_modelscope(model.removeprefix(_MODELSCOPE), revision, cache_dir, offline, patterns)
        return read_checkpoint(model, root, revision, trusted=trust_remote_code, cache_dir=cache_dir)
    if not _HUB_ID.fullmatch(model):
        raise CheckpointNotFoundError(f"{model}: no such folder, and not a hub id of the form owner/name")
    repo = model if "/" in model else f"sentence-transformers/{model}"
    root = _from_hub(repo, revision, cache_dir, token, offline, patterns)
    if not any(root.rglob("*.safetensors")):
        root = _from_hub(repo, revision, cache_dir, token, offline, patterns + _PICKLES)
    return read_checkpoint(model, root, root.name, trusted=trust_remote_code, cache_dir=cache_dir)


def _from_hub(
    repo: str,
    revision: str | None,
    cache_dir: str | None,
    token: str | None,
    offline: bool,
    patterns: list[str],
) -> Path:
    import httpx
    from huggingface_hub import errors, snapshot_download

    unreachable = (
        errors.HfHubHTTPError,
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        httpx.HTTPError,
        OSError,
    )

    def download(local_files_only: bool) -> Path:
        path = snapshot_download(
            repo,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            allow_patterns=patterns,
            ignore_patterns=_NOT_NEEDED,
        )
        return Path(path)

    try:
        return download(offline)
    except errors.GatedRepoError as error:
        raise CheckpointNotFoundError(
            f"{repo}: access must be granted by its owners; ask on its hub page, then set HF_TOKEN or pass token=..."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise CheckpointNotFoundError(
            f"{repo}{'' if revision is None else '@' + revision}: the hub has no such repository or revision, or it is "
            "private: check the spelling, set HF_TOKEN or pass token=..."
        ) from error
    except errors.HFValidationError as error:
        raise CheckpointNotFoundError(f"{repo}: no such folder, and not a valid hub id ({error})") from error
    except unreachable as error:
        if not offline:
            with contextlib.suppress(*unreachable):
                return download(local_files_only=True)
        raise CheckpointNotFoundError(
            f"{repo}: config.json and weights are not in the cache ({cache_dir or 'the default one'}) and the hub "
            f"{'was not contacted (offline)' if offline else 'cannot be reached'}. Connect and try again, or copy the "
            f"repository to a folder and pass that folder. ({type(error).__name__})"
        ) from error


def _from_modelscope(
    repo: str, revision: str | None, cache_dir: str | None, offline: bool, patterns: list[str]
) -> Path:
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise ConfigurationError(
            f"{_MODELSCOPE}{repo} needs an optional package: pip install 'twinvec[modelscope]'"
        ) from error
    try:
        path = snapshot_download(
            repo,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=offline,
            allow_patterns=patterns + _PICKLES,
        )
    except Exception as error:  # modelscope's errors have no common base class
        raise CheckpointNotFoundError(
            f"{_MODELSCOPE}{repo}: cannot be downloaded ({type(error).__name__}: {error}). Connect and try again, or "
            "pass a local folder."
        ) from error
    return Path(path)
