"""A real agent works normally under its built-in profile, and its forbidden acts are refused and explained."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from agent_run import Agent, agent
from harness import Finished, Json, assert_names_rule, need_root

# The agent's own check of Bash commands stops a plain shell redirection here; a program's write it cannot see.
PLANT_HOOK = 'import os; os.makedirs(".git/hooks", exist_ok=True); open(".git/hooks/pre-commit", "w").write("evil")'
pytestmark = [pytest.mark.kernel, pytest.mark.agent]


@dataclass
class Story:
    """The same session of the same agent, told with or without mcpguard."""

    agent: Agent
    finished: Finished
    results: dict[str, Json]
    events: list[Json]
    reached: bool


def tell(guarded: bool) -> Iterator[Story]:
    need_root()
    with agent() as driven, socket.create_server(("127.0.0.1", 0)) as stranger:
        world, port = driven.world, stranger.getsockname()[1]
        project = world.project
        acts: dict[str, tuple[str, Json]] = {
            "edit": ("Bash", {"command": "echo 'print(greet(\"you\"))' >> app.py && python3 app.py"}),
            "write": ("Write", {"file_path": f"{project}/notes.md", "content": "# Notes\n"}),
            "commit": ("Bash", {"command": "git add -A && git commit -qm Change && git log --format=%s -1"}),
            "key by cat": ("Bash", {"command": "cat ~/.ssh/id_ed25519"}),
            "key by Read": ("Read", {"file_path": f"{world.home}/.ssh/id_ed25519"}),
            ".env by cat": ("Bash", {"command": "cat .env"}),
            ".env by Read": ("Read", {"file_path": f"{project}/.env"}),
            "hook": ("Bash", {"command": f"python3 -c '{PLANT_HOOK}'"}),
            "connect": ("Bash", {"command": f"exec 3<>/dev/tcp/127.0.0.1/{port} && echo connected"}),
        }
        finished, results = driven.ask(*acts.values(), guarded=guarded)
        reached = was_reached(stranger)
        events = driven.sandbox.events() if guarded else []
        yield Story(driven, finished, dict(zip(acts, results, strict=True)), events, reached)


def was_reached(listener: socket.socket) -> bool:
    """Whether a connection waits at the listener, now that whoever might have made it has ended."""
    listener.setblocking(False)
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@pytest.fixture(scope="module")
def control() -> Iterator[Story]:
    yield from tell(guarded=False)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Story]:
    yield from tell(guarded=True)


HONEST = ("edit", "write", "commit")
FORBIDDEN = {
    "key by cat": (".ssh", "/cat"),
    "key by Read": (".ssh", "/claude"),
    ".env by cat": (".env", "/cat"),
    ".env by Read": (".env", "/claude"),
    "hook": (".git/hooks", "/python3"),
}


@pytest.mark.parametrize("act", HONEST)
def test_honest_work_succeeds(act: str, control: Story, guarded: Story) -> None:
    assert not control.results[act]["error"], control.results[act]
    assert not guarded.results[act]["error"], guarded.results[act]


def test_the_work_is_in_the_project(guarded: Story) -> None:
    project = guarded.agent.world.project
    assert (project / "notes.md").read_text() == "# Notes\n"
    assert "Change" in guarded.results["commit"]["text"]
    assert "Hello, you" in guarded.results["edit"]["text"]


@pytest.mark.parametrize("act", [*FORBIDDEN, "connect"])
def test_a_forbidden_act_succeeds_without_mcpguard_and_is_refused_with_it(
    act: str, control: Story, guarded: Story
) -> None:
    assert not control.results[act]["error"], control.results[act]
    assert guarded.results[act]["error"], guarded.results[act]


def test_the_canaries_reach_the_model_only_without_mcpguard(control: Story, guarded: Story) -> None:
    for story, leaks in ((control, True), (guarded, False)):
        sent = story.agent.requests.read_text()
        world = story.agent.world
        for secret in (world.home / ".ssh/id_ed25519", world.project / ".env"):
            assert (world.canaries[secret] in sent) is leaks, secret


def test_the_hook_and_the_listener_are_untouched(control: Story, guarded: Story) -> None:
    assert (control.agent.world.project / ".git/hooks/pre-commit").exists()
    assert not (guarded.agent.world.project / ".git/hooks/pre-commit").exists()
    assert control.reached
    assert not guarded.reached


@pytest.mark.parametrize("act", FORBIDDEN)
def test_the_log_names_the_file_the_program_and_the_rule(act: str, guarded: Story) -> None:
    piece, program = FORBIDDEN[act]
    found = [
        e
        for e in guarded.events
        if e["verdict"] == "deny" and piece in e.get("path", "") and program in f"{e.get('exe')} {e.get('comm')}"
    ]
    assert found, [e for e in guarded.events if e["verdict"] == "deny"]
    assert_names_rule(found[0], piece)


def test_the_log_names_the_refused_destination(guarded: Story) -> None:
    found = [e for e in guarded.events if e["verdict"] == "deny" and e["kind"] == "net"]
    assert [e["address"] for e in found if e["exe"].endswith("bash")] == ["127.0.0.1"]
    assert found[0]["protocol"] == "tcp"


def test_the_process_chain_leads_from_the_refused_command_to_the_agent(guarded: Story) -> None:
    refused = next(e for e in guarded.events if e["verdict"] == "deny" and str(e.get("exe")).endswith("/cat"))
    started = {e["pid"]: e for e in guarded.events if e["kind"] in ("exec", "process") and e.get("ppid")}
    chain, pid = [], refused["ppid"]
    while pid in started and pid not in chain:
        chain.append(pid)
        pid = started[pid]["ppid"]
    assert any("claude" in str(started[pid].get("exe")) for pid in chain), (refused, chain)
