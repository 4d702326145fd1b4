"""Exit codes that scripts rely on. `run` has its own: see `cli.run`."""

from __future__ import annotations

DONE = 0
NEGATIVE = 1
MISUSE = 2

ALLOWED = 0
DENIED = 1
CANNOT_SAY = 2

INTERRUPTED = 130
