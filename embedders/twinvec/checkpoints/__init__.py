"""Checkpoints on disk and on hubs: files, configuration, tensor headers. No model is built here."""
