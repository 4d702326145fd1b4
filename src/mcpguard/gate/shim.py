"""What an agent starts instead of an MCP server: it asks the gate, and becomes the server, or says why not.

    python -I -S .../mcpguard/gate/shim.py SOCKET NAME -- COMMAND [ARGUMENT...]

It runs inside the guarded tree, so nothing trusts it: what it asks for is judged outside, what it takes on can only narrow it.
Agents start all their servers at once and wait for them, so it imports next to nothing.
"""

from __future__ import annotations

import _socket
import os
import sys

if __name__ == "__main__":
    # The package by hand: with -S nobody finds it, and looking through the folder that it is in may be refused here.
    sys.modules["mcpguard"] = _package = type(sys)("mcpguard")
    _package.__path__ = [__file__.rpartition("/gate/")[0]]

from mcpguard.errors import HostError, McpguardError, UsageError
from mcpguard.gate.line import MOST_BYTES, REFUSED, SOCKET_VARIABLE, VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_INT = 4
_DESCRIPTORS = 2
_PATIENCE_S = 30.0


def main(words: list[str], socket: str | None = None) -> NoReturn:
    """Become the server; ends with 126 where that is refused.

    Args:
        words: NAME -- COMMAND [ARGUMENT...].
        socket: the gate's; None: the one of the session that this is part of.
    """
    wrong: McpguardError
    try:
        if len(words) < 3 or words[1] != "--":
            raise UsageError(
                "a server must be named, and its command",
                why="these are not the words of a shim",
                do="mcpguard mcp shim NAME -- COMMAND [ARGUMENT...]",
                code="usage.shim",
            )
        order, descriptors, line = _ask(socket or _socket_of_session(), words[0], words[2:])
        _become(order, descriptors, line)
    except McpguardError as error:
        wrong = error
    except Exception as error:
        wrong = _failed(words[0], str(error) or type(error).__name__)
    sys.stderr.write("\n".join(wrong.lines()) + "\n")
    sys.stderr.flush()
    os._exit(REFUSED)


def _socket_of_session() -> str:
    if found := os.environ.get(SOCKET_VARIABLE):
        return found
    raise HostError(
        "there is no gate to ask, so no MCP server was started",
        why="this is not a session of `mcpguard run` whose profile has a gate",
        do="start the agent with `mcpguard run AGENT`",
        code="mcp.no-gate",
    )


def _failed(name: str, why: str) -> HostError:
    return HostError(
        f"the MCP server {name} was not started",
        why=why,
        do="`mcpguard log --kind mcp` outside of the session tells more",
        code="mcp.not-started",
    )


def _ask(socket: str, name: str, argv: list[str]) -> tuple[dict[str, Any], list[int], int]:
    import json

    line = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    # The kernel waits while others stand in the queue; a socket that is not to wait would be turned away at once.
    patience = int(_PATIENCE_S).to_bytes(8, sys.byteorder) + bytes(8)
    line.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, patience)
    line.connect(socket)
    line.settimeout(_PATIENCE_S)
    question = json.dumps({"version": VERSION, "name": name, "argv": argv}).encode("utf-8", "surrogateescape")
    both = b"".join(number.to_bytes(_INT, sys.byteorder) for number in (0, 1))
    line.sendmsg([question], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, both)])
    room = _socket.CMSG_SPACE(_DESCRIPTORS * _INT)
    data, ancillary, _flags, _address = line.recvmsg(MOST_BYTES, room, _socket.MSG_CMSG_CLOEXEC)
    number = line.detach()  # open until the server is executed: so the gate learns that it was
    if not data:
        raise ConnectionError("the gate hung up")
    answer = json.loads(data)
    if "go" not in answer:
        what, why, do, code = answer["refused"]
        raise HostError(what, why=why, do=do, code=code)
    found = [
        int.from_bytes(payload[at : at + _INT], sys.byteorder)
        for level, kind, payload in ancillary
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS)
        for at in range(0, len(payload) - _INT + 1, _INT)
    ]
    return answer["go"], found, number


def _become(order: dict[str, Any], descriptors: list[int], line: int) -> NoReturn:
    for standard, given in zip((0, 1), descriptors, strict=True):
        os.dup2(given, standard)
        os.close(given)
    os.chdir(order["cwd"])
    if order["canary"]:
        _try(order["canary"])
    if order["grants"] or order["filter"]:
        from mcpguard.gate.narrow import narrow

        narrow(order["grants"], bytes.fromhex(order["filter"]), line)
    os.execve(order["program"], order["argv"], order["environment"])


def _try(canary: list[Any]) -> None:
    """Go where only what keeps this server refuses to let it: nothing of it runs unless that was refused."""
    attempt = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    try:
        attempt.connect(tuple(canary))
    except PermissionError:
        attempt.close()
        return
    raise HostError(
        "the MCP server was not started, because it is not kept to its profile",
        why="the canary was let through where its own rules refuse it",
        do="end the session and begin anew; if it stays so, report this with the output of `mcpguard doctor`",
        code="mcp.not-kept",
    )


if __name__ == "__main__":
    main(sys.argv[2:], sys.argv[1] if len(sys.argv) > 1 else None)
