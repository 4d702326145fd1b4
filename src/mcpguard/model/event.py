"""Event: one thing that happened, with its verdict and the rule that decided."""

from __future__ import annotations

import enum

from mcpguard.model.access import Verdict
from mcpguard.model.rule import Origin
from mcpguard.model.values import dataclass


class Kind(enum.StrEnum):
    FILE = "file"
    EXEC = "exec"
    NET = "net"
    DNS = "dns"
    UNIX = "unix"
    MCP = "mcp"
    PROCESS = "process"
    LOSS = "loss"


@dataclass(frozen=True, slots=True)
class Event:
    """The JSON event of the command contract, field for field; None: the field has no meaning here.

    Attributes:
        time_ns: nanoseconds since the Unix epoch.
        seq: number within the session, from 1; given by the store when 0.
        op: open, create, unlink, rename, link, symlink, mkdir, rmdir, mknod, chmod, chown, truncate, xattr, utimes, exec,
            connect, sendmsg, bind, listen, socket, packet, fork, exit, start, end, signal, ptrace, mount, ...
        access: `read`, `write`, `execute`, or a `+` joined list.
        target: the second path of rename and link.
        count: how many times; more than 1 for aggregated events.
        errno: what the program got, as a symbol such as `EACCES`.
        detail: words for a person.
    """

    time_ns: int
    session: str
    kind: Kind
    op: str
    verdict: Verdict
    seq: int = 0
    access: str | None = None
    path: str | None = None
    target: str | None = None
    host: str | None = None
    address: str | None = None
    port: int | None = None
    protocol: str | None = None
    pid: int | None = None
    ppid: int | None = None
    exe: str | None = None
    comm: str | None = None
    argv: tuple[str, ...] | None = None
    rule: Origin | None = None
    count: int = 1
    errno: str | None = None
    detail: str | None = None
