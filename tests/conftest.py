"""What every test runs under: one thread, since the models are tiny and processes run side by side, and no network."""

from __future__ import annotations

import os
import signal

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

# A shell that starts this in the background ignores Ctrl-C in it, and a child would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
