"""A real agent whose profile names its model by a host name, and no address: the whole way from the look-up to the answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_run import Agent, agent
from harness import REPOSITORY, Json, need_root
from netlab import site
from test_names_run import EVIL, OK, Town, town  # noqa: F401
from test_names_run import PORT as OPEN_PORT

sys.path.insert(0, str(REPOSITORY / "demo"))
from fake_model import Handler

pytestmark = [pytest.mark.kernel, pytest.mark.agent]

MODEL, OTHER = "api.model.test", "secret-data.model.test"
PORT = 8090


@pytest.fixture
def driven(town: Town, tmp_path: Path) -> Iterator[Agent]:  # noqa: F811
    """The agent in the town, where the model is at a public address that only a name leads to."""
    need_root()
    town.server.records |= {MODEL: [f"60 A {OK}"], OTHER: [f"60 A {EVIL}"]}
    handler = type("LoggingHandler", (Handler,), {"log_path": tmp_path / "requests.jsonl"})
    with site(town.name, (OK, PORT), handler), agent() as made:
        made.requests = tmp_path / "requests.jsonl"
        made.sandbox.prefix = town.prefix
        made.sandbox.variables["ANTHROPIC_BASE_URL"] = f"http://{MODEL}:{PORT}"
        yield made


def test_the_agent_reaches_its_model_by_name_and_nobody_else(town: Town, driven: Agent) -> None:  # noqa: F811
    acts: dict[str, tuple[str, Json]] = {
        "honest": ("Bash", {"command": "echo made > made.txt && cat made.txt"}),
        "another name": ("Bash", {"command": f"exec 3<>/dev/tcp/{OTHER}/{OPEN_PORT} && echo connected"}),
        "its address": ("Bash", {"command": f"exec 3<>/dev/tcp/{EVIL}/{OPEN_PORT} && echo connected"}),
        "the model's other port": ("Bash", {"command": f"exec 3<>/dev/tcp/{MODEL}/{OPEN_PORT} && echo connected"}),
    }
    outside = dict(zip(acts, driven.ask(*acts.values(), guarded=False)[1], strict=True))
    assert not any(result["error"] for result in outside.values()), outside
    assert OTHER in town.server.names()
    town.server.asked.clear()
    town.server.raw.clear()
    driven.requests.unlink()
    inside = driven.ask_by(f"{MODEL}:{PORT}", *acts.values())[1]
    refused = {name: result["error"] for name, result in zip(acts, inside, strict=True)}
    assert refused == {"honest": False, "another name": True, "its address": True, "the model's other port": True}
    assert driven.requests.read_text().count("/v1/messages") >= len(acts)
    assert MODEL in town.server.names()
    assert not [raw for raw in town.server.raw if b"secret" in raw]
    events = driven.sandbox.events()
    by_name = [event for event in events if event["kind"] == "net" and event.get("port") == PORT]
    assert {(event["verdict"], event["host"], event["address"]) for event in by_name} == {("allow", MODEL, OK)}
    asked = {(event["host"], event["verdict"]) for event in events if event["kind"] == "dns"}
    assert {(MODEL, "allow"), (OTHER, "deny")} <= asked
