"""The command as its own process: exit statuses, quiet pipes, quick help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from twinvec import __version__

COMMAND = [sys.executable, "-c", "from twinvec_cli.main import run; run()"]


def twinvec(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, check=False, timeout=120)


def test_help_and_version_need_no_torch() -> None:
    code = (
        "import sys; from twinvec_cli.main import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: status = end.code\n"
        "print(status, [m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    for arguments in (["--help"], ["embed", "--help"], ["--version"], ["models"]):
        result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert result.stdout.splitlines()[-1] == "0 []"
        assert result.stderr == ""


def test_version() -> None:
    assert twinvec("--version").stdout == f"twinvec {__version__}\n"


def test_results_on_stdout_and_nothing_else(bert: str) -> None:
    result = twinvec("embed", bert, "hello", "world")
    assert result.returncode == 0
    assert [json.loads(line)["index"] for line in result.stdout.splitlines()] == [0, 1]
    assert result.stderr == ""


def test_one_line_and_status_two() -> None:
    result = twinvec("embed", "model", "--input", "/nowhere.txt")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == "error: /nowhere.txt: No such file or directory\n"


def test_closed_pipe_is_quiet(bert: str, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("hello world\n" * 5000)
    process = subprocess.Popen(
        [*COMMAND, "embed", bert, "--input", str(texts)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith(b'{"index": 0')
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_standard_output(bert: str) -> None:
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [*COMMAND, "embed", bert, "hello"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert result.returncode == 2
    assert result.stderr == "error: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["models"], ["embed", "--help"]])
def test_output_that_nobody_gets(arguments: list[str]) -> None:
    """On a full disk, a closed stream, a pipe without a reader: a line on stderr and a status, never a traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    with Path("/dev/full").open("wb") as full:
        for stdout, closed, status, line in (
            (full, (), 2, "error: No space left on device\n"),
            (full, (0,), 2, "error: No space left on device\n"),
            (None, (1,), 2, "error: Bad file descriptor\n"),
            (writing, (), 141, ""),
        ):
            result = closing(closed, arguments, stdout=stdout, stderr=subprocess.PIPE)
            assert (result.returncode, result.stderr) == (status, line)
    os.close(writing)


def test_errors_that_nobody_gets() -> None:
    with Path("/dev/full").open("wb") as full:
        assert closing((), ["bogus"], stdout=subprocess.PIPE, stderr=full).returncode == 2
    for closed in ((2,), (0, 2)):
        result = closing(closed, ["models"], stdout=subprocess.PIPE)
        assert result.returncode == 0
        assert "giga" in result.stdout
        assert closing(closed, ["embed", "/nowhere", "text"], stdout=subprocess.PIPE).returncode == 2
    assert closing((0, 1, 2), ["models"]).returncode == 2


def test_input_that_is_closed_is_not_an_empty_one(bert: str) -> None:
    result = closing((0,), ["embed", bert, "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "error: Bad file descriptor\n")


def closing(closed: tuple[int, ...], arguments: list[str], **streams: Any) -> subprocess.CompletedProcess[str]:
    """Run the command with closed standard streams."""
    close = " ".join(f"{number}{'<' if number == 0 else '>'}&-" for number in closed)
    shell = ["sh", "-c", f'exec "$@" {close}', "sh", *COMMAND, *arguments]
    return subprocess.run(shell, text=True, check=False, timeout=120, **streams)


def test_file_size_limit(bert: str, tmp_path: Path) -> None:
    """A real write error in the middle: the limit stands in for a full disk."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from twinvec_cli.main import run; run()"
    )
    texts = [f"text {i}" for i in range(50)]
    output = tmp_path / "out.jsonl"
    result = subprocess.run(
        [sys.executable, "-c", code, "embed", bert, *texts, "--output", str(output)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr == f"error: {output}: File too large; the file was not written\n"
    assert list(tmp_path.iterdir()) == []


def test_interrupt() -> None:
    code = (
        "import os, signal\n"
        "import twinvec_cli.models as module; from twinvec_cli import main\n"
        "module.Console = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "main.run()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "models"], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 130
    assert result.stderr == "interrupted\n"
