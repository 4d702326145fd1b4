"""A linked git worktree can be committed to; a `.git` file that somebody made up opens nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mcpguard.model.access import Access, Verdict
from mcpguard.policy.decide import decide_file
from mcpguard.session.policy import load_policy
from mcpguard.session.worktree import repository

pytestmark = pytest.mark.usefixtures("mcpguard_home")


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", *identity, *words], cwd=folder, env=environment, check=True, capture_output=True)


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, and a home and temporary directory that hold nothing of it."""
    for name in ("home", "tmp", "main"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    folder = tmp_path / "main"
    git(folder, "init", "-q")
    git(folder, "commit", "-q", "--allow-empty", "-m", "x")
    return folder


@pytest.fixture
def linked(main: Path) -> Path:
    folder = main.parent / "linked"
    git(main, "worktree", "add", "-q", str(folder))
    return folder


def writable(workspace: Path, path: Path, profile: str = "dev-tools") -> bool:
    return decide_file(load_policy(profile, str(workspace)), str(path), Access.WRITE)[0] is Verdict.ALLOW


@pytest.mark.parametrize(
    "name", ["objects/ab/cd", "refs/heads/linked.lock", "worktrees/linked/index.lock", "logs/HEAD"]
)
def test_a_linked_worktree_can_be_committed_to(main: Path, linked: Path, name: str) -> None:
    assert writable(linked, main / ".git" / name)


@pytest.mark.parametrize(
    "name", ["hooks/pre-commit", "config", "config.worktree", "worktrees/linked/config.worktree", "modules/a/hooks/x"]
)
def test_what_git_runs_stays_readonly_in_the_repository_of_a_worktree(main: Path, linked: Path, name: str) -> None:
    assert not writable(linked, main / ".git" / name)


def test_the_pointer_of_a_worktree_cannot_be_turned_elsewhere(main: Path, linked: Path) -> None:
    assert not writable(linked, linked / ".git")
    assert not writable(linked, main / ".git/worktrees/linked/gitdir")


def test_the_files_of_the_main_worktree_stay_closed(main: Path, linked: Path) -> None:
    assert not writable(linked, main / "a.py")


def test_an_ordinary_repository_needs_nothing(main: Path) -> None:
    assert repository(main) is None


def test_a_made_up_pointer_to_a_foreign_repository_opens_nothing(main: Path, linked: Path) -> None:
    thief = main.parent / "thief"
    thief.mkdir()
    (thief / ".git").write_text(f"gitdir: {main}/.git/worktrees/linked\n")
    assert repository(thief) is None
    assert not writable(thief, main / ".git/refs/heads/x")


@pytest.mark.parametrize(
    ("end", "holds"), [("\r\n", True), ("\n\r\n", True), ("\rx", False), ("\x0bx", False), ("\u2028x", False)]
)
def test_a_pointer_ends_where_git_ends_it(linked: Path, end: str, holds: bool) -> None:
    pointer = linked / ".git"
    pointer.write_bytes(pointer.read_bytes().rstrip() + end.encode())
    told = subprocess.run(["git", "rev-parse", "--git-dir"], cwd=linked, capture_output=True, check=False)
    assert (told.returncode == 0) is holds is (repository(linked) is not None)


def test_a_pointer_through_a_symlink_opens_nothing(main: Path, linked: Path) -> None:
    thief = main.parent / "thief"
    thief.mkdir()
    (thief / ".git").symlink_to(linked / ".git")
    assert repository(thief) is None


@pytest.mark.parametrize("text", ["", "gitdir: ", "gitdir: /\n", "gitdir: a\ngitdir: b\n", "\0", "x" * 10_000])
def test_a_broken_pointer_is_no_worktree(tmp_path: Path, text: str) -> None:
    (tmp_path / ".git").write_text(text)
    assert repository(tmp_path) is None


def test_a_pointer_by_way_of_links_without_end_is_no_worktree(tmp_path: Path) -> None:
    (tmp_path / "l0").mkdir()
    for number in range(1, 1_200):
        (tmp_path / f"l{number}").symlink_to(f"l{number - 1}")
    (tmp_path / ".git").write_text("gitdir: l1199\n")
    assert repository(tmp_path) is None


def test_a_common_directory_outside_the_repository_opens_nothing(main: Path, linked: Path) -> None:
    (main / ".git/worktrees/linked/commondir").write_text(f"{main.parent}\n")
    assert repository(linked) is None


def test_a_profile_that_may_not_write_the_workspace_gets_no_repository(
    main: Path, linked: Path, tmp_path: Path
) -> None:
    reader = tmp_path / "reader.yaml"
    reader.write_text('files: {read: ["{workspace}"]}\n')
    assert not writable(linked, main / ".git/objects/ab", profile=str(reader))
