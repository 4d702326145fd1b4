"""What a server said of its tools, prompts and resources when it was first used after its approval.

A description is what a model reads: whoever changes it later says something that nobody approved. Kept per approval, so a new
one begins anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from mcpguard.profile import store

_MOST_BYTES = 4 << 20


class Pins(dict[str, str]):
    """Digests by `kind:name`, written down as soon as there are new ones."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        with contextlib.suppress(OSError, ValueError):
            if path.stat().st_size <= _MOST_BYTES:
                found = json.loads(path.read_bytes())
                self.update({str(name): str(digest) for name, digest in found.items()})
        self._written = len(self)

    def keep(self) -> None:
        """Write down what is new; raises HostError.

        Not while nothing was listed: an agent that only looks whether a server is there would pin that it offers nothing.
        """
        if len(self) != self._written and not all(name.startswith("server:") for name in self):
            store.replace(self._path, json.dumps(self).encode())
            self._written = len(self)


def of_approval(name: str, digest: str, approved: str) -> Pins:
    """Those of one approval."""
    key = hashlib.sha256(json.dumps([name, digest, approved]).encode()).hexdigest()[:32]
    return Pins(store.state_directory() / "mcp-pins" / f"{key}.json")
