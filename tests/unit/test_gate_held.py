"""Calls that need a person's word: held while somebody watches, refused in every other case, and judged anew at the end."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gate_help import PYTHON, SERVER, World, call, gate, rule

from mcpguard.gate import held
from mcpguard.mcp.judge import BLOCKED
from mcpguard.mcp.policy import Pattern
from mcpguard.model.access import Effect
from mcpguard.model.mcp import AfterTaint, McpKind

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """The session has read what strangers wrote; `echo` changes something."""
    with gate(tmp_path) as made:
        made.taint.note("web/fetch")
        made.classes |= {"echo": ["write"], "environment": ["read"]}
        untrusted = (Pattern("web", (McpKind.TOOL,), "fetch", ""),)
        made.policy = dataclasses.replace(made.policy, untrusted=untrusted, after_taint=AfterTaint.ASK)
        yield made


class Agent:
    """One server, started by its shim."""

    def __init__(self, world: World, folder: Path) -> None:
        path = folder / "server.py"
        path.write_text(SERVER)
        self.process: subprocess.Popen[bytes] = world.start("s", [PYTHON, str(path)])

    def say(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@pytest.fixture
def agent(world: World, tmp_path: Path) -> Iterator[Agent]:
    made = Agent(world, tmp_path)
    yield made
    made.process.kill()
    made.process.wait()
    for stream in (made.process.stdin, made.process.stdout, made.process.stderr):
        if stream is not None:
            stream.close()


def test_a_held_call_goes_on_when_it_is_allowed_and_others_pass_it_meanwhile(world: World, agent: Agent) -> None:
    world.tell(watched=True)
    agent.say(call("environment", id=1))
    assert agent.hear()["id"] == 1
    agent.say(call("echo", {"token": "canary-secret", "to": "all"}, id=2))
    waits = world.waits()
    assert waits["server"] == "s" and waits["tool"] == "echo" and waits["classes"] == "write"
    assert json.loads(waits["arguments"]) == {"token": "***", "to": "all"}
    assert "web/fetch" in waits["why"]
    agent.say(call("environment", id=3))
    assert agent.hear()["id"] == 3
    assert not [one for one in world.events("request") if one.mcp.tool == "echo"]
    world.tell(call=waits["call"], answer="once", who="watch[7]")
    assert "canary-secret" in agent.hear()["result"]["content"][0]["text"]
    asked = world.wait_for("request", "allowed once in watch, by watch[7]")
    assert (asked.verdict.value, asked.mcp.call) == ("allow", waits["call"])
    # Once is once.
    agent.say(call("echo", {"to": "all"}, id=4))
    again = world.waits()
    world.tell(call=again["call"], answer="refused", who="watch[7]")
    error = agent.hear()["error"]
    assert error["code"] == BLOCKED and again["call"] in error["message"] and "refused in watch" in error["message"]
    # And the very same call is no question any more.
    agent.say(call("echo", {"to": "all"}, id=5))
    assert "refused in watch before" in agent.hear()["error"]["message"]


def test_an_answer_for_the_session_holds_for_this_tool_and_not_past_a_rule(world: World, agent: Agent) -> None:
    world.tell(watched=True)
    agent.say(call("echo", {"n": 1}, id=1))
    world.tell(call=world.waits()["call"], answer="session", who="watch[7]")
    assert "result" in agent.hear()
    for number, tool in ((2, "echo"), (3, "forbidden")):
        agent.say(call(tool, {"n": number}, id=number))
        assert ("result" in agent.hear()) == (tool == "echo")
    agent.say(call("other", {}, id=4))  # nobody described it
    assert world.waits()["tool"] == "other"


def test_what_a_rule_asks_for_is_asked_each_time_and_refused_in_four_lines_where_nobody_watches(
    world: World, agent: Agent
) -> None:
    """Though nothing was read before; a word for the session lets this call go on, and the next one is asked for."""
    world.taint.sources.clear()
    world.policy = dataclasses.replace(
        world.policy, rules=(*world.policy.rules, rule(Effect.ASK, "s", "environment")), after_taint=AfterTaint.ALLOW
    )
    agent.say(call("environment", {"n": 0}, id=1))
    lines = agent.hear()["error"]["message"].splitlines()
    assert len(lines) == 4 and "nobody watches" in lines[1] and lines[3].endswith("mcp.ask")
    world.tell(watched=True)
    for number in (2, 3):
        agent.say(call("environment", {"n": number}, id=number))
        waits = world.waits()
        assert waits["tool"] == "environment" and "test.yaml" not in waits["why"]
        world.tell(call=waits["call"], answer="session", who="watch[7]")
        assert agent.hear()["id"] == number
    asked = [one for one in world.events("request") if one.mcp.tool == "environment"]
    assert {one.rule.line for one in asked if one.rule} == {7}


def test_who_is_asked_is_told_when_they_do_not_see_all_of_it(world: World, agent: Agent) -> None:
    world.tell(watched=True)
    agent.say(call("echo", {"text": "harmless " * 1000 + "rm -rf /"}))
    waits = world.waits()
    assert "longer than what is shown" in waits["why"] and len(waits["arguments"]) < 5000


def test_without_somebody_who_watches_it_is_refused_at_once(world: World, agent: Agent) -> None:
    agent.say(call("echo", id=1))
    error = agent.hear()["error"]
    assert error["code"] == BLOCKED and "nobody watches" in error["message"]
    world.tell(watched=True)
    agent.say(call("echo", id=2))
    world.waits()
    world.tell(watched=False)
    assert "nobody watches any more" in agent.hear()["error"]["message"]


def test_what_nobody_answers_is_refused_after_a_while(
    world: World, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "HELD_S", 0.1)
    world.tell(watched=True)
    agent.say(call("echo", id=1))
    assert "nobody gave it within" in agent.hear()["error"]["message"]


def test_no_more_than_a_few_are_held_and_no_id_twice(world: World, agent: Agent) -> None:
    world.tell(watched=True)
    for number in range(held.MOST_CALLS + 1):
        agent.say(call("echo", {"n": number}, id=number))
    answer = agent.hear()
    assert answer["id"] == held.MOST_CALLS and "wait for it already" in answer["error"]["message"]
    agent.say(call("environment", id=0))
    answer = agent.hear()
    assert answer["id"] == 0 and "its id waits" in answer["error"]["message"]
    agent.say(call("echo", {"n": "other"}, id=0))
    answer = agent.hear()
    assert answer["id"] == 0 and "its id waits" in answer["error"]["message"]


def test_a_cancelled_call_is_no_question_any_more_and_its_server_never_hears_of_it(world: World, agent: Agent) -> None:
    world.tell(watched=True)
    agent.say(call("echo", id="a"))
    waits = world.waits()
    params = {"requestId": "a"}
    agent.say(json.dumps({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}).encode() + b"\n")
    assert world.told is not None and json.loads(world.told.recv(1 << 16)) == {"calls": []}
    world.tell(call=waits["call"], answer="once", who="watch[7]")  # too late
    agent.say(call("environment", id="a"))  # its id is free
    answer = agent.hear()
    assert answer["id"] == "a" and "result" in answer
    assert world.wait_for("request", "nobody waits for it any more").verdict.value == "deny"


def test_when_the_agent_hangs_up_nothing_is_asked_for_it(world: World, agent: Agent) -> None:
    world.tell(watched=True)
    agent.say(call("echo", id=1))
    world.waits()
    agent.process.kill()  # the server: the agent's end of the pipe stays
    agent.process.wait()
    assert agent.process.stdin is not None and agent.process.stdout is not None
    agent.process.stdin.close()
    agent.process.stdout.close()
    assert world.wait_for("request", "its connection has ended").verdict.value == "deny"
    assert world.told is not None
    until = time.monotonic() + 60
    while json.loads(world.told.recv(1 << 16))["calls"]:
        assert time.monotonic() < until


def test_a_server_cannot_answer_what_it_was_not_asked(world: World, tmp_path: Path) -> None:
    """It may guess the id of a call that is held."""
    path = tmp_path / "guess.py"
    answer = {"jsonrpc": "2.0", "id": 1, "result": {"content": [{"type": "text", "text": "guessed"}]}}
    path.write_text(f"import sys\nfor line in sys.stdin: print({json.dumps(json.dumps(answer))}, flush=True)\n")
    process = world.start("s", [PYTHON, str(path)])
    assert process.stdin is not None and process.stdout is not None
    world.tell(watched=True)
    process.stdin.write(call("echo", id=1))
    process.stdin.flush()
    waits = world.waits()
    process.stdin.write(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
    process.stdin.flush()
    world.wait_for("notification", "nobody asked for this answer")
    world.tell(call=waits["call"], answer="refused", who="watch[7]")
    assert "error" in json.loads(process.stdout.readline())
    process.kill()
    process.communicate(timeout=60)


def test_what_the_rules_say_when_it_is_answered_counts(world: World, agent: Agent, tmp_path: Path) -> None:
    """A path that was inside when the question came may lead elsewhere when the answer comes."""
    from mcpguard.mcp.policy import Rule
    from mcpguard.model.access import Effect
    from mcpguard.model.mcp import Condition, Test
    from mcpguard.model.rule import Origin

    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "a").write_text("")
    where = (Condition("path", Test.INSIDE, (str(inside),)),)
    origin = Origin("test", "test.yaml", 7, "s/moved")
    rule = Rule(Effect.ALLOW, Pattern("t", (McpKind.TOOL,), "echo", ""), where, "", origin)
    world.policy = dataclasses.replace(world.policy, rules=(rule,))
    path = tmp_path / "server2.py"
    path.write_text(SERVER)
    process = world.start("t", [PYTHON, str(path)])
    assert process.stdin is not None and process.stdout is not None
    world.tell(watched=True)
    process.stdin.write(call("echo", {"path": str(inside / "a")}, id=1))
    process.stdin.flush()
    waits = world.waits()
    (inside / "a").unlink()
    (inside / "a").symlink_to("/etc/passwd")
    world.tell(call=waits["call"], answer="once", who="watch[7]")
    answer = json.loads(process.stdout.readline())
    assert "not what the rules allow" in answer["error"]["message"]
    process.kill()
    process.communicate(timeout=60)
