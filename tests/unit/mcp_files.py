"""A home, a project and a machine with every client's configuration, in the shapes that their documentation shows."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from hypothesis import strategies as st

from mcpguard.catalogue.clients import Inventory, inventory

_WORDS = (
    "command",
    "args",
    "env",
    "url",
    "cwd",
    "path",
    "headers",
    "type",
    "enabled",
    "trust",
    "sh",
    "node",
    "./x",
    "python3",
    "-m",
)
_STRANGE = (
    "~nobody",
    "~",
    "a" * 5000,
    "a/" * 3000,
    "\0",
    "\ud800",
    "/dev/null",
    "/proc/self/mem",
    "../" * 40,
    "$HOME",
    "${A",
    "-",
)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from((*_WORDS, *_STRANGE)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_WORDS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
# What a file may declare: names of parts that are looked at, with anything in them.
JSON_SERVERS = st.dictionaries(st.text(max_size=3), _JSON, max_size=3)
DATA = Path(__file__).parent.parent / "data" / "mcp"


def copied(folder: Path) -> Path:
    """The three of them below a folder, as a user has them: closed to others."""
    for part in ("home", "project", "machine"):
        shutil.copytree(DATA / part, folder / part, dirs_exist_ok=True)
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


def npx_installed(home: Path, wanted: str, name: str, version: str, **more: str) -> Path:
    """What `npx` leaves in its cache when it was asked for a package; its script.

    Args:
        wanted: the package as it was written.
        more: of its manifest.
    """
    modules = home / ".npm/_npx" / hashlib.sha512(wanted.encode()).hexdigest()[:16] / "node_modules"
    manifest = {"name": name, "version": version, "bin": {"x": "dist/x.js"}, **more}
    write(modules / name / "package.json", json.dumps(manifest))
    write(modules / "other/index.js", "1")
    script = write(modules / name / "dist/x.js", "#!/bin/sh\n")
    script.chmod(0o755)
    return script
