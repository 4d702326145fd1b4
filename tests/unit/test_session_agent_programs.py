"""Which processes are agents: by name and place, by what their files hold, and for as long as they live."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mcpguard.events.processes import Process
from mcpguard.session import agent_programs
from mcpguard.session.agent_programs import Agents, is_agent

# It stands still until its input ends; what it is called as its words comes behind.
STILL = "import sys; print('up', flush=True); sys.stdin.read()"


@pytest.mark.parametrize(
    "path",
    [
        "/usr/local/bin/codex",
        "/home/u/.local/share/claude/versions/2.1.197",
        "/usr/lib/node_modules/@openai/codex/bin/codex.js",
        "/usr/lib/node_modules/@openai/codex-linux-x64/vendor/x86_64-unknown-linux-musl/bin/codex",
        "/usr/lib/node_modules/@anthropic-ai/claude-code/cli.js",
        "/usr/lib/node_modules/@google/gemini-cli/bundle/gemini.js",
        "/usr/lib/node_modules/@qwen-code/qwen-code/cli-entry.js",
        "/usr/lib/node_modules/opencode-linux-x64/bin/opencode",
        "/nix/store/x/bin/.claude-wrapped",
        "/opt/codex-x86_64-unknown-linux-musl",
        "/home/u/bin/claude.real",
        "/usr/bin/claude-code",
        "/usr/bin/qwen-code",
        "/w/node_modules/@anthropic-ai/claude-agent-sdk/cli.js",
        "/w/gemini-cli/bundle/gemini.js",
        "/nix/store/x/share/gemini-cli/gemini.js",
    ],
)
def test_programs_of_agents_are_known_by_name_and_place(path: str) -> None:
    assert is_agent(path)


@pytest.mark.parametrize(
    "path",
    [
        "/usr/bin/node",
        "/home/u/claude/server.py",
        "/home/u/.codex/tool",
        "/usr/lib/node_modules/@modelcontextprotocol/server-everything/dist/index.js",
        "/usr/bin/gemini-mcp-server",
        "/home/u/share/claude/versions/1/x",
        "/w/src/gemini.js",
        "/w/claude.mjs",
        "/usr/bin/claude-code-mcp",
        "/w/node_modules/@anthropic-ai/sdk/index.js",
    ],
)
def test_others_are_not(path: str) -> None:
    assert not is_agent(path)


@contextlib.contextmanager
def living(*words: str | Path, **more: object) -> Iterator[int]:
    """A process that has executed these words, by its PID."""
    with subprocess.Popen([*map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **more) as one:  # type: ignore[call-overload]
        assert one.stdout.readline() == b"up\n"
        try:
            yield one.pid
        finally:
            one.kill()


def a_program(path: Path) -> Path:
    """A program of its own kind: Python, with something behind it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(os.path.realpath(sys.executable), path)
    with path.open("ab") as file:
        file.write(b"of its own")
    return path


def a_script(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{os.path.realpath(sys.executable)}\n{STILL}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("how", ["copied", "linked", "renamed", "removed", "in memory"])
def test_a_program_of_another_name_is_the_same_one(how: str, tmp_path: Path) -> None:
    agent, other = a_program(tmp_path / "codex"), tmp_path / "x"
    agents = Agents(str(agent))
    words: list[str | Path] = [other, "-c", STILL]
    more: dict[str, object] = {}
    if how in ("copied", "removed"):
        shutil.copy(agent, other)
    elif how == "linked":
        other.hardlink_to(agent)
    elif how == "renamed":
        agent.rename(other)
    else:
        memory = os.memfd_create("x")
        os.write(memory, agent.read_bytes())
        words[0] = f"/proc/self/fd/{memory}"
        more = {"pass_fds": [memory]}
    with living(*words, **more) as pid:
        if how == "removed":
            other.unlink()
        assert agents.has(pid)
    with living(sys.executable, "-c", STILL) as pid:
        assert not agents.has(pid)


@pytest.mark.parametrize(
    "how", ["by name", "copied", "its interpreter renamed", "its words are others now", "in its folder"]
)
def test_a_script_is_known_whatever_runs_it(how: str, tmp_path: Path) -> None:
    agent, other = a_script(tmp_path / "gemini"), tmp_path / "x.py"
    agents = Agents(str(agent))
    words: Sequence[str | Path] = [sys.executable, "-B", agent]
    if how == "copied":
        shutil.copy(agent, other)
        words = [sys.executable, "-B", other]
    elif how == "its interpreter renamed":
        words = [a_program(tmp_path / "interpreter"), "-B", agent]
    elif how == "its words are others now":
        words = [sys.executable, "-c", STILL, "a title"]
    elif how == "in its folder":
        words = [sys.executable, "gemini"]
    with living(*words, cwd=tmp_path) as pid:
        if how == "its words are others now":
            assert not agents.has(pid)
            agents.who = {pid: Process(pid, 1, sys.executable, (sys.executable, str(agent)))}.get
        assert agents.has(pid)


def test_who_was_an_agent_stays_one(tmp_path: Path) -> None:
    exec_other = f"os.execv({sys.executable!r}, ['x', '-c', {STILL!r}])"
    become = f"import os, sys; print('up', flush=True); sys.stdin.readline(); {exec_other}"
    agents = Agents()
    words = [a_program(tmp_path / "codex"), "-c", become]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"up\n" and agents.has(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"up\n"
        assert agents.has(process.pid) and not Agents().has(process.pid)
        process.kill()


def test_one_that_has_ended_is_known_by_what_was_told_of_it() -> None:
    ended = subprocess.Popen(["/bin/true"])
    ended.wait()
    agents = Agents()
    assert not agents.has(ended.pid, "/usr/bin/node")
    assert agents.has(ended.pid, "/usr/bin/codex")
    agents.who = {ended.pid: Process(ended.pid, 1, "/usr/bin/node", ("node", "/usr/bin/gemini"))}.get
    assert agents.has(ended.pid, "/usr/bin/node")


def test_nothing_that_lies_at_a_script_is_waited_for(tmp_path: Path) -> None:
    """A fifo that nobody writes to, and an empty file, which any other empty file would be the same as."""
    agent = a_script(tmp_path / "gemini")
    empty, fifo = tmp_path / "empty", tmp_path / "fifo"
    empty.touch()
    os.mkfifo(fifo)
    for path in (fifo, empty):
        agents = Agents(str(path))
        with living(sys.executable, agent) as pid:
            assert agents.has(pid)
        with living(sys.executable, "-c", STILL) as pid:
            agents.who = {pid: Process(pid, 1, sys.executable, (sys.executable, str(path)))}.get
            assert not agents.has(pid)


def test_one_that_hides_its_memory_is_told_by_what_it_was_started_as(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/proc does not show its program to its own user, but its words."""
    monkeypatch.setattr(agent_programs, "_link", lambda _pid: None)
    agent, other = a_program(tmp_path / "codex"), tmp_path / "x"
    agents = Agents(str(agent))
    with living(agent, "-c", STILL) as pid:
        assert agents.has(pid)
    shutil.copy(agent, other)
    with living("./x", "-c", STILL, cwd=tmp_path) as pid:
        assert agents.has(pid)
    with living(sys.executable, "-c", STILL) as pid:
        assert not agents.has(pid)
