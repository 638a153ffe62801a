"""Chains of imports inside of a package are short, and none is a circle; contracts in pyproject.toml say the rest."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = [init.parent for root in ("embedders", "integrations") for init in (ROOT / root).glob("*/__init__.py")]
LONGEST = 10


def module(package: Path, path: Path) -> str:
    return ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> Iterator[str]:
    """Yield what a module imports when it is imported itself: not for type checkers, not inside of functions."""
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        for node in statement.body if isinstance(statement, ast.Try) else [statement]:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def graph(package: Path) -> Mapping[str, set[str]]:
    paths = {module(package, path): path for path in package.rglob("*.py")}
    return {name: {found for found in imported(path) if found in paths} - {name} for name, path in paths.items()}


def longest(imports: Mapping[str, set[str]]) -> list[str]:
    """Return the longest chain of modules, each imported by the one before it."""

    @cache
    def below(name: str) -> tuple[str, ...]:
        entered.append(name)
        longest: tuple[str, ...] = ()
        for found in imports[name]:
            assert found not in entered, f"a circle of imports: {' -> '.join([*entered, found])}"
            longest = max(longest, below(found), key=len)
        entered.remove(name)
        return (name, *longest)

    entered: list[str] = []
    chains = [below(name) for name in imports]
    return list(sorted(chains, key=len)[-1])


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_chains_of_imports_are_short(package: Path) -> None:
    chain = longest(graph(package))
    assert len(chain) <= LONGEST, " -> ".join(chain)


def test_a_long_chain_and_a_circle_are_found() -> None:
    line = {f"m{i}": {f"m{i + 1}"} for i in range(11)} | {"m11": set()}
    assert len(longest(line)) == 12
    with pytest.raises(AssertionError, match="m0 -> m1 -> m0"):
        longest({"m0": {"m1"}, "m1": {"m0"}})


def test_ray_is_imported_by_its_own_package_alone() -> None:
    """Not inside of functions either."""
    importing = {
        package.name
        for package in PACKAGES
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in _names(node)
        if name.partition(".")[0] in ("ray", "twinvec_ray")
    }
    assert importing == {"twinvec_ray"}


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module is not None else []
