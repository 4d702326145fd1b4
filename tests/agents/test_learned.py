"""The loop, closed with a real agent: audit its work under a profile that knows nothing of it, learn, and run it enforced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from agent_run import Agent, agent, results_of
from harness import Finished, Json, need_root

pytestmark = [pytest.mark.kernel, pytest.mark.agent]
NARROW = """\
name: narrow
extends: [base]
files:
  read: [~/.local]
  execute: [~/.local]
environment:
  keep: [ANTHROPIC_API_KEY]
"""
WORK: tuple[tuple[str, Json], ...] = (
    ("Bash", {"command": "echo 'print(greet(\"you\"))' >> app.py && python3 app.py"}),
    ("Write", {"file_path": "notes.md", "content": "# Notes\n"}),
    ("Bash", {"command": "git add -A && git commit -qm Change && git log --format=%s -1"}),
)
KEY = ("Bash", {"command": "cat ~/.ssh/id_ed25519"})


@dataclass
class Loop:
    """The same work of the same agent: enforced before, audited, and enforced after learning."""

    agent: Agent
    before: Finished
    refused: list[Json]
    audited: list[Json]
    told: Finished
    after: list[Json]
    events: list[Json]


def work(driven: Agent, profile: str, *options: str, limit: str = "60") -> Finished:
    calls = [
        (tool, {k: v.replace("notes.md", f"{driven.world.project}/notes.md") for k, v in a.items()}) for tool, a in WORK
    ]
    prompt = " ".join(f"<<call {tool} {json.dumps(arguments)}>>" for tool, arguments in (*calls, KEY))
    words = [
        "timeout",
        limit,
        "claude",
        "-p",
        "--output-format",
        "json",
        "--allowedTools",
        "Bash,Read,Edit,Write",
        "--",
        prompt,
    ]
    return driven.sandbox.mcpguard("run", *options, "-p", profile, "-w", str(driven.world.project), "--", *words)


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    need_root()
    with agent() as driven:
        driven.sandbox.write_profile("narrow", NARROW)
        # Without its server it would try for minutes.
        before = work(driven, "narrow", limit="8")
        refused = driven.sandbox.denials()
        audited = results_of(work(driven, "narrow", "--audit"))
        told = driven.sandbox.mcpguard("profile", "learn", "--install", "--yes", "--name", "learned")
        assert told.code == 0, told.err
        driven.world.git("reset", "-q", "--hard", "HEAD~1")
        after = results_of(work(driven, "learned"))
        yield Loop(driven, before, refused, audited, told, after, driven.sandbox.events())


def test_the_agent_cannot_work_before_anything_was_learned(loop: Loop) -> None:
    assert loop.before.code != 0 and not loop.before.out, loop.before
    port = loop.agent.model_port
    assert [event["rule"]["text"] for event in loop.refused if event.get("port") == port][:1] == ["no rule allows it"]


def test_it_does_all_its_work_with_what_was_learned(loop: Loop) -> None:
    assert [result["error"] for result in loop.audited] == [False, False, False, True], loop.audited
    assert [result["error"] for result in loop.after] == [False, False, False, True], loop.after
    assert (loop.agent.world.project / "notes.md").read_text() == "# Notes\n"


def test_nothing_but_the_key_is_refused(loop: Loop) -> None:
    loud = [e for e in loop.events if e["verdict"] == "deny" and not e.get("detail", "").startswith("quiet")]
    assert {e.get("path", "").rpartition("/")[2] for e in loud} == {"id_ed25519"}, loud


def test_the_key_was_left_out_and_the_servers_address_learned(loop: Loop) -> None:
    assert "/.ssh/id_ed25519" in loop.told.err and "left out" in loop.told.err
    written = (loop.agent.world.state / "config/profiles/learned.yaml").read_text()
    assert ".ssh" not in written and f"localhost:{loop.agent.model_port}" in written
    assert loop.agent.world.canaries[loop.agent.world.home / ".ssh/id_ed25519"] not in loop.agent.requests.read_text()
