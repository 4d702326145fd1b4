"""From words on a command line to a policy: workspace, home, temporary directory and rules for one time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mcpguard.errors import McpguardError, PolicyError, UsageError
from mcpguard.model.access import Access, Verdict
from mcpguard.model.policy import Policy
from mcpguard.policy.decide import decide_connect, decide_file
from mcpguard.session.policy import COMMAND_LINE, load_policy, temporary_directory, workspace_directory

pytestmark = pytest.mark.usefixtures("mcpguard_home")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and project; the project is the current directory."""
    for name in ("home", "project", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def allowed(policy: Policy, path: Path | str, access: Access) -> bool:
    return decide_file(policy, str(path), access)[0] is Verdict.ALLOW


def test_the_workspace_is_the_current_directory(project: Path) -> None:
    policy = load_policy("base")
    assert policy.workspace == str(project)
    assert allowed(policy, project / "a", Access.WRITE)
    assert not allowed(policy, project.parent / "other", Access.READ)


@pytest.mark.parametrize("spelling", [".", "../project", "../project/", "./../project/."])
def test_a_workspace_may_be_spelled_relatively(project: Path, spelling: str) -> None:
    assert load_policy("base", spelling).workspace == str(project)


def test_a_workspace_below_a_symlink_is_used_under_its_real_name(project: Path) -> None:
    (project.parent / "link").symlink_to(project.parent)
    assert load_policy("base", "../link/project").workspace == str(project)


def test_a_workspace_that_is_a_symlink_is_refused(project: Path) -> None:
    (project.parent / "link").symlink_to(project)
    with pytest.raises(PolicyError) as caught:
        load_policy("base", "../link")
    assert caught.value.code == "policy.workspace-link"


@pytest.mark.parametrize(("path", "why"), [("missing", "it does not exist"), ("file", "it is not a directory")])
def test_a_workspace_that_is_no_directory_is_refused(project: Path, path: str, why: str) -> None:
    (project / "file").touch()
    with pytest.raises(UsageError) as caught:
        workspace_directory(path)
    assert (caught.value.code, caught.value.why) == ("usage.workspace", why)


def test_a_current_directory_that_was_removed_is_refused(project: Path) -> None:
    os.rmdir(project)
    with pytest.raises(UsageError) as caught:
        load_policy("base")
    assert caught.value.why == "it was removed"


def test_the_whole_file_system_is_no_workspace(project: Path) -> None:
    with pytest.raises(McpguardError) as caught:
        load_policy("base", "/")
    assert caught.value.code == "policy.workspace-root"


def test_rules_for_one_time_open_what_they_name_and_say_where_they_come_from(project: Path) -> None:
    data = project.parent / "data"
    policy = load_policy("base", read=["../data"], write=[str(data / "out")], net=["10.0.0.1:5432"])
    assert allowed(policy, data / "a", Access.READ)
    assert not allowed(policy, data / "a", Access.WRITE)
    assert allowed(policy, data / "out/a", Access.READ | Access.WRITE)
    assert decide_connect(policy, "10.0.0.1", 5432).verdict is Verdict.ALLOW
    rule = policy.rules[decide_file(policy, str(data / "a"), Access.READ)[1][0]]
    assert (rule.place, rule.text) == (COMMAND_LINE, "--read ../data")


def test_rules_for_one_time_do_not_undo_a_denial(project: Path) -> None:
    (project / ".git").mkdir()
    policy = load_policy("base", read=["~/.ssh"], write=["."], net=["169.254.169.254:80"])
    assert not allowed(policy, project.parent / "home/.ssh/id_rsa", Access.READ)
    assert not allowed(policy, project / ".git/hooks/pre-commit", Access.WRITE)
    assert decide_connect(policy, "169.254.169.254", 80).verdict is Verdict.DENY


@pytest.mark.parametrize("rules", [{"net": ["*.com"]}, {"read": ["~bob/x"]}])
def test_a_wrong_rule_for_one_time_is_refused_with_its_place(project: Path, rules: dict[str, list[str]]) -> None:
    with pytest.raises(PolicyError) as caught:
        load_policy("base", **rules)
    assert caught.value.what.startswith(COMMAND_LINE)


@pytest.mark.parametrize("tmp", ["/", "/usr", "/usr/lib"])
def test_a_temporary_directory_may_not_hold_the_home(tmp: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", tmp)
    with pytest.raises(PolicyError) as caught:
        temporary_directory("/usr/lib")
    assert caught.value.code == "policy.tmp"


def test_a_temporary_directory_that_does_not_exist_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/no/such/directory")
    assert temporary_directory("/home/ada") == str(Path("/tmp").resolve())
