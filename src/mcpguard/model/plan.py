"""Plan: what each backend is to do, in plain values that cross the privilege line as JSON."""

from __future__ import annotations

from mcpguard.model.access import Access
from mcpguard.model.values import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@dataclass(frozen=True, slots=True)
class Grant:
    """A Landlock rule: `access` on `path` and all below. Paths are canonical."""

    path: str
    access: Access


@dataclass(frozen=True, slots=True)
class MaskEntry:
    """One name inside a masked directory, relative to it.

    kind: `file` or `dir`: a stand-in that nobody may open; `way`: a directory that may be passed through only;
    `keep`: the original shows through, read-only; `keep-rw`: the original, writable.
    """

    path: str
    kind: str
    directory: bool


@dataclass(frozen=True, slots=True)
class MountStep:
    """One change of the private mount namespace; steps run in order, parents before children.

    op: `rw` or `ro` (the tree at `path`, writable or not), `noexec` (no program starts from it), `mask` (hide it), `hide` (the
    same, for what may have gone meanwhile), `link`
    (pin the symlink at `path` by showing the read-only file `target` in its place).
    """

    op: str
    path: str
    directory: bool = False
    target: str = ""
    entries: tuple[MaskEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class FilesPlan:
    """How tier 3 carries the file rules.

    Attributes:
        open_directories: directories in which new names can be made because a write rule names something that does not
            exist yet; a protected name made there is reported and not stopped.
        gaps: sentences about rules that this tier carries only in part.
        hidden: those of them about directories that are hidden whole because they could not be looked at.
        visited: directory entries looked at.
        wide: Landlock grants everything but commands to devices, for which `grants` count still, and mounts cover only what a
            rule takes away: what merely no rule allows is left to the kernel's hooks.
    """

    grants: tuple[Grant, ...]
    steps: tuple[MountStep, ...]
    open_directories: tuple[str, ...] = ()
    gaps: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    visited: int = 0
    wide: bool = False


@dataclass(frozen=True, slots=True)
class TablePlan:
    """One path automaton for the kernel, in the bytes that its maps hold; the index of the policy is put in front of each key.

    Attributes:
        lines, head: from `policy.image`.
        roots, branches: entries one behind the other, key without the policy's index, then value.
        shared_memory, terminals: the values for the session's own /dev/shm and /dev/pts, whose file systems do not exist yet.
    """

    lines: bytes
    head: bytes
    roots: bytes
    branches: bytes
    shared_memory: bytes
    terminals: bytes


# Where each session has a file system of its own, and the field of its TablePlan that tells how that begins.
OWN_PLACES = {"/dev/shm": "shared_memory", "/dev/pts": "terminals"}


@dataclass(frozen=True, slots=True)
class GuardPlan:
    """How tiers 1 and 2 carry the file rules and the paths of the socket rules."""

    files: TablePlan
    sockets: TablePlan


# Where a server that is kept to less than its agent has tries to go before it starts: over UDP, where nothing is sent by that.
# The session's tables allow it, where there are such servers, and those that keep them refuse it.
KEPT_CANARY = ("127.86.71.2", 9)


@dataclass(frozen=True, slots=True)
class KeptPlan:
    """Destinations that are left to MCP servers that a rule keeps to a profile, of those that their agent has.

    Attributes:
        rule: number of that rule in `Policy.rules`.
        network: as `LaunchRequest.network`, without sockets.
    """

    rule: int
    network: dict[str, Any]
