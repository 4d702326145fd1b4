"""`profile`, `why` and the entry point, called the way a shell calls them."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Shell:
    """Runs the command with a home, a project and settings of its own."""

    root: Path
    home: Path
    project: Path
    profiles: Path
    variables: dict[str, str]

    def __call__(self, *words: str, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mcpguard", *words],
            cwd=cwd or self.project,
            env={**self.variables, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def own(self, name: str, text: str) -> Path:
        self.profiles.mkdir(parents=True, exist_ok=True)
        path = self.profiles / f"{name}.yaml"
        path.write_text(text)
        return path

    def editor(self, script: str) -> str:
        """An editor that is a shell script; the file is $1."""
        path = self.root / "editor"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    home, project, state = tmp_path / "home", tmp_path / "project", tmp_path / "mcpguard"
    temporary = tmp_path / "tmp"
    for folder in (home, project, temporary):
        folder.mkdir()
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "MCPGUARD_HOME": str(state),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
    }
    return Shell(tmp_path, home, project, state / "config" / "profiles", variables)


def test_why_names_the_rule_that_denies_with_its_file_line_and_reason(shell: Shell) -> None:
    done = shell("why", "read", "~/.ssh/id_ed25519")
    assert done.returncode == 1
    assert done.stdout.startswith(f"DENY   read {shell.home}/.ssh/id_ed25519\n")
    assert "builtin:base.yaml:" in done.stdout
    assert "because  SSH private keys" in done.stdout
    assert done.stderr == ""


def test_why_exits_0_for_what_is_allowed(shell: Shell) -> None:
    done = shell("why", "write", "src/a.py")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"ALLOW  write {shell.project}/src/a.py")


def test_why_says_when_no_rule_allows_it_and_what_to_do(shell: Shell) -> None:
    done = shell("why", "-p", "claude-code", "read", "/srv/x")
    assert done.returncode == 1
    assert "none: no rule of claude-code allows it" in done.stdout
    assert "mcpguard profile edit claude-code" in done.stdout


def test_why_judges_the_place_that_a_symlink_leads_to(shell: Shell) -> None:
    (shell.home / ".ssh").mkdir()
    (shell.project / "innocent").symlink_to(shell.home / ".ssh")
    answer = json.loads(shell("why", "--format", "json", "read", "innocent/id_rsa").stdout)
    assert answer["verdict"] == "deny"
    assert answer["object"] == str(shell.home / ".ssh/id_rsa")
    assert answer["target"] == "innocent/id_rsa"


def test_why_says_that_a_symlink_led_elsewhere_and_only_then(shell: Shell) -> None:
    (shell.project / "link").symlink_to("/etc/passwd")
    assert "  from     link\n" in shell("why", "read", "link").stdout
    assert "  from " not in shell("why", "read", "/etc/passwd").stdout


def test_why_needs_no_current_directory_for_an_absolute_path(shell: Shell) -> None:
    gone = shell.root / "gone"
    gone.mkdir()
    code = (
        "import os, subprocess, sys\nos.rmdir(os.getcwd())\n"
        "sys.exit(subprocess.call([sys.executable, '-P', '-m', 'mcpguard', 'why', '-w', sys.argv[1], 'read', sys.argv[2]]))"
    )
    for target, expected in (("/etc/passwd", 0), ("relative", 2)):
        gone.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, str(shell.project), target],
            cwd=gone,
            env=shell.variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == expected, done.stderr
        assert "Traceback" not in done.stderr


def test_why_as_json_has_the_rule_in_the_form_of_events(shell: Shell) -> None:
    path = shell.own("mine", "name: mine\nfiles:\n  deny:\n    - path: /data\n      because: theirs\n")
    answer = json.loads(shell("why", "-p", "mine", "read", "/data/a", "--format", "json").stdout)
    assert answer["rule"] == {"profile": "mine", "file": str(path), "line": 4, "text": "deny /data"}
    assert answer["because"] == "theirs"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("connect", "169.254.169.254:80"), 1),
        (("connect", "[::ffff:169.254.169.254]:80"), 1),
        (("-p", "claude-code", "connect", "api.anthropic.com"), 0),
        (("-p", "claude-code", "connect", "api.anthropic.com:22"), 1),
        (("connect", "localhost:5432"), 1),
        (("unix", "/run/docker.sock"), 1),
        (("unix", "@/tmp/.X11-unix/X0"), 1),
        (("unix", "server.sock"), 0),
        (("execute", "/usr/bin/env"), 0),
        (("connect", "10.0.0.0/8"), 2),
        (("connect", "*.example.com"), 2),
        (("connect", "host:80-90"), 2),
        (("-p", "nobody", "read", "x"), 2),
        (("-w", "/nowhere", "read", "x"), 2),
        (("-w", "/", "read", "x"), 2),
        (("fly", "x"), 2),
    ],
)
def test_why_exits_0_allowed_1_denied_2_cannot_say(shell: Shell, words: tuple[str, ...], code: int) -> None:
    assert shell("why", *words).returncode == code


def test_why_knows_names_below_a_wildcard_and_that_its_own_name_is_not_one(shell: Shell) -> None:
    shell.own("wild", "network: {allow: ['*.example.com:443']}\n")
    done = shell("why", "-p", "wild", "connect", "a.b.example.com")
    assert done.returncode == 0
    assert "network allow *.example.com:443" in done.stdout
    assert shell("why", "-p", "wild", "connect", "example.com").returncode == 1


def test_why_tells_of_a_name_that_leads_to_this_host(shell: Shell) -> None:
    """`localhost` in another spelling: programs find it in the hosts file, and no rule by name opens it."""
    shell.own("home", "network: {allow: ['localhost.localdomain:443', 'localhost.:80']}\n")
    done = shell("why", "-p", "home", "connect", "127.0.0.53:53/udp")
    assert done.returncode == 1
    assert "a resolver of the session's own" in done.stdout


def test_why_in_a_workspace_that_is_a_symlink_says_where_it_leads(shell: Shell) -> None:
    link = shell.root / "link"
    link.symlink_to(shell.project)
    done = shell("why", "-w", str(link), "read", "x")
    assert done.returncode == 2
    assert f"-w {shell.project}" in done.stderr


def test_own_files_of_mcpguard_are_never_written(shell: Shell) -> None:
    shell.own("wide", f"files: {{write: [{shell.root}, {sys.prefix}]}}\n")
    for target in (shell.profiles / "wide.yaml", shell.root / "mcpguard/state/events.db", Path(sys.prefix) / "x"):
        done = shell("why", "-p", "wide", "write", str(target))
        assert (done.returncode, "mcpguard protects itself" in done.stdout) == (1, True)


def test_a_temporary_directory_that_holds_the_home_is_refused(shell: Shell) -> None:
    done = shell("why", "read", "x", TMPDIR=str(shell.home))
    assert done.returncode == 2
    assert "policy.tmp" in done.stderr


def test_list_shows_built_in_and_own_profiles_and_which_are_broken(shell: Shell) -> None:
    shell.own("mine", "extends: [claude-code]\ndescription: ours\n")
    shell.own("sick", "fils: {}\n")
    rows = json.loads(shell("profile", "list", "--format", "json").stdout)
    found = {row["name"]: row for row in rows}
    assert (found["codex"]["kind"], found["codex"]["runs"]) == ("built-in", "codex")
    assert (found["mine"]["kind"], found["mine"]["runs"], found["mine"]["description"]) == ("own", "claude", "ours")
    assert "unknown key" in found["sick"]["description"]


def test_show_prints_the_file_and_nothing_else_on_stdout(shell: Shell) -> None:
    path = shell.own("mine", "# mine\nname: mine\n")
    assert shell("profile", "show", "mine").stdout == path.read_text()


def test_show_resolved_names_the_place_of_each_rule(shell: Shell) -> None:
    path = shell.own("mine", "extends: [base]\nfiles:\n  read: [/data]\n")
    text = shell("profile", "show", "mine", "--resolved").stdout
    assert any(line.split() == ["file", "read", "/data", f"{path}:3"] for line in text.splitlines())
    assert "builtin:base.yaml:" in text
    rules = json.loads(shell("profile", "show", "mine", "--format", "json").stdout)["rules"]
    assert {"rule": "file read /data", "because": "", "file": str(path), "line": 3} in rules


def test_show_resolved_names_the_place_of_what_is_no_rule_on_an_object_too(shell: Shell) -> None:
    path = shell.own(
        "mine",
        "extends: [base]\ncommand: [a, b]\nenvironment:\n  remove:\n    - MINE\n  keep: [LANG]\n  set:\n    LEFT: '{tmp}/x'\n"
        "system:\n  io_uring: true\n",
    )
    rules = json.loads(shell("profile", "show", "mine", "--resolved", "--format", "json").stdout)["rules"]
    places = {rule["rule"]: (rule["file"], rule["line"]) for rule in rules}
    assert places["command a b"] == (str(path), 2)
    assert places["environment remove MINE"] == (str(path), 5)
    assert places["environment keep LANG"] == (str(path), 6)
    assert places["environment set LEFT={tmp}/x"] == (str(path), 8)
    assert places["system io_uring true"] == (str(path), 10)
    assert places["environment remove LD_PRELOAD"][0] == "builtin:base.yaml"


def test_show_resolved_says_which_folders_are_made(shell: Shell) -> None:
    shell.own("mine", "files: {write: [~/.mine/, ~/.other]}\n")
    rules = json.loads(shell("profile", "show", "mine", "--format", "json").stdout)["rules"]
    reasons = {rule["rule"]: rule["because"] for rule in rules}
    assert reasons == {"file write ~/.mine/": "made for a run where it is not there", "file write ~/.other": ""}


def test_check_notes_a_closing_slash_that_makes_nothing(shell: Shell) -> None:
    path = shell.own("mine", "files:\n  write:\n    - ~/.mine/\n    - '~/.mine*/'\n    - /opt/mine/\n  read: [/srv/]\n")
    done = shell("profile", "check", "mine")
    assert done.returncode == 0
    noted = [line.split(": ")[1] for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert noted == [f"{path}:4", f"{path}:5"]


@pytest.mark.parametrize(
    ("allowed", "noted"),
    [("0.0.0.0/0", True), ("2000::/3", True), ("128.0.0.0/1:443", True), ("10.0.0.0/8", False), ("fd00::/8", False)],
)
def test_check_notes_a_denied_name_whose_addresses_are_open(shell: Shell, allowed: str, noted: bool) -> None:
    path = shell.own(
        "mine", f"network:\n  allow: ['{allowed}', ok.example]\n  deny:\n    - bad.example\n    - 192.0.2.1\n"
    )
    done = shell("profile", "check", "mine")
    assert done.returncode == 0
    assert [line.split(": ")[1] for line in done.stderr.splitlines() if "note: " in line] == [f"{path}:4"] * noted


def test_check_notes_a_name_that_programs_ask_for_with_a_domain(shell: Shell) -> None:
    rules = "network:\n  allow:\n    - intra:8080\n    - intra.corp.example\n    - localhost:3000\n    - 10.0.0.1\n"
    path = shell.own("mine", rules + "  deny: [short]\n")
    done = shell("profile", "check", "mine")
    assert done.returncode == 0
    noted = [line.split(": ")[1] for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert noted == [f"{path}:3"]


def test_check_prints_every_mistake_and_exits_1(shell: Shell) -> None:
    path = shell.own("sick", "fils: {}\nfiles:\n  read: [no]\n")
    done = shell("profile", "check")
    assert done.returncode == 1
    assert f"{path}:1: unknown key" in done.stderr
    assert f"{path}:3: " in done.stderr
    assert done.stdout == ""


def test_check_finds_patterns_that_cannot_be_compiled(shell: Shell) -> None:
    path = shell.own("sick", "files: {read: [relative/path]}\nnetwork:\n  allow: ['*']\n")
    done = shell("profile", "check", "sick")
    assert (done.returncode, f"{path}:1: " in done.stderr, f"{path}:3: " in done.stderr) == (1, True, True)


def test_check_of_a_sound_profile_exits_0(shell: Shell) -> None:
    done = shell("profile", "check", "claude-code", "base")
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (0, 2, "")


def test_new_writes_a_profile_that_can_be_used_at_once(shell: Shell) -> None:
    done = shell("profile", "new", "mine", "--from", "codex")
    assert (done.returncode, done.stdout.strip()) == (0, str(shell.profiles / "mine.yaml"))
    assert shell("profile", "check", "mine").returncode == 0
    assert shell("profile", "diff", "codex", "mine").returncode == 0


def test_new_with_a_built_in_name_adds_to_it(shell: Shell) -> None:
    assert shell("profile", "new", "claude-code").returncode == 0
    assert shell("profile", "check", "claude-code").returncode == 0


@pytest.mark.parametrize("words", [("../x",), ("mine", "--from", "nobody"), ("taken",)])
def test_new_refuses_what_it_cannot_do(shell: Shell, words: tuple[str, ...]) -> None:
    taken = shell.own("taken", "name: taken\n")
    assert shell("profile", "new", *words).returncode == 2
    assert [path.name for path in shell.profiles.iterdir()] == [taken.name]


def test_diff_shows_rules_on_both_sides_and_exits_1(shell: Shell) -> None:
    shell.own("a", "files: {read: [/a]}\n")
    shell.own("b", "files: {read: [/b]}\n")
    done = shell("profile", "diff", "a", "b")
    assert (done.returncode, done.stdout) == (1, "- file read /a\n+ file read /b\n")


def test_edit_installs_a_sound_profile_and_shows_the_effective_difference(shell: Shell) -> None:
    path = shell.own("mine", "extends: [base]\n")
    done = shell("profile", "edit", "mine", EDITOR=shell.editor('echo "files: {read: [/data]}" >> "$1"'))
    assert (done.returncode, done.stdout) == (0, "+ file read /data\n")
    assert path.read_text() == "extends: [base]\nfiles: {read: [/data]}\n"


def test_edit_of_a_built_in_makes_an_own_profile_that_extends_it(shell: Shell) -> None:
    done = shell("profile", "edit", "claude-code", VISUAL=shell.editor('echo "files: {read: [/data]}" >> "$1"'))
    assert (done.returncode, done.stdout) == (0, "+ file read /data\n")
    assert shell("why", "-p", "claude-code", "read", "/data/a").returncode == 0
    assert shell("why", "-p", "claude-code", "connect", "api.anthropic.com").returncode == 0


def test_edit_never_installs_a_broken_profile_and_keeps_its_copy(shell: Shell) -> None:
    path = shell.own("mine", "extends: [base]\n")
    done = shell("profile", "edit", "mine", EDITOR=shell.editor('echo "fils: {}" >> "$1"'))
    copy = shell.root / "mcpguard/state/drafts/mine.yaml"
    assert done.returncode == 1
    assert f"{path}:2: unknown key" in done.stderr
    assert str(copy) in done.stderr
    assert path.read_text() == "extends: [base]\n"
    assert copy.read_text() == "extends: [base]\nfils: {}\n"


def test_edit_offers_to_edit_again_on_a_terminal(shell: Shell) -> None:
    path = shell.own("mine", "extends: [base]\n")
    mend = 'if grep -q fils "$1"; then sed -i s/fils/files/ "$1"; else echo "fils: {read: [/data]}" >> "$1"; fi'
    ours, theirs = pty.openpty()
    try:
        os.write(ours, b"y\n")
        done = subprocess.run(
            [sys.executable, "-m", "mcpguard", "profile", "edit", "mine"],
            cwd=shell.project,
            env={**shell.variables, "EDITOR": shell.editor(mend)},
            stdin=theirs,
            stderr=theirs,
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(theirs)
        os.close(ours)
    assert (done.returncode, done.stdout) == (0, "+ file read /data\n")
    assert path.read_text() == "extends: [base]\nfiles: {read: [/data]}\n"


def test_edit_refuses_what_can_be_parsed_but_not_compiled(shell: Shell) -> None:
    path = shell.own("mine", "extends: [base]\n")
    done = shell("profile", "edit", "mine", EDITOR=shell.editor('echo "network: {allow: [\'*.com\']}" >> "$1"'))
    assert (done.returncode, path.read_text()) == (1, "extends: [base]\n")


def test_edit_repairs_a_profile_that_was_broken_before(shell: Shell) -> None:
    path = shell.own("mine", "fils: {}\n")
    done = shell("profile", "edit", "mine", EDITOR=shell.editor('echo "extends: [base]" > "$1"'))
    assert (done.returncode, path.read_text()) == (0, "extends: [base]\n")


def test_edit_without_a_change_does_nothing(shell: Shell) -> None:
    assert shell("profile", "edit", "codex", EDITOR="true").returncode == 0
    assert not shell.profiles.exists()
    assert list((shell.root / "mcpguard/state/drafts").iterdir()) == []


def test_edit_does_not_undo_what_somebody_else_wrote_meanwhile(shell: Shell) -> None:
    path = shell.own("mine", "extends: [base]\n")
    script = f'echo "files: {{read: [/data]}}" >> "$1"; echo "extends: [default]" > {path}'
    done = shell("profile", "edit", "mine", EDITOR=shell.editor(script))
    assert (done.returncode, path.read_text()) == (1, "extends: [default]\n")
    assert "profile.changed-meanwhile" in done.stderr


@pytest.mark.parametrize("editor", ["false", "/no/such/editor"])
def test_edit_installs_nothing_when_the_editor_fails(shell: Shell, editor: str) -> None:
    path = shell.own("mine", "extends: [base]\n")
    assert shell("profile", "edit", "mine", EDITOR=editor).returncode == 1
    assert path.read_text() == "extends: [base]\n"


def test_a_profile_of_the_project_is_used_only_after_it_was_trusted(shell: Shell) -> None:
    path = shell.project / "agent.yaml"
    path.write_text("files: {read: [/data]}\n")
    refused = shell("why", "-p", "./agent.yaml", "read", "/data")
    assert (refused.returncode, "profile.untrusted" in refused.stderr) == (2, True)
    assert shell("profile", "trust", "agent.yaml").returncode == 0
    assert shell("why", "-p", "./agent.yaml", "read", "/data").returncode == 0
    path.write_text("files: {read: [/]}\n")
    assert shell("why", "-p", "./agent.yaml", "read", "/data").returncode == 2


def test_a_broken_profile_is_not_trusted(shell: Shell) -> None:
    (shell.project / "agent.yaml").write_text("fils: {}\n")
    assert shell("profile", "trust", "agent.yaml").returncode == 1


def test_errors_are_four_lines_on_stderr(shell: Shell) -> None:
    done = shell("profile", "show", "nobody")
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (2, "", 4)
    assert [line[:8] for line in lines[1:]] == ["  why   ", "  do    ", "  code  "]


def test_a_file_name_cannot_steer_the_terminal(shell: Shell) -> None:
    done = shell("why", "read", "a\x1b[2Jb")
    assert "\x1b" not in done.stdout
    assert "\\x1b[2J" in done.stdout


def test_an_exception_is_shown_checked_and_decided_by_the_allow_rule_beside_it(shell: Shell) -> None:
    path = shell.own("default", "extends: [default]\nfiles:\n  read: [~/.npmrc]\n  except: [~/.npmrc]\n")
    done = shell("profile", "check", "default")
    assert done.returncode == 0 and f"note: {path}:4: except ~/.npmrc" in done.stderr
    assert "file except ~/.npmrc" in shell("profile", "show", "default", "--resolved").stdout
    target = str(shell.home / ".npmrc")
    assert shell("why", "-p", "default", "read", target).returncode == 0
    assert shell("why", "-p", "base", "read", target).returncode == 1
    assert shell("why", "-p", "default", "write", target).returncode == 1
