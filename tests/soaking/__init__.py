"""A soak test, not collected by pytest: many callers, failures, cancellations and restarts for minutes.

    PYTHONPATH=tests python -m soaking --minutes 10

Threads and asyncio tasks share Embedders of tiny checkpoints while forward passes and the tokenizer fail, calls time
out or are cancelled, Embedders open and close, and devices are lost; others write to stores and search them. Every row
that comes back is compared with the vector that its text has alone; every error must be one that this call had to
expect; no call may hang; a store has what was written, and nothing of a write that failed; threads and memory stay
flat. Exit status 1 where anything was wrong.
"""
