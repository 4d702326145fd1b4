"""Writing what a filter matches to a file of JSON lines, as `mcpguard log --format json` prints it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from mcpguard.events.format import json_line
from mcpguard.events.query import Filter, events
from mcpguard.events.store import Store


def export(open_store: Callable[[], Store], session: str, wanted: Filter, folder: Path) -> tuple[Path, int]:
    """Write a new file; an existing one is never touched. Returns its path and how many events it holds.

    Raises:
        OSError: it cannot be written.
        StoreError: the record cannot be read.
    """
    path = folder / f"mcpguard-{session}-{time.strftime('%H%M%S')}.jsonl"
    count = 0
    with open_store() as store, open(path, "x", encoding="utf-8", opener=_private) as file:
        for event in events(store, session, wanted):
            file.write(json_line(event) + "\n")
            count += 1
    return path, count


def _private(path: str, flags: int) -> int:
    """Whose record it is reads it, and nobody else of this host."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
