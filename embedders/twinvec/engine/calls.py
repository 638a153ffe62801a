"""One call of an Embedder: what it asks for, and the view of a shared core that it goes to."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from twinvec.errors import InvalidTextError
from twinvec.settings import Settings
from twinvec.spec import ModelSpec
from twinvec.text.bm25 import Bm25
from twinvec.text.prompts import Role, Task
from twinvec.text.unicode import lone_surrogate

if TYPE_CHECKING:
    from twinvec.engine.core import InferenceCore
    from twinvec.engine.job import Job, Request
    from twinvec.engine.loading import Source
    from twinvec.families import Description
    from twinvec.options import EmbedderOptions


@dataclass(frozen=True)
class Wanted:
    """What one call asks for.

    Attributes:
        task, prompt, dense, sparse, timeout: see ``Embedder.embed_queries``.
        dim: dense dimensions in place of the Embedder's.
        fail_on_overflow: in place of the Embedder's ``on_overflow``.
    """

    task: Task | str | None = None
    prompt: str | None = None
    dense: bool = True
    sparse: bool | None = None
    timeout: float | None = None
    dim: int | None = None
    fail_on_overflow: bool | None = None


@dataclass(frozen=True)
class Checked:
    """A call that can be answered: ``prompt`` goes before each text, ``dense`` and ``sparse`` halves are computed."""

    role: Role
    texts: list[str]
    prompt: str
    dense: bool
    sparse: bool


@dataclass(frozen=True)
class View:
    """One Embedder's way of looking at a shared core."""

    core: InferenceCore
    spec: ModelSpec
    description: Description
    memo_bytes: int

    @classmethod
    def open(cls, spec: ModelSpec, *, device: str, source: Source, budget: int | None, memo_bytes: int) -> View:
        """Share the model where it is loaded already, else load it."""
        from twinvec.engine.core import InferenceCore
        from twinvec.engine.loading import build_model, open_model
        from twinvec.engine.registry import REGISTRY

        opened = open_model(spec, device, source)
        core = REGISTRY.acquire(
            opened.key, memo_bytes, lambda: InferenceCore(build_model(opened, budget), opened.namespaces)
        )
        return cls(core, opened.spec, opened.description, memo_bytes)

    def job(self, texts: list[str], request: Callable[..., Request], **options: Any) -> Job:
        """Return a job for this view's core."""
        from twinvec.engine.job import Job

        wanted = request(self.core.model.tokenizer, max_length=self.spec.max_length, **options)
        return Job(texts, wanted, self.core)

    def close(self, *, drain: bool = False) -> None:
        """Give the share back; the last one closes the core."""
        from twinvec.engine.registry import REGISTRY

        REGISTRY.release(self.core, self.memo_bytes, drain=drain)


def open_views(spec: ModelSpec, options: EmbedderOptions) -> list[View]:
    """Open the model, and the second one where ``spec.sparse`` names one."""
    from twinvec.engine.loading import Source, names_other_checkpoint

    settings = Settings.from_env()
    source = Source(
        cache_dir=options.cache_dir or settings.cache_dir,
        token=options.token,
        offline=settings.offline if options.offline is None else options.offline,
    )
    view = functools.partial(
        View.open,
        device=options.device if options.device != "auto" else settings.device,
        source=source,
        budget=options.token_budget or settings.token_budget,
        memo_bytes=options.memo_bytes,
    )
    if (bm25 := Bm25.parse(spec.sparse)) is not None:
        bm25.prepare()
        return [view(replace(spec, sparse=None))]
    if not names_other_checkpoint(spec.sparse):
        return [view(spec)]
    dense_digest, _, sparse_digest = (spec.digest or "").partition("+")
    main = view(replace(spec, sparse=None, digest=dense_digest or None))
    other = ModelSpec(
        model=str(spec.sparse),
        dtype=spec.dtype,
        sparse="head",
        sparse_keys=spec.sparse_keys,
        reproducible=spec.reproducible,
        quantization=spec.quantization,
        digest=sparse_digest or None,
    )
    try:
        return [main, view(other)]
    except BaseException:
        main.close()
        raise


def close_later(views: list[View]) -> None:
    """Close on a thread of its own: the collector may run anywhere, under any lock.

    The interpreter waits for the thread: one that is inside of torch when the interpreter ends aborts the process.
    """
    for view in views:
        with contextlib.suppress(RuntimeError):  # the interpreter is at its end already
            threading.Thread(target=view.close, name="twinvec-close", daemon=False).start()


def check_texts(texts: Iterable[str], name: str = "texts") -> list[str]:
    """Return the texts as a list.

    Raises:
        TypeError: a single string, or an item that is no string.
        InvalidTextError: a lone surrogate.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"{name} must be a list of strings, not one {type(texts).__name__}: pass [{name}]")
    checked = list(texts)
    for position, text in enumerate(checked):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{position}] must be a string, not {type(text).__name__}")
        if reason := lone_surrogate(text):
            raise InvalidTextError(
                f"has {reason}, which is not text: decode the source as UTF-8, or clean it with "
                "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')",
                position=position,
                name=name,
            )
    return checked
