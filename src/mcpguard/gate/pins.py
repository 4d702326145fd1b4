"""What a server said of its tools, prompts and resource templates when it was first used after its approval.

A description is what a model reads: whoever changes it later says something that nobody approved. Kept per approval, so one
of another program begins anew. What was listed otherwise since stands beside it, by name and digest: whoever approves the
server again approves exactly that, and no more than that is taken over.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mcpguard.errors import HostError
from mcpguard.profile import store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mcpguard.catalogue.approved import Entry

_MOST_BYTES = 4 << 20
# In place of a digest, where two approvals have two: whatever the server says is looked at again.
_NEITHER = ""
_IN_WORDS = {"server:instructions": "its instructions", "server:serverInfo": "what it calls itself"}


class Pins(dict[str, str]):
    """Digests by `kind:name`, written down as soon as there are new ones.

    Attributes:
        others: digests of what was listed otherwise since, or is new, by `kind:name`.

    Raises:
        HostError: there are some that cannot be read: without them, whatever the server says now would count as approved.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        try:
            self.update(_read(path))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, RecursionError) as error:
            raise HostError(
                "what the MCP server said when it was approved cannot be read",
                why=f"{path}: {error}",
                do="remove the file and approve the server again: mcpguard mcp approve",
                code="mcp.pins",
            ) from None
        self._written = len(self)
        self.others = _others(path)
        self._told = dict(self.others)

    def keep(self) -> None:
        """Write down what is new; raises HostError.

        Not while nothing was listed: an agent that only looks whether a server is there would pin that it offers nothing.
        """
        if len(self) != self._written and not all(name.startswith("server:") for name in self):
            written = json.dumps(self).encode()
            if len(written) > _MOST_BYTES:
                raise HostError(
                    "what the MCP server offers cannot be written down",
                    why=f"its names take more than {_MOST_BYTES} bytes",
                    do="use a server that offers less",
                    code="mcp.pins",
                )
            store.replace(self._path, written)
            self._written = len(self)
        if self.others != self._told:
            with contextlib.suppress(HostError):  # it is not shown all the same
                store.replace(_beside(self._path), json.dumps(self.others, sort_keys=True).encode())
                self._told = dict(self.others)


def _read(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"more than {_MOST_BYTES} bytes")
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return {str(name): str(digest) for name, digest in found.items()}


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}.others.json")


def _others(path: Path) -> dict[str, str]:
    """What cannot be read was not told: the next listing tells it again."""
    try:
        return _read(_beside(path))
    except (OSError, ValueError, RecursionError):
        return {}


def of_approval(name: str, digest: str, approved: str) -> Pins:
    """Those of one approval."""
    return Pins(_place(name, digest, approved))


def of_approvals(same: Sequence[Entry]) -> Pins:
    """Those of an approval, and of earlier ones of the very same server: all of them have to hold.

    Args:
        same: as `Catalogue.same` gives them.
    """
    last, *earlier = (of_approval(one.name, one.digest, one.approved) for one in same)
    for pins in earlier:
        for key, known in pins.items():
            if last.setdefault(key, known) != known:
                last[key] = _NEITHER
    return last


def other_since(entry: Entry) -> dict[str, str]:
    """What the server listed otherwise since this approval, or anew, as `Pins.others`."""
    return _others(_place(entry.name, entry.digest, entry.approved))


def in_words(key: str) -> str:
    """What a `kind:name` is, for a person: `tool look`, `its instructions`."""
    return _IN_WORDS.get(key) or key.replace(":", " ", 1)


def renew(same: Sequence[Entry], made: Entry, others: Mapping[str, str]) -> None:
    """Pin for a new approval what the earlier one had, and what was listed otherwise since, as somebody looked at it.

    Args:
        same: the earlier ones, as `Catalogue.same` gives them.
        others: as `other_since` gave them to whoever was asked; what was listed since counts no more than before.

    Raises:
        HostError: what was pinned cannot be read, or cannot be written.
    """
    pins = of_approval(made.name, made.digest, made.approved)
    pins.update({**of_approvals(same), **others})
    pins.keep()


def _place(name: str, digest: str, approved: str) -> Path:
    key = hashlib.sha256(json.dumps([name, digest, approved]).encode()).hexdigest()[:32]
    return store.state_directory() / "mcp-pins" / f"{key}.json"
