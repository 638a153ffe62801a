"""What the command prints besides its results: errors, warnings and notes, all on stderr, and rich consoles."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import typer
from typer.core import TyperGroup

from twinvec.errors import TwinVecError

FAILED = 2  # the command could not do its work
INTERRUPTED = 130
CLOSED_PIPE = 141  # what the shell reports for a program that SIGPIPE ended


class Commands(TyperGroup):
    """The group of all commands: one place where errors become a line and an exit status."""

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
                _abandon_stdout()
                raise typer.Exit(CLOSED_PIPE) from None
            except TwinVecError as error:
                report(error)
            except OSError as error:
                _abandon_stdout()
                _line(f"error: {describe(error)}")
            raise typer.Exit(FAILED)


def describe(error: OSError) -> str:
    """Return an operating system's error without its number: "name: reason"."""
    reason = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {reason}" if error.filename is not None else reason


def report(error: TwinVecError) -> None:
    """Print an error as one line, or more where its message has them."""
    _line(f"error: {error}")


def warn(message: str) -> None:
    """Print one line that starts with "warning:"."""
    _line(f"warning: {message}")


def note(message: str) -> None:
    """Say what is going on, to a person: only where stderr is a terminal."""
    if sys.stderr.isatty():
        _line(message)


@contextlib.contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """Give a function that rewrites one line on stderr, where that is a terminal, and take the line away at the end."""
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


def _abandon_stdout() -> None:
    """Let nothing that is still buffered fail a second time when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
