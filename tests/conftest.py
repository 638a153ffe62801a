"""Before anything imports transformers: no network, and modules from checkpoints go to a folder of this run."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "true"
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="twinvec-modules-")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)
