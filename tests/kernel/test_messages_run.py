"""A session's record of MCP: every message of real programs once, with its pair, whatever it went over and however large."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest
from harness import ACTORS, SYSTEM_PYTHON, Json, Sandbox, need_root, sandbox

pytestmark = pytest.mark.kernel

ACTOR = ACTORS / "mcp_pair.py"
SIZES = (0, 10, 200, 0, 100_000, 70, 1, 1_000_000)
TOO_LONG = 1 << 20


@pytest.fixture(autouse=True)
def _root() -> None:
    need_root()


def spoken(box: Sandbox, way: str, *sizes: int) -> list[Json]:
    actor = shutil.copy(ACTOR, box.world.project)
    words = [SYSTEM_PYTHON, actor, "client", way, *map(str, sizes)]
    assert box.control(words).out == "done\n"
    finished = box.run(words, options=["--net", "127.0.0.1:1024-65535"])
    assert finished.out == "done\n", finished.err
    return box.events(None, "--kind", "mcp")


def pairs(events: list[Json], sender: str) -> dict[int, list[Json]]:
    """What one side asked, by id: each request with what came of it."""
    calls: dict[str, list[Json]] = {}
    for event in events:
        calls.setdefault(event["mcp"].get("call", "none"), []).append(event)
    assert all(len(found) == 2 for found in calls.values()), Counter(map(len, calls.values()))
    asked = [found for found in calls.values() if found[0]["mcp"]["sender"] == sender]
    return {found[0]["mcp"]["id"]: found for found in asked}


@pytest.mark.parametrize("way", ["pipes", "one", "three", "http", "sse"])
def test_every_call_is_on_record_once_with_its_answer(way: str) -> None:
    with sandbox() as box:
        events = spoken(box, way, *SIZES)
        assert box.events(None, "--kind", "loss") == []
    found = pairs(events, "client")
    assert sorted(found) == list(range(len(SIZES)))
    for id, size in enumerate(SIZES):
        asked, answered = found[id]
        assert (asked["op"], answered["op"]) == ("request", "response")
        assert {one["mcp"]["tool"] for one in found[id]} == {f"tool-{id}"}
        assert size < answered["mcp"]["result_bytes"] < size + 200
        assert asked["pid"] == asked["mcp"]["client"]["pid"] != asked["mcp"]["peer"]["pid"] == answered["pid"]
        assert asked["mcp"]["client"]["exe"].startswith("/usr/bin/python3")
    transport = {"http": "http", "sse": "sse"}.get(way, "stdio")
    assert {answered["mcp"]["transport"] for _, answered in found.values()} == {transport}
    names = {event["mcp"]["server"] for event in events}
    assert names == {"mcp_pair"} if transport == "stdio" else next(iter(names)).endswith("/mcp") and len(names) == 1
    if transport == "stdio":
        assert sorted(pairs(events, "server")) == list(range(len(SIZES)))


def test_one_that_is_too_long_is_counted_and_the_others_are_on_record() -> None:
    with sandbox() as box:
        events = spoken(box, "pipes", 5, 6, TOO_LONG, 7)
        losses = box.events(None, "--kind", "loss")
    whole = Counter(event["mcp"].get("tool") for event in events if event["op"] == "request")
    assert {tool for tool in whole if tool} == {"tool-0", "tool-1", "tool-3"}
    # It, and its answer.
    assert [loss["count"] for loss in losses if "seen whole" in loss["detail"]] == [1, 1] and len(losses) == 2


def test_sessions_without_mcp_have_none() -> None:
    with sandbox() as box:
        assert box.run(["sh", "-c", "seq 100000 | sort | tail -1; echo '{\"a\":1}' | cat"]).code == 0
        assert box.events(None, "--kind", "mcp") == []
