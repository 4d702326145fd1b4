"""Qwen Code with MCP servers: it is told of the gate by settings of the system, and starts its own servers no other way."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from agent_run import Agent
from harness import REPOSITORY, SYSTEM_PYTHON, Finished, Json, Sandbox, need_root
from real_agent import CACHE, AgentUnavailableError, npm_install
from test_mcp_claude import SERVER, approve, calls
from world import World

pytestmark = [pytest.mark.kernel, pytest.mark.agent]
VERSION = "0.24.4"
PROFILE = """\
name: gated
extends: [qwen-code]
mcp:
  gate: true
  allow: ["*"]
  deny:
    - tool: "*/forbidden"
      because: nobody may
environment:
  keep: [ANTHROPIC_API_KEY]
"""
# Its own choices: which model server is asked, and that nobody is asked about the tools.
SETTINGS = {
    "security": {"auth": {"selectedType": "anthropic"}},
    "model": {"name": "claude-x"},
    "general": {"enableAutoUpdate": False},
    "privacy": {"usageStatisticsEnabled": False},
}
CALLS: tuple[tuple[str, Json], ...] = (
    ("mcp__good__echo", {"text": "hello \u00e9"}),
    ("mcp__good__forbidden", {}),
    ("mcp__stranger__echo", {"text": "x"}),
    ("run_shell_command", {"command": "echo still here", "is_background": False}),
)


def installed() -> Path:
    folder = CACHE / f"qwen-code-{VERSION}"
    if not folder.exists():
        try:
            npm_install(folder, f"@qwen-code/qwen-code@{VERSION}")
        except AgentUnavailableError as missing:
            pytest.fail(f"the real agent is needed for this test: {missing}")
    return folder


@contextmanager
def qwen() -> Iterator[Agent]:
    """In the home of a new world, with a model that does what the prompt says."""
    need_root()
    with World.create() as world:
        programs = world.home / ".local"
        shutil.copytree(installed() / "node_modules", programs / "lib/node_modules", symlinks=True)
        (programs / "bin").mkdir(parents=True, exist_ok=True)
        (programs / "bin/qwen").symlink_to("../lib/node_modules/@qwen-code/qwen-code/cli-entry.js")
        requests = world.root / "requests.jsonl"
        command = [sys.executable, str(REPOSITORY / "demo/fake_model.py"), "--log", str(requests)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as model:
            assert model.stdout is not None
            port = int(model.stdout.readline())
            variables = {
                "ANTHROPIC_API_KEY": "x",
                "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}",
                "ANTHROPIC_MODEL": "claude-x",
                "QWEN_CODE_SUPPRESS_YOLO_WARNING": "1",
            }
            try:
                yield Agent(Sandbox(world, "gated", variables), port, requests)
            finally:
                model.terminate()


def results_of(finished: Finished) -> list[Json]:
    (line,) = [line for line in finished.out.splitlines() if line.startswith("DONE ")]
    results: list[Json] = json.loads(line.removeprefix("DONE "))
    return results


def test_its_servers_start_by_way_of_the_gate_and_no_other() -> None:
    with qwen() as driven:
        world = driven.world
        server = world.root / "server.py"
        server.write_text(SERVER)
        words = {name: {"command": SYSTEM_PYTHON, "args": [str(server), name]} for name in ("good", "stranger")}
        (world.home / ".qwen").mkdir()
        settings = world.home / ".qwen/settings.json"
        settings.write_text(json.dumps({**SETTINGS, "mcpServers": {"good": words["good"]}}))
        (world.project / ".mcp.json").write_text(json.dumps({"mcpServers": {"stranger": words["stranger"]}}))
        prompt = " ".join(f"<<call {tool} {json.dumps(arguments)}>>" for tool, arguments in CALLS)
        command = ["qwen", "--approval-mode", "yolo", "-p", prompt]
        free = driven.sandbox.control(command)
        assert [one["error"] for one in results_of(free)] == [False] * 4, free
        heard = {name: world.project / f"heard-{name}" for name in words}
        unguarded = calls(heard["good"].read_bytes())
        for path in heard.values():
            path.unlink()
        written = settings.read_bytes()  # it brings them up to date when it first sees them
        driven.sandbox.write_profile("gated", PROFILE)
        approve(driven, "good")
        options = ["-w", str(world.project), "--net", f"127.0.0.1:{driven.model_port}", "--read", str(server)]
        finished = driven.sandbox.mcpguard("run", "-p", "gated", *options, "--", *command)
        results = results_of(finished)
        assert [one["error"] for one in results] == [False, True, True, False], finished
        assert results[0] == results_of(free)[0] and "still here" in results[3]["text"]
        assert calls(heard["good"].read_bytes()) == [one for one in unguarded if one["name"] != "forbidden"]
        assert not heard["stranger"].exists() and "nobody approved" in finished.err
        events = driven.sandbox.events(None, "--kind", "mcp")
        made = [event for event in events if event["mcp"].get("method") == "tools/call"]
        assert [event["mcp"]["tool"] for event in made if event["op"] == "request"][:1] == ["echo"]
        assert [event["op"] for event in made if event["verdict"] == "allow"] == ["request", "response"]
        assert settings.read_bytes() == written
