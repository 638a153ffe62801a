"""The models of a folder's store: the same records with the vectors of each, one of which serves.

``models/`` has a store's folder for each model but the first, whose files are in the folder itself. The file
``serving`` names the one that is opened, and the one before it; it is replaced in one step.
"""

from __future__ import annotations

import json
from pathlib import Path

from twinvec.errors import StoreMismatchError
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.embedded.durable import write_durably

_MODELS, _SERVING, _CONFIG = "models", "serving", "store.json"
MODELS_FILES = {_MODELS, _SERVING, f"{_SERVING}.new"}


def serving(root: Path) -> Path:
    """Return the folder that is opened.

    Raises:
        StoreMismatchError: it is missing.
    """
    return _folder(root, _read(root)["serving"])


def before(root: Path) -> Path | None:
    """Return the folder that was opened before the last switch, if there was one.

    Raises:
        StoreMismatchError: it is missing.
    """
    return _folder(root, _read(root)["before"]) if (root / _SERVING).exists() else None


def place(root: Path, config: StoreConfig) -> Path:
    """Return the folder for a model's vectors, which may not exist yet."""
    first = json.loads((root / _CONFIG).read_text(encoding="utf-8"))
    return root if (first["fingerprint"], first["document_prompt"]) == config.identity else root / _MODELS / config.key


def switch(root: Path, folder: Path) -> None:
    """Let a folder serve from now on, in one step that survives a power failure."""
    names = {"serving": _name(root, folder), "before": _name(root, serving(root))}
    write_durably(root / _SERVING, json.dumps(names))


def _name(root: Path, folder: Path) -> str:
    return "" if folder == root else folder.name


def _folder(root: Path, name: str) -> Path:
    folder = root / _MODELS / name if name else root
    if name and not (folder / _CONFIG).exists():
        raise StoreMismatchError(f"{folder} is missing, which {root / _SERVING} names: restore it")
    return folder


def _read(root: Path) -> dict[str, str]:
    path = root / _SERVING
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        return {key: Path(names[key]).name for key in ("serving", "before")}
    except (FileNotFoundError, NotADirectoryError):
        return {"serving": "", "before": ""}
    except (KeyError, TypeError, ValueError) as error:
        raise StoreMismatchError(f"{path} is damaged: {error!r}") from None
