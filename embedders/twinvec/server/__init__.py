"""A server for one Embedder: its own binary routes, OpenAI's, and those of text-embeddings-inference (TEI).

    from twinvec import Embedder
    from twinvec.server import run

    with Embedder("Alibaba-NLP/gte-multilingual-base") as embedder:
        run(embedder, port=8000)

Concurrent requests share forward passes. ``twinvec.RemoteEmbedder("http://127.0.0.1:8000")`` is the matching client;
any OpenAI or TEI client works too. Routes:

- ``POST /v1/twinvec/embed``, ``offsets``, ``terms``; ``GET /v1/twinvec/info``, ``stats``: used by RemoteEmbedder
- ``POST /v1/embeddings``, ``GET /v1/models``: OpenAI's API, plus the fields ``input_type`` ("document", the default, or
  "query") and ``task``
- ``POST /embed`` (and ``/``), ``/embed_sparse``, ``GET /info``, ``/health``, ``/metrics``: TEI's API. As in TEI, texts
  get a prompt only if ``prompt_name`` asks for one: "query", "document", the name of a task or one of the model's
  prompts
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twinvec.errors import ConfigurationError

if TYPE_CHECKING:
    from twinvec.server.app import create_app
    from twinvec.server.front import Keys, KeysFile
    from twinvec.server.limits import Limits
    from twinvec.server.operations import Extension
    from twinvec.server.running import leave_models_uncollected, reserve, run

_WHERE = {
    "create_app": "app",
    "run": "running",
    "leave_models_uncollected": "running",
    "reserve": "running",
    "Limits": "limits",
    "Keys": "front",
    "KeysFile": "front",
    "Extension": "operations",
}
_PACKAGES = ("starlette", "uvicorn", "httptools", "msgspec", "prometheus_client")

__all__ = ["Extension", "Keys", "KeysFile", "Limits", "create_app", "leave_models_uncollected", "reserve", "run"]


def __getattr__(name: str) -> Any:
    """Import the server on demand: the client in this package does not need its dependencies."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    from importlib.util import find_spec

    if not all(map(find_spec, _PACKAGES)):
        raise ConfigurationError("the server needs optional packages: pip install 'twinvec[serve]'")
    return getattr(import_module(f"twinvec.server.{_WHERE[name]}"), name)
