"""Namesakes: another project owns the plain name `mcpguard` on the package index; its command may come first on PATH.

Looks at files only; starts nothing that it finds.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path

OURS = b"mcpguard.cli.main"
HEAD_BYTES = 4096


def namesakes() -> list[tuple[str, str]]:
    """Every foreign `mcpguard` that a person could meet: what it is, and what to do."""
    found = [(f"{path} is another program called mcpguard", _advice(path)) for path in _foreign_commands()]
    if _installed("mcpguard"):
        found.append(
            (
                "the distribution `mcpguard` is installed beside mcpguard-ebpf and owns the same package and command",
                "pip uninstall mcpguard; pip install --force-reinstall mcpguard-ebpf",
            )
        )
    return found


def _foreign_commands() -> Iterator[Path]:
    seen = set()
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        path = Path(folder or ".", "mcpguard")
        if path.is_file() and os.access(path, os.X_OK) and path.resolve() not in seen:
            seen.add(path.resolve())
            with path.open("rb") as file:
                if OURS not in file.read(HEAD_BYTES):
                    yield path


def _advice(path: Path) -> str:
    return f"uninstall it, or put the folder of this mcpguard before {path.parent} on PATH"


def _installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
