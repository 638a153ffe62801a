"""One call of an Embedder: what it asks for, its view of a shared core, its progress, its result."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from twinvec.errors import InvalidTextError
from twinvec.prompts import Task
from twinvec.spec import ModelSpec
from twinvec.vectors import EmbeddingBatch

if TYPE_CHECKING:
    from tqdm import tqdm

    from twinvec.core import InferenceCore
    from twinvec.families import Description
    from twinvec.jobs import Job, Request
    from twinvec.loading import Source


@dataclass(frozen=True)
class Wanted:
    """What one call asks for."""

    task: Task | str | None
    prompt: str | None
    dense: bool
    sparse: bool | None
    timeout: float | None


@dataclass(frozen=True)
class View:
    """One Embedder's way of looking at a shared core."""

    core: InferenceCore
    spec: ModelSpec
    description: Description

    @classmethod
    def open(cls, spec: ModelSpec, *, device: str, source: Source, budget: int | None, memo_bytes: int) -> View:
        """Share the model where it is loaded already, else load it."""
        from twinvec.core import InferenceCore
        from twinvec.loading import build_model, open_model
        from twinvec.shared import SHARED

        opened = open_model(spec, device, source)
        # the namespace of cached rows: what decides them before dims, keys and lengths are applied
        namespace = replace(opened.spec, dim=None, max_length=None, sparse=None, sparse_keys="surface").fingerprint
        core = SHARED.acquire(opened.key, lambda: InferenceCore(build_model(opened, budget), namespace))
        core.memo.max_bytes = max(core.memo.max_bytes, memo_bytes)
        return cls(core, opened.spec, opened.description)

    def job(self, texts: list[str], request: Callable[..., Request], **options: Any) -> tuple[InferenceCore, Job]:
        """Make a job for this view's core."""
        from twinvec.jobs import Job

        tokenizer = self.core.model.tokenizer
        return self.core, Job(texts, request(tokenizer, max_length=self.spec.max_length, **options))

    def close(self, *, drain: bool = False) -> None:
        """Give the share back; the last one closes the core."""
        from twinvec.shared import SHARED

        SHARED.release(self.core, drain=drain)


def close_later(views: list[View]) -> None:
    """Close on a thread of its own: the collector may run anywhere, under any lock."""
    for view in views:
        threading.Thread(target=view.close, name="twinvec-close", daemon=True).start()


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
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidTextError(
                f"{name}[{position}] has a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start}), "
                "which is not text: decode the source as UTF-8, or clean it with "
                "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
            ) from None
    return checked


def show_progress_of(jobs: list[tuple[InferenceCore, Job]], title: str) -> tqdm[NoReturn]:
    """Draw a bar that counts a text when all models have it."""
    from tqdm.auto import tqdm

    bar = tqdm(total=len(jobs[0][1]), unit="text", desc=title)
    finished, lock = [0] * len(jobs), threading.Lock()

    def advance(number: int, texts: int) -> None:
        with lock:
            finished[number] += texts
            bar.update(min(finished) - bar.n)

    for number, (_, job) in enumerate(jobs):
        job.on_progress = functools.partial(advance, number)
    return bar


def cancel(jobs: list[tuple[InferenceCore, Job]]) -> None:
    """Let go of the work that nobody else waits for."""
    for _, job in jobs:
        job.future.cancel()


def merge(batches: list[EmbeddingBatch]) -> EmbeddingBatch:
    """Lay the halves of a dense and a sparse model side by side; counts are the dense model's."""
    if len(batches) == 1:
        return batches[0]
    return replace(batches[0], sparse=batches[1].sparse)
