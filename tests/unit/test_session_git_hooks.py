"""Hooks that the workspace's repository takes from another folder are as readonly as those in `.git/hooks`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mcpguard.model.access import Access, Verdict
from mcpguard.policy.decide import decide_file
from mcpguard.session.git_hooks import hooks_folder
from mcpguard.session.policy import load_policy

pytestmark = pytest.mark.usefixtures("mcpguard_home")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository in a home that holds no settings of git."""
    for name in ("home", "tmp", "project"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    subprocess.run(["git", "init", "-q", str(tmp_path / "project")], check=True)
    return tmp_path / "project"


def git_config(project: Path, *words: str) -> None:
    subprocess.run(["git", "config", *words], cwd=project, check=True)


def writable(project: Path, name: str) -> bool:
    return decide_file(load_policy("default", str(project)), str(project / name), Access.WRITE)[0] is Verdict.ALLOW


@pytest.mark.parametrize("named", [".githooks", "./tools/hooks/", "tools/../tools/hooks"])
def test_the_folder_that_the_settings_name_is_readonly(project: Path, named: str) -> None:
    assert writable(project, ".githooks/pre-commit"), "it is a folder like any other as long as nobody names it"
    git_config(project, "core.hooksPath", named)
    place = ".githooks/pre-commit" if "githooks" in named else "tools/hooks/pre-commit"
    assert not writable(project, place), "also where a policy was kept before"
    assert writable(project, "tools/other")


def test_a_relative_path_in_the_users_own_settings_counts_unless_the_repository_has_another(
    project: Path, tmp_path: Path
) -> None:
    git_config(project, "--global", "core.hooksPath", ".githooks")
    assert not writable(project, ".githooks/pre-commit")
    git_config(project, "core.hooksPath", "mine")
    assert writable(project, ".githooks/pre-commit")
    assert not writable(project, "mine/pre-commit")


@pytest.mark.parametrize("named", [".", "", "/etc/hooks", "~/hooks", "../hooks"])
def test_what_is_not_a_folder_inside_the_workspace_closes_nothing(project: Path, named: str) -> None:
    git_config(project, "core.hooksPath", named)
    assert hooks_folder(str(project), str(project.parent / "home")) == ""
    assert writable(project, "app.py")


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ('[CORE]\n\tHooksPath = "a b"\n', "a b"),
        ("[core] hookspath=x\n", "x"),
        ("[core]\nhooksPath = one\n[user]\nhooksPath = two\n", "one"),
        ("[core]\nhooksPath = one\n[core]\nhooksPath = two\n", "two"),
        ('[core "x"]\nhooksPath = one\n', ""),
        ("# [core]\nhooksPath = one\n", ""),
        ("[core]\nhooksPath = one # two\n", "one"),
        ("[core]\nhooksPath = one;two\n", "one"),
        ('[core]\nhooksPath = "one # two"\n', "one # two"),
        ('[core]\nhooksPath = on"e tw"o\n', "one two"),
        ('[core]\nhooksPath = "a \\"b\\" \\\\"\n', 'a "b" \\'),
        ("[core]\nhooksPath = one\\\ntwo\n", "onetwo"),
        ("[core]\nhooksPath = one\\\\\n[user]\nname = x\n", "one\\"),
        ("[core] hooksPath = one\n", "one"),
        # A comment is not continued; only a line feed ends it.
        ("[core]\n# a \\\nhooksPath = one\n", "one"),
        ("[core]\n# a \r[user]\nhooksPath = one\n", "one"),
        ("[core]\n# a \u2028[user]\x0b\x0c\x1c\x85\nhooksPath = one\n", "one"),
        ("[core]\r\nhooksPath = one\r\n[user]\r\n", "one"),
        ("\ufeff[core]hooksPath = one", "one"),
        ("[core][user][core]hooksPath = one ; x\n", "one"),
        ('[core "hookspath\0"]\nx = one\0two\n', "one"),
        ('[core "hooksPath\0"]\nx = one\n', ""),
        ("[core]\nhooksPath = one\\", "one"),
    ],
)
def test_the_settings_are_read_as_git_reads_them(project: Path, settings: str, found: str) -> None:
    (project / ".git/config").write_bytes(settings.encode())
    told = subprocess.run(["git", "config", "core.hooksPath"], cwd=project, capture_output=True, text=True, check=False)
    assert told.stdout.strip() == found
    expected = str(project / found) if found else ""
    assert hooks_folder(str(project), str(project.parent / "home")) == expected


def test_the_settings_of_the_working_tree_count_where_git_reads_them(project: Path) -> None:
    (project / ".git/config.worktree").write_text("[core]\nhooksPath = mine\n")
    assert hooks_folder(str(project), str(project.parent / "home")) == ""
    git_config(project, "core.repositoryFormatVersion", "1")
    git_config(project, "extensions.worktreeConfig", "true")
    told = subprocess.run(["git", "config", "core.hooksPath"], cwd=project, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "mine"
    assert hooks_folder(str(project), str(project.parent / "home")) == str(project / "mine")


def test_a_folder_without_a_repository_has_none(tmp_path: Path) -> None:
    assert hooks_folder(str(tmp_path), str(tmp_path)) == ""
