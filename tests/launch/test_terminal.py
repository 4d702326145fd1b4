"""On a terminal a guarded program behaves as an unguarded one: keys, job control, size, hang-up."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

import pytest
from launcher import Account

pytestmark = pytest.mark.kernel


def run(account: Account, *command: str) -> list[str]:
    return [*account.mcpguard, "run", "--", *command]


def test_as_root_the_terminal_is_the_same_one(root: Account, tmp_path: Path) -> None:
    """Through sudo it may be another: with `use_pty`, sudo runs what it starts on a terminal of its own and relays."""
    with root.terminal(run(root, "tty"), cwd=tmp_path) as terminal:
        terminal.wait_for(terminal.path)
        assert terminal.end()[0] == 0


def test_all_three_streams_are_terminals(account: Account, workspace: Path) -> None:
    script = "test -t 0 && test -t 1 && test -t 2 && echo all-three"
    with account.terminal(run(account, "sh", "-c", script), cwd=workspace) as terminal:
        terminal.wait_for("all-three")
        assert terminal.end()[0] == 0


def test_the_child_is_in_the_foreground(account: Account, workspace: Path) -> None:
    script = "import os; print('foreground', os.tcgetpgrp(0) == os.getpgrp())"
    with account.terminal(run(account, "/usr/bin/python3", "-c", script), cwd=workspace) as terminal:
        terminal.wait_for("foreground True")
        assert terminal.end()[0] == 0


def test_ctrl_c_reaches_the_child_once_and_its_answer_comes_back(account: Account, workspace: Path) -> None:
    script = "trap 'n=$((n+1)); echo hit-$n' INT; trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    with account.terminal(run(account, "sh", "-c", script), cwd=workspace) as terminal:
        terminal.wait_for("ready")
        terminal.send("\x03")
        terminal.wait_for("hit-1")
        terminal.send("\x03")
        assert "hit-3" not in terminal.wait_for("hit-2")
        terminal.process.terminate()
        assert terminal.end()[0] == 3


def test_ctrl_c_ends_a_child_that_does_not_care(account: Account, workspace: Path) -> None:
    with account.terminal(run(account, "sh", "-c", "echo ready; exec sleep 600"), cwd=workspace) as terminal:
        terminal.wait_for("ready")
        terminal.send("\x03")
        assert terminal.end()[0] in (128 + signal.SIGINT, -signal.SIGINT)


def test_ctrl_z_stops_and_fg_continues(account: Account, workspace: Path) -> None:
    env = account.env(PS1="prompt> ", TERM="dumb")
    with account.terminal(["bash", "--norc", "--noprofile", "-i"], cwd=workspace, env=env) as terminal:
        terminal.wait_for("prompt> ")
        terminal.send(shlex.join(run(account, "sh", "-c", "echo rea''dy; read line; echo got-$line")) + "\n")
        terminal.wait_for("\nready")
        terminal.send("\x1a")
        terminal.wait_for("Stopped")
        terminal.wait_for("prompt> ")
        terminal.send("fg\n")
        terminal.wait_for("mcpguard")
        terminal.send("hello\n")
        terminal.wait_for("got-hello")
        terminal.wait_for("prompt> ")
        terminal.send("exit\n")
        assert terminal.end()[0] == 0


def test_the_shell_gets_its_terminal_back(account: Account, workspace: Path) -> None:
    env = account.env(PS1="prompt> ", TERM="dumb")
    with account.terminal(["bash", "--norc", "--noprofile", "-i"], cwd=workspace, env=env) as terminal:
        terminal.wait_for("prompt> ")
        terminal.send(shlex.join(run(account, "sh", "-c", "exit 4")) + "\n")
        terminal.wait_for("prompt> ")
        terminal.send("echo status-$?; cat\n")
        terminal.wait_for("\nstatus-4")
        terminal.send("typed\n")
        terminal.wait_for("typed\r\ntyped")
        terminal.send("\x04exit\n")
        assert terminal.end()[0] == 0


def test_a_new_window_size_is_seen_inside(account: Account, workspace: Path) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done"
    with account.terminal(run(account, "sh", "-c", script), cwd=workspace) as terminal:
        terminal.wait_for("ready")
        terminal.resize(51, 173)
        terminal.wait_for("51 173")


def test_a_terminal_that_goes_away_ends_the_run(account: Account, workspace: Path) -> None:
    with account.terminal(run(account, "sh", "-c", "echo ready; exec sleep 600"), cwd=workspace) as terminal:
        terminal.wait_for("ready")
        terminal.hang_up()
        assert terminal.process.wait(60) != 0


@pytest.mark.parametrize("program", ["true", "no-such-program"])
def test_the_last_words_begin_at_the_left_margin(account: Account, workspace: Path, program: str) -> None:
    with account.terminal(run(account, program), cwd=workspace) as terminal:
        _code, shown = terminal.end()
    lines = shown.split("\n")
    assert any(line.startswith("  allowed  ") for line in lines), shown
    assert all(line.endswith("\r") for line in lines[:-1]), (
        f"a line without a carriage return is a staircase: {shown!r}"
    )
