"""Where a path leads, as the kernel resolves it: with its bound on symlinks, so that no chain of them can wear us down."""

from __future__ import annotations

import os


def real_path(path: str) -> str | None:
    """The path of the object that `path` leads to; None when it leads nowhere or by too many symlinks."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:  # longer than a path may be
        return None
    finally:
        os.close(fd)
    return found if found.startswith("/") else None
