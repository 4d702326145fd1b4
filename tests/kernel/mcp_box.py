"""A guarded session with an MCP server and a client of its own: what an agent does with the shim, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from harness import RUN_SECONDS, SYSTEM_PYTHON, Finished, Json, Sandbox, mcpguard_command

from mcpguard.catalogue import approved, starting
from mcpguard.catalogue.server import STDIO, Server
from mcpguard.kernel import proc
from mcpguard.session.gate import SHIM

PROFILE = """\
name: gated
extends: [dev-tools]
files:
  write: ["{workspace}", "{tmp}"]
environment:
  keep: [ANTHROPIC_API_KEY]
mcp:
  gate: true
  allow: ["*"]
  deny:
    - tool: "*/forbidden"
      because: nobody may
"""
# With this what every program asks counts, and not what agents ask alone.
STRICT = PROFILE.replace("name: gated", "name: strict").replace("  gate: true\n", "  gate: true\n  clients: all\n")
SERVER = """
import json, os, sys
for line in sys.stdin.buffer:
    message = json.loads(line)
    if "id" in message and "method" in message:
        params = message.get("params", {})
        name, arguments = params.get("name"), params.get("arguments", {})
        try:
            text = {
                "environment": lambda: json.dumps(dict(os.environ)),
                "read": lambda: open(arguments["path"]).read(),
                "write": lambda: str(open(arguments["path"], "w").write("written")),
                "run": lambda: str(os.system(arguments["command"])),
                "connect": lambda: str(__import__("socket").create_connection((arguments["host"], arguments["port"]), 5)),
                "socket": lambda: str(__import__("socket").socket(arguments["family"], arguments["type"])),
            }.get(name, lambda: json.dumps(arguments))()
        except OSError as error:
            text = f"refused: {error.errno}"
        answer = {"jsonrpc": "2.0", "id": message["id"], "result": {"content": [{"type": "text", "text": text}]}}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\\n")
        sys.stdout.buffer.flush()
"""
# What an agent does: starts a command, says lines to it, and prints the answers. With `gate` the command is a shim's.
CLIENT = """
import json, os, subprocess, sys
python, shim, name, command, lines = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), json.loads(sys.argv[5])
words = [python, "-I", "-S", "-B", shim, os.environ["MCPGUARD_GATE"], name, "--", *command] if shim else command
server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
for line in lines:
    try:
        server.stdin.write(line.encode() + b"\\n")
        server.stdin.flush()
    except BrokenPipeError:
        break
    if "id" in line:
        print(server.stdout.readline().decode().strip(), flush=True)
server.stdin.close()
print(json.dumps({"rest": server.stdout.read().decode(), "code": server.wait()}))
"""


def tool(name: str, id: int = 1, **arguments: object) -> str:
    return json.dumps(
        {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": name, "arguments": arguments}}
    )


def text_of(answer: Json) -> str:
    return str(answer["result"]["content"][0]["text"])


def wait_until(state: Callable[[], object]) -> None:
    """For something that comes, as long as a run may take."""
    deadline = time.monotonic() + RUN_SECONDS
    while not state():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def stands(pid: int) -> bool:
    """Whether a process was stopped, and does not go on."""
    return proc.stat_of(pid)[proc.STATE :][:1] == ["T"]


class Box:
    """A world with a server and a client in its project."""

    def __init__(self, inside: Sandbox) -> None:
        self.inside = inside
        self.server = inside.world.home / "server.py"
        self.server.write_text(SERVER)
        self.client = inside.world.project / "client.py"
        self.client.write_text(CLIENT)
        inside.write_profile("gated", PROFILE)
        inside.variables["ANTHROPIC_API_KEY"] = "canary-key"
        self.options = ("--read", str(self.server))

    @property
    def command(self) -> list[str]:
        return [SYSTEM_PYTHON, str(self.server)]

    def approve(self, name: str, command: Sequence[str]) -> None:
        server = Server(name, "", "", "", STDIO, command=command[0], args=tuple(command[1:]))
        found = starting.identify(server, self.inside.world.environment(), self.inside.world.project)
        assert found is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MCPGUARD_HOME", str(self.inside.world.state))
            approved.approve(name, "test", found, ())

    def talk(self, name: str, *lines: str, command: Sequence[str] | None = None, guarded: bool = True) -> Finished:
        python = mcpguard_command()[0] if guarded else ""
        shim = SHIM if guarded else ""
        words = [
            SYSTEM_PYTHON,
            str(self.client),
            python,
            shim,
            name,
            json.dumps(command or self.command),
            json.dumps(lines),
        ]
        return self.inside.run(words, options=self.options) if guarded else self.inside.control(words)

    def gates(self) -> list[int]:
        """Gates of this world's sessions that live now."""
        home, found = f"MCPGUARD_HOME={self.inside.world.state}".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                is_gate = b"gate/__main__.py" in (process / "cmdline").read_bytes()
                if is_gate and home in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
        return found

    def kill_the_gate(self) -> None:
        """From outside, for nobody inside can."""
        for gate in self.gates():
            os.kill(gate, signal.SIGKILL)

    def mcp_events(self) -> list[Json]:
        return self.inside.events(None, "--kind", "mcp")


def write_launched_agent(project: Path, code: str) -> None:
    """An agent as npm lays it out: `codex`, which only launches, and a program of its own that runs this code."""
    native = project / "node_modules/@openai/codex-linux-x64/vendor/bin/codex"
    native.parent.mkdir(parents=True)
    shutil.copy(os.path.realpath(SYSTEM_PYTHON), native)
    with native.open("ab") as file:
        file.write(b"another program than Python")
    (project / "agent.py").write_text(code)
    launcher = project / "codex"
    launcher.write_text(f'#!/bin/sh\n{native} agent.py "$@"\nexit\n')
    launcher.chmod(0o755)
