"""Tiny checkpoints in the official layouts, and fp64 numpy computations to check TwinVec against."""
