"""Wheel and sdist as users get them: each extra alone in a fresh environment, its imports, its use, its types.

Not collected with the other tests, as it installs packages: ``make wheels``. One environment has what ``pip install
twinvec`` brings; the others are copies of it (of hard links), into which pip installs one extra more.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from reference.gte import build_gte
from reference.sentence_layouts import build_sentence_transformer
from wheel_scripts import MISTAKES, SCRIPTS, TYPED

ROOT = Path(__file__).parents[1]
PACKAGES = ("twinvec", "twinvec_stores", "langchain_twinvec", "llama_index_twinvec", "twinvec_ray", "twinvec_cli")


def call(*command: str | Path, cwd: Path, timeout: float = 900) -> str:
    """Run a command far from the checkout and without a network for hubs; return what it printed."""
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TWINVEC", "COV_"))
    }
    variables |= {"HF_HUB_OFFLINE": "1", "TWINVEC_OFFLINE": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=variables, timeout=timeout, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="session")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


def pip(environment: Path, *arguments: str | Path) -> None:
    command = (environment / "bin/python", "-m", "pip", *arguments)
    call(*command, "--quiet", "--disable-pip-version-check", cwd=environment)


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with what ``pip install twinvec`` brings, without twinvec itself."""
    folder = tmp_path_factory.mktemp("environments") / "bare"
    call(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    pip(folder, "install", "-c", ROOT / "constraints.txt", wheel)
    pip(folder, "uninstall", "-y", "twinvec")
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny checkpoints: ``gte`` has a lexical head, ``bert`` none."""
    folder = tmp_path_factory.mktemp("checkpoints")
    build_gte(folder / "gte", dtype="float32")
    build_sentence_transformer(folder / "bert", "bert", max_seq_length=32)
    return folder


@pytest.fixture
def environment(request: pytest.FixtureRequest, bare: Path, wheel: Path) -> Iterator[Path]:
    """A fresh environment with one extra, or "none"."""
    extra: str = request.param
    folder = bare.with_name(extra)
    call("cp", "-al", bare, folder, cwd=bare.parent)
    wanted = wheel if extra == "none" else f"{wheel}[{extra}]"
    pip(folder, "install", "--no-compile", "-c", ROOT / "constraints.txt", wanted)
    yield folder
    call("rm", "-rf", folder, cwd=bare.parent)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_typed(wheel: Path, package: str) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert f"{package}/py.typed" in names, f"no py.typed in {package}"


def test_nothing_else_is_in_the_wheel(wheel: Path) -> None:
    files = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in files}
    assert {name for name in top if not name.endswith((".dist-info", ".data"))} == set(PACKAGES)
    assert {Path(name).suffix for name in files if name.split("/")[0] in PACKAGES} == {".py", ".typed"}
    data = {name.split(".data/", 1)[1] for name in files if ".data/" in name}
    names = ("NOTICE", "corpus.jsonl", "queries.jsonl", "qrels/test.tsv")
    assert data == {f"data/share/twinvec/faq/{name}" for name in names}
    assert any(name.endswith("licenses/LICENSE") for name in files)
    assert any(name.endswith("licenses/benchmarks/collections/faq/NOTICE") for name in files)


def test_the_sdist_has_the_tests(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = [name.split("/", 1)[-1] for name in archive.getnames()]
    assert {"pyproject.toml", "constraints.txt", "Makefile", "tests/conftest.py", "README.md", "LICENSE"} <= set(names)
    assert not [name for name in names if name.endswith((".safetensors", ".bin", ".pt", ".so", ".pyc"))]


@pytest.mark.parametrize(("environment", "script"), SCRIPTS.items(), indirect=["environment"], ids=list(SCRIPTS))
def test_an_extra_alone(environment: Path, script: str, checkpoints: Path, tmp_path: Path) -> None:
    python = environment / "bin/python"
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    pip(environment, "check")
    printed = call(python, "script.py", checkpoints / "gte", checkpoints / "bert", cwd=tmp_path)
    assert printed.endswith("done\n"), printed
    if environment.name in TYPED:
        check_types(python, TYPED[environment.name], MISTAKES[environment.name], tmp_path)


def check_types(python: Path, script: str, mistakes: list[tuple[str, str, str]], folder: Path) -> None:
    """A user's script is right for ``mypy --strict``, and each mistake in it is seen."""
    path = folder / "typed.py"
    mypy = (sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "--cache-dir", folder / "cache")
    path.write_text(script, encoding="utf-8")
    call(*mypy, path, cwd=folder)
    for right, wrong, code in mistakes:
        assert right in script
        path.write_text(script.replace(right, wrong), encoding="utf-8")
        with pytest.raises(AssertionError, match=rf"\[{code}\]"):
            call(*mypy, path, cwd=folder)
