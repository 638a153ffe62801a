"""EmbedderOptions: how a model is run. Together with ModelSpec it holds every option, documented where it is declared.

The constructor of ``Embedder``, the fields of the framework classes, the command-line options and pickles are all
derived from these two classes. ``EmbedderKeywords`` repeats their names and types for type checkers and editors; a test
keeps them in step.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypedDict, TypeVar

from twinvec.errors import ConfigurationError
from twinvec.spec import ModelSpec, SparseKeys
from twinvec.text.prompts import Task
from twinvec.vectors import Spans

if TYPE_CHECKING:
    from twinvec.cache.rows import Cache

OnOverflow = Literal["truncate", "error"]
OnOverload = Literal["wait", "error"]
_F = TypeVar("_F", bound=Callable[..., None])
_NOT_ASKED_FOR = ("model", "digest")  # fields of ModelSpec that are not constructor options
_ENTRY = re.compile(r"(\w+): (.*)", re.DOTALL)


class Secret(Protocol):
    """A string that hides its value, such as pydantic's SecretStr."""

    def get_secret_value(self) -> str:
        """Return the string."""


@dataclass(frozen=True, kw_only=True)
class EmbedderOptions:
    """How a model is run; whatever decides its vectors is in ``ModelSpec``.

    Pickles and copies carry everything except the token.

    Attributes:
        device: "auto" (TWINVEC_DEVICE, else CUDA if available), "cpu", "cuda" or "cuda:1". With several devices,
            "cuda:0,cuda:1", each holds a copy of the model and all share one queue.
        task: what the texts are for, for models trained with instructions: a Task, a name from ``TASKS`` or from the
            checkpoint, or an instruction such as "Given a question, find a paragraph with the answer". Applies to every
            call without its own task; None: the model's default.
        prompts: prompts by name that override the checkpoint's, like sentence-transformers' ``prompts``: {"query":
            "query: ", "document": "passage: "} for E5 models whose folder lacks them. None: the checkpoint's.
        on_overflow: "truncate" cuts the tail of longer texts and warns once per call; "error" raises TextTooLongError,
            for pipelines that split texts themselves and want to know when that failed.
        cache_dir: where hub downloads are kept. None: TWINVEC_CACHE_DIR, else the hub library's default.
        token: the hub's access token, for gated and private models. None: whatever the hub library finds (HF_TOKEN, or
            a login). Never stored, shown, logged or pickled.
        offline: never contact the hub; use what is already downloaded. None: TWINVEC_OFFLINE, HF_HUB_OFFLINE.
        token_budget: tokens per forward pass. A larger budget keeps a large device busy; a smaller one saves memory and
            lets queries in sooner. None: TWINVEC_TOKEN_BUDGET, else measured on the device.
        on_overload: what to do when too many texts are pending: "wait" queues the call; "error" raises OverloadedError,
            for servers that would rather refuse than be late.
        memo_bytes: memory for recent rows, so that asking for the dense and then the sparse half of the same texts, as
            stores do, takes one forward pass. 0 disables it.
        cache: a folder, or a ``twinvec.cache.VectorCache`` with its own size limit, that keeps vectors for later runs,
            by text, prompt and model. For texts that are embedded again and again. None: nothing is kept.
    """

    device: str = "auto"
    task: Task | str | None = None
    prompts: Mapping[str, str] | None = None
    on_overflow: OnOverflow = "truncate"
    cache_dir: str | None = None
    token: str | None = None
    offline: bool | None = None
    token_budget: int | None = None
    on_overload: OnOverload = "wait"
    memo_bytes: int = 64 * 2**20
    cache: Cache | None = None

    def __post_init__(self) -> None:
        if self.on_overflow not in ("truncate", "error"):
            raise ConfigurationError(f'on_overflow={self.on_overflow!r} is neither "truncate" nor "error"')
        if self.on_overload not in ("wait", "error"):
            raise ConfigurationError(f'on_overload={self.on_overload!r} is neither "wait" nor "error"')
        for name, least in (("memo_bytes", 0), ("token_budget", 1)):
            number = getattr(self, name)
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < least):
                raise ConfigurationError(f"{name}={number!r} must be an integer of at least {least}")
        if self.prompts is not None:
            object.__setattr__(self, "prompts", _texts_by_name(self.prompts))
        if self.cache_dir is not None:
            object.__setattr__(self, "cache_dir", os.fspath(self.cache_dir))
        object.__setattr__(self, "token", _revealed(self.token))
        object.__setattr__(self, "cache", _opened(self.cache))

    def __repr__(self) -> str:
        values = {field: getattr(self, field.name) for field in fields(self) if field.name != "token"}
        shown = [f"{field.name}={value!r}" for field, value in values.items() if value != field.default]
        return f"EmbedderOptions({', '.join(shown)})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "token": None}


class EmbedderKeywords(TypedDict, total=False):
    """The keyword arguments of ``Embedder``: the fields of ``ModelSpec`` and ``EmbedderOptions``."""

    revision: str | None
    dtype: str
    dim: int | None
    max_length: int | None
    sparse: str | os.PathLike[str] | None
    sparse_keys: SparseKeys
    reproducible: bool
    quantization: Literal["int8"] | None
    trust_remote_code: bool
    device: str
    task: Task | str | None
    prompts: Mapping[str, str] | None
    on_overflow: OnOverflow
    cache_dir: str | os.PathLike[str] | None
    token: str | Secret | None
    offline: bool | None
    token_budget: int | None
    on_overload: OnOverload
    memo_bytes: int
    cache: str | os.PathLike[str] | Cache | None


def spec_fields() -> tuple[Field[Any], ...]:
    """Return the options that decide a vector."""
    return tuple(field for field in fields(ModelSpec) if field.name not in _NOT_ASKED_FOR)


def option_fields() -> tuple[Field[Any], ...]:
    """Return all options: those that decide a vector, then those that do not."""
    return *spec_fields(), *fields(EmbedderOptions)


def read_options(
    model: str | os.PathLike[str] | ModelSpec, given: Mapping[str, Any]
) -> tuple[ModelSpec, EmbedderOptions]:
    """Interpret the arguments of ``Embedder``.

    Raises:
        TypeError: an option is unknown.
        ConfigurationError: an option is invalid, or is already part of the ModelSpec.
    """
    names = {field.name for field in option_fields()}
    if unknown := [name for name in given if name not in names]:
        raise TypeError(f"unknown option {unknown[0]!r}; there are {', '.join(sorted(names))}")
    deciding = {field.name: given[field.name] for field in spec_fields() if field.name in given}
    options = EmbedderOptions(**{name: value for name, value in given.items() if name not in deciding})
    if not isinstance(model, ModelSpec):
        return ModelSpec(model=model, **deciding), options  # type: ignore[arg-type]  # a path becomes a string there
    defaults = {field.name: field.default for field in spec_fields()}
    if said := [name for name, value in deciding.items() if value != defaults[name]]:
        raise ConfigurationError(
            f"{', '.join(said)}: already part of the ModelSpec; change it with dataclasses.replace"
        )
    return model, options


@functools.cache
def option_docs() -> Mapping[str, str]:
    """Return the description of each option from the classes that declare it; empty under ``python -OO``."""
    docs = {**_attributes(ModelSpec.__doc__), **_attributes(EmbedderOptions.__doc__)}
    return {name: docs[name] for name in ("model", *(field.name for field in option_fields())) if name in docs}


def written_docs(docs: Mapping[str, str], indent: int = 8) -> str:
    """Format argument descriptions as the lines of an "Args" section."""
    margin = " " * indent
    wrapper = textwrap.TextWrapper(
        120, initial_indent=margin, subsequent_indent=margin + "    ", break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(wrapper.fill(f"{name}: {text}") for name, text in docs.items())


def takes_options(init: _F) -> _F:
    """Give a constructor with ``**options`` an explicit signature, and replace "{options}" in its docstring."""
    signature = inspect.signature(init)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in option_fields()
    ]
    vars(init)["__signature__"] = signature.replace(parameters=[*named, *options])
    docs = {name: text for name, text in option_docs().items() if name not in signature.parameters}
    init.__doc__ = init.__doc__ and init.__doc__.replace("            {options}", written_docs(docs, indent=12))
    return init


def _attributes(doc: str | None) -> dict[str, str]:
    """Read the "Attributes" section of a docstring."""
    _, _, section = inspect.cleandoc(doc or "").partition("\nAttributes:\n")
    entries = re.split(r"\n(?=    \w)", "\n" + section.partition("\n\n")[0])[1:]
    matches = [_ENTRY.fullmatch(" ".join(entry.split())) for entry in entries]
    return {match[1]: match[2] for match in matches if match is not None}


def _texts_by_name(prompts: Any) -> dict[str, str]:
    if not isinstance(prompts, Mapping) or not all(isinstance(text, str) for pair in prompts.items() for text in pair):
        raise ConfigurationError(f"prompts={prompts!r:.60} must be a dict of names and texts")
    return dict(prompts)


def _revealed(token: Any) -> str | None:
    token = token.get_secret_value() if hasattr(token, "get_secret_value") else token
    if not isinstance(token, str | None):
        raise ConfigurationError(f"token must be a string, not {type(token).__name__}")
    return token


def _opened(cache: Any) -> Cache | None:
    if isinstance(cache, str | os.PathLike):
        from twinvec.cache import VectorCache

        return VectorCache(cache)
    if cache is not None and not (hasattr(cache, "get_many") and hasattr(cache, "put_many")):
        raise ConfigurationError(f"cache must be a folder or a twinvec.cache.VectorCache, not {type(cache).__name__}")
    known: Cache | None = cache
    return known


class CallOptions(NamedTuple):
    """The options of one call.

    Attributes:
        task, prompt, dense, sparse, timeout, show_progress: see ``Embedder.embed_queries``.
        multi: see there, as well; "states": the state of every token, neither pooled nor normalised.
        dim: number of dense dimensions, instead of the Embedder's.
        fail_on_overflow: overrides the Embedder's ``on_overflow``.
        spans: see ``Embedder.embed_documents``.
        normalize: False leaves dense rows as the model gives them.
    """

    task: Task | str | None = None
    prompt: str | None = None
    dense: bool = True
    sparse: bool | None = None
    timeout: float | None = None
    show_progress: bool = False
    dim: int | None = None
    fail_on_overflow: bool | None = None
    multi: bool | Literal["states"] = False
    spans: Sequence[Spans] | None = None
    normalize: bool = True
