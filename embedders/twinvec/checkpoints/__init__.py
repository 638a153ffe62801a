"""Checkpoints on disk and on hubs: files, configuration, tensor headers. Nothing here builds a model."""
