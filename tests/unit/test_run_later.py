"""What could run later: which names are known, what is in the files now, and what cannot be hidden or made to run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report import Recorded

from mcpguard.events import totals
from mcpguard.model.access import Verdict
from mcpguard.model.event import Kind
from mcpguard.session import run_later as module
from mcpguard.session.run_later import Later, point_of, run_later
from mcpguard.session.run_later_now import ELSEWHERE, GONE, LONG, UNREADABLE, now, read_plain, scripts_since
from mcpguard.session.summary import render, summarise


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("PATH", "/usr/bin:/opt/tool/bin/")
    made = Recorded(tmp_path / "state/events.db")
    yield made
    made.store.close()


def found(recorded: Recorded) -> dict[str, str]:
    return {one.path: one.kind for one in run_later(recorded.store, recorded.id)}


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/ws/.git/hooks/pre-commit", "git-hook"),
        ("/ws/.git/modules/a/b/hooks/post-checkout", "git-hook"),
        ("/ws/.husky/_/husky.sh", "git-hook"),
        ("/ws/sub/.pre-commit-config.yaml", "git-hook"),
        ("/ws/.git/config", "git-settings"),
        ("/home/u/.gitconfig", "git-settings"),
        ("/ws/.mcp.json", "mcp-server"),
        ("/ws/.vscode/mcp.json", "mcp-server"),
        ("/ws/sub/.cursor/mcp.json", "mcp-server"),
        ("/home/u/.claude.json", "mcp-server"),
        ("/home/u/.codeium/windsurf/mcp_config.json", "mcp-server"),
        ("/ws/.claude/settings.local.json", "agent-settings"),
        ("/ws/.claude/commands/x.md", "agent-settings"),
        ("/ws/CLAUDE.md", "agent-instructions"),
        ("/ws/sub/AGENTS.md", "agent-instructions"),
        ("/ws/.vscode/tasks.json", "editor"),
        ("/ws/.idea/runConfigurations/x.xml", "editor"),
        ("/ws/v/lib/python3.11/site-packages/x.pth", "python"),
        ("/ws/sitecustomize.py", "python"),
        ("/ws/.envrc", "shell"),
        ("/ws/v/bin/activate.fish", "shell"),
        ("/ws/.npmrc", "package-source"),
        ("/home/u/.config/systemd/user/x.service", "service"),
        ("/etc/cron.d/x", "service"),
        ("/ws/package.json", "package-scripts"),
        ("/ws/tests/conftest.py", "test"),
        ("/ws/Makefile", "build"),
        ("/ws/.github/workflows/ci.yml", "workflow"),
    ],
)
def test_a_name_that_something_obeys_is_known(path: str, kind: str) -> None:
    point = point_of(path)
    assert point is not None and point.kind == kind


@pytest.mark.parametrize(
    "path",
    [
        *("/ws/app.py", "/ws/config", "/ws/hooks/x", "/ws/xpackage.json", "/ws/package.json.bak", "/ws/git/hooks/x"),
        *("/ws/node_modules/a/package.json", "/ws/.venv/lib/python3/site-packages/a/setup.py", "/ws/etc/passwd"),
    ],
)
def test_another_name_is_not(path: str) -> None:
    assert point_of(path) is None


def test_what_was_only_let_through_by_audit_counts_and_what_was_refused_or_removed_does_not(recorded: Recorded) -> None:
    recorded.add(Kind.FILE, "create", Verdict.AUDIT, access="write", path="/ws/.npmrc")
    recorded.add(Kind.FILE, "create", Verdict.DENY, access="write", path="/ws/.envrc")
    recorded.wrote("unlink", "/ws/.exrc")
    recorded.add(Kind.FILE, "open", access="read", path="/ws/.mcp.json")
    assert found(recorded) == {"/ws/.npmrc": "package-source"}


def test_a_program_on_the_search_path_counts(recorded: Recorded) -> None:
    recorded.wrote("create", "/opt/tool/bin/ls")
    recorded.wrote("create", "/opt/tool/bin/sub/ls")
    assert found(recorded) == {"/opt/tool/bin/ls": "search-path"}


def test_what_base_protects_counts_where_the_profile_does_not_extend_it(recorded: Recorded, tmp_path: Path) -> None:
    recorded.wrote("create", f"{tmp_path}/.bashrc")
    recorded.wrote("create", f"{tmp_path}/notes")
    (one,) = run_later(recorded.store, recorded.id)
    assert (one.path, one.kind, one.why) == (f"{tmp_path}/.bashrc", "start-up", "shells run it")


def test_each_tells_how_often_and_by_whom(recorded: Recorded) -> None:
    recorded.wrote("create", "/ws/Makefile")
    recorded.add(Kind.FILE, "open", access="read+write", path="/ws/Makefile", comm="sed", count=4)
    (one,) = run_later(recorded.store, recorded.id)
    assert (one.ways, one.programs, one.times) == (("create", "open"), ("sed", "tool"), 5)


def test_the_new_name_counts_whichever_way_it_came_to_be(recorded: Recorded) -> None:
    recorded.wrote("rename", "/ws/a", "/ws/.npmrc")
    recorded.wrote("link", "/ws/b", "/ws/.exrc")
    recorded.wrote("exchange", "/ws/conftest.py", "/ws/.mcp.json")
    recorded.wrote("symlink", "/ws/.vscode")
    recorded.wrote("rename", "/ws/c", "/ws/.idea")
    assert set(found(recorded)) == {
        f"/ws/{n}" for n in (".npmrc", ".exrc", "conftest.py", ".mcp.json", ".vscode", ".idea")
    }


def test_a_folder_that_is_renamed_afterwards_takes_its_files_along(recorded: Recorded) -> None:
    recorded.wrote("create", "/ws/x/settings.json")
    recorded.wrote("rename", "/ws/x", "/ws/y")
    recorded.wrote("rename", "/ws/y", "/ws/sub/.claude")
    assert found(recorded) == {"/ws/sub/.claude/settings.json": "agent-settings"}


def test_most_files_of_a_project_are_told_by_one_look(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(300):
        recorded.wrote("create", f"/ws/node_modules/p{number}/index.js")
    recorded.wrote("create", "/ws/node_modules/.git")
    recorded.wrote("create", "/ws/bin/tool")
    recorded.wrote("symlink", "/ws/.vscode")
    recorded.wrote("create", "/ws/p/.envrc")
    monkeypatch.setenv("PATH", "/usr/bin:/ws/bin")
    asked: list[str] = []
    monkeypatch.setattr(module, "point_of", lambda path, *more: asked.append(path) or point_of(path, *more))
    assert set(found(recorded)) == {"/ws/node_modules/.git", "/ws/bin/tool", "/ws/.vscode", "/ws/p/.envrc"}
    assert len(asked) <= 8


def test_both_ends_of_an_exchange_and_all_ways_of_a_name_are_told(recorded: Recorded) -> None:
    recorded.wrote("create", "/ws/.envrc")
    recorded.add(Kind.FILE, "open", access="write", path="/ws/.envrc", comm="odd,name")
    recorded.wrote("exchange", "/ws/x", "/ws/.envrc")
    recorded.wrote("unlink", "/ws/.npmrc")
    (one,) = run_later(recorded.store, recorded.id)
    assert (one.path, one.ways, one.times) == ("/ws/.envrc", ("create", "exchange", "open"), 3)
    assert one.programs == ("odd,name", "tool")


def test_whoever_renames_without_end_is_told_of_and_not_followed(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_WORK", 3)
    for number in range(4):
        recorded.wrote("create", f"/ws/x/{number}")
    recorded.wrote("rename", "/ws/x", "/ws/.vscode")
    assert found(recorded)["/ws"] == "not-followed"


def test_a_cache_of_programs_is_one_line_however_much_was_installed_in_it(recorded: Recorded, tmp_path: Path) -> None:
    cache = f"{tmp_path}/.cache/uv"
    recorded.wrote("mkdir", f"{cache}/.tmpx")
    for number in range(20):
        recorded.wrote("create", f"{cache}/.tmpx/site-packages/{number}.pth")
    recorded.wrote("rename", f"{cache}/.tmpx", f"{cache}/archive-v0/x")
    recorded.wrote("symlink", f"{cache}/environments-v2/python/tool")
    recorded.wrote("create", f"{cache}/wheels-v5/x.msgpack")
    (one,) = run_later(recorded.store, recorded.id)
    assert (one.path, one.kind, one.unasked, one.changed) == (cache, "cached-program", False, ())
    assert one.programs == ("tool",) and one.times == 22
    assert now(one) == "what was there before was not changed"


def test_the_cache_of_virtualenv_is_told_of(recorded: Recorded, tmp_path: Path) -> None:
    cache = f"{tmp_path}/.cache/virtualenv"
    recorded.wrote("create", f"{cache}/wheel/house/pip-1-py3-none-any.whl")
    recorded.wrote("create", f"{cache}/py_info/5/0.lock")
    (one,) = run_later(recorded.store, recorded.id)
    assert (one.path, one.kind, one.unasked, one.times) == (cache, "cached-program", False, 1)
    recorded.wrote("open", f"{cache}/wheel/3.11/image/1/CopyPipInstall/pip-1-py3-none-any/pip/__init__.py")
    recorded.wrote("rename", f"{cache}/x", f"{cache}/py_info/5/0.json")
    (one,) = run_later(recorded.store, recorded.id)
    assert one.unasked and len(one.changed) == 2


def test_an_empty_git_file_leads_nowhere_and_another_one_does(recorded: Recorded, tmp_path: Path) -> None:
    cache = tmp_path / ".cache/uv"
    cache.mkdir(parents=True)
    marker = cache / ".git"
    recorded.wrote("create", str(marker))
    marker.touch()
    assert found(recorded) == {}
    marker.write_text("gitdir: /tmp/x")
    assert found(recorded) == {str(marker): "git-settings"}
    marker.unlink()
    marker.symlink_to("/dev/null")
    assert found(recorded) == {str(marker): "git-settings"}


@pytest.mark.parametrize(
    "acts",
    [
        [("open", "repox/env/bin/hook", None)],
        [("create", "repox/env/bin/hook", None)],
        [("mkdir", "repox/env/new", None), ("create", "repox/env/new/hook", None)],
        [("rmdir", "repox", None), ("mkdir", "repox", None), ("create", "repox/hook", None)],
        [("rename", "repox", "y"), ("mkdir", "repox", None), ("create", "repox/hook", None)],
        [("rename", "y", "repox"), ("create", "repox/hook", None)],
        [("mkdir", "y", None), ("exchange", "y", "repox"), ("create", "repox/hook", None)],
        [("rename", "", "../y"), ("mkdir", "", None), ("mkdir", "repox", None), ("create", "repox/hook", None)],
    ],
)
def test_a_program_of_a_cache_that_may_have_been_there_before_is_named(
    recorded: Recorded, tmp_path: Path, acts: list[tuple[str, str, str | None]]
) -> None:
    cache = tmp_path / ".cache/pre-commit"
    for op, path, target in acts:
        recorded.wrote(op, os.path.normpath(cache / path), os.path.normpath(cache / target) if target else None)
    (one,) = run_later(recorded.store, recorded.id)
    assert (one.path, one.kind, one.unasked) == (str(cache), "cached-program", True)
    assert acts[-1][1] in one.changed and acts[-1][1] in now(one)
    assert "~/.cache/pre-commit" in "\n".join(render(summarise(recorded.store, recorded.id), str(tmp_path)))


@pytest.mark.parametrize(
    "after",
    [("rmdir", ".cache/pre-commit/t/y", None), ("rename", ".cache/pre-commit/t", "z"), ("mkdir", "", None), None],
)
def test_a_move_that_the_kernel_may_have_refused_makes_nothing_new(
    recorded: Recorded, tmp_path: Path, after: tuple[str, str, str | None] | None
) -> None:
    cache = tmp_path / ".cache/pre-commit"
    for op, path, target in (("mkdir", "t", None), ("mkdir", "t/y", None), ("rename", "t/y", "repox")):
        recorded.wrote(op, str(cache / path), str(cache / target) if target else None)
    if after and after[1]:
        recorded.wrote(after[0], str(tmp_path / after[1]), str(tmp_path / after[2]) if after[2] else None)
    elif after:
        (cache / "t/y").mkdir(parents=True)
    recorded.wrote("create", str(cache / "repox/hook"))
    (one,) = run_later(recorded.store, recorded.id)
    assert ("repox/hook" in one.changed) is (after is not None)


def test_what_is_written_by_running_an_installed_program_is_no_change_of_it(recorded: Recorded, tmp_path: Path) -> None:
    folder = f"{tmp_path}/.npm/_npx/x/__pycache__"
    recorded.wrote("mkdir", folder)
    recorded.wrote("rename", f"{folder}/a.pyc.1", f"{folder}/a.pyc")
    recorded.wrote("open", f"{tmp_path}/.npm/_npx/x/.lock")
    (one,) = run_later(recorded.store, recorded.id)
    assert (one.unasked, one.changed) == (False, ())
    assert "_npx" not in "\n".join(render(summarise(recorded.store, recorded.id), str(tmp_path)))


def test_what_was_not_stopped_comes_first_with_the_reason_of_its_rule(recorded: Recorded) -> None:
    rule = recorded.policy.rules[3]
    detail = f"{totals.NOT_STOPPED}: it did not exist at launch"
    recorded.wrote("create", "/ws/.mcp.json")
    recorded.add(Kind.FILE, "create", Verdict.AUDIT, access="write", path="/ws/ro/new", rule=rule, detail=detail)
    first, second = run_later(recorded.store, recorded.id)
    assert (first.path, first.stopped, first.why) == ("/ws/ro/new", False, "because 3")
    assert (second.path, second.stopped) == ("/ws/.mcp.json", True)


def test_the_temporary_folder_is_nobodys_project(recorded: Recorded, tmp_path: Path) -> None:
    recorded.wrote("create", f"{tmp_path}/tmp/build-1/setup.py")
    assert found(recorded) == {}


def test_a_repository_of_the_agents_own_stands_for_what_is_in_it(recorded: Recorded) -> None:
    recorded.wrote("mkdir", "/ws/new")
    for name in (".git/config", ".git/hooks/pre-commit", "package.json", ".vscode/tasks.json"):
        recorded.wrote("create", f"/ws/new/{name}")
    assert found(recorded) == {"/ws/new": "repository"}


def test_but_it_hides_nothing_in_a_folder_that_was_there_before(recorded: Recorded) -> None:
    for name in (".git/config", "package.json", "pyvenv.cfg"):
        recorded.wrote("create", f"/ws/{name}")
    assert found(recorded) == {"/ws": "repository", "/ws/package.json": "package-scripts"}


def test_a_bare_repository_and_a_pointer_to_one_count(recorded: Recorded) -> None:
    """Git obeys the settings of both when somebody runs it in the folder."""
    for name in ("sub/HEAD", "sub/config", "sub/objects/x", "plain/HEAD", "other/config"):
        recorded.wrote("create", f"/ws/{name}")
    recorded.wrote("create", "/ws/lib/.git")
    recorded.wrote("mkdir", "/ws/new/.git")
    assert found(recorded) == {"/ws/sub": "repository", "/ws/lib/.git": "git-settings"}


def look(kind: str, path: Path) -> str:
    return now(Later(str(path), kind, "", unasked=True))


def put(path: Path, content: str | dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


GIT = """\
[core]
\tbare = false
\tfsmonitor = ./evil.sh
[alias]
\tst = status
\tco = "!sh evil"
[filter "a]b"] clean = evil
[remote "origin"]
\turl = https://example.com/x
"""


def test_settings_of_git_that_run_programs_are_named(tmp_path: Path) -> None:
    told = look("git-settings", put(tmp_path / "config", GIT))
    assert "core.fsmonitor = ./evil.sh" in told and "alias.co = !sh evil" in told and "filter.a]b.clean = evil" in told
    assert "alias.st" not in told and "origin" not in told


def test_a_bare_repository_and_a_pointer_tell_what_is_in_them(tmp_path: Path) -> None:
    put(tmp_path / "b/HEAD", "ref: refs/heads/main\n")
    put(tmp_path / "b/config", GIT)
    assert "core.fsmonitor = ./evil.sh" in look("repository", tmp_path / "b")
    assert look("git-settings", put(tmp_path / "c/.git", "gitdir: ../evil\n")) == "gitdir: ../evil"


def test_a_repository_tells_its_hooks_and_settings(tmp_path: Path) -> None:
    put(tmp_path / "r/.git/config", "[core]\n\tbare = false\n")
    put(tmp_path / "r/.git/hooks/pre-commit.sample", "")
    assert look("repository", tmp_path / "r") == "no hook, and no setting that runs a program, was found in it"
    put(tmp_path / "r/.git/hooks/pre-push", "")
    put(tmp_path / "r/.git/config", GIT)
    told = look("repository", tmp_path / "r")
    assert "hooks pre-push" in told and "fsmonitor" in told


@pytest.mark.parametrize("end", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\\\n"])
def test_no_comment_hides_a_setting_that_git_obeys(end: str, tmp_path: Path) -> None:
    """The fsmonitor below is what a `git status` would run."""
    subprocess.run(["git", "init", "-q", str(tmp_path / "r")], check=True)
    config = tmp_path / "r/.git/config"
    hidden = "" if end == "\\\n" else "[foo]"
    put(config, f"[core]\n\t# {end}{hidden}\n\tfsmonitor = echo >ran\n".replace("\\\n\n", "\\\n"))
    command = ["git", "config", "--file", str(config), "--get", "core.fsmonitor"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "echo >ran\n"
    assert "core.fsmonitor = echo >ran" in look("repository", tmp_path / "r")


NOTHING = "no hook, and no setting"


def test_settings_that_come_from_further_files_are_told(tmp_path: Path) -> None:
    """Each of these gives git a setting that `.git/config` does not have: the real git says so."""
    repository = tmp_path / "r"
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    shutil.rmtree(repository / ".git/hooks")
    plain = (repository / ".git/config").read_text()
    assert NOTHING in look("repository", repository)

    def asked() -> str:
        command = ["git", "-C", str(repository), "config", "--get", "core.fsmonitor"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    for include in ("[include]\n\tpath = x\n", f'[includeIf "gitdir:{repository}/"]\n\tpath = x\n'):
        put(repository / ".git/x", "[core]\n\tfsmonitor = ./evil\n")
        put(repository / ".git/config", plain + include)
        told = look("repository", repository)
        assert asked() == "./evil\n" and "path = x; more settings come from what it includes" in told
        assert "more settings" in look("git-settings", repository / ".git/config")
    put(repository / ".git/config", "[extensions]\n\tworktreeConfig\n" + plain.replace("= 0", "= 1"))
    put(repository / ".git/config.worktree", "[core]\n\tfsmonitor = ./evil\n")
    told = look("repository", repository)
    assert asked() == "./evil\n" and "config.worktree; look there" in told and "core.fsmonitor = ./evil" in told
    assert "config.worktree" in look("git-settings", repository / ".git/config")
    (repository / ".git/config.worktree").unlink()
    put(repository / ".git/config", plain)
    shutil.copytree(repository / ".git", repository / ".git/y")
    put(repository / ".git/y/config", f"{plain}\tfsmonitor = ./evil\n")
    put(repository / ".git/commondir", "y\n")
    told = look("repository", repository)
    assert asked() == "./evil\n" and "look there: commondir y" in told and NOTHING not in told
    (repository / ".git/commondir").unlink()
    (repository / ".git/commondir").symlink_to("y/HEAD")
    assert "commondir leads git" in look("repository", repository)


def test_what_is_longer_than_what_is_looked_at_is_said(tmp_path: Path) -> None:
    put(tmp_path / "r/.git/config", "#" * (1 << 20) + "\n[core]\n\tfsmonitor = ./evil\n")
    assert look("repository", tmp_path / "r") == LONG
    assert look("git-settings", tmp_path / "r/.git/config") == LONG
    assert look("python", put(tmp_path / "x.pth", "#" * (1 << 20) + "\nimport x\n")).endswith(LONG)


def test_a_byte_order_mark_hides_nothing(tmp_path: Path) -> None:
    assert (
        look("package-scripts", put(tmp_path / "package.json", '\ufeff{"scripts": {"test": "evil"}}')) == "test: evil"
    )
    assert scripts_since(str(tmp_path / "package.json"), b"{}") == "since the last commit: test: evil"
    assert look("python", put(tmp_path / "x.pth", "\ufeffimport evil\n")) == "runs import evil"
    assert scripts_since(str(put(tmp_path / "p.json", "{ not json")), b"{}") == UNREADABLE


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"mcpServers": {"a": {"command": "npx", "args": ["-y", "evil"]}}}, "a: npx -y evil"),
        ({"servers": {"a": {"url": "https://x.example/mcp"}}}, "a: https://x.example/mcp"),
        ({"mcp": {"a": {"type": "local", "command": ["sh", "x"]}}}, "a: sh x"),
        ({"mcp": {"servers": {"a": {"command": "x"}}}}, "a: x"),
        ({"mcpServers": {"a": 3}}, "a: ?"),
        ({"mcpServers": [1]}, ""),
        ("{ not json", ""),
        ("[" * 100_000, ""),
    ],
)
def test_the_servers_that_a_file_names_are_told(content: str | dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert look("mcp-server", put(tmp_path / ".mcp.json", content)) == expected


def test_hooks_tasks_scripts_and_lines_that_run_are_told(tmp_path: Path) -> None:
    settings = put(tmp_path / "settings.json", {"hooks": {"PreToolUse": []}})
    assert look("agent-settings", settings) == "hooks for PreToolUse"
    task = {"label": "x", "command": "sh evil", "runOptions": {"runOn": "folderOpen"}}
    tasks = put(tmp_path / "tasks.json", {"tasks": [task, {"label": "y"}, 3]})
    assert look("editor", tasks) == "runs when the folder is opened: sh evil"
    assert (
        look("python", put(tmp_path / "x.pth", "/a\nimport os; os.system('x')\n")) == "runs import os; os.system('x')"
    )
    assert look("python", put(tmp_path / "y.pth", "/a\n")) == "only adds folders"
    assert look("package-scripts", put(tmp_path / "package.json", {"scripts": {"test": "evil"}})) == "test: evil"
    assert look("git-hook", put(tmp_path / "pre-commit", "x")) == "not executable"


def test_what_is_gone_or_leads_elsewhere_is_not_looked_at(tmp_path: Path) -> None:
    secret = put(tmp_path / "secret/settings.json", {"mcpServers": {"secret": {"command": "x"}}})
    assert look("mcp-server", tmp_path / "none") == GONE
    (tmp_path / "link.json").symlink_to(secret)
    assert look("mcp-server", tmp_path / "link.json") == ELSEWHERE
    (tmp_path / "folder").symlink_to(secret.parent)
    assert look("mcp-server", tmp_path / "folder/settings.json") == ELSEWHERE
    put(tmp_path / "s/.git/config", GIT)
    (tmp_path / "s/.git/hooks").symlink_to(secret.parent)
    told = look("repository", tmp_path / "s")
    assert told.endswith("its hooks lead elsewhere; not looked at") and "settings.json" not in told and "evil" in told
    (tmp_path / "r").mkdir()
    (tmp_path / "r/.git").symlink_to(secret.parent)
    assert look("repository", tmp_path / "r") == ELSEWHERE


def test_what_is_no_plain_file_is_never_opened_for_long(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read_plain(str(tmp_path / "pipe")) is None
    assert read_plain(str(tmp_path)) is None
    assert read_plain("/ws/a\0b") is None
    assert read_plain("/dev/zero") is None


def test_what_a_file_says_is_one_short_line_of_plain_text(tmp_path: Path) -> None:
    servers = {f"\x1b[2J\n{n}": {"command": "x" * 10_000} for n in range(100)}
    told = look("mcp-server", put(tmp_path / ".mcp.json", {"mcpServers": servers}))
    assert told.isprintable() and len(told) < 1000 and told.endswith("and 94 others")
