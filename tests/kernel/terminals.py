"""Terminals that are opened outside while a session runs, and the acts that try to use them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from harness import SYSTEM_PYTHON
from matrix import CAPLESS, Task
from outside import Answer
from world import World

PROFILE = """\
name: matrix
extends: [dev-tools]
files:
  write: ["{workspace}"]
  execute: ["{workspace}"]
sockets:
  allow: ["{workspace}/**"]
"""
TYPED = "typed-by-the-user"
# Somebody's terminal, on which something was typed; with no more rights than the acts have.
HOLDER = f"""
import json, os, sys
master, slave = os.openpty()
os.write(master, b"{TYPED}\\n")
os.set_inheritable(slave, True)
print(json.dumps({{"index": os.minor(os.fstat(slave).st_rdev), "pid": os.getpid(), "fd": slave}}), flush=True)
sys.stdin.read()
"""
# By number there is nothing to be refused: the name does not exist. The other ways lead through what is.
NAMELESS = {
    "number": "/dev/pts/{index}",
    "own root": "/proc/self/root/dev/pts/{index}",
    "own thread's root": "/proc/thread-self/root/dev/pts/{index}",
}
REFUSED = {
    "descriptor of its holder": "/proc/{pid}/fd/{fd}",
    "root of its holder": "/proc/{pid}/root/dev/pts/{index}",
}
HONEST = ("own terminal", "program on own terminal")
SENT = "a descriptor of it that was sent"
MADE = "a node with its number"


class Terminals:
    """Answers for `Outside`: each asks for a new terminal, whose holder lives until the end of the block.

    Attributes:
        become: words that make the holder who does the acts.
    """

    def __init__(self, become: tuple[str, ...] = CAPLESS) -> None:
        self.become = become
        self._stack = contextlib.ExitStack()
        self._last = {"pid": 0, "fd": 0}
        self.answers: Mapping[str, Answer] = {"open a terminal": self._open, "send the terminal": self._send}

    def __enter__(self) -> Terminals:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, world: World) -> None:
        command = [*self.become, SYSTEM_PYTHON, "-c", HOLDER]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._stack.callback(_end, holder)
        assert holder.stdout is not None
        line = holder.stdout.readline()
        self._last = json.loads(line)
        (world.project / "terminal.json").write_text(line)

    def _send(self, _world: World) -> Sequence[int]:
        return (os.open(f"/proc/{self._last['pid']}/fd/{self._last['fd']}", os.O_RDWR | os.O_NOCTTY),)


def _end(holder: subprocess.Popen[str]) -> None:
    holder.communicate("")


def tasks(world: World, door: str) -> list[Task]:
    """Everything but what needs a capability in the control."""
    paths = {**NAMELESS, **REFUSED}
    return [
        *(Task(id, "use_terminal", {"door": door, "path": path}) for id, path in paths.items()),
        Task(SENT, "use_sent_terminal", {"door": door}),
        Task("own terminal", "own_terminal"),
        Task("program on own terminal", "program_on_own_terminal"),
        Task("in sight", "terminals_in_sight"),
    ]


@contextlib.contextmanager
def one_open() -> Iterator[str]:
    """A terminal that is open already when the session begins; its name."""
    master, slave = os.openpty()
    try:
        yield os.ttyname(slave)
    finally:
        os.close(master)
        os.close(slave)
