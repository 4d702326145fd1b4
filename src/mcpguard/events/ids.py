"""Names of sessions. Apart from `sessions`, for a launch makes one before it needs anything of a session's record."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

# Letters and digits that nobody mistakes for one another.
_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"


def _any(letters: str) -> str:
    return letters[int.from_bytes(os.urandom(8), "big") % len(letters)]


def new_id(now_ns: int, choose: Callable[[str], str] = _any) -> str:
    """A session id for a run that starts now; four random characters tell runs of one second apart."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now_ns // 1_000_000_000))
    return f"{stamp}-{''.join(choose(_ALPHABET) for _ in range(4))}"
