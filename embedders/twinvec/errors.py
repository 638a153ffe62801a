"""All errors that TwinVec raises deliberately.

TwinVecError
├── CheckpointError              a model cannot be found, read or loaded
│   ├── CheckpointNotFoundError  missing folder or file, or no access to the hub
│   ├── CheckpointFieldError     an impossible value in one of its files: .file, .field, .value
│   ├── CheckpointMismatchError  tensors do not fit the family: .missing, .unexpected, .mismatched
│   ├── UnsupportedCheckpointError  no family supports it
│   │   └── ModelKindError       a reranker was loaded as an Embedder, or vice versa
│   └── RemoteCodeRequiredError  it needs its own code, which is not allowed by default
├── ConfigurationError           an argument that cannot be honoured (also a ValueError)
│   └── PromptError              a task or prompt the model was not trained for, or that does not fit
├── TextError                    a single text is at fault: .position, .reason
│   ├── InvalidTextError         it cannot be tokenised (also a ValueError)
│   ├── TextTooLongError         it is over the limit with on_overflow="error" (also a ValueError)
│   ├── NonFiniteError           the model returned NaN or infinity for it
│   └── OutOfMemoryError         it does not fit into the device's memory even by itself
├── OverloadedError              the queue is full and on_overload="error"
├── DeadlineError                a call's timeout passed (also a TimeoutError)
├── DeviceLostError              no working device is left; Embedder.restart() rebuilds the model
├── RemoteError                  a server cannot be reached, or its response is invalid
└── StoreError                   a store of vectors cannot do what was asked
    ├── StoreNotFoundError       the store does not exist, and was opened without a config to create it
    ├── StoreLockedError         another process has the folder open
    ├── StoreClosedError         used after close()
    ├── StoreReadOnlyError       a write to a store that was opened with read_only=True
    ├── StoreMismatchError       the store was created with other settings or by another version
    │   └── FingerprintMismatchError  created with another model: .stored, .given
    ├── StoreEngineError         the engine failed, or the server cannot be reached
    ├── InvalidRecordError       a record that would harm the store (also a ValueError): .id, .field, .reason
    ├── FilterError              a filter that cannot be applied (also a ValueError): .field
    └── IngestError              a source that cannot be read, or a bad row with on_error="stop"

TruncationWarning                texts were cut at the model's limit (a UserWarning, once per call)
DoublePromptWarning              texts begin with the prompt that goes before them (a UserWarning, once per call)
FusionWarning                    fusion="weighted" with scores on a different scale from its weights (a UserWarning)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

_Text = TypeVar("_Text", bound="TextError")
_Record = TypeVar("_Record", bound="InvalidRecordError")


class TwinVecError(Exception):
    """Base class of all errors raised deliberately; they can be pickled with everything that they carry."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args), self.__dict__


class CheckpointError(TwinVecError):
    """A checkpoint cannot be found, read or loaded."""


class CheckpointNotFoundError(CheckpointError):
    """A folder or file is missing, or the hub cannot be reached."""


class CheckpointFieldError(CheckpointError):
    """A checkpoint file contains a value that no working model can have.

    Attributes:
        file: the file.
        field: the field's name; several names separated by commas if they are missing.
        value: the value in the file; None if it is missing.
    """

    def __init__(self, file: Path, field: str, value: Any, problem: str) -> None:
        self.file, self.field, self.value = file, field, value
        shown = field if value is None else f"{field}={value!r:.100}"
        super().__init__(f"{file}: {shown} {problem}.")


class CheckpointMismatchError(CheckpointError):
    """The tensors of a checkpoint do not fit its family.

    Attributes:
        missing: tensors the model needs but the checkpoint lacks.
        unexpected: tensors of the checkpoint that the model does not use.
        mismatched: name -> (shape in the checkpoint, shape in the model).
    """

    def __init__(
        self,
        where: str,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
    ) -> None:
        self.missing = tuple(sorted(missing))
        self.unexpected = tuple(sorted(unexpected))
        self.mismatched = dict(sorted((mismatched or {}).items()))
        parts = [f"{where}: the tensors do not fit the model described by config.json."]
        for title, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            if names:
                parts.append(f"  {len(names)} {title}: {_shorten(names)}")
        if self.mismatched:
            shapes = [f"{k} {list(a)} instead of {list(b)}" for k, (a, b) in self.mismatched.items()]
            parts.append(f"  {len(shapes)} with another shape: {_shorten(shapes)}")
        parts.append("Nothing was loaded: download the checkpoint again, or use one that matches this config.")
        super().__init__("\n".join(parts))


class UnsupportedCheckpointError(CheckpointError):
    """No family of TwinVec supports this checkpoint."""


class ModelKindError(UnsupportedCheckpointError):
    """A reranker was loaded as an Embedder, or vice versa."""


class RemoteCodeRequiredError(CheckpointError):
    """The checkpoint needs its own code to run, and the caller did not allow that."""


class ConfigurationError(TwinVecError, ValueError):
    """An argument that cannot be honoured."""


class PromptError(ConfigurationError):
    """A task or prompt the model was not trained for, or that does not fit into its length."""


class TextError(TwinVecError):
    """A call failed because of a single text.

    Attributes:
        position: index of the text in the caller's list; None if unknown.
        reason: what is wrong with it and what to do; the message without the position.
    """

    def __init__(self, reason: str, *, position: int | None = None, name: str = "texts") -> None:
        super().__init__(reason if position is None else f"{name}[{position}] {reason}")
        self.position = position
        self.reason = reason

    def moved(self: _Text, by: int) -> _Text:
        """Return the same error with its position shifted."""
        return self if self.position is None else type(self)(self.reason, position=self.position + by)


class InvalidTextError(TextError, ValueError):
    """A text that cannot be tokenised."""


class TextTooLongError(TextError, ValueError):
    """A text is longer than the limit, with ``on_overflow="error"``."""


class NonFiniteError(TextError):
    """The model returned NaN or infinity for a text."""


class OutOfMemoryError(TextError):
    """A text does not fit into the device's memory even by itself."""


class OverloadedError(TwinVecError):
    """The queue is full, and the call was made with ``on_overload="error"``."""


class DeadlineError(TwinVecError, TimeoutError):
    """A call's timeout passed before its vectors were ready; its work is cancelled."""


class DeviceLostError(TwinVecError):
    """All devices of the model have failed; all pending calls get this error."""


class RemoteError(TwinVecError):
    """A server cannot be reached, refuses access, or returns an invalid response."""


class StoreError(TwinVecError):
    """A vector store cannot do what was asked."""


class StoreNotFoundError(StoreError):
    """The store does not exist, and was opened without a config to create it."""


class StoreLockedError(StoreError):
    """Another process has the folder open."""


class StoreClosedError(StoreError):
    """The store has been closed."""


class StoreReadOnlyError(StoreError):
    """The store was opened as read-only."""


class StoreMismatchError(StoreError):
    """The store was created with other settings, or by a version that cannot be read."""


class FingerprintMismatchError(StoreMismatchError):
    """The store holds vectors of another model.

    Attributes:
        stored: the fingerprint the store was created with.
        given: the fingerprint of the model it was opened with.
    """

    def __init__(self, where: str, *, stored: str, given: str, stored_model: str, given_model: str) -> None:
        self.stored = stored
        self.given = given
        super().__init__(
            f"{where} holds vectors of another model, which cannot be compared with those of this one:\n"
            f"  store: {stored} ({stored_model})\n"
            f"  given: {given} ({given_model})\n"
            "Open it with the model and options it was created with, or ingest the documents into a new store."
        )


class StoreEngineError(StoreError):
    """A store's engine failed, or its server cannot be reached."""


class InvalidRecordError(StoreError, ValueError):
    """A record would harm the store.

    Attributes:
        id: the record's id; None if it is unknown or the whole batch is at fault.
        field: the faulty part of the record: "text", "dense", "metadata['a'][0]"; None if no single part is at fault.
        reason: what is wrong with it; the message without the id.
    """

    def __init__(self, reason: str, *, id: str | None = None, field: str | None = None) -> None:
        super().__init__(reason if id is None else f"record {id!r}: {reason}")
        self.id = id
        self.field = field
        self.reason = reason

    def of(self: _Record, id: str) -> _Record:
        """Return the same error with the record's id."""
        return type(self)(self.reason, id=id, field=self.field)


class FilterError(StoreError, ValueError):
    """A filter cannot be applied.

    Attributes:
        field: the field at fault; None if there is none.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class IngestError(StoreError):
    """A source cannot be read, or contains a bad row with ``on_error="stop"``."""


class FusionWarning(UserWarning):
    """Raw scores are fused with weights that were made for the scores of another model."""


class TruncationWarning(UserWarning):
    """Texts were cut at the model's maximum length."""


class DoublePromptWarning(UserWarning):
    """Texts begin with the prompt that is put before them, so that the model sees it twice."""


def _restored(kind: type[TwinVecError], args: tuple[Any, ...]) -> TwinVecError:
    """Return an error without its constructor, which takes other arguments than the message."""
    error = kind.__new__(kind)
    error.args = args
    return error


def _shorten(names: Sequence[str], limit: int = 12) -> str:
    more = f", ... ({len(names) - limit} more)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
