"""What all tests share: one thread a process, since two workers run side by side and small matrices gain nothing from more."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
