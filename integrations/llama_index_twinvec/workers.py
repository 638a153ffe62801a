"""Embedding for worker processes, in the process that has the model.

``IngestionPipeline.run(num_workers=4)`` sends its transformations to worker processes. A model that went along would be
loaded again in each of them; so what goes along is the way back to the one that is loaded.
"""

from __future__ import annotations

import functools
import itertools
import os
import pickle
import threading
import time
import weakref
from multiprocessing import AuthenticationError, current_process
from multiprocessing.connection import Client, Connection, Listener
from typing import TYPE_CHECKING, Any

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer

from twinvec.errors import TwinVecError
from twinvec.workers import in_thread

if TYPE_CHECKING:
    from llama_index_twinvec.embeddings import TwinVecEmbedding

_PAUSE_SECONDS = 0.05
_METHODS = ("get_query_embedding", "get_text_embedding", "get_text_embedding_batch")


class WorkerEmbedding(BaseEmbedding):
    """A TwinVecEmbedding of another process, as the worker processes of that one see it."""

    address: Any = Field(exclude=True, repr=False)
    number: int = Field(exclude=True, repr=False)
    described: dict[str, Any] = Field(exclude=True, repr=False)

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the class that this one stands for: both have the same hash in a pipeline."""
        return "TwinVecEmbedding"

    @model_serializer(mode="wrap")
    def custom_model_dump(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Return what the embedding itself returns."""
        return self.described

    def _get_query_embedding(self, query: str) -> Embedding:
        row: Embedding = self._ask("get_query_embedding", query)
        return row

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await in_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> Embedding:
        row: Embedding = self._ask("get_text_embedding", text)
        return row

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return await in_thread(self._get_text_embedding, text)

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        rows: list[Embedding] = self._ask("get_text_embedding_batch", texts)
        return rows

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await in_thread(self._get_text_embeddings, texts)

    def _ask(self, method: str, argument: Any) -> Any:
        try:
            with Client(self.address, authkey=current_process().authkey) as connection:
                connection.send((self.number, method, argument))
                succeeded, answer = connection.recv()
        except (OSError, EOFError, AuthenticationError) as error:
            raise TwinVecError("the process that has the embedding model cannot be reached; has it ended?") from error
        if not succeeded:
            raise answer
        return answer


def reduce_for_worker(embedding: TwinVecEmbedding) -> tuple[Any, ...]:
    """Return what multiprocessing sends to a worker in the place of the embedding."""
    address, number = _server().serve(embedding)
    seen = {"embed_batch_size": embedding.embed_batch_size, "num_workers": embedding.num_workers}
    fields = {"address": address, "number": number, "described": embedding.to_dict(), **seen}
    return _seen_by_worker, ({**fields, "model_name": embedding.model_name},)


def _seen_by_worker(fields: dict[str, Any]) -> WorkerEmbedding:
    return WorkerEmbedding(**fields)


class _Server:
    """Answers the workers, each connection on a thread of its own, so that their texts meet in one batch."""

    def __init__(self) -> None:
        self._embeddings: weakref.WeakValueDictionary[int, TwinVecEmbedding] = weakref.WeakValueDictionary()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._listener = Listener(backlog=64, authkey=current_process().authkey)
        threading.Thread(target=self._accept, name="twinvec-workers", daemon=True).start()

    def serve(self, embedding: TwinVecEmbedding) -> tuple[Any, int]:
        """Return the address, and the number of an embedding there."""
        with self._lock:
            for number, known in self._embeddings.items():
                if known is embedding:
                    return self._listener.address, number
            number = next(self._numbers)
            self._embeddings[number] = embedding
            return self._listener.address, number

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except (AuthenticationError, EOFError, OSError):  # a stranger, a worker that died, too many open files
                time.sleep(_PAUSE_SECONDS)
                continue
            threading.Thread(target=self._answer, args=(connection,), name="twinvec-worker", daemon=True).start()

    def _answer(self, connection: Connection[Any, Any]) -> None:
        with connection:
            try:
                connection.send(self._result(*connection.recv()))
            except (OSError, EOFError):
                return  # the worker has died

    def _result(self, number: int, method: str, argument: Any) -> tuple[bool, Any]:
        embedding = self._embeddings.get(number)
        if embedding is None or method not in _METHODS:
            return False, TwinVecError("the embedding model of this worker is gone")
        try:
            return True, getattr(embedding, method)(argument)
        except Exception as error:
            return False, _portable(error)


def _portable(error: Exception) -> Exception:
    """Return an error that arrives as what it is, or at least with its message."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:
        return TwinVecError(f"{type(error).__name__}: {error}")
    return error


@functools.cache
def _server() -> _Server:
    return _Server()


if hasattr(os, "register_at_fork"):  # its thread does not come along
    os.register_at_fork(after_in_child=_server.cache_clear)
