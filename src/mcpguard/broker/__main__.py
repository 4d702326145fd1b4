"""Entry of the privileged half: `python -I -S .../mcpguard/broker/__main__.py --socket NAME`.

Isolated on purpose: no site packages, no environment, no working directory on the path. The package's own parent is put
on the path by hand, and `mcpguard setup` has put it where only root can write.

The first two bytes on the socket say what must be known before anything is loaded: whether it is an audit (1), and the tier
that is insisted on (0: none). The user's process starts the broker before it has read its own command line.
"""

from __future__ import annotations

import gc
import os
import sys

if __name__ == "__main__" and sys.flags.isolated:
    gc.disable()  # what a launch makes stays; `launch` turns it on again when the agent runs
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from mcpguard.broker.server import serve

NAME = "mcpguard-broker"


def main(arguments: list[str]) -> int:
    """Connect to the user's process and serve it. Returns the exit code."""
    if os.geteuid() != 0 or len(arguments) != 2 or arguments[0] != "--socket":
        sys.stderr.write("mcpguard: the broker is started by `mcpguard run`, not by hand\n")
        return 125
    connection, caller = _connect(arguments[1])
    if connection < 0:
        sys.stderr.write("mcpguard: the other end of the broker's socket is not who called sudo\n")
        return 125
    converse(connection, caller)
    return 0


def converse(connection: int, caller: int) -> None:
    """Serve the user `caller`, whose process is at the other end of this connected socket, once it has said what to load."""
    os.set_inheritable(connection, False)
    with open("/proc/self/comm", "w", encoding="ascii") as name:  # for whoever looks at a list of processes
        name.write(NAME)
    first = os.read(connection, 4)
    if len(first) == 4 and first[0] <= 1 and first[1] <= 3:  # else the user's process has changed its mind
        resolver = int.from_bytes(first[2:], "big")
        serve(connection, caller, audit=first[0] == 1, tier=first[1] or None, resolver=resolver)


def _connect(name: str) -> tuple[int, int]:
    """The descriptor of a connection to the socket of this name, and who called sudo; -1 where somebody else holds it."""
    import socket

    from mcpguard.broker.channel import peer_uid

    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(b"\0" + os.fsencode(name))
    # Who typed the command, by sudo's word; who holds the other end, by the kernel's. They must be the same.
    caller = int(os.environ.get("SUDO_UID", "-1"))
    return (connection.detach() if peer_uid(connection) == caller else -1), caller


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
