"""The ring reader: batches, order, losses, and a process without privilege that was only given the descriptor."""

from __future__ import annotations

import errno
import os
import select
import socket
from pathlib import Path

import pytest
from bpf_tree import Tree, errno_of, in_child

from mcpguard.errors import KernelError
from mcpguard.kernel.cgroup import Leaf
from mcpguard.kernel.ring import Counters, Ring
from mcpguard.wire import _abi, decode
from mcpguard.wire.records import NetRecord, OpenRecord

pytestmark = pytest.mark.kernel

NOBODY = 65534


def knock(ports: range) -> int:
    """One refused send for each port; returns how many were refused."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return sum(errno_of(lambda p=port: sock.sendto(b"x", ("127.0.0.1", p))) == errno.EPERM for port in ports)


def ports_of(samples: list[bytes]) -> list[int]:
    return [r.port for r in map(decode.record, samples) if isinstance(r, NetRecord)]


def test_batches_keep_the_order_and_take_everything(tree: Tree) -> None:
    tree.guard()
    assert tree.run(lambda: knock(range(1, 501))) == 500
    ring = tree.rings["mg_denials"]
    assert ring.unread() == 500
    batches = []
    while batch := ring.drain(limit_bytes=4096):
        batches.append(batch)
    assert len(batches) > 5
    assert max(len(b) for b in batches) * _abi.MG_NET.size < 8192
    assert ports_of([sample for batch in batches for sample in batch]) == list(range(1, 501))
    assert ring.drain() == []
    assert ring.unread() == 0


def test_records_that_wrap_around_the_end_are_whole(leaf: Leaf) -> None:
    tree = Tree.plant(leaf, denials=4096, activity=4096)
    try:
        tree.guard()
        seen: list[int] = []
        for start in range(1, 400, 20):
            tree.run(lambda first=start: knock(range(first, first + 20)))
            seen += ports_of(tree.rings["mg_denials"].drain())
        assert seen == list(range(1, 401))
    finally:
        tree.close()


def test_what_does_not_fit_is_counted_and_told_by_the_next_record(leaf: Leaf) -> None:
    tree = Tree.plant(leaf, denials=4096, activity=4096)
    counters = Counters(tree.session.fds["mg_counters"], _abi.MG_COUNTERS.size)
    try:
        tree.guard()
        tree.run(lambda: knock(range(1, 301)))
        kept = tree.rings["mg_denials"].drain()
        assert 0 < len(kept) < 300
        lost = _abi.MG_COUNTERS.unpack(counters.read())[1]
        assert lost == 300 - len(kept)
        tree.run(lambda: knock(range(301, 302)))
        (after,) = tree.rings["mg_denials"].drain()
        assert decode.record(after).head.lost_before == lost
        tree.run(lambda: knock(range(302, 303)))
        (later,) = tree.rings["mg_denials"].drain()
        assert decode.record(later).head.lost_before == 0
    finally:
        counters.close()
        tree.close()


def test_the_descriptor_is_readable_exactly_while_records_wait(tree: Tree) -> None:
    tree.guard()
    ring = tree.rings["mg_denials"]
    assert select.select([ring], [], [], 0)[0] == []
    tree.run(lambda: knock(range(1, 3)))
    assert select.select([ring], [], [], 20)[0] == [ring]
    assert len(ring.drain()) == 2
    assert select.select([ring], [], [], 0)[0] == []


def test_a_process_without_privilege_reads_a_ring_that_it_was_given(tree: Tree, tmp_path: Path) -> None:
    tree.guard()
    tree.run(lambda: knock(range(1, 11)))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    socket.send_fds(ours, [b"x"], [tree.session.fds["mg_denials"], tree.session.fds["mg_counters"]])
    size = tree.session.sizes["mg_denials"]

    def act() -> list[int]:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        _, fds, _, _ = socket.recv_fds(theirs, 1, 2)
        counters = Counters(fds[1], _abi.MG_COUNTERS.size)
        assert len(counters.read()) == _abi.MG_COUNTERS.size
        return ports_of(Ring(fds[0], size).drain())

    with ours, theirs:
        assert in_child(act) == list(range(1, 11))


def test_the_maps_of_a_verdict_are_not_handed_out_but_those_of_the_resolver(tree: Tree) -> None:
    names = {name for name in tree.session.fds if not name.startswith("sums.")}
    assert names == {"mg_denials", "mg_activity", "mg_counters", "mg_names", "mg_questions", "mg_flows", "mg_messages"}
    sums = {name.removeprefix("sums.") for name in tree.session.fds} - names
    assert all(one.endswith(("_sums", "_denied")) for one in sums)
    assert {"mg_connect", "mg_listen", "mg_own_names", "mg_askers"} <= tree.session.maps.keys() - sums


def test_a_ring_of_which_the_beginning_is_mapped_is_read_past_it_and_around_its_end(leaf: Leaf) -> None:
    tree = Tree.plant(leaf, denials=16384, activity=4096)
    try:
        tree.guard()
        ring = Ring(os.dup(tree.session.fds["mg_denials"]), 16384, beginning=4096)
        for first in range(1, 500, 20):
            tree.run(lambda first=first: knock(range(first, first + 20)))
            waiting = ring.unread()
            assert ports_of(ring.drain()) == list(range(first, first + 20)) and waiting == 20
        ring.close()
    finally:
        tree.close()


def test_what_cannot_be_mapped_any_more_waits_and_is_said(tree: Tree) -> None:
    tree.guard()
    tree.run(lambda: knock(range(1, 100)))
    fd = os.dup(tree.session.fds["mg_denials"])
    ring = Ring(fd, tree.session.sizes["mg_denials"], beginning=4096)
    os.close(fd)
    with pytest.raises(KernelError):
        ring.drain()
    assert ring.unread() == 1


def test_something_that_is_no_ring_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file, pytest.raises(KernelError):
        Ring(file.fileno(), 4096)


def test_activity_and_denials_do_not_share_a_ring(tree: Tree, tmp_path: Path) -> None:
    tree.guard().trace()
    (tmp_path / "f").touch()

    def act() -> int:
        os.close(os.open(tmp_path / "f", os.O_RDONLY))
        return knock(range(1, 2))

    tree.run(act)
    assert any(isinstance(r, OpenRecord) for r in tree.activity())
    assert [type(r) for r in tree.denials()] == [NetRecord]
