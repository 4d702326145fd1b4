"""Servers that are kept to less than the tree: put into leaves of their own below the session's, at their gate's request.

Whoever can write to the line has a process of the tree moved down, and nobody moves one back or across: such a request only
takes away. The process is named by a descriptor of it, so that no number of one that has ended counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
from collections.abc import Mapping

from mcpguard.kernel import cgroup
from mcpguard.kernel.cgroup import Leaf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST_BYTES = 256
_INT = struct.Struct("i")


class Keeping:
    """The broker's end of the gate's line: packets `{"number": N, "kept": RULE}` with a pidfd; each is answered."""

    def __init__(self, line: socket.socket, leaf: Leaf, below: Mapping[int, Leaf]) -> None:
        """
        Args:
            below: the leaves, by the rules that keep them.
        """
        self._line = line
        self._leaf = leaf
        self._below = below

    def fileno(self) -> int:
        return self._line.fileno()

    def serve(self) -> bool:
        """Answer one request; False: there will be no more."""
        try:
            # Not `socket.recv_fds`, which takes flags and forgets them.
            data, ancillary, _flags, _address = self._line.recvmsg(
                _MOST_BYTES, socket.CMSG_LEN(_INT.size), socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        except BlockingIOError:  # somebody else who has this end took it
            return True
        except OSError:
            return False
        if not data:
            return False
        descriptors = [
            _INT.unpack(payload[: _INT.size])[0]
            for level, kind, payload in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        ]
        answer: dict[str, Any] = {}
        try:
            request = json.loads(data)
            answer["number"] = int(request["number"])
            self._put(descriptors[0], self._below[int(request["kept"])])
        except (OSError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            answer["refused"] = f"{type(error).__name__}: {error}"
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        with contextlib.suppress(OSError):
            self._line.send(json.dumps(answer).encode(), socket.MSG_DONTWAIT)
        return True

    def _put(self, held: int, below: Leaf) -> None:
        """Raises OSError, ValueError: it is not there."""
        pid = _number(held)
        here, there = cgroup.in_tree(self._leaf.path), cgroup.in_tree(below.path)
        place = cgroup.place_of(pid)
        if place == there:
            return
        if place != here:
            raise ValueError("it is no process of the session's own leaf")
        if _ended(held):  # so that what was read is of this one, and not of the next with its number
            raise ValueError("it ended")
        below.enter(pid)
        if _ended(held) or cgroup.place_of(pid) != there:
            raise ValueError("it ended")

    def close(self) -> None:
        self._line.close()


def _number(held: int) -> int:
    """The number of a process that is held; raises ValueError: it has ended, or this is no descriptor of one."""
    with open(f"/proc/self/fdinfo/{held}", encoding="ascii") as file:
        facts = dict(line.split(":", 1) for line in file if ":" in line)
    pid = int(facts.get("Pid", "0"))
    if pid <= 0 or _ended(held):
        raise ValueError("it is no process that lives")
    return pid


def _ended(held: int) -> bool:
    poll = select.poll()
    poll.register(held, select.POLLIN)
    return bool(poll.poll(0))
