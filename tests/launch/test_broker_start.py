"""The broker is started before the command line is read: until it is told what to load it has made nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcpguard.broker import client
from mcpguard.kernel import cgroup

pytestmark = pytest.mark.kernel


def leaves() -> set[str]:
    parent = Path(cgroup.unified_mount() or "", cgroup.PARENT)
    return {leaf.name for leaf in parent.iterdir() if leaf.is_dir()} if parent.is_dir() else set()


@pytest.mark.parametrize("first", [b"", b"\0", b"\2\0", b"\0\4", b"{}"])
def test_who_does_not_say_what_to_load_gets_nothing(first: bytes) -> None:
    before = leaves()
    broker = client.fork()
    broker.channel.connection.sendall(first)
    broker.dismiss()
    assert broker.channel.receive() is None
    assert broker.process.wait() == 0
    broker.close()
    assert leaves() <= before


@pytest.mark.parametrize("audit", [False, True])
def test_who_says_it_gets_an_offer_and_leaves_nothing_behind(audit: bool) -> None:
    before = leaves()
    broker = client.fork()
    try:
        broker.load(audit=audit, tier="3")
        assert broker.offer()["tier"] == 3
        (made,) = leaves() - before
        assert made.startswith(f"{broker.process.pid}-")
    finally:
        broker.dismiss()
        assert broker.channel.receive() is None
        broker.process.wait()
        broker.close()
    assert leaves() <= before
