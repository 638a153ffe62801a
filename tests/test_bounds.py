"""What `make test-lowest` installs can be read from pyproject.toml, whatever is added to it."""

from __future__ import annotations

from bounds import lowest, project


def test_every_dependency_has_a_lowest_version() -> None:
    versions = lowest()
    assert versions["numpy"] == "2.0"
    assert versions["qdrant-edge-py"] == "0.9.0"
    own = {f"twinvec[{name}]" for name in project()["optional-dependencies"]} | {"twinvec"}
    assert not own & versions.keys()
    assert len(versions) > 25
