"""What the host's resolver said a while ago, so that a launch need not wait for it again.

Kept as a resolver's own cache keeps it, for ten minutes, in the user's state directory, which no guarded process can write.
Every name is looked up anew as soon as the agent runs: this only says what holds until that answer is there. A file that
cannot be read or does not fit is as good as none.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import time
from pathlib import Path

KEPT_S = 600
# For each name when it was looked up (Unix time), and all its addresses; none: there is no such name.
Answers = dict[str, tuple[float, list[str]]]


def load(path: Path) -> Answers:
    """Those that are young enough."""
    try:
        if path.stat().st_uid != os.getuid():
            return {}
        kept = json.loads(path.read_bytes())
        now = time.time()
        return {
            str(name): (float(when), [str(ipaddress.ip_address(address)) for address in addresses])
            for name, (when, addresses) in kept.items()
            if 0 <= now - when < KEPT_S
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def save(path: Path, fresh: Answers) -> None:
    """Put these in place of older ones. A failure is none: the next launch waits."""
    made = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        made.write_text(json.dumps(load(path) | fresh))
        made.replace(path)
