"""A child that is born in the leaf: the kernel need not move it, and Python works in it as after any other fork."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from mcpguard.kernel import cgroup, syscalls
from mcpguard.kernel.cgroup import Leaf

pytestmark = pytest.mark.kernel


def forked(leaf: Leaf | None) -> tuple[int, int]:
    """A child that tells where it is, after a thread and a child of its own; and the pipe it says it on."""
    reader, writer = os.pipe()
    pid = syscalls.fork_into(leaf.fd) if leaf else os.fork()
    if pid == 0:
        try:
            told: list[str] = []
            thread = threading.Thread(target=lambda: told.append(cgroup.place_of(os.getpid())))
            thread.start()
            thread.join()
            grandchild = os.fork()
            if grandchild == 0:
                os.write(writer, f"{told[0]} {cgroup.place_of(os.getpid())}".encode())
                os._exit(0)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
        finally:
            os._exit(1)
    os.close(writer)
    return pid, reader


def places(leaf: Leaf | None) -> list[str]:
    pid, reader = forked(leaf)
    with os.fdopen(reader) as said:
        found = said.read().split()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return found


def test_it_and_its_own_are_inside_from_the_first_moment(leaf: Leaf) -> None:
    inside = cgroup.in_tree(leaf.path)
    assert places(leaf) == [inside, inside]
    assert inside not in places(None)
    assert cgroup.place_of(os.getpid()) != inside


def test_where_it_is_refused_the_caller_goes_on_as_before() -> None:
    with open("/proc/self/status", "rb") as no_cgroup, pytest.raises(OSError, match="Bad file descriptor"):
        syscalls.fork_into(no_cgroup.fileno())
    # What forking takes meanwhile was given back: importing, threads and children go on.
    code = subprocess.run([sys.executable, "-I", "-c", "import decimal"], check=False).returncode
    assert code == 0
    assert len(places(None)) == 2
