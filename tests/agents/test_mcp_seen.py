"""A real agent with MCP servers and no rules about them: each message that a server heard is on record, with its answer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import pytest
from agent_run import FAR, agent, results_of
from harness import REPOSITORY, SYSTEM_PYTHON, Json, need_root, sandbox
from mcp_box import Box
from test_mcp_agents import Server, started, written
from test_mcp_agents import results_of as answers_of
from test_mcp_all_servers import AGENTS, WAITING
from test_mcp_claude import SERVER
from test_mcp_servers import case

pytestmark = [pytest.mark.kernel, pytest.mark.agent]
LONG = "x" * 100_000
CALLS: tuple[tuple[str, Json], ...] = (
    ("mcp__one__echo", {"text": "hello \u00e9"}),
    ("mcp__two__echo", {"text": "the other"}),
    ("mcp__one__echo", {"text": LONG}),
    ("mcp__one__forbidden", {"api_key": "0123456789"}),
)


@pytest.fixture(scope="module")
def seen() -> Iterator[tuple[list[Json], dict[str, list[Json]]]]:
    """Events of kind mcp, and what each server heard."""
    need_root()
    with agent() as driven:
        world = driven.world
        server = world.root / "server.py"
        server.write_text(SERVER)
        servers = {name: {"command": SYSTEM_PYTHON, "args": [str(server), name]} for name in ("one", "two")}
        settings = world.home / ".claude.json"
        known = json.loads(settings.read_text()) if settings.exists() else {}
        settings.write_text(json.dumps({**known, "mcpServers": servers}))
        prompt = " ".join(f"<<call {tool} {json.dumps(arguments)}>>" for tool, arguments in CALLS)
        allowed = "mcp__one__echo,mcp__two__echo,mcp__one__forbidden"
        # The shipped profile without its gate.
        shipped = (REPOSITORY / "profiles/claude-code.yaml").read_text()
        before, found, behind = shipped.partition("mcp:\n  gate: true")
        assert found
        kept = behind.split("\n\n", 1)[1:]
        driven.sandbox.write_profile("seen", before.replace("name: claude-code", "name: seen", 1) + "".join(kept))
        words = ["-p", "seen", "--", "claude", "-p", "--output-format", "json", "--allowedTools", allowed, "--", prompt]
        net = f"127.0.0.1:{driven.model_port}"
        options = ["-w", str(world.project), "--net", net, "--read", str(server)]
        finished = driven.sandbox.mcpguard("run", *options, *words)
        assert not any(result["error"] for result in results_of(finished))
        heard = {
            path.name.removeprefix("heard-"): [json.loads(line) for line in path.read_bytes().splitlines()]
            for path in world.project.glob("heard-*")
        }
        assert driven.sandbox.events(None, "--kind", "loss") == []
        yield driven.sandbox.events(None, "--kind", "mcp"), heard


def test_every_message_is_on_record_once(seen: tuple[list[Json], dict[str, list[Json]]]) -> None:
    events, heard = seen
    told = {event["mcp"]["peer"]["pid"] for event in events}
    assert len(told) == len(heard) == 2
    by_server = sorted(
        Counter(
            (event["op"], event["mcp"]["method"], json.dumps(event["mcp"].get("id")))
            for event in events
            if event["mcp"]["peer"]["pid"] == pid and event["mcp"]["sender"] == "client"
        ).items()
        for pid in told
    )
    expected = sorted(
        Counter(
            ("request" if "id" in one else "notification", one["method"], json.dumps(one.get("id"))) for one in messages
        ).items()
        for messages in heard.values()
    )
    assert [sorted(one) for one in by_server] == [sorted(one) for one in expected]


def test_every_request_has_its_answer_and_the_tools_their_arguments(
    seen: tuple[list[Json], dict[str, list[Json]]],
) -> None:
    events, _ = seen
    calls: dict[str, list[Json]] = {}
    for event in events:
        if event["op"] != "notification":
            calls.setdefault(event["mcp"]["call"], []).append(event)
    assert all([one["op"] for one in found] == ["request", "response"] for found in calls.values())
    made = [found for found in calls.values() if found[0]["mcp"]["method"] == "tools/call"]
    told = [(found[0]["mcp"]["tool"], found[0]["mcp"].get("arguments")) for found in made]
    assert told[0] == ("echo", {"text": "hello \u00e9"}) and told[1] == ("echo", {"text": "the other"})
    assert told[2][0] == "echo" and told[2][1]["text"].startswith("xxx") and made[2][0]["mcp"]["cut"]
    assert told[3] == ("forbidden", {"api_key": "***"})
    assert made[2][1]["mcp"]["result_bytes"] > len(LONG)
    assert all("claude" in found[0]["exe"] for found in made), made[0]


# As long, and nothing that an agent takes for its model running in a circle.
NUMBERS = "-".join(map(str, range(18_000)))
# In a network of the agent's own, so that it is free.
PORT = 18765


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", AGENTS)
def test_whatever_an_agent_sends_by_is_on_record_once_with_its_answer(name: str) -> None:
    """By sendto, sendmsg, writev and write, and over HTTP; nothing of it passes a gate. Both servers are the tree's own."""
    kind = AGENTS[name]
    with started(kind) as driven:
        world = driven.world
        local, remote = written(world.root / "local.py", SERVER), written(world.root / "remote.py", FAR)
        with (world.project / ".gitignore").open("a") as ignored:
            ignored.write("heard-*\n")  # opencode keeps versions of files, and what was heard would pass a pipe again
        near = {"command": SYSTEM_PYTHON, "args": [str(local), "near"]}
        mine: Server = {"near": {**near, **WAITING.get(name, {})}, "far": {kind.url: f"http://127.0.0.1:{PORT}/mcp"}}
        if name == "claude-code":
            mine["far"]["type"] = "http"
        kind.declare(world, f"http://127.0.0.1:{driven.model_port}", mine, {})
        made: list[tuple[str, str, Json]] = [
            ("near", "echo", {"text": "hello \u00e9"}),
            ("far", "echo", {"text": "over there"}),
            ("near", "echo", {"text": NUMBERS}),
            ("far", "forbidden", {"text": "x"}),
        ]
        wanted = [(kind.tool.format(server, tool), arguments) for server, tool, arguments in made]
        prompt = " ".join(f"<<call {tool} {json.dumps(arguments)}>>" for tool, arguments in wanted)
        driven.sandbox.write_profile("seen", without_gate(name, kind.variables))
        heard = [world.project / f"heard-{one}" for one in mine]
        begin = f'mkfifo up; {SYSTEM_PYTHON} {remote} {heard[1]} {PORT} >up & read -r port <up; "$@"; kill $!; wait'
        targets = [word for one in (driven.model_port, PORT) for word in ("--net", f"127.0.0.1:{one}")]
        options = ["-w", str(world.project), *targets, "--read", str(local), "--read", str(remote)]
        words = [
            "sh",
            "-c",
            begin,
            "sh",
            *(word.replace("mcp__files", "mcp__near,mcp__far") for word in kind.words(prompt)),
        ]
        finished = driven.sandbox.mcpguard("run", "-p", "seen", *options, "--", *words, timeout=150)
        said = answers_of(finished)
        assert len(said) == len(made), finished
        assert all("echo {" in said[at] for at in (0, 1, 3)), said  # each shortens the long one in its own words
        assert driven.sandbox.events(None, "--kind", "loss") == []
        events = driven.sandbox.events(None, "--kind", "mcp")
        told = [[json.loads(line) for line in path.read_bytes().splitlines()] for path in heard]
    for server, transport, lines in zip(mine, ("stdio", "http"), told, strict=True):
        mine_only = [event for event in events if event["mcp"]["transport"] == transport]
        from_agent = [event for event in mine_only if event["mcp"]["sender"] == "client"]
        assert Counter((e["mcp"]["method"], json.dumps(e["mcp"].get("id"))) for e in from_agent) == Counter(
            (one["method"], json.dumps(one.get("id"))) for one in lines
        )
        asked = [event["mcp"]["call"] for event in from_agent if event["op"] == "request"]
        answered = [event["mcp"]["call"] for event in mine_only if event["op"] == "response"]
        assert asked and sorted(asked) == sorted(answered) and len(set(asked)) == len(asked)
        calls = [event["mcp"] for event in from_agent if event["mcp"]["method"] == "tools/call"]
        assert [one["tool"] for one in calls] == [tool for where, tool, _ in made if where == server]
        assert all("text" in one["arguments"] for one in calls)


def without_gate(name: str, kept: dict[str, str]) -> str:
    """The shipped profile of an agent without its gate, with these variables."""
    before, found, behind = (REPOSITORY / f"profiles/{name}.yaml").read_text().partition("mcp:\n  gate: true")
    assert found
    text = before.replace(f"name: {name}", "name: seen", 1) + "".join(behind.split("\n\n", 1)[1:])
    before, keep, behind = text.partition("  keep:")
    assert keep
    line, end, rest = behind.partition("\n")
    return before + keep + line + end + "".join(f"    - {one}\n" for one in kept) + rest


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["filesystem", "everything", "git", "time"])
def test_real_servers_of_both_eras_are_on_record_as_they_were_asked(name: str) -> None:
    need_root()
    with sandbox() as inside:
        box = Box(inside)
        made = case(name, box)
        inside.profile = "dev-tools"
        words = [SYSTEM_PYTHON, str(box.client), "", "", "s", json.dumps(made.command), json.dumps(made.lines)]
        finished = inside.run(words, options=["--read", str(made.readable)])
        assert finished.code == 0, finished.err
        # The client repeats the answers on its own output, which is a stream to somebody outside.
        events = [event for event in inside.events(None, "--kind", "mcp") if event["mcp"]["server"] != "client"]
        assert inside.events(None, "--kind", "loss") == []
    asked = [json.loads(line) for line in made.lines]
    told = [event for event in events if event["mcp"]["sender"] == "client" and event["op"] != "response"]
    assert [(event["mcp"]["method"], event["mcp"].get("id")) for event in told] == [
        (message["method"], message.get("id")) for message in asked
    ]
    answered = {event["mcp"].get("call"): event for event in events if event["op"] == "response"}
    for event, message in zip(told, asked, strict=True):
        if "id" in message:
            assert answered[event["mcp"]["call"]]["mcp"]["id"] == message["id"]
        if message["method"] == "tools/call":
            assert event["mcp"]["tool"] == message["params"]["name"]
            assert event["mcp"].get("arguments", {}) == message["params"]["arguments"]
    names = {"git": "mcp_server_git", "time": "mcp_server_time"}
    expected = names.get(name, f"@modelcontextprotocol/server-{name}")
    assert {event["mcp"]["server"] for event in events} == {expected}
