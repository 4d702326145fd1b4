"""The kernel is made to wait before a process has to enter its leaf; nothing moves for that."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mcpguard.kernel import cgroup


def test_this_process_goes_to_where_it_is_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a/b"):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.procs").write_bytes(b"")
    monkeypatch.setattr(cgroup, "place_of", {os.getpid(): "/a/b"}.__getitem__)
    cgroup.expect_a_move(str(tmp_path))
    written = {path: path.read_bytes() for path in tmp_path.rglob("cgroup.procs")}
    assert {str(path.parent.relative_to(tmp_path)) for path, content in written.items() if content} == {"a/b"}
    assert written[tmp_path / "a/b/cgroup.procs"] == b"0"


def test_a_process_without_a_place_does_not_land_in_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup.procs").write_bytes(b"")
    monkeypatch.setattr(cgroup, "place_of", lambda _pid: "")
    cgroup.expect_a_move(str(tmp_path))
    assert (tmp_path / "cgroup.procs").read_bytes() == b""


def test_where_it_is_refused_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "place_of", lambda _pid: "/gone")
    cgroup.expect_a_move(str(tmp_path))
