"""Before anything imports transformers: no network, modules from checkpoints in a folder of this run, Ctrl-C works.

The whole suite changes no file of the checkout.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "true"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait would take the other workers' cores
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="twinvec-modules-")
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="twinvec-cache-")  # digests of the tests' checkpoints
for name in ("HF_MODULES_CACHE", "XDG_CACHE_HOME"):
    atexit.register(shutil.rmtree, os.environ[name], ignore_errors=True)

# a shell's background job ignores it, and so would the children: tests that interrupt would wait for ever
signal.signal(signal.SIGINT, signal.default_int_handler)

QUICK = os.environ.get("TWINVEC_TESTS") == "quick"
# how long an example takes is the machine's affair
settings.register_profile("suite", deadline=None, max_examples=20 if QUICK else 100)
settings.load_profile("suite")

ROOT = Path(__file__).parents[1]
BEFORE = pytest.StashKey[dict[str, tuple[int, int]]]()
TOOLS = {".git", ".mypy_cache", ".ruff_cache", ".hypothesis", "__pycache__", ".cache", "site"}


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember the checkout, unless these are a few files of it, chosen by somebody who may be editing meanwhile."""
    if session.config.args_source is pytest.Config.ArgsSource.TESTPATHS:  # never in xdist's workers
        session.config.stash[BEFORE] = checkout()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """Fail where a file was written, changed or removed: tests and examples write into temporary folders only."""
    yield
    if (before := session.config.stash.get(BEFORE, None)) is not None:
        after = checkout()
        changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
        if changed:
            changes = f"files of the checkout that changed while the tests ran: {', '.join(changed)}"
            session.config.get_terminal_writer().line(changes)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Share tests out among xdist's workers by file, as most fixtures are a file's; one Ray at a time is enough."""
    for item in items:
        folder = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group(folder if folder == "ray_" else str(item.path.relative_to(ROOT))))


@pytest.fixture(scope="session", autouse=True)
def quick_tests_need_no_torch() -> Iterator[None]:
    """``make quick`` is quick because nothing in it imports torch."""
    yield
    if QUICK:
        assert "torch" not in sys.modules, "a test of `make quick` imports torch"


def checkout() -> dict[str, tuple[int, int]]:
    """Return size and time of every file of the checkout, but for those of tools and virtual environments."""
    files = {}
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in TOOLS and not name.startswith(".venv")]
        for name in names:
            path = Path(folder, name)
            status = path.lstat()
            files[str(path.relative_to(ROOT))] = (status.st_size, status.st_mtime_ns)
    return files
