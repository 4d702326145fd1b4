"""What every room means by "below": said of absolute, canonical paths. Pure; looks at no file system."""

from __future__ import annotations


def is_below(path: str, directory: str) -> bool:
    """Whether `path` is `directory` itself or lies in it, at any depth."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")
