"""Which profiles from inside a workspace the user has read: by digest, so that a changed file is unknown again.

A repository can bring a profile that opens everything. It is only read after the user said so for exactly these bytes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from mcpguard.errors import ProfileError
from mcpguard.profile import store
from mcpguard.profile.nodes import error


def trust_file() -> Path:
    """JSON object: SHA-256 in hex to the path that had it."""
    return store.state_directory() / "trusted-profiles.json"


def trusted() -> dict[str, str]:
    """Digests and paths. A file that cannot be read or understood trusts nothing."""
    try:
        content = json.loads(trust_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in content.items()} if isinstance(content, dict) else {}


def trust(path: Path, content: bytes) -> str:
    """Remember that the user accepts these bytes; returns their digest.

    Raises:
        HostError: the record cannot be written.
    """
    digest = hashlib.sha256(content).hexdigest()
    record = {**trusted(), digest: str(path.resolve())}
    store.replace(trust_file(), json.dumps(record, indent=1, sort_keys=True).encode() + b"\n")
    return digest


def require(path: Path, content: bytes, workspace: Path | None) -> None:
    """Refuse a file that lies inside the workspace, unless these very bytes are trusted.

    Raises:
        ProfileError: `profile.untrusted`.
    """
    if workspace is None or not path.resolve().is_relative_to(workspace.resolve()):
        return
    if path.resolve().is_relative_to(store.user_directory().resolve()):
        return
    if hashlib.sha256(content).hexdigest() not in trusted():
        raise untrusted(path)


def untrusted(path: Path) -> ProfileError:
    """The refusal, with the command that lifts it."""
    return error(
        str(path),
        0,
        "is not trusted",
        why="it lies inside the workspace, so whoever wrote the project, or the agent, could have written it",
        do=f"read it, then `mcpguard profile trust {path}`; a changed file must be trusted again",
        code="untrusted",
    )
