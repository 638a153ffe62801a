"""StoreConfig: what a store contains; kept beside its data and checked whenever it is opened."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from twinvec.errors import ConfigurationError, FingerprintMismatchError, StoreMismatchError
from twinvec.joined import JoinedEmbedder
from twinvec.text.prompts import Task
from twinvec_stores.filters.fields import parse_field

if TYPE_CHECKING:
    from twinvec import BaseEmbedder

FieldType = Literal["keyword", "integer", "float", "bool", "datetime", "text"]
Quantization: TypeAlias = str  # "int8", "binary", or "first_dim=" and a number
_FIRST_DIM = re.compile(r"first_dim=([1-9][0-9]{0,5})", re.ASCII)
SCHEMA_VERSION = 2  # 1: fingerprints came from samples of the weights


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """What a store contains.

    Attributes:
        fingerprint: ``ModelSpec.fingerprint`` of the model whose vectors are stored.
        model: that model's name, for people.
        document_prompt: the prompt before every document when it was embedded.
        recipe: how ``load_embedder`` loads the model again; never compared. Contains no code and no secrets.
        dim: dense dimensions; None if only sparse vectors are stored.
        sparse: whether sparse vectors are stored.
        idf: whether document frequencies are stored too, and queries are multiplied by their idf (BM25).
        fields: metadata fields to index, with their types; filters on other fields work, but more slowly. "datetime" is
            for ISO 8601 strings with at most microseconds (datetimes and dates are converted to them), "text" for
            strings searched by ``HasWords``. A field is a key, ``outer.inner`` for nested objects, also in lists, or
            ``"a.b"`` in double quotes for a key that contains a dot.
        quantization: what a first pass of dense search reads, kept in memory, while the full vectors stay on the disk
            and rescore the best candidates. "int8": a quarter of their size; "binary": a 32nd, for at least some 500
            dims; "first_dim=256": their first 256 dims (or another number), of models trained for it (Matryoshka).
            None: the full vectors themselves. PostgreSQL has no "int8", Milvus none of them.
        token_pool: keep vectors of tokens for a third stage by ``MaxSim``: 8 bits per dimension, one vector for so many
            neighbouring tokens. None: keep none.
        search: defaults of searches: keywords of ``SearchOptions`` as JSON types (fusion, fetch_k, min_dense,
            rerank_k), as chosen by ``twinvec tune``; see ``HybridIndex.set_search``. Never compared.
        schema_version: layout of the stored records, and what the fingerprint covers.
    """

    fingerprint: str
    model: str = "unknown"
    document_prompt: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    dim: int | None = None
    sparse: bool = True
    idf: bool = False
    fields: Mapping[str, FieldType] = field(default_factory=dict)
    quantization: Quantization | None = None
    token_pool: int | None = None
    search: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.dim is None and not self.sparse:
            raise ConfigurationError("a store needs dim= for dense vectors, sparse=True, or both")
        if self.dim is not None and (isinstance(self.dim, bool) or not isinstance(self.dim, int) or self.dim < 1):
            raise ConfigurationError(f"dim={self.dim!r} must be a positive integer or None")
        if self.idf and not self.sparse:
            raise ConfigurationError("idf=True needs sparse=True")
        self._check_quantization()
        pool = self.token_pool
        if pool is not None and (isinstance(pool, bool) or not isinstance(pool, int) or pool < 1):
            raise ConfigurationError(f"token_pool={pool!r} must be a positive integer or None")
        for name, kind in self.fields.items():
            parse_field(name)
            if kind not in get_args(FieldType):
                raise ConfigurationError(f"fields[{name!r}]={kind!r} is not one of {', '.join(get_args(FieldType))}")

    def _check_quantization(self) -> None:
        if self.quantization is None:
            return
        if self.first_dim is None and self.quantization not in ("int8", "binary"):
            raise ConfigurationError(
                f'quantization={self.quantization!r} must be "int8", "binary", "first_dim=256" (or any number) or None'
            )
        if self.dim is None:
            raise ConfigurationError("quantization is for dense vectors: this store has none")
        if self.first_dim is not None and self.first_dim >= self.dim:
            raise ConfigurationError(f"quantization={self.quantization!r} needs fewer dims than the store's {self.dim}")

    @property
    def identity(self) -> tuple[str, str]:
        """Return what vectors must have in common to be compared: their model, and the prompt before documents."""
        return self.fingerprint, self.document_prompt

    @property
    def key(self) -> str:
        """Return 16 hex digits that name the ``identity``, as for a folder or a table."""
        return hashlib.sha256(json.dumps(self.identity).encode()).hexdigest()[:16]

    @property
    def first_dim(self) -> int | None:
        """Return the number of dims that a first pass reads, if it reads only some."""
        match = _FIRST_DIM.fullmatch(self.quantization) if isinstance(self.quantization, str) else None
        return int(match[1]) if match else None

    @classmethod
    def for_embedder(
        cls,
        embedder: BaseEmbedder,
        *,
        fields: Mapping[str, FieldType] | None = None,
        quantization: Quantization | None = None,
        token_pool: int | None = None,
        task: Task | str | None = None,
    ) -> StoreConfig:
        """Return the configuration of a store for this model's vectors; ``task`` replaces the embedder's own.

        Raises:
            ConfigurationError: ``quantization`` or ``token_pool`` is not defined for this model.
        """
        if token_pool is not None and embedder.multi_vectors is None:
            raise ConfigurationError(
                f"token_pool is for models with vectors of tokens, such as bge-m3: {embedder.spec.model} has none"
            )
        config = cls(
            fingerprint=embedder.spec.fingerprint,
            model=embedder.spec.model,
            document_prompt=embedder.prompt_for("document", task),
            recipe=_recipe(embedder, embedder.task if task is None else task),
            dim=embedder.dim,
            sparse=embedder.has_sparse,
            idf=embedder.needs_idf,
            fields=fields or {},
            quantization=quantization,
            token_pool=token_pool,
        )
        if config.first_dim is not None:
            embedder.check_elastic(config.first_dim)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON types."""
        return {
            **asdict(self),
            "fields": dict(self.fields),
            "recipe": dict(self.recipe),
            "search": dict(self.search),
        }

    @classmethod
    def from_dict(cls, data: Any, where: str) -> StoreConfig:
        """Read the output of ``to_dict``.

        Args:
            data: the parsed JSON.
            where: the store's name in errors.

        Raises:
            StoreMismatchError: another schema version, or not a configuration.
        """
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version == 1:
            raise StoreMismatchError(
                f"{where} was created by an early version of TwinVec, which identified models by samples of their "
                "weights: its vectors may belong to another model. Ingest the documents into a new store"
            )
        if version != SCHEMA_VERSION:
            raise StoreMismatchError(
                f"{where} has schema version {version}, this version of TwinVec reads {SCHEMA_VERSION}: export it with "
                "the version that wrote it (`twinvec store export`) and import the file (`twinvec store import`)"
            )
        if {*data, "search", "token_pool"} != {f.name for f in fields(cls)}:  # older stores lack these two
            raise StoreMismatchError(f"{where}: its configuration is damaged (fields {', '.join(sorted(data))})")
        kinds: dict[str, type | tuple[type, ...]] = dict.fromkeys(("fingerprint", "model", "document_prompt"), str)
        kinds |= {"recipe": dict, "fields": dict, "sparse": bool, "idf": bool}
        if wrong := [name for name, kind in kinds.items() if not isinstance(data[name], kind)]:
            raise StoreMismatchError(f"{where}: its configuration is damaged ({wrong[0]} is {data[wrong[0]]!r:.60})")
        try:
            return cls(**data)
        except (AttributeError, TypeError, ValueError) as error:
            raise StoreMismatchError(f"{where}: its configuration is damaged: {error}") from None

    def check(self, given: StoreConfig, where: str) -> None:
        """Refuse to open a store created with ``self`` for vectors described by ``given``.

        Indexed fields, quantization and vectors of tokens are up to the store: ``given`` may leave them out.

        Raises:
            FingerprintMismatchError: the model differs.
            StoreMismatchError: other settings differ.
        """
        if self.fingerprint != given.fingerprint:
            raise FingerprintMismatchError(
                where,
                stored=self.fingerprint,
                given=given.fingerprint,
                stored_model=self.model,
                given_model=given.model,
            )
        if self.document_prompt != given.document_prompt:
            raise StoreMismatchError(
                f"the documents of {where} were embedded with the prompt {self.document_prompt!r}, new ones would be "
                f"with {given.document_prompt!r}: open it with the task and prompts it was created with, or ingest "
                "into a new store"
            )
        differing = [n for n in ("dim", "sparse", "idf") if getattr(self, n) != getattr(given, n)]
        differing += ["fields"] if given.fields and dict(given.fields) != dict(self.fields) else []
        for name in ("quantization", "token_pool"):
            differing += [name] if getattr(given, name) not in (None, getattr(self, name)) else []
        if differing:
            pairs = [f"{n}={getattr(self, n)!r} instead of {getattr(given, n)!r}" for n in differing]
            raise StoreMismatchError(
                f"{where} was created with {', '.join(pairs)}: omit these, or copy it into a new store "
                "(`twinvec store export` and `import`)"
            )


def _recipe(embedder: BaseEmbedder, task: Task | str | None) -> dict[str, Any]:
    if isinstance(embedder, JoinedEmbedder):  # someone else's object
        return {}
    spec = asdict(embedder.spec)
    del spec["trust_remote_code"]  # whoever opens the store decides on that
    for name in ("model", "sparse"):
        if spec[name] is not None and Path(spec[name]).exists():
            spec[name] = str(Path(spec[name]).resolve())
    return {"spec": spec, "prompts": dict(embedder.prompts), "task": asdict(task) if isinstance(task, Task) else task}
