"""Everything the command prints besides its results: errors, warnings and notes, all on stderr, and rich consoles."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import typer
from typer.core import TyperGroup

from twinvec.errors import TwinVecError

FAILED = 2  # the command failed
INTERRUPTED = 130
CLOSED_PIPE = 141  # reported by shells for a program killed by SIGPIPE


class Commands(TyperGroup):
    """The group of all commands: the one place where errors become a line and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        with _warnings_as_lines():
            try:
                result = super().invoke(ctx)
                sys.stdout.flush()
                return result
            except KeyboardInterrupt:
                _line("interrupted")
                raise typer.Exit(INTERRUPTED) from None
            except BrokenPipeError:
                raise typer.Exit(CLOSED_PIPE) from None
            except TwinVecError as error:
                report(error)
            except OSError as error:
                _line(f"error: {describe(error)}")
            raise typer.Exit(FAILED)


def describe(error: OSError) -> str:
    """Return an operating system error without its number: "name: reason"."""
    reason = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {reason}" if error.filename is not None else reason


def report(error: TwinVecError) -> None:
    """Print an error, on one line or as many as its message has."""
    _line(f"error: {error}")


def warn(message: str) -> None:
    """Print a line that starts with "warning:"."""
    _line(f"warning: {message}")


def note(message: str) -> None:
    """Tell a person what is going on: only if stderr is a terminal."""
    if sys.stderr.isatty():
        _line(message)


@contextlib.contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """Yield a function that rewrites one line on stderr if that is a terminal; clear the line at the end."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield status.update


def _line(message: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(message + "\n")
        sys.stderr.flush()


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        warn(" ".join(str(message).split()))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


class Output(io.FileIO):
    """Standard output or error of the process; only its first failure is reported.

    Whatever is still buffered would fail again when the interpreter exits, and the libraries that print it (rich,
    typer) turn failures into other exit statuses.

    Attributes:
        failure: why it could not be written; None as long as it can.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes. If standard error fails, there is nowhere to report it."""
        if self.failure is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failure = error
                if self.fileno() == 1:
                    raise
        return len(data)


def open_streams() -> Output:
    """Prepare the standard streams so that a closed one neither fails oddly nor lends its file descriptor to a file.

    Returns:
        The stream beneath ``sys.stdout``.
    """
    # reading from a closed input and writing to a closed output fail, rather than finding the input empty or losing the
    # output
    for number, (name, mode) in enumerate((("stdin", os.O_WRONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_WRONLY))):
        if getattr(sys, name) is None and os.open(os.devnull, mode) == number:
            os.set_inheritable(number, True)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
    outputs = []
    for number, name in ((1, "stdout"), (2, "stderr")):
        before = getattr(sys, name)
        outputs.append(Output(number, "wb", closefd=False))
        made = io.TextIOWrapper(
            io.BufferedWriter(outputs[-1]),
            encoding=before.encoding if before is not None else "utf-8",
            errors="backslashreplace",  # a character that the terminal cannot display is not an error
            line_buffering=number == 2 or outputs[-1].isatty(),
        )
        setattr(sys, name, made)
    return outputs[0]


def exit_status(output: Output, command: Callable[[], object]) -> int:
    """Run the command and return its status, or that of an output that could not be written."""
    try:
        status = _status(command)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _line("interrupted")
        return INTERRUPTED
    except OSError as error:
        if output.failure is None:
            _line(f"error: {describe(error)}")
            return FAILED
        status = 1
    if isinstance(output.failure, BrokenPipeError):
        return CLOSED_PIPE
    if output.failure is not None and status != FAILED:
        _line(f"error: {describe(output.failure)}")
        return FAILED
    return status


def _status(command: Callable[[], object]) -> int:
    try:
        command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
