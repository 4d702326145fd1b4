"""Fixtures that make kernel objects of our own and take them away again."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Iterator

import pytest
from bpf_tree import Tree

from mcpguard.kernel import cgroup
from mcpguard.kernel.cgroup import Leaf

_numbers = itertools.count()


def _keep(leaf: Leaf) -> int:
    """A process that does nothing but live in the leaf: a session that starts meanwhile sweeps empty leaves away."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            leaf.enter()
            os.write(writer, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1), "the leaf could not be entered"
    os.close(reader)
    return pid


@contextlib.contextmanager
def _planted() -> Iterator[Leaf]:
    from harness import need_root

    need_root()
    mount = cgroup.unified_mount()
    assert mount is not None, "no cgroup v2 tree is mounted"
    made = cgroup.make_leaf(mount, f"test-{os.getpid()}-{next(_numbers)}")
    keeper = _keep(made)
    try:
        yield made
    finally:
        made.kill()
        os.waitpid(keeper, 0)
        os.close(made.fd)
        assert made.remove(), f"{made.path} is still populated by {made.pids()}"


@pytest.fixture
def leaf() -> Iterator[Leaf]:
    """An empty cgroup v2 leaf; whatever still lives in it at the end is killed with it."""
    with _planted() as made:
        yield made


@pytest.fixture
def tree(leaf: Leaf) -> Iterator[Tree]:
    """A leaf with a session of the engine, and nothing attached yet."""
    planted = Tree.plant(leaf)
    yield planted
    planted.close()


@pytest.fixture
def other_leaf() -> Iterator[Leaf]:
    """A second one."""
    with _planted() as made:
        yield made
