"""A real agent with MCP servers: those that its user approved work under the rules, the others do not start, and it goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from agent_run import SERVE, WAIT, WAITS, Agent, agent, far, results_of
from harness import SYSTEM_PYTHON, Finished, Json, need_root
from test_mcp_servers import everything_by_npx

from mcpguard.catalogue import approved, starting
from mcpguard.catalogue.clients import inventory

pytestmark = [pytest.mark.kernel, pytest.mark.agent]
PROFILE = """\
name: gated
extends: [claude-code]
mcp:
  gate: true
  allow: ["*"]
  deny:
    - tool: "*/forbidden"
      because: nobody may
    - tool: real/get-env
"""
SERVER = (
    """
import json, os, sys
LISTED = ("echo", "forbidden", "get-env")
heard = open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "project", f"heard-{sys.argv[1]}"), "ab")

def note(line):
    heard.write(line)
    heard.flush()

def called(name, given):
    return json.dumps(dict(os.environ)) if name == "get-env" else "echo " + json.dumps(given)
"""
    + SERVE
)
CALLS: tuple[tuple[str, Json], ...] = (
    ("mcp__good__echo", {"text": "hello \u00e9"}),
    ("mcp__good__forbidden", {}),
    ("mcp__good__get-env", {}),
    ("mcp__stranger__echo", {"text": "x"}),
    ("Bash", {"command": "echo still here"}),
    ("mcp__far__echo", {"text": "hello"}),
    ("mcp__far__forbidden", {}),
    ("mcp__real__echo", {"message": "hello"}),
    ("mcp__real__get-env", {}),
)


@dataclass
class Story:
    """One session of the agent.

    Attributes:
        heard: what each server received, by its name.
    """

    agent: Agent
    finished: Finished
    results: list[Json]
    events: list[Json]
    heard: dict[str, bytes]


def tell(guarded: bool) -> Iterator[Story]:
    need_root()
    with agent() as driven, far(driven.world.root / "heard-far") as address:
        world = driven.world
        server = world.root / "server.py"
        server.write_text(SERVER)
        words = {name: {"command": SYSTEM_PYTHON, "args": [str(server), name]} for name in ("good", "stranger")}
        settings = world.home / ".claude.json"
        known = json.loads(settings.read_text()) if settings.exists() else {}
        npx, *arguments = everything_by_npx(world.home)
        driven.sandbox.variables |= {"npm_config_offline": "true", **WAITS}
        mine = {
            "good": {**words["good"], "env": {"DECLARED": "yes"}},
            "far": {"type": "http", "url": address},
            "real": {"command": npx, "args": arguments},
        }
        settings.write_text(json.dumps({**known, "mcpServers": mine}))
        # What a repository brings; the person said yes to it once, in the agent's own dialogue.
        (world.project / ".mcp.json").write_text(json.dumps({"mcpServers": {"stranger": words["stranger"]}}))
        (world.home / ".claude").mkdir(exist_ok=True)
        (world.home / ".claude/settings.json").write_text(json.dumps({"enableAllProjectMcpServers": True}))
        driven.sandbox.write_profile("gated", PROFILE)
        for name in mine:
            approve(driven, name)
        prompt = " ".join(f"<<call {tool} {json.dumps(arguments)}>>" for tool, arguments in (WAIT, *CALLS))
        allowed = ",".join(tool for tool, _ in CALLS)
        command = ["claude", "-p", "--output-format", "json", "--allowedTools", allowed, "--", prompt]
        if guarded:
            net = f"127.0.0.1:{driven.model_port}"
            options = ["-w", str(world.project), "--net", net, "--read", str(server)]
            finished = driven.sandbox.mcpguard("run", "-p", "gated", *options, "--", *command)
        else:
            finished = driven.sandbox.control(command)
        events = driven.sandbox.events(None, "--kind", "mcp") if guarded else []
        files = [*world.project.glob("heard-*"), world.root / "heard-far"]
        heard = {path.name.removeprefix("heard-"): path.read_bytes() for path in files}
        yield Story(driven, finished, results_of(finished)[1:], events, heard)


def approve(driven: Agent, name: str) -> None:
    environment = driven.world.environment(**driven.sandbox.variables)
    project = driven.world.project
    (server,) = (one for one in inventory(project, environment).servers if one.name == name)
    found = starting.identify(server, environment, project)
    assert found is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCPGUARD_HOME", str(driven.world.state))
        approved.approve(name, server.place, found, tuple(server.env))


@pytest.fixture(scope="module")
def control() -> Iterator[Story]:
    yield from tell(guarded=False)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Story]:
    yield from tell(guarded=True)


def calls(heard: bytes) -> list[Json]:
    """The calls among the messages that a server received, without what differs from run to run."""
    messages = [json.loads(line) for line in heard.splitlines()]
    return [{**m["params"], "_meta": None} for m in messages if m.get("method") == "tools/call"]


def test_without_mcpguard_every_server_starts_and_every_call_is_answered(control: Story) -> None:
    assert not any(result["error"] for result in control.results), control.results
    assert "x" in control.results[2]["text"] and "ANTHROPIC_API_KEY" in control.results[2]["text"]


def test_an_allowed_call_reaches_the_server_as_it_was_made(control: Story, guarded: Story) -> None:
    assert guarded.results[0] == control.results[0]
    assert calls(guarded.heard["good"]) == [one for one in calls(control.heard["good"]) if one["name"] != "forbidden"]


def test_a_denied_tool_is_refused_and_the_agent_goes_on(guarded: Story) -> None:
    assert guarded.results[1]["error"], guarded.results[1]
    assert not guarded.results[4]["error"] and "still here" in guarded.results[4]["text"]


def test_the_servers_environment_holds_no_key_of_the_agent(guarded: Story) -> None:
    seen = json.loads(guarded.results[2]["text"])
    assert seen["DECLARED"] == "yes" and "ANTHROPIC_API_KEY" not in seen, seen


def test_a_server_that_nobody_approved_does_not_start_and_the_agent_answers(guarded: Story) -> None:
    assert guarded.results[3]["error"] and "stranger" not in guarded.heard
    assert "nobody approved" in guarded.finished.err and "stranger" in guarded.finished.err
    refused = [e for e in guarded.events if e["op"] == "refuse"]
    assert refused and all(e["mcp"]["server"] == "stranger" for e in refused), guarded.events


def test_each_call_is_on_record_once_with_its_answer(guarded: Story) -> None:
    # Local and remote servers come to the record by two ways.
    made = sorted((e for e in guarded.events if e["mcp"].get("method") == "tools/call"), key=lambda e: e["time"])
    asked = [e for e in made if e["op"] == "request" and e["verdict"] == "allow"]
    answered = [e for e in made if e["op"] == "response"]
    told = [(e["mcp"]["server"], e["mcp"]["tool"], e["mcp"]["transport"]) for e in asked]
    assert told == [
        ("good", "echo", "stdio"),
        ("good", "get-env", "stdio"),
        ("far", "echo", "http"),
        ("real", "echo", "stdio"),
    ]
    assert [e["mcp"]["call"] for e in answered] == [e["mcp"]["call"] for e in asked]


def test_a_remote_server_is_called_by_way_of_the_gate(control: Story, guarded: Story) -> None:
    assert guarded.results[5] == control.results[5] and not control.results[6]["error"]
    assert guarded.results[6]["error"], guarded.results[6]
    unguarded = calls(control.heard["far"])
    assert [one["name"] for one in unguarded] == ["echo", "forbidden"]
    assert calls(guarded.heard["far"]) == unguarded[:1]


def test_a_server_of_npx_works_and_what_is_denied_of_it_does_not(control: Story, guarded: Story) -> None:
    assert "hello" in control.results[7]["text"] and guarded.results[7] == control.results[7]
    assert guarded.results[8]["error"] and "ANTHROPIC_API_KEY" not in guarded.results[8]["text"]


def test_the_users_files_are_as_they_were(guarded: Story) -> None:
    world = guarded.agent.world
    assert "shim" not in Path(world.home / ".claude.json").read_text() + (world.project / ".mcp.json").read_text()
