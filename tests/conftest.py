"""Before anything imports transformers: no network, modules from checkpoints in a folder of this run, Ctrl-C works."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "true"
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="twinvec-modules-")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)

# a shell's background job ignores it, and so would the children: tests that interrupt would wait for ever
signal.signal(signal.SIGINT, signal.default_int_handler)
