"""Which programs a script asks for: the kernel opens them in the script's name, and its refusal names the script.

Reads the beginning of a regular file, a moment after the call: it explains a refusal that was made, and never makes one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

# As the kernel does: an interpreter may be a script as well, so many times.
DEEPEST = 5
_LINE_BYTES = 256


def interpreters(path: str, resolve: Callable[[str], str]) -> Iterator[str]:
    """The interpreters of the script at `path`, one after the other; none when it is no script or cannot be read.

    Args:
        resolve: makes the object's own path of the name that stands in a script.
    """
    for _ in range(DEEPEST):
        name = _named_in(path)
        if not name:
            return
        path = resolve(name)
        yield path


def _named_in(path: str) -> str:
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return ""
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return ""
    try:
        line = (
            os.read(descriptor, _LINE_BYTES).split(b"\n", 1)[0] if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
        )
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    words = line[2:].split(maxsplit=1) if line.startswith(b"#!") else []
    return os.fsdecode(words[0]) if words else ""
