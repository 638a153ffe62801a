"""Tests of mteb where there is one: it needs Python 3.11."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("mteb") else ["test_mteb.py"]
