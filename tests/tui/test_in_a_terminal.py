"""`mcpguard watch` in a real terminal, beside a real guarded session."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

MCPGUARD = (sys.executable, "-m", "mcpguard")
WAIT_S = 60


class Terminal:
    """One tmux server of our own."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._tmux = ("tmux", "-S", str(folder / "tmux"), "-f", "/dev/null")
        self._environment = environment

    def open(self, name: str, *command: str, size: tuple[int, int] = (100, 30)) -> None:
        words = ["new-session", "-d", "-s", name, "-x", str(size[0]), "-y", str(size[1]), shlex.join(command)]
        subprocess.run([*self._tmux, *words], env=self._environment, check=True, timeout=30)

    def keys(self, name: str, *keys: str) -> None:
        subprocess.run([*self._tmux, "send-keys", "-t", name, *keys], check=True, timeout=30)

    def screen(self, name: str, *options: str) -> str:
        done = subprocess.run(
            [*self._tmux, "capture-pane", "-p", *options, "-t", name],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return done.stdout

    def wait_for(self, name: str, *words: str, gone: str | None = None) -> str:
        """The screen, once it holds these words, and no more the one that is to be gone."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            seen = self.screen(name)
            if all(word in seen for word in words) and (gone is None or gone not in seen):
                return seen
            time.sleep(0.1)
        pytest.fail(f"{words} never came: {self.screen(name)}")

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False, capture_output=True, timeout=30)


def wait_for_file(terminal: Terminal, path: Path) -> None:
    """Until a guarded program has made it."""
    end = time.monotonic() + WAIT_S
    while not path.exists():
        if time.monotonic() > end:
            pytest.fail(f"{path.name} never came: {terminal.screen('agent')} {terminal.screen('watch')}")
        time.sleep(0.05)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    if os.geteuid() != 0 or shutil.which("tmux") is None:
        pytest.skip("needs root and tmux")
    environment = dict(os.environ) | {"MCPGUARD_HOME": str(tmp_path / "guard"), "TERM": "xterm-256color", "TMUX": ""}
    made = Terminal(tmp_path, environment)
    yield made
    made.close()


def test_a_denial_of_a_running_session_shows_up(terminal: Terminal, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    script = "touch ready; until [ -e go ]; do sleep 0.1; done; cat /etc/shadow; sleep 600"
    terminal.open("agent", *MCPGUARD, "run", "-w", str(project), "--", "sh", "-c", f"cd {project}; {script}")
    wait_for_file(terminal, project / "ready")
    terminal.open("watch", *MCPGUARD, "watch")
    terminal.wait_for("watch", "running", "profile default", "gaps:")
    assert "denied" not in terminal.wait_for("watch", "0 denied").replace("0 denied", "")
    (project / "go").touch()
    terminal.wait_for("watch", "1 denied")
    terminal.keys("watch", "d")
    terminal.wait_for("watch", "filter: verdict:deny", "DENY", "/etc/shadow", "password hashes")
    terminal.keys("watch", "q")
    end = time.monotonic() + WAIT_S
    while terminal.screen("watch") and time.monotonic() < end:
        time.sleep(0.1)
    assert terminal.screen("watch") == ""


def colours(screen: str) -> list[str]:
    """The codes of texts and grounds in what tmux captured with `-e`, but for the terminal's own (39, 49)."""
    codes = ";".join(re.findall(r"\x1b\[([0-9;:]*)m", screen)).replace(":", ";").split(";")
    return [code for code in codes if code.isdigit() and (30 <= int(code) <= 48 or int(code) >= 90) and code != "39"]


def test_without_colours_there_are_none_and_every_verdict_has_its_word(terminal: Terminal, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    environment = dict(os.environ) | {"MCPGUARD_HOME": str(tmp_path / "guard")}
    subprocess.run(
        [*MCPGUARD, "run", "-w", str(project), "--", "cat", "/etc/shadow"],
        env=environment,
        cwd=project,
        capture_output=True,
        check=False,
        timeout=WAIT_S,
    )
    terminal.open("watch", "env", "NO_COLOR=1", *MCPGUARD, "watch", size=(80, 24))
    terminal.wait_for("watch", "ended, exit 1", "tier 3", "gaps: files", "ALLOW", "1 denied")
    terminal.keys("watch", "d")
    terminal.wait_for("watch", "DENY", "/etc/shadow")
    assert colours(terminal.screen("watch", "-e")) == []
    terminal.open("coloured", "env", "-u", "NO_COLOR", *MCPGUARD, "watch", size=(80, 24))
    terminal.wait_for("coloured", "ended, exit 1", "1 denied")
    assert colours(terminal.screen("coloured", "-e"))


def test_a_pipe_is_told_to_use_the_log(tmp_path: Path) -> None:
    environment = dict(os.environ) | {"MCPGUARD_HOME": str(tmp_path / "guard")}
    done = subprocess.run(
        [*MCPGUARD, "watch"], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert "watch needs a terminal" in done.stderr and "mcpguard log --follow" in done.stderr


def test_a_denial_is_allowed_in_the_profile_and_the_next_attempt_succeeds(terminal: Terminal, tmp_path: Path) -> None:
    project, tool = tmp_path / "project", tmp_path / "home/.tool"
    project.mkdir()
    tool.mkdir(parents=True)
    (tool / "data").write_text("needed\n")
    (tmp_path / "tmp").mkdir()
    # Below the temporary directory everything is open, so the home must lie elsewhere.
    own = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    environment = dict(os.environ) | {"MCPGUARD_HOME": str(tmp_path / "guard")} | own

    def attempt() -> subprocess.CompletedProcess[str]:
        words = [*MCPGUARD, "run", "-w", str(project), "--", "cat", str(tool / "data")]
        return subprocess.run(
            words, env=environment, cwd=project, capture_output=True, text=True, check=False, timeout=WAIT_S
        )

    assert "needed" not in attempt().stdout
    terminal.open("watch", "env", *(f"{name}={value}" for name, value in own.items()), *MCPGUARD, "watch")
    terminal.wait_for("watch", "1 denied")
    terminal.keys("watch", "d")
    terminal.wait_for("watch", "filter: verdict:deny", "~/.tool/data")
    terminal.keys("watch", "a")
    terminal.wait_for("watch", "allow in the profile", "the session has ended")
    terminal.keys("watch", "w")
    terminal.wait_for("watch", "Allow it in", "+ file read ~/.tool")
    terminal.keys("watch", "y")
    terminal.wait_for("watch", "the next run has it")
    assert attempt().stdout == "needed\n"


# A program that asks again and again, as agents do, and says what it got.
KNOCK = """\
import pathlib, socket, sys, time
while True:
    try:
        socket.create_connection(("127.0.0.1", int(sys.argv[1])), 1).close()
        break
    except OSError as error:
        pathlib.Path("refused").write_text(str(error))
        time.sleep(0.2)
pathlib.Path("connected").touch()
while not pathlib.Path("stop").exists():
    time.sleep(0.1)
"""


class Knocking:
    """A guarded session that knocks at a port of ours, and a screen that watches it."""

    def __init__(self, terminal: Terminal, tmp_path: Path, *options: str) -> None:
        self.project, self.home, self.guard = tmp_path / "project", tmp_path / "home", tmp_path / "guard"
        for folder in (self.project, self.home / ".tool", tmp_path / "tmp"):
            folder.mkdir(parents=True)
        (self.home / ".tool/data").write_text("needed\n")
        (self.project / "knock.py").write_text(KNOCK)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.terminal = terminal
        # Below the temporary directory everything is open, so the home must lie elsewhere.
        self.places = {"HOME": str(self.home), "TMPDIR": str(tmp_path / "tmp")}
        self.environment = dict(os.environ) | {"MCPGUARD_HOME": str(tmp_path / "guard")} | self.places
        port = self.target.rpartition(":")[2]
        script = f"cd {self.project}; cat ~/.tool/data; exec python3 knock.py {port}"
        self._open("agent", "run", "-w", str(self.project), *options, "--", "sh", "-c", script)
        self.wait_for_file("refused")
        self._open("watch", "watch")

    def _open(self, name: str, *words: str) -> None:
        self.terminal.open(name, "env", *(f"{key}={value}" for key, value in self.places.items()), *MCPGUARD, *words)

    def wait_for_file(self, name: str) -> None:
        wait_for_file(self.terminal, self.project / name)


@pytest.fixture
def knocking(terminal: Terminal, tmp_path: Path) -> Iterator[Callable[..., Knocking]]:
    made: list[Knocking] = []

    def begin(*options: str) -> Knocking:
        made.append(Knocking(terminal, tmp_path, *options))
        return made[-1]

    yield begin
    for one in made:
        (one.project / "stop").touch()
        one.listener.close()


def test_a_refused_connection_is_allowed_in_the_profile_and_the_same_process_gets_through(
    terminal: Terminal, knocking: Callable[..., Knocking]
) -> None:
    session = knocking()
    # Nobody is kept out by the listener itself.
    socket.create_connection(session.listener.getsockname(), 5).close()
    terminal.keys("watch", "/")
    terminal.wait_for("watch", "host:GLOB")
    terminal.keys("watch", "host:127.0.0.1 verdict:deny", "Enter")
    # Until the filter holds, the newest event may be another one.
    terminal.wait_for("watch", f"DENY  net connect   {session.target}", gone="ALLOW")
    assert not (session.project / "connected").exists()
    terminal.keys("watch", "a")
    terminal.wait_for("watch", "allow once", "allow for the session", f"localhost:{session.target.rpartition(':')[2]}")
    terminal.keys("watch", "w")
    port = session.target.rpartition(":")[2]
    terminal.wait_for("watch", "Allow it in", f"+ network allow localhost:{port}")
    terminal.keys("watch", "y")
    terminal.wait_for("watch", "holds now", "the next run has it, too")
    session.wait_for_file("connected")
    written = (session.guard / "config/profiles/default.yaml").read_text()
    assert f"localhost:{port}" in written


def test_a_question_is_answered_and_the_same_process_gets_through(
    terminal: Terminal, knocking: Callable[..., Knocking]
) -> None:
    session = knocking("--ask")
    terminal.wait_for("watch", "QUESTION")
    terminal.keys("watch", "7")
    terminal.wait_for("watch", "OPEN", session.target, "knock.py")
    # One at a time: a key that waits would move on after the right one was seen.
    while session.target not in (told := terminal.screen("watch").partition("o once")[2]):
        terminal.keys("watch", "n")
        end = time.monotonic() + WAIT_S
        while terminal.screen("watch").partition("o once")[2] == told and time.monotonic() < end:
            time.sleep(0.1)
    assert not (session.project / "connected").exists()
    terminal.keys("watch", "o")
    terminal.wait_for("watch", "holds now", "allowed once")
    session.wait_for_file("connected")


def test_a_refused_file_is_for_the_next_run_and_the_screen_says_why(
    terminal: Terminal, knocking: Callable[..., Knocking]
) -> None:
    session = knocking("--tier", "3")
    terminal.keys("watch", "/")
    terminal.wait_for("watch", "host:GLOB")
    terminal.keys("watch", "path:~/.tool verdict:deny", "Enter")
    terminal.wait_for("watch", "DENY  file open read  ~/.tool/data", gone="ALLOW")
    terminal.keys("watch", "a")
    terminal.wait_for("watch", "allow in the profile")
    terminal.keys("watch", "w")
    terminal.wait_for("watch", "Allow it in", "+ file read ~/.tool")
    terminal.keys("watch", "y")
    terminal.wait_for("watch", "the next run has it", "why: in tier 3")
    again = subprocess.run(
        [*MCPGUARD, "run", "-w", str(session.project), "--", "cat", f"{session.home}/.tool/data"],
        env=session.environment,
        cwd=session.project,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
    )
    assert again.stdout == "needed\n"
