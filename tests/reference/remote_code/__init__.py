"""Stand-in for the remote code of the original Giga checkpoints; the files are copied into a checkpoint."""
