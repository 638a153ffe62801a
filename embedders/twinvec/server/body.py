"""Request bodies: read within limits and decoded into typed structures; errors name the offending field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from starlette.types import Receive, Scope

from twinvec.server.errors import ClientGoneError, RefusedError
from twinvec.server.interrupts import Interrupt
from twinvec.server.limits import Limits
from twinvec.text.prompts import Task
from twinvec.workers import in_thread

_AT_ONCE = 65_536  # bytes decoded on the event loop itself, about 0.1 ms
_DISCARDED = 16  # an oversized body is read up to this multiple of max_body_bytes, so that its client sees the response
_WHERE = re.compile(r"(?: - at `\$\.?(?P<path>[^`]*)`|(?:required|unknown) field `(?P<name>[^`]*)`)")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class TaskBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An instruction; symmetric tasks also apply to documents."""

    instruction: str
    symmetric: bool = False


def task_of(given: str | TaskBody | None) -> Task | str | None:
    """Return a task in the form the Embedder accepts.

    Raises:
        RefusedError: the instruction is empty.
    """
    if given == "" or (isinstance(given, TaskBody) and not given.instruction.strip()):
        raise RefusedError(400, "task: the instruction must not be empty", "task", "PromptError")
    return Task(given.instruction, given.symmetric) if isinstance(given, TaskBody) else given


async def read_body(scope: Scope, receive: Receive, limits: Limits) -> bytes:
    """Read a request's body.

    Raises:
        RefusedError: the body is too large or did not arrive in time.
        ClientGoneError: the client disconnected.
    """
    limit, headers = limits.max_body_bytes, dict(scope["headers"])
    if headers.get(b"expect", b"").lower() == b"100-continue" and _announced(headers) > limit:
        raise _too_large(limit)
    parts, size, more = [], 0, True
    with Interrupt() as late:
        late.in_seconds(limits.body_seconds)
        while more and size <= _DISCARDED * limit:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size <= limit:
                parts.append(part)
    if late.happened:
        told = f"the request body did not arrive within {limits.body_seconds:g} s"
        raise RefusedError(408, told, headers={"Connection": "close"})
    if size > limit:
        raise _too_large(limit)
    return b"".join(parts)


def _announced(headers: Mapping[bytes, bytes]) -> int:
    length = headers.get(b"content-length", b"")
    return int(length) if length.isdigit() else 0


def _too_large(limit: int) -> RefusedError:
    return RefusedError(
        413,
        f"the request body exceeds the limit of {limit} bytes: send fewer texts per request",
        kind="TextTooLongError",
        headers={"Connection": "close"},
    )


async def decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """Decode a body into the decoder's type.

    Raises:
        RefusedError: the body does not match; the error names the field.
    """
    try:
        if len(body) <= _AT_ONCE:
            return decoder.decode(body)
        return await in_thread(decoder.decode, body)
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_json(body, error) from None


def _not_json(body: bytes, error: Exception) -> RefusedError:
    if _SURROGATE.search(body):
        message = "the request is not valid JSON: it contains a lone surrogate (\\ud800 to \\udfff)"
        return RefusedError(400, message, kind="InvalidTextError")
    return RefusedError(400, f"the request is not valid JSON: {error}")


def _wrong_field(message: str) -> RefusedError:
    found = _WHERE.search(message)
    if found is None:
        return RefusedError(400, f"the request is not the expected JSON object: {message}")
    if found["name"] is not None and found["path"] is None:
        rest = _WHERE.search(message, found.end())
        path = ".".join(filter(None, (rest["path"] if rest else None, found["name"])))
    else:
        path = found["path"]
    what = message[: message.rfind(" - at ")] if " - at " in message else message
    return RefusedError(400, f"{path}: {what[:1].lower()}{what[1:]}", re.split(r"[.\[]", path, maxsplit=1)[0] or None)
