"""The broker's end of the line on which a gate has servers kept: whatever comes, it answers or refuses, and stays."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from bpf_tree import Tree

from mcpguard.broker.keeping import Keeping
from mcpguard.kernel import cgroup

pytestmark = pytest.mark.kernel
RULE = 7


class Line:
    """Both ends, and the leaf of one rule."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.below = tree.leaf.below(str(RULE))
        self.gate, broker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.keeping = Keeping(broker, tree.leaf, {RULE: self.below})

    def ask(self, packet: bytes, *held: int) -> dict[str, object]:
        socket.send_fds(self.gate, [packet], held)
        assert self.keeping.serve()
        return dict(json.loads(self.gate.recv(1024)))

    def keep(self, held: int) -> bool:
        return "refused" not in self.ask(json.dumps({"number": 1, "kept": RULE}).encode(), held)


@pytest.fixture
def line(tree: Tree) -> Iterator[Line]:
    made = Line(tree)
    yield made
    made.gate.close()
    made.keeping.close()
    os.close(made.below.fd)


def sleeper(*, inside: Line | None) -> int:
    """A process that waits to be ended."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        if inside:
            inside.tree.leaf.enter()
        os.write(writer, b"+")
        while True:
            signal.pause()
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_only_a_living_process_of_the_sessions_own_leaf_is_moved(line: Line, tmp_path: Path) -> None:
    ours, other, stranger = sleeper(inside=line), sleeper(inside=line), sleeper(inside=None)
    held = {pid: os.pidfd_open(pid) for pid in (ours, other, stranger)}
    elsewhere = cgroup.place_of(stranger)
    file = os.open(tmp_path, os.O_RDONLY)
    try:
        assert line.keep(held[ours])
        assert cgroup.place_of(ours) == cgroup.in_tree(line.below.path)
        assert line.keep(held[ours]), "it is there already"
        assert not line.keep(held[stranger])
        assert cgroup.place_of(stranger) == elsewhere
        assert not line.keep(file)
        end(other)
        assert not line.keep(held[other])
    finally:
        end(ours)
        end(stranger)
        for number in (file, *held.values()):
            os.close(number)


@pytest.mark.parametrize(
    "packet",
    [
        b"-",
        b"[]",
        b"{}",
        b'{"number": 1e999, "kept": 7}',
        b'{"number": -Infinity, "kept": 7}',
        b'{"number": NaN, "kept": 7}',
        b'{"number": 1, "kept": 1e999}',
        b'{"number": 1, "kept": 8}',
        b'{"number": 1, "kept": 7}',
        b"[" * 250,
        b"\xff" * 9,
        b"9" * 256,
    ],
)
def test_what_no_gate_sends_is_refused_and_the_broker_goes_on(line: Line, packet: bytes) -> None:
    """Without a descriptor, too, of which one lacks nothing else."""
    assert "refused" in line.ask(packet)
    ours = sleeper(inside=line)
    held = os.pidfd_open(ours)
    try:
        if b"1e999" in packet:
            assert "refused" in line.ask(packet, held)
        assert cgroup.place_of(ours) == cgroup.in_tree(line.tree.leaf.path)
        assert line.keep(held)
    finally:
        end(ours)
        os.close(held)


def test_a_packet_that_somebody_else_took_stops_nothing(line: Line) -> None:
    assert line.keeping.serve()
    line.gate.close()
    assert not line.keeping.serve()
