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
from collections.abc import Mapping

from mcpguard.kernel import cgroup
from mcpguard.kernel.cgroup import Leaf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST_BYTES = 256


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
            data, descriptors, _flags, _address = socket.recv_fds(self._line, _MOST_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return False
        if not data:
            return False
        answer: dict[str, Any] = {}
        try:
            request = json.loads(data)
            answer["number"] = int(request["number"])
            self._put(descriptors[0], self._below[int(request["kept"])])
        except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
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
