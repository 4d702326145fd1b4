"""A guarded program starts as it would have started: same user, environment, place, descriptors and exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from launcher import Account

pytestmark = pytest.mark.kernel


def text(done: subprocess.CompletedProcess[bytes]) -> str:
    assert done.returncode == 0, (done.returncode, done.stderr.decode(errors="replace"))
    return done.stdout.decode()


def test_user_groups_and_ids_are_kept(account: Account, workspace: Path) -> None:
    outside = text(account.do(["/usr/bin/id"], cwd=workspace))
    assert text(account.guarded("id", cwd=workspace)) == outside


def test_the_environment_is_kept_and_sudo_leaves_no_trace(account: Account, workspace: Path) -> None:
    env = account.env(EDITOR="vi -u NONE", ODD="line\nbreak", EMPTY="")
    inside = dict(
        entry.split("=", 1) for entry in text(account.guarded("env", "-0", cwd=workspace, env=env)).split("\0") if entry
    )
    added = {key for key in inside if key not in env and not key.startswith("MCPGUARD_")}
    assert added <= {"_", "PWD", "SHLVL", "OLDPWD", "UV_TOOL_DIR"}  # the last one is what the profile sets
    assert {key: inside.get(key) for key in env} == env


def test_a_secret_variable_is_removed(account: Account, workspace: Path) -> None:
    env = account.env(AWS_SECRET_ACCESS_KEY="planted")
    assert "planted" in text(account.do(["/usr/bin/env"], cwd=workspace, env=env))
    assert "planted" not in text(account.guarded("env", cwd=workspace, env=env))


def test_directory_and_umask_are_kept(account: Account, workspace: Path) -> None:
    done = account.guarded("sh", "-c", "pwd; umask", cwd=workspace, umask=0o027)
    assert text(done).split() == [str(workspace), "0027"]


def test_files_belong_to_the_user(account: Account, workspace: Path) -> None:
    text(account.guarded("sh", "-c", "echo made > made; mkdir folder", cwd=workspace))
    for made in (workspace / "made", workspace / "folder"):
        assert (made.stat().st_uid, made.stat().st_gid) == (account.entry.pw_uid, account.entry.pw_gid)


@pytest.mark.parametrize("code", [0, 1, 7, 124, 255])
def test_the_exit_code_is_the_childs(account: Account, workspace: Path, code: int) -> None:
    assert account.guarded("sh", "-c", f"exit {code}", cwd=workspace).returncode == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGPIPE])
def test_death_by_signal_is_128_plus_its_number(account: Account, workspace: Path, number: signal.Signals) -> None:
    assert account.guarded("sh", "-c", f"kill -{number.value} $$", cwd=workspace).returncode == 128 + number


def test_a_missing_command_is_127(account: Account, workspace: Path) -> None:
    done = account.guarded("no-such-command-here", cwd=workspace)
    assert done.returncode == 127
    assert b"no-such-command-here" in done.stderr


def test_a_file_that_cannot_be_executed_is_126(account: Account, workspace: Path) -> None:
    (workspace / "data").write_text("not a program")
    os.chmod(workspace / "data", 0o644)
    assert account.guarded("./data", cwd=workspace).returncode == 126


def test_bytes_pass_through_pipes_unchanged(account: Account, workspace: Path) -> None:
    data = bytes(range(256)) * 4096
    done = account.guarded("cat", cwd=workspace, data=data)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == data


def test_stdout_holds_only_what_the_child_wrote(account: Account, workspace: Path) -> None:
    done = account.guarded("sh", "-c", "echo out; echo err >&2", cwd=workspace)
    assert done.stdout == b"out\n"
    assert b"err\n" in done.stderr


def test_a_closed_pipe_ends_the_run(account: Account, workspace: Path) -> None:
    run = " ".join([*account.mcpguard, "run", "--", "yes"])
    done = account.do(["bash", "-c", f"{run} | head -n 1; echo ${{PIPESTATUS[0]}}"], cwd=workspace)
    assert done.stdout.decode().split() == ["y", str(128 + signal.SIGPIPE)]


def test_it_runs_without_terminal_and_without_input(account: Account, workspace: Path) -> None:
    done = account.guarded("sh", "-c", "read line || echo none", cwd=workspace)
    assert text(done) == "none\n"


def test_no_descriptor_above_two_is_inherited(account: Account, workspace: Path) -> None:
    read, write = os.pipe()
    try:
        done = account.guarded("sh", "-c", "echo /proc/self/fd/*", cwd=workspace, pass_fds=(write,))
    finally:
        os.close(read)
        os.close(write)
    # The shell's own glob holds one descriptor open while it reads the folder.
    assert set(text(done).split()) <= {f"/proc/self/fd/{n}" for n in range(4)}


def test_the_child_has_no_privilege_and_can_gain_none(account: Account, workspace: Path) -> None:
    status = dict(
        line.split(":", 1) for line in text(account.guarded("cat", "/proc/self/status", cwd=workspace)).splitlines()
    )
    capabilities = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert set(capabilities.values()) == {0}, capabilities
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"


def test_sudo_inside_gives_nothing(account: Account, workspace: Path) -> None:
    control = account.do(["sudo", "-n", "id", "-u"], cwd=workspace)
    assert control.stdout == b"0\n"
    done = account.guarded("sh", "-c", "echo began; sudo -n id -u", cwd=workspace)
    # It says no by itself: it can see that it has got nothing by being set-user-id.
    assert done.returncode == 1 and done.stdout == b"began\n" and b"sudo: " in done.stderr, done


def test_sigterm_reaches_the_child_and_its_answer_comes_back(account: Account, workspace: Path) -> None:
    script = "trap 'echo asked; exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    process = account.start(
        [*account.mcpguard, "run", "--", "sh", "-c", script],
        cwd=workspace,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.stdout.readline() == b"asked\n"
        assert process.wait(60) == 9
    finally:
        process.kill()
        process.wait()


def test_nothing_of_ours_is_left_running(account: Account, workspace: Path) -> None:
    marker = f"{workspace}/marker"
    text(account.guarded("sh", "-c", f"echo done > {marker}", cwd=workspace))

    def left() -> list[bytes]:
        return [
            words for path in Path("/proc").glob("[0-9]*/cmdline") if workspace.name.encode() in (words := _read(path))
        ]

    deadline = time.monotonic() + 60
    while left() and time.monotonic() < deadline:  # what empties the session's slot in the kernel ends a moment later
        time.sleep(0.05)
    assert left() == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("mode", ["0", "400"])
def test_what_an_earlier_session_closed_to_its_owner_is_not_opened_by_a_later_one(
    account: Account, workspace: Path, mode: str
) -> None:
    """What lies in such a folder cannot be looked at when the plan is made; the agent may change the mode afterwards."""
    act = ("sh", "-c", "chmod 700 .git; echo planted > .git/hooks/post-checkout && cat .git/hooks/post-checkout")
    prepare = f"chmod 700 .git 2>/dev/null; rm -rf .git; mkdir -p .git/hooks; chmod {mode} .git"
    for guarded in (False, True):
        text(account.do(["sh", "-c", prepare], cwd=workspace))
        if not guarded:
            assert text(account.do(act, cwd=workspace)) == "planted\n"
    done = account.guarded(*act, cwd=workspace)
    assert done.returncode != 0
    assert b"planted" not in done.stdout
    told = account.do([*account.mcpguard, "log", "--verdict", "deny", "--format", "json"], cwd=workspace)
    denied = [json.loads(line) for line in text(told).splitlines()]
    (hook,) = [event for event in denied if event.get("path") == f"{workspace}/.git/hooks/post-checkout"]
    assert hook["rule"]["text"] == "readonly {workspace}/**/.git/hooks"
    text(account.do(["chmod", "700", ".git"], cwd=workspace))
    assert list((workspace / ".git/hooks").iterdir()) == []
