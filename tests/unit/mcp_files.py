"""A home, a project and a machine with every client's configuration, in the shapes that their documentation shows."""

from __future__ import annotations

import shutil
from pathlib import Path

from mcpguard.catalogue.clients import Inventory, inventory

DATA = Path(__file__).parent.parent / "data" / "mcp"


def copied(folder: Path) -> Path:
    """The three of them below a folder, as a user has them: closed to others."""
    for part in ("home", "project", "machine"):
        shutil.copytree(DATA / part, folder / part)
    for file in folder.rglob("*"):
        file.chmod(0o700 if file.is_dir() else 0o600)
    return folder


def read(folder: Path, **variables: str) -> Inventory:
    """What clients declare in a folder that has a home, a project and a machine."""
    return inventory(folder / "project", {"HOME": str(folder / "home"), **variables}, folder / "machine")


def write(path: Path, text: str | bytes) -> Path:
    """A file, with the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o600)
    return path
