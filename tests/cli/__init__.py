"""Tests of the `twinvec` command."""
