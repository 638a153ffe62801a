"""All options as pydantic fields, for the framework classes; pydantic comes with the framework."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, WithJsonSchema
from typing_extensions import Self

from twinvec.options import OnOverflow, OnOverload, option_docs, option_fields, written_docs
from twinvec.spec import SparseKeys
from twinvec.text.prompts import Role, Task

if TYPE_CHECKING:
    from twinvec.base import BaseEmbedder

_DEFAULTS = {field.name: field.default for field in option_fields()}


def option(name: str, **more: Any) -> Any:
    """Return a field with the option's declared default and description."""
    return Field(default=_DEFAULTS[name], description=option_docs().get(name), **more)


class OptionFields(BaseModel):
    """The options of an Embedder except ``sparse``, which is a method's name in LangChain's class."""

    revision: str | None = option("revision")
    dtype: str = option("dtype")
    dim: int | None = option("dim")
    max_length: int | None = option("max_length")
    sparse_keys: SparseKeys = option("sparse_keys")
    reproducible: bool = option("reproducible")
    quantization: Literal["int8"] | None = option("quantization")
    trust_remote_code: bool = option("trust_remote_code")
    device: str = option("device")
    task: Task | str | None = option("task")
    prompts: Mapping[str, str] | None = option("prompts")
    on_overflow: OnOverflow = option("on_overflow")
    cache_dir: str | os.PathLike[str] | None = option("cache_dir")
    token: Any = option("token", exclude=True, repr=False)
    offline: bool | None = option("offline")
    token_budget: int | None = option("token_budget")
    on_overload: OnOverload = option("on_overload")
    memo_bytes: int = option("memo_bytes")
    # JSON can name a folder but not hold an object
    cache: Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "null"}]})] = option("cache")

    if TYPE_CHECKING:
        embedder: BaseEmbedder  # each framework declares it in its own way

    def with_task(self, task: Task | str) -> Self:
        """Return a copy for another task, sharing the Embedder.

        Raises:
            PromptError: the model was not trained with instructions.
        """
        self.embedder.prompt_for(Role.QUERY, task)
        return self.model_copy(update={"task": task})

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Write the description of every field into a class docstring, where ``help`` shows it."""
        super().__pydantic_init_subclass__(**kwargs)
        if doc := vars(cls).get("__doc__"):
            docs = {info.alias or name: info.description for name, info in cls.model_fields.items() if info.description}
            own = {name: text for name, text in docs.items() if name not in _DEFAULTS}
            cls.__doc__ = f"{doc.rstrip()}\n\n    Args:\n{written_docs(own | docs)}\n    "
