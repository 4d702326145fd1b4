"""A file of the last commit, from a repository that whoever was guarded could write: nothing of it runs or is believed."""

from __future__ import annotations

import os
import subprocess
import zlib
from pathlib import Path

import pytest
from events_help import OPEN_POLICY, make_policy

from mcpguard.events.store import Store
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.session.git_head import committed, repository_of
from mcpguard.session.report import report

OLD = '{"scripts": {"test": "pytest"}}'


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@x", *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(params=["sha1", "sha256"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "a project"
    (folder / "sub").mkdir(parents=True)
    git(folder, "init", "-q", f"--object-format={request.param}")
    (folder / "package.json").write_text(OLD)
    (folder / "sub/package.json").write_text("sub")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    return folder


def test_the_content_of_the_last_commit_is_found(project: Path) -> None:
    (project / "package.json").write_text("other")
    assert repository_of(str(project / "sub/package.json")) == str(project)
    assert committed(str(project / "package.json"), str(project)) == OLD.encode()
    assert committed(str(project / "sub/package.json"), str(project)) == b"sub"
    assert committed(str(project / "sub/none.json"), str(project)) is None
    git(project, "gc", "-q")
    git(project, "pack-refs", "--all")
    assert committed(str(project / "package.json"), str(project)) == OLD.encode()
    git(project, "checkout", "-q", "--detach")
    assert committed(str(project / "package.json"), str(project)) == OLD.encode()


def test_what_the_repository_says_is_not_obeyed(project: Path) -> None:
    ran = project.parent / "ran"
    script = project.parent / "evil.sh"
    script.write_text(f"#!/bin/sh\ntouch '{ran}'\ncat\n")
    script.chmod(0o755)
    with (project / ".git/config").open("a") as config:
        config.write(f'[core]\n\tfsmonitor = {script}\n\tpager = {script}\n[filter "x"]\n\tsmudge = {script}\n')
        config.write(
            f'[diff "x"]\n\ttextconv = {script}\n[include]\n\tpath = {script}\n[remote "o"]\n\tpromisor = true\n'
        )
        config.write(f'\turl = "ext::{script}"\n[extensions]\n\tpartialClone = o\n')
    (project / ".git/info/attributes").write_text("* filter=x diff=x\n")
    assert committed(str(project / "package.json"), str(project)) == OLD.encode()
    assert not ran.exists()


def test_a_changed_object_is_none(project: Path) -> None:
    """Else an agent would have its own script pass as the committed one."""
    name = git(project, "rev-parse", "HEAD:package.json")
    place = project / ".git/objects" / name[:2] / name[2:]
    place.chmod(0o644)
    place.write_bytes(zlib.compress(b"blob 4\0evil"))
    assert committed(str(project / "package.json"), str(project)) is None


@pytest.mark.parametrize("head", ["ref: refs/../../x\n", "ref: HEAD\n", "x", "", "--help\n", "a" * 41])
def test_an_odd_head_is_none(head: str, project: Path) -> None:
    (project / ".git/HEAD").write_text(head)
    assert committed(str(project / "package.json"), str(project)) is None


def test_a_repository_behind_a_symlink_is_none(tmp_path: Path, project: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/.git").symlink_to(project / ".git")
    assert repository_of(str(tmp_path / "b/package.json")) is None


def told(project: Path, *wrote: tuple[str, str, str | None]) -> str:
    """What the report says of the project's package.json, after a session that wrote it and these."""
    acts = [("create", "package.json", None), *wrote]
    with Store.open(project.parent / "events.db") as store:
        id = store.start_session(make_policy(*OPEN_POLICY), command=("x",), tier="t", coverage=(), now_ns=1)
        store.add(
            id,
            [
                Event(
                    *(1, id, Kind.FILE, op, Verdict.ALLOW),
                    access="write",
                    path=os.path.normpath(project / path),
                    target=os.path.normpath(project / target) if target else None,
                )
                for op, path, target in acts
            ],
        )
        (found,) = [one for one in report(store, id).later if one.path == str(project / "package.json")]
    return found.now


def test_the_report_tells_which_scripts_of_a_package_are_new(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    assert told(project) == "no script is new since the last commit"
    (project / "package.json").write_text('{"scripts": {"test": "pytest", "postinstall": "sh evil"}}')
    assert told(project) == "since the last commit: postinstall: sh evil"
    # Whoever can make the last commit say what it likes is not compared with it.
    every = "test: pytest, postinstall: sh evil"
    for act in (
        ("rename", ".git/refs/heads/x.lock", ".git/refs/heads/x"),
        ("create", ".git/packed-refs", None),
        ("rename", ".git", "away"),
        ("rename", "../elsewhere", "../a project"),
    ):
        assert told(project, act) == every, act
    git(project, "rm", "-q", "--cached", "package.json")
    git(project, "commit", "-qm", "two")
    assert told(project) == f"not in the last commit; {every}"


def test_no_other_line_of_the_packed_branches_is_made_of_one(project: Path) -> None:
    (project / "package.json").write_text("later")
    git(project, "commit", "-qam", "two")
    old, branch = git(project, "rev-parse", "HEAD~1"), git(project, "symbolic-ref", "HEAD")
    git(project, "pack-refs", "--all")
    packed = project / ".git/packed-refs"
    for end in ("\x0b", "\x1c", "\u2028", "\r"):
        packed.write_bytes(f"{old} refs/heads/a{end}{old} {branch}\n".encode() + packed.read_bytes())
        assert committed(str(project / "package.json"), str(project)) == b"later"


def test_branches_that_lie_elsewhere_are_not_told(project: Path) -> None:
    (project / ".git/commondir").write_text("x\n")
    assert committed(str(project / "package.json"), str(project)) is None
