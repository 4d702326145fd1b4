"""The broker's order of things around the child: what must be true before it hears the next word."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mcpguard.broker import launch
from mcpguard.broker.channel import Channel
from mcpguard.kernel.beside import Beside


class NotArmed:
    """Stands for the engine, which must not be asked."""

    def arm(self, _places: object) -> None:
        raise AssertionError("armed")


@pytest.fixture
def ends() -> Iterator[tuple[launch._Child, socket.socket]]:
    """A child that has confined itself, and its end of the line."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    orders, taken = socket.socketpair()
    theirs.sendall(json.dumps({"confined": True}).encode())
    with ours, theirs, orders, taken:
        yield launch._Child(os.getpid(), Channel(orders), ours), theirs


def test_a_child_that_the_cgroup_did_not_take_hears_nothing_more(ends: tuple[launch._Child, socket.socket]) -> None:
    child, line = ends

    def refuse() -> None:
        raise OSError(16, "the cgroup is busy")

    with pytest.raises(OSError, match="busy"):
        launch._confine(child, {}, NotArmed(), Beside(refuse))  # type: ignore[arg-type]
    line.setblocking(False)
    with pytest.raises(BlockingIOError):
        line.recv(16)


def test_what_is_done_beside_is_waited_for_and_tells_what_went_wrong() -> None:
    read, write = os.pipe()
    heard: list[bytes] = []
    waiting = Beside(lambda: heard.append(os.read(read, 1)))
    os.write(write, b"x")
    waiting.done()
    assert heard == [b"x"]
    os.close(read)
    os.close(write)
    failed = Beside(lambda: os.close(-1))
    failed.join()
    with pytest.raises(OSError, match="Bad file"):
        failed.done()


def test_the_table_of_descriptors_has_grown_before_there_are_threads() -> None:
    code = (
        "from mcpguard.broker import server\n"
        "def size(): return next(int(line[7:]) for line in open('/proc/self/status') if line.startswith('FDSize:'))\n"
        "before = size(); server._DESCRIPTORS = 2 * before; server._make_room(0); print(before, size())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after = map(int, told.split())
    assert after >= 2 * before


def test_a_low_limit_of_descriptors_is_no_reason_not_to_start() -> None:
    code = (
        "import os, resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "from mcpguard.broker.server import _make_room; _make_room(0); print(sorted(os.listdir('/proc/self/fd')))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "['0', '1', '2', '3']"
