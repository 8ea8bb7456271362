"""The workspaces of the history's tests, and the command line's one fixture for every mode."""

from __future__ import annotations

import sys
from pathlib import Path

# The helpers live beside the tests of the room below.
for _room in ("history", "cli"):
    sys.path.append(str(Path(__file__).parents[1] / _room))
