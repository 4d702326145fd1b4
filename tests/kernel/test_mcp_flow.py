"""What a session has read counts for what it may send; and a tool that does other things than it says is told."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from harness import Json, need_root, sandbox
from mcp_box import PROFILE, SERVER, Box, tool

pytestmark = pytest.mark.kernel
KEY = "ghp_0123456789abcdefghij0123456789abcdef"


@pytest.fixture
def box() -> Iterator[Box]:
    need_root()
    with sandbox() as inside:
        made = Box(inside)
        made.approve("s", made.command)
        yield made


def asked(events: list[Json], tool: str) -> list[Json]:
    return [one for one in events if one["op"] == "request" and one["mcp"].get("tool") == tool]


def test_after_a_credential_was_seen_in_a_result_nothing_is_changed_without_the_user(box: Box) -> None:
    project = box.inside.world.project
    (project / "notes").write_text(f"the deploy key is {KEY}\n")
    lines = [
        tool("write", 1, path=str(project / "before")),
        tool("read", 2, path=str(project / "notes")),
        tool("write", 3, path=str(project / "after")),
        tool("read", 4, path=str(project / "notes")),
    ]
    rules = "  classes: {read: [s/read], write: [s/write]}\n"
    box.inside.write_profile("gated", PROFILE + rules)
    free = box.talk("s", *lines).json_lines()[:4]
    assert all("result" in answer for answer in free) and (project / "after").exists(), "without the flow rule"
    (project / "after").unlink()
    box.inside.write_profile("gated", PROFILE + rules + "  flow: {then: ask}\n")
    answers = box.talk("s", *lines).json_lines()[:4]
    assert ["result" in answer for answer in answers] == [True, True, False, True]
    assert "credential" in answers[2]["error"]["message"] and not (project / "after").exists()
    events = box.mcp_events()
    first, second = asked(events, "write")
    assert (first["verdict"], second["verdict"]) == ("allow", "deny")
    assert (second["rule"]["file"], second["rule"]["text"]) == (first["rule"]["file"], "mcp flow then ask")
    assert second["rule"]["line"] > first["rule"]["line"], "the line of the flow, and not the one that allows the tool"
    assert first["mcp"]["classes"] == second["mcp"]["classes"] == "write"
    seen = next(one for one in events if one["op"] == "response" and one["mcp"]["tool"] == "read")
    assert "credential" in seen["detail"] and KEY not in str(events)


def test_what_needs_a_persons_word_is_not_learned_and_stays_when_the_rest_is(box: Box) -> None:
    """Learning is of files and networks: a call that was refused, or needed a word, is no rule that a person forgot."""
    inside, project = box.inside, box.inside.world.project
    rules = PROFILE + "  ask:\n    - tool: s/write\n      because: it changes things\n"
    inside.write_profile("gated", rules)
    store = inside.world.home / "elsewhere"
    store.write_text("read by a session")
    lines = [tool("read", 1, path=str(store)), tool("write", 2, path=str(project / "made")), tool("forbidden", 3)]
    refused, asked, denied = box.talk("s", *lines).json_lines()[:3]
    assert (
        "refused: 13" in json.dumps(refused) and "mcp.ask" in json.dumps(asked) and "nobody may" in json.dumps(denied)
    )
    unused = inside.mcpguard("profile", "learn", "--tighten")
    assert unused.code == 0 and "s/write" not in unused.out and "forbidden" not in unused.out, unused
    told = inside.mcpguard("profile", "learn", "--install", "--yes")
    assert told.code == 0 and "+ files.read" in told.err and "s/write" not in told.out + told.err, told
    assert "2 calls of MCP tools were refused or needed your word, and are not learned" in told.err, told
    assert inside.mcpguard("profile", "check", "gated").code == 0
    shown = inside.mcpguard("profile", "show", "gated").out
    assert "ask:" in shown and "because: it changes things" in shown and "elsewhere" in shown, shown
    read, again, _ = box.talk("s", *lines).json_lines()[:3]
    assert (
        "read by a session" in json.dumps(read) and "mcp.ask" in json.dumps(again) and not (project / "made").exists()
    )
    data = json.loads(inside.mcpguard("profile", "learn", "--format", "json").out)
    assert data["calls"] == 2 and data["added"] == []


def test_a_reading_tool_that_writes_or_sends_or_opens_another_file_is_a_mismatch_in_the_log(box: Box) -> None:
    project = box.inside.world.project
    swap = '"swap": lambda: open(arguments["path"].replace("a.txt", "b.txt")).read(),'
    box.server.write_text(SERVER.replace('"read": lambda', f'{swap} "read": lambda'))
    box.approve("s", box.command)
    rules = "  classes: {read: [s/read, s/write, s/connect, s/swap]}\n"
    box.inside.write_profile("gated", PROFILE + rules)
    for name in ("named", "a.txt", "b.txt"):
        (project / name).write_text("text")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        box.options = (*box.options, "--net", f"127.0.0.1:{port}")
        lines = [
            tool("read", 1, path=str(project / "named")),
            tool("write", 2, path=str(project / "changed")),
            tool("connect", 3, host="127.0.0.1", port=port),
            tool("swap", 4, path=str(project / "a.txt")),
        ]
        answers = box.talk("s", *lines).json_lines()[:4]
    assert all("refused" not in str(answer) for answer in answers), answers
    told = []
    for one in box.mcp_events():
        if one["op"] == "request":
            assert one["mcp"]["classes"] == "read"
            said = box.inside.mcpguard("log", "--call", one["mcp"]["call"]).err
            told.append([line.removeprefix("mismatch: ") for line in said.splitlines() if "mismatch" in line])
            marked = box.inside.mcpguard("log", "--call", one["mcp"]["call"], "--format", "json").json_lines()
            assert {event["mismatch"] for event in marked if "mismatch" in event} == set(told[-1])
    assert told[0] == []
    assert len(told[1]) == 1 and "changed: a tool that only reads changed it" in told[1][0]
    assert len(told[2]) == 1 and f"127.0.0.1:{port}: a tool that only reads sent something" in told[2][0]
    assert len(told[3]) == 1 and "b.txt: the call does not name it" in told[3][0], told
    reported = json.loads(box.inside.mcpguard("report", "--format", "json").out)["mismatches"]
    assert [one["words"] for one in reported] == [line for lines in told for line in lines]
    assert "mismatch in call" in box.inside.mcpguard("report").out
