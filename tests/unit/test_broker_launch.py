"""The broker's order of things around the child: what must be true before it hears the next word."""

from __future__ import annotations

import json
import os
import socket
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
