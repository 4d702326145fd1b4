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
class Peer:
    """One end of a connection.

    Attributes:
        exe: path of its program; None: unknown.
    """

    pid: int
    exe: str | None = None


@dataclass(frozen=True, slots=True)
class McpMessage:
    """One MCP message, or what is worth keeping of it.

    Attributes:
        server: what people call the server: its name in the catalogue, else its program or its origin.
        transport: `stdio`, `http` or `sse`.
        sender: `client` or `server`; either may ask, and both number their requests from 0.
        call: names a request and its response in this session; None for a notification.
        method: of a response the method of its request; None: its request was not seen.
        id: the JSON-RPC id as JSON text.
        tool: of `tools/call`; of other methods the prompt or resource that is named.
        arguments: JSON text, bounded, secrets masked; of methods without arguments their params.
        cut: something of the arguments was left out.
        classes: what the tool does, as far as it is known: `read`, `write`, `destructive`, `open`, joined with `+`.
        result_bytes: size of a result as it was sent.
        error: what a response says went wrong; also of a tool that says so in its result.
        error_code: JSON-RPC's number; None where a tool reported the error.
        duration_ns: from a request to its response.
        client, peer: the processes of the client and of the server; None: unknown.
    """

    server: str
    transport: str
    sender: str
    call: str | None = None
    method: str | None = None
    id: str | None = None
    tool: str | None = None
    arguments: str | None = None
    cut: bool = False
    classes: str | None = None
    result_bytes: int | None = None
    error: str | None = None
    error_code: int | None = None
    duration_ns: int | None = None
    client: Peer | None = None
    peer: Peer | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """The JSON event of the command contract, field for field; None: the field has no meaning here.

    Attributes:
        time_ns: nanoseconds since the Unix epoch.
        seq: number within the session, from 1; given by the store when 0.
        op: open, create, unlink, rename, link, symlink, mkdir, rmdir, mknod, chmod, chown, truncate, xattr, utimes, exec,
            connect, sendmsg, bind, listen, socket, packet, traffic, fork, exit, start, end, signal, ptrace, mount, request,
            response, notification, ...
        access: `read`, `write`, `execute`, or a `+` joined list.
        target: the second path of rename and link.
        count: how many times; more than 1 for aggregated events, 0 for what is no act of its own (`traffic`).
        errno: what the program got, as a symbol such as `EACCES`.
        detail: words for a person.
        bytes_sent, bytes_received: of `traffic`, IP packets with their headers.
        mcp: the message, of kind `mcp`; the event's process is its sender.
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
    mcp: McpMessage | None = None
    bytes_sent: int | None = None
    bytes_received: int | None = None
