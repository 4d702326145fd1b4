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


@pytest.mark.parametrize("words", [["--", "true"], ["--", "no-such-program"], ["--ask", "--", "true"]])
def test_what_is_said_begins_at_the_left_margin(account: Account, workspace: Path, words: list[str]) -> None:
    with account.terminal([*account.mcpguard, "run", *words], cwd=workspace) as terminal:
        _code, shown = terminal.end()
    lines = shown.split("\n")
    assert any(line.startswith("  allowed  ") for line in lines), shown
    assert all(line.endswith("\r") for line in lines[:-1]), (
        f"a line without a carriage return is a staircase: {shown!r}"
    )


# --- names: the session has terminals of its own, and keeps the one that it was started on --------------------------

NAMED = """
import os
name = os.ttyname(0)
ways = (name, "/dev/stdin", "/dev/stdout", "/dev/stderr", "/proc/self/fd/1")
for way in ways:
    again = os.open(way, os.O_RDWR | os.O_NOCTTY)
    assert os.path.sameopenfile(again, 0), way
os.write(os.open("/dev/tty", os.O_RDWR), b"by /dev/tty\\n")
print("all the same", sorted(os.listdir("/dev/pts")) == sorted([os.path.basename(name), "ptmx"]), flush=True)
"""


def test_the_terminal_can_be_opened_again_by_every_name_and_is_the_only_one(account: Account, workspace: Path) -> None:
    with account.terminal(run(account, "/usr/bin/python3", "-c", NAMED), cwd=workspace) as terminal:
        terminal.wait_for("by /dev/tty")
        terminal.wait_for("all the same True")
        assert terminal.end()[0] == 0


def test_two_sessions_keep_their_own_names_and_do_not_see_each_other(root: Account, tmp_path: Path) -> None:
    script = "echo at-$(tty)-; read line; ls /dev/pts | tr '\\n' ' '; echo seen"
    command = run(root, "sh", "-c", script)
    with root.terminal(command, cwd=tmp_path) as one, root.terminal(command, cwd=tmp_path) as two:
        for terminal in (one, two):
            terminal.wait_for(f"at-{terminal.path}-")
        for terminal in (one, two):
            terminal.send("go\n")
            shown = terminal.wait_for("seen").split()
            assert shown[-3:-1] == [Path(terminal.path).name, "ptmx"], shown
            assert terminal.end()[0] == 0


CONTROLLING = """
import os, sys
name = sys.argv[1]
assert not os.isatty(0) and not os.isatty(1)
fd = os.open(name, os.O_RDWR | os.O_NOCTTY)
assert os.tcgetpgrp(fd) > 0
os.write(fd, b"by its name\\n")
"""


def test_a_controlling_terminal_without_any_descriptor_keeps_its_name(root: Account, tmp_path: Path) -> None:
    """As for gpg's and ssh's questions while input and output are pipes."""
    words = shlex.join(run(root, "/usr/bin/python3", "-c", CONTROLLING))
    script = f'name=$(tty); echo x | {words} "$name" 2>trouble | cat; echo ended'
    with root.terminal(["sh", "-c", script], cwd=tmp_path) as terminal:
        terminal.wait_for("by its name")
        terminal.wait_for("ended")


def test_without_a_terminal_there_is_none_but_new_ones_can_be_made(account: Account, workspace: Path) -> None:
    script = "ls /dev/pts; tty; script -qc tty /dev/null"
    done = account.guarded("sh", "-c", script, cwd=workspace)
    assert done.stdout.decode().split() == ["ptmx", "not", "a", "tty", "/dev/pts/0"], done


MADE = """
import os, stat
master, slave = os.openpty()
found = os.fstat(slave)
print(found.st_uid == os.getuid(), found.st_gid, oct(stat.S_IMODE(found.st_mode)))
"""


def test_terminals_made_inside_belong_to_the_user_as_those_outside_do(account: Account, workspace: Path) -> None:
    command = ("/usr/bin/python3", "-c", MADE)
    outside = account.do(command, cwd=workspace).stdout
    assert outside.startswith(b"True")
    assert account.guarded(*command, cwd=workspace).stdout == outside


def test_inside_script_keys_and_sizes_reach_the_program(account: Account, workspace: Path) -> None:
    inner = "trap 'echo interrupted' INT; trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done"
    with account.terminal(run(account, "script", "-qc", inner, "/dev/null"), cwd=workspace) as terminal:
        terminal.wait_for("ready")
        terminal.send("\x03")
        terminal.wait_for("interrupted")
        terminal.resize(41, 133)
        terminal.wait_for("41 133")


def test_job_control_works_in_a_shell_on_a_terminal_made_inside(account: Account, workspace: Path) -> None:
    shell = "PS1='prompt> ' bash --norc --noprofile -i"
    env = account.env(TERM="dumb")
    with account.terminal(run(account, "script", "-qc", shell, "/dev/null"), cwd=workspace, env=env) as terminal:
        terminal.wait_for("prompt> ")
        terminal.send("sh -c 'echo rea''dy; read line; echo got-$line'\n")
        terminal.wait_for("\nready")
        terminal.send("\x1a")
        terminal.wait_for("Stopped")
        terminal.send("fg\n")
        terminal.wait_for("sh -c")
        terminal.send("hello\n")
        terminal.wait_for("got-hello")


def test_tmux_runs_inside(account: Account, workspace: Path) -> None:
    inner = "echo in-$(tty)-; stty size; read line; echo got-$line; read end"
    command = run(account, "tmux", "-f", "/dev/null", "-S", f"{workspace}/tmux", "new-session", inner)
    env = account.env(TMUX_TMPDIR=str(workspace), TERM="xterm")
    with account.terminal(command, cwd=workspace, env=env) as terminal:
        terminal.wait_for("in-/dev/pts/")
        terminal.wait_for("23 80")
        terminal.send("hello\r")
        terminal.wait_for("got-hello")
        terminal.send("\r")
        assert terminal.end()[0] == 0


def test_a_terminal_that_is_known_as_the_console_keeps_that_name(root: Account, tmp_path: Path) -> None:
    """As in containers whose terminal lives in an instance of devpts that is not theirs."""
    inner = "test -t 0 && echo at-$(tty)- && echo again > /dev/console && ls /dev/pts"
    script = f"""mount --bind "$(tty)" /dev/console
        mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
        exec {shlex.join(run(root, "sh", "-c", inner))} </dev/console >/dev/console"""
    with root.terminal(["unshare", "-m", "sh", "-ec", script], cwd=tmp_path) as terminal:
        terminal.wait_for("at-/dev/console-")
        terminal.wait_for("again")
        code, shown = terminal.end()
    assert (code, shown.split()[0]) == (0, "ptmx"), shown
