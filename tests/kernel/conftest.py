"""Fixtures that make kernel objects of our own and take them away again."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from mcpguard.kernel import cgroup
from mcpguard.kernel.cgroup import Leaf

_numbers = itertools.count()


@pytest.fixture
def leaf() -> Iterator[Leaf]:
    """An empty cgroup v2 leaf; whatever still lives in it at the end is killed with it."""
    from harness import need_root

    need_root()
    mount = cgroup.unified_mount()
    assert mount is not None, "no cgroup v2 tree is mounted"
    made = cgroup.make_leaf(mount, f"test-{os.getpid()}-{next(_numbers)}")
    try:
        yield made
    finally:
        made.kill()
        os.close(made.fd)
        assert made.remove(), f"{made.path} is still populated by {made.pids()}"
