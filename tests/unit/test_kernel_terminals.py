"""Numbers of terminals taken on purpose, and whose terminals are told to be one's own."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcpguard.kernel import mounts, terminals


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A devpts that gives out 0, 1, 2, 3 and then no more; holds the descriptors that were opened."""
    opened: list[int] = []

    def open_next(_path: str, _flags: int) -> int:
        if len(opened) == 4:
            raise OSError(errno.ENOSPC, "no more terminals")
        opened.append(os.dup(0))
        return opened[-1]

    real = os.open
    monkeypatch.setattr(terminals.os, "open", open_next)
    monkeypatch.setattr(terminals, "_number", opened.index)
    yield opened
    monkeypatch.setattr(terminals.os, "open", real)
    for fd in opened:
        if is_open(fd):
            os.close(fd)


def is_open(fd: int) -> bool:
    return Path(f"/proc/self/fd/{fd}").exists()


def test_only_what_was_wanted_is_kept(given: list[int]) -> None:
    assert terminals.take([2]) == {2: given[2]}
    assert [is_open(fd) for fd in given] == [False, False, True]


def test_where_there_are_not_so_many_the_others_are_had(given: list[int]) -> None:
    assert terminals.take([1, 9]) == {1: given[1]}
    assert [is_open(fd) for fd in given] == [False, True, False, False]


def test_nothing_wanted_takes_nothing(given: list[int]) -> None:
    assert terminals.take([]) == {}
    assert not given


def test_a_terminal_is_known_by_its_file_system_and_number() -> None:
    master, slave = os.openpty()
    try:
        found = terminals._terminal(slave)
        assert found is not None
        assert found.path == os.ttyname(slave)
        assert found.device == mounts.device_of(slave)
        assert terminals._terminal(master) is None
    finally:
        os.close(master)
        os.close(slave)
