"""The `twinvec` command."""
