"""The suite with the lowest versions that pyproject.toml promises, or with the newest that there are.

    python tests/bounds.py lowest|newest [TORCH]

TORCH is a version of torch to take in place of the lowest or newest, where only that one can be had.
Lowest are the dependencies and the extras of ``twinvec[all]``; the tools of the tests are as new as these allow.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,.-]+\])?(?P<relation>>=|==)(?P<version>[\w.]+)")


def project() -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        from pip._vendor import tomli as tomllib
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def lowest() -> dict[str, str]:
    """Return name -> lowest version of every dependency, and of those of the extras in ``all``."""
    table = project()
    extras = table["optional-dependencies"]
    (all_of,) = extras["all"]
    names = all_of[all_of.index("[") + 1 : all_of.index("]")].split(",")
    asked = [*table["dependencies"], *(requirement for name in names for requirement in extras[name])]
    wanted = [requirement for requirement in asked if not requirement.startswith("twinvec[")]  # extras of ``all`` too
    found = [REQUIREMENT.match(requirement) for requirement in wanted]
    assert all(found), f"a requirement without a lowest version: {wanted}"
    return {match["name"]: match["version"] for match in found if match}


def main(which: str, torch: str | None = None) -> None:
    versions = lowest() if which == "lowest" else {}
    if torch is not None:
        versions["torch"] = torch
    environment = ROOT / f".venv-{which}"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    constraints = environment / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()), encoding="utf-8")
    python = environment / "bin" / "python"
    upgrade = ["--upgrade"] if which == "newest" else []
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *upgrade, "-c", constraints, "-e", f"{ROOT}[dev]"], check=True
    )
    subprocess.run([python, "-m", "pip", "freeze", "--exclude-editable"], check=True)
    os.environ.pop("PYTHONPATH", None)  # another checkout's packages would be tested
    few = {**os.environ, "TWINVEC_FUZZ": "100"}  # the dispatcher has no dependencies
    workers = ["-n", "logical", "--maxprocesses", "4", "--dist", "loadgroup"]
    tests = [str(python), "-m", "pytest", "-m", "not slow", *workers]
    sys.exit(subprocess.run(tests, cwd=ROOT, env=few, check=False).returncode)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in ("lowest", "newest"):
        sys.exit(__doc__)
    main(*sys.argv[1:])
