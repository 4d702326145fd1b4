"""Policy: a profile compiled for this host, user and workspace. Absolute, digested, ready for the kernel."""

from __future__ import annotations

from mcpguard.model.access import Access, Effect
from mcpguard.model.profile import SniMode, SystemSwitches
from mcpguard.model.rule import Origin
from mcpguard.model.values import dataclass


@dataclass(frozen=True, slots=True)
class User:
    """Who the agent runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str


@dataclass(frozen=True, slots=True)
class PathRule:
    """A file rule with absolute patterns; `rule` indexes `Policy.rules`.

    `pattern` and `exceptions` are absolute, variables expanded, no trailing slash; `**/x` became `/**/x`.
    """

    effect: Effect
    access: Access
    pattern: str
    exceptions: tuple[str, ...]
    rule: int


PROTO_TCP = 1
PROTO_UDP = 2
# Beside the others, of what a name opens: what is sent there must name a host that the rules allow.
PROTO_NAMED = 4


@dataclass(frozen=True, slots=True)
class NetEntry:
    """One range of addresses and ports.

    Attributes:
        address: 16 bytes, network order; IPv4 is mapped (`::ffff:a.b.c.d`).
        prefix: significant bits of `address`, 0 to 128 (IPv4: 96 to 128). A rule for every address becomes prefix 0.
        port_low, port_high: inclusive; 0 and 65535 stand for every port.
        protocols: PROTO_TCP | PROTO_UDP; PROTO_NAMED where a rule for a name opens it.
        rule: index into `Policy.rules`.
    """

    address: bytes
    prefix: int
    port_low: int
    port_high: int
    protocols: int
    effect: Effect
    rule: int


@dataclass(frozen=True, slots=True)
class NameEntry:
    """A destination by host name, not yet resolved. `pattern` is lower case without a trailing dot; `*.a.b` is a wildcard."""

    pattern: str
    port_low: int
    port_high: int
    protocols: int
    effect: Effect
    rule: int


@dataclass(frozen=True, slots=True)
class SocketEntry:
    """A unix socket rule; `pattern` is absolute, or `@name` for an abstract socket. `own`: see `SocketRule`."""

    pattern: str
    effect: Effect
    rule: int
    own: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything the backends need; rule 0 of `rules` is the default that denies.

    Attributes:
        digest: SHA-256 in hex over the canonical form; equal input gives an equal digest whatever the order of rules.
        tables: the serialised path automaton (`policy.automaton.Automaton.from_bytes`).
        paths: the file rules it was made from, for tools that must know patterns (mount plan, `why`).
        connect, listen: address rules; names: destinations by name (connect only).
        sni: whether what is sent to an address of a name must name a host that `names` allow.
        audit: let through and record everything but denies.
        socket_tables: as `tables`, from those of `sockets` that are paths and hold for what others made; empty: not made.
        environment_set: (name, value) of variables that the agent gets.
        folders: the agent's own folders in the home, and the standard ones on the way to them, parents first: made for a run
            where they do not exist, and taken away after it where they are still empty.
        mcp: rules for MCP as JSON (`mcp.policy.load` reads what it holds); empty where the profile says nothing of it.
    """

    digest: str
    profile: str
    command: tuple[str, ...]
    user: User
    workspace: str
    tmp: str
    rules: tuple[Origin, ...]
    reasons: tuple[str, ...]
    tables: bytes
    paths: tuple[PathRule, ...]
    connect: tuple[NetEntry, ...]
    listen: tuple[NetEntry, ...]
    names: tuple[NameEntry, ...]
    sockets: tuple[SocketEntry, ...]
    environment_remove: tuple[str, ...]
    environment_keep: tuple[str, ...]
    system: SystemSwitches
    audit: bool = False
    folders: tuple[str, ...] = ()
    socket_tables: bytes = b""
    sni: SniMode = SniMode.CHECK
    environment_set: tuple[tuple[str, str], ...] = ()
    mcp: str = ""
