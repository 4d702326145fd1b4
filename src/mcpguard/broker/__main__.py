"""Entry of the privileged half: `python -I -S .../mcpguard/broker/__main__.py (--fd N | --socket NAME) [--audit] [--tier N]`.

Isolated on purpose: no site packages, no environment, no working directory on the path. The package's own parent is put
on the path by hand, and `mcpguard setup` has put it where only root can write.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and sys.flags.isolated:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import socket

from mcpguard.broker.channel import Channel, peer_uid
from mcpguard.broker.server import serve


def main(arguments: list[str]) -> int:
    """Connect to the user's process and serve it. Returns the exit code."""
    options = arguments[2:]
    audit = options[:1] == ["--audit"]
    tier = int(options[-1]) if options[audit:-1] == ["--tier"] and options[-1] in ("1", "2", "3") else None
    understood = 2 + audit + (2 if tier else 0)
    if os.geteuid() != 0 or len(arguments) != understood or arguments[0] not in ("--fd", "--socket"):
        sys.stderr.write("mcpguard: the broker is started by `mcpguard run`, not by hand\n")
        return 125
    if arguments[0] == "--fd":
        connection = socket.socket(fileno=int(arguments[1]))
        caller = os.getuid()
    else:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(b"\0" + os.fsencode(arguments[1]))
        # Who typed the command, by sudo's word; who holds the other end, by the kernel's. They must be the same.
        caller = int(os.environ.get("SUDO_UID", "-1"))
        if peer_uid(connection) != caller:
            sys.stderr.write("mcpguard: the other end of the broker's socket is not who called sudo\n")
            return 125
    os.set_inheritable(connection.fileno(), False)
    serve(Channel(connection), caller, _peer_pid(connection), audit=audit, tier=tier)
    return 0


def _peer_pid(connection: socket.socket) -> int:
    return int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
