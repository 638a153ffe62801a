"""Settings from the environment: one object, read when an Embedder is created."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from twinvec.errors import ConfigurationError


@dataclass(frozen=True)
class Settings:
    """Defaults for options that the caller leaves out.

    Attributes:
        device: TWINVEC_DEVICE: "auto", "cpu", "cuda", "cuda:1", ...
        cache_dir: TWINVEC_CACHE_DIR: where hub downloads are kept; the hub library's default when unset.
        offline: TWINVEC_OFFLINE=1: never contact the hub; use what is cached (HF_HUB_OFFLINE=1 does the same).
        token_budget: TWINVEC_TOKEN_BUDGET: tokens per forward pass; chosen for the device when unset. A larger budget
            fills a bigger device, a smaller one saves memory.
        qdrant_api_key: TWINVEC_QDRANT_API_KEY: key of a Qdrant server, unless one is passed.
        milvus_token: TWINVEC_MILVUS_TOKEN: key, or "user:password", of a Milvus server, unless one is passed.
        api_key: TWINVEC_API_KEY: the key that ``twinvec serve`` requires and ``RemoteEmbedder`` sends, unless one is
            passed.
        url: TWINVEC_URL: the only server that ``api_key`` is sent to. If unset, a RemoteEmbedder sends the key to an
            address named by the program, but not to one read from data, as by LlamaIndex's ``from_dict``.
    """

    device: str = "auto"
    cache_dir: str | None = None
    offline: bool = False
    token_budget: int | None = None
    qdrant_api_key: str | None = field(default=None, repr=False)
    milvus_token: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)
    url: str | None = None

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Read ``TWINVEC_*`` variables.

        Raises:
            ConfigurationError: a value is invalid; names the variable.
        """
        budget = env.get("TWINVEC_TOKEN_BUDGET") or None
        if budget is not None and (not budget.isdecimal() or int(budget) < 1):
            raise ConfigurationError(f"TWINVEC_TOKEN_BUDGET={budget!r} must be a positive integer")
        offline = env.get("TWINVEC_OFFLINE", "0")
        if offline not in ("0", "1", "", "true", "false"):
            raise ConfigurationError(f"TWINVEC_OFFLINE={offline!r} must be 0 or 1")
        return cls(
            device=env.get("TWINVEC_DEVICE") or "auto",
            cache_dir=env.get("TWINVEC_CACHE_DIR") or None,
            offline=offline in ("1", "true"),
            token_budget=int(budget) if budget is not None else None,
            qdrant_api_key=env.get("TWINVEC_QDRANT_API_KEY") or None,
            milvus_token=env.get("TWINVEC_MILVUS_TOKEN") or None,
            api_key=env.get("TWINVEC_API_KEY") or None,
            url=env.get("TWINVEC_URL") or None,
        )
