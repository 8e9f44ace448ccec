"""What every test runs under: one thread, since the models are tiny and processes run side by side, and no network."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

# What a run leaves open to others is looked at, and a user may close everything.
os.umask(0o022)

# A shell that starts this in the background ignores Ctrl-C in it, and a child would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is kept for the next run is each test process's own, and not its user's. vLLM's is of no run."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("VLLM_CACHE_ROOT", str(home / "vllm"))
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
