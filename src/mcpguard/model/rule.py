"""Rules as a person wrote them, each with its place."""

from __future__ import annotations

import enum

from mcpguard.model.access import Access, Effect
from mcpguard.model.values import dataclass

# So begins the text of a rule of `mcp.confine`.
CONFINES = "mcp confine"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a rule stands.

    Attributes:
        profile: name of the profile that holds it.
        file: path of the file, or `builtin:NAME.yaml`, or `command line`.
        line: 1-based; 0 when there is no line.
        text: the rule as it was written, one line.
    """

    profile: str
    file: str
    line: int
    text: str

    @property
    def place(self) -> str:
        """`file:line`, as editors understand it."""
        return f"{self.file}:{self.line}" if self.line else self.file

    @property
    def confines(self) -> bool:
        """Whether it keeps MCP servers to less than their agent has."""
        return self.text.startswith(f"{CONFINES} ")


@dataclass(frozen=True, slots=True)
class FileRule:
    """A path pattern and what it does.

    Attributes:
        effect: ALLOW grants `access`; READONLY takes WRITE away; DENY takes all of `access` away.
        access: for ALLOW what is granted (write implies read); for READONLY always WRITE; for DENY all three.
        pattern: as written, variables not yet expanded.
        exceptions: patterns under a DENY that the rule leaves alone.
        because: the person's reason, shown with a denial; may be empty.
        existing: a beginning of `pattern`: the rule holds below what that names at launch; empty for names at any time. The
            whole of an absolute one: it means this name itself, not what a symlink there leads to.
    """

    effect: Effect
    access: Access
    pattern: str
    origin: Origin
    exceptions: tuple[str, ...] = ()
    because: str = ""
    existing: str = ""

    @property
    def may_make_folder(self) -> bool:
        """`write` with a closing slash and no wildcard names a folder of the agent's own; see `Policy.folders`."""
        writes = self.effect is Effect.ALLOW and Access.WRITE in self.access
        return writes and self.pattern.endswith("/") and not any(char in self.pattern for char in "*?[")


# What an entry of `files` grants, by the list that it stands in.
GRANTS = {"read": Access.READ, "write": Access.READ | Access.WRITE, "execute": Access.EXECUTE}


@dataclass(frozen=True, slots=True)
class FileException:
    """A path that the built-in `deny` rules leave alone; it opens nothing by itself.

    Attributes:
        path: as written, variables not yet expanded; one path, no wildcards.
        because: the person's reason; may be empty.
    """

    path: str
    origin: Origin
    because: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What the `existing` of a rule names at launch: absolute paths.

    Attributes:
        directories: found, symlinks to directories not among them.
        others: found: files and symlinks.
        unknown: (directory, rest): nobody could look there; the rest of the pattern, beginning with `/`, may name anything.
    """

    directories: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    unknown: tuple[tuple[str, str], ...] = ()


class NetDirection(enum.StrEnum):
    CONNECT = "connect"
    LISTEN = "listen"


@dataclass(frozen=True, slots=True)
class NetRule:
    """A destination (or a listening address) and what it does.

    Attributes:
        effect: ALLOW or DENY.
        direction: CONNECT for destinations, LISTEN for own addresses.
        target: as written: `host`, `*.host`, an address, a range in CIDR form, `localhost`, each with an optional
            `:port` or `:low-high` and an optional `/tcp` or `/udp`.
    """

    effect: Effect
    direction: NetDirection
    target: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class SocketRule:
    """A unix socket: a path pattern, or `@name` for an abstract one (`*` allowed at the end).

    Attributes:
        own: it allows only what the session itself made there.
    """

    effect: Effect
    pattern: str
    origin: Origin
    own: bool = False
