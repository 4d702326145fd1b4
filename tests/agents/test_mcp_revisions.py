"""Every dated revision of the protocol with a real server, over pipes and HTTP: seen, judged, paired; and batches."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from harness import SYSTEM_PYTHON, Finished, Json, mcpguard_command, need_root, sandbox
from mcp_box import PROFILE, Box, text_of, tool
from test_mcp_servers import answers, case, installed_npm, names, node, old_era

from mcpguard.catalogue import approved, starting
from mcpguard.catalogue.server import REMOTE, Server
from mcpguard.session.gate import SHIM

pytestmark = [pytest.mark.kernel, pytest.mark.agent, pytest.mark.timeout(400)]

REVISIONS = ("2024-11-05", "2025-03-26", "2025-06-18")
DENIED = "get-env"
CALLS: tuple[tuple[str, Json], ...] = (
    ("echo", {"message": 'h\u00e9llo \\ " \n'}),
    (DENIED, {}),
    ("get-sum", {"a": 1, "b": 2}),
)


@pytest.fixture
def box() -> Iterator[Box]:
    need_root()
    with sandbox() as inside:
        yield Box(inside)


def told(finished: Finished) -> Iterator[tuple[str, dict[int | str, str]]]:
    """Each conversation that a run printed: the revision that the server agreed to, and its answers by what they are for."""
    assert finished.code == 0, finished
    lines: list[str] = []
    for line in finished.out.splitlines():
        lines.append(line)
        if '"rest"' in line:
            found = answers("\n".join(lines))
            yield json.loads(found[0])["result"]["protocolVersion"], found
            lines = []


def paired(events: Sequence[Json]) -> list[tuple[str, str]]:
    """The calls among the events, each with its verdict; every one that was let pass has its answer, and no other."""
    made = [event for event in events if event["mcp"].get("method") == "tools/call"]
    asked = [event for event in made if event["op"] == "request"]
    answered = [event["mcp"]["call"] for event in made if event["op"] == "response"]
    assert sorted(answered) == sorted(event["mcp"]["call"] for event in asked if event["verdict"] == "allow"), made
    return [(event["mcp"]["tool"], event["verdict"]) for event in asked]


def test_a_server_of_each_revision_over_pipes(box: Box) -> None:
    made = case("everything", box)
    conversations = [old_era(*CALLS, revision=one) for one in REVISIONS]

    def all_of_them(*gate: str) -> list[str]:
        python, shim = gate or ("", "")
        words = [SYSTEM_PYTHON, str(box.client), python, shim, "s", json.dumps(made.command)]
        return ["/bin/sh", "-ec", "; ".join(shlex.join([*words, json.dumps(lines)]) for lines in conversations)]

    free = list(told(box.inside.control(all_of_them())))
    assert [revision for revision, _ in free] == [*REVISIONS], "the control, and the server knows them"
    options = ["--read", str(made.readable)]
    box.inside.profile = "dev-tools"
    for (_, direct), (_, watched) in zip(free, told(box.inside.run(all_of_them(), options=options)), strict=True):
        assert {**watched, 2: ""} == {**direct, 2: ""}, "but for what the environment is"
    seen = [event for event in box.mcp_events() if event["mcp"]["server"] != "client"]
    assert paired(seen) == [(name, "allow") for name, _ in CALLS] * len(REVISIONS)
    box.inside.write_profile("gated", PROFILE.replace("*/forbidden", f"*/{DENIED}"))
    box.approve("s", made.command)
    through = list(told(box.inside.run(all_of_them(mcpguard_command()[0], SHIM), options=options)))
    compare(free, through)
    verdicts = [(name, "deny" if name == DENIED else "allow") for name, _ in CALLS]
    assert paired(box.mcp_events()) == verdicts * len(REVISIONS)


def compare(free: Sequence[tuple[str, Json]], through: Sequence[tuple[str, Json]]) -> None:
    """What is allowed came byte for byte; what is denied did not."""
    assert [revision for revision, _ in through] == [revision for revision, _ in free]
    for (_, direct), (_, judged) in zip(free, through, strict=True):
        assert set(judged) == set(direct) and len(direct) == 5
        assert (judged[0], judged[1], judged[3]) == (direct[0], direct[1], direct[3])
        assert "result" in json.loads(direct[2]) and "blocked by policy" in judged[2]
        assert DENIED in names(direct["list"]) and DENIED not in names(judged["list"])


# --- batches, which only 2025-03-26 had -----------------------------------------------------------------------------------


BATCHING = """
import json, sys
def answer(message):
    return {"jsonrpc": "2.0", "id": message["id"], "result": {"content": [{"type": "text", "text": message["params"]["name"]}]}}
for line in sys.stdin.buffer:
    asked = json.loads(line)
    print(json.dumps([answer(one) for one in asked] if isinstance(asked, list) else answer(asked)), flush=True)
"""


def test_a_batch_is_on_record_one_by_one_and_never_passes_the_gate(box: Box) -> None:
    box.server.write_text(BATCHING)
    first, second, alone = (json.loads(tool(name, id)) for id, name in enumerate(("echo", "wipe", "echo"), 1))
    batch = json.dumps([first, second])
    answered = json.loads(box.talk("s", batch, json.dumps(alone), guarded=False).out.splitlines()[0])
    assert [text_of(one) for one in answered] == ["echo", "wipe"], "the control"
    box.inside.profile = "dev-tools"
    words = [SYSTEM_PYTHON, str(box.client), "", "", "s", json.dumps(box.command), json.dumps([batch])]
    assert box.inside.run(words, options=box.options).code == 0
    seen = [event for event in box.mcp_events() if event["mcp"]["server"] != "client"]
    assert paired(seen) == [("echo", "allow"), ("wipe", "allow")]
    box.inside.profile = "gated"
    box.approve("s", box.command)
    refused, passed = map(json.loads, box.talk("s", batch, json.dumps(alone)).out.splitlines()[:2])
    assert [one["id"] for one in refused] == [1, 2] and all("a batch" in one["error"]["message"] for one in refused)
    assert text_of(passed) == "echo"
    denied = [event for event in box.mcp_events() if event["verdict"] == "deny"]
    assert [event["mcp"].get("tool") for event in denied] == [None, "echo", "wipe"]
    assert all("a batch" in event["detail"] for event in denied)


# --- over HTTP ------------------------------------------------------------------------------------------------------------

# What claude does with remote servers, as far as it matters here. Words: [NAME, REVISION]..., in JSON.
CLIENT = f"""#!{SYSTEM_PYTHON}
import http.client, json, os, re, sys
from urllib.parse import urlsplit
told = json.loads(sys.argv[sys.argv.index("--mcp-config") + 1])["mcpServers"]

def payloads(reply):
    while line := reply.readline():
        if line.startswith(b"data:") and line[5:].strip():
            yield line[5:].strip().decode()

class Http:
    def __init__(self, one, revision):
        self.place = urlsplit(one["url"])
        filled = lambda value: re.sub(r"\\$\\{{(\\w+)\\}}", lambda found: os.environ[found[1]], value)
        self.headers = {{name: filled(value) for name, value in one.get("headers", {{}}).items()}}
        self.headers |= {{"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}}
        self.revision = revision

    def send(self, method, path, message=None):
        connection = http.client.HTTPConnection(self.place.hostname, self.place.port, timeout=60)
        connection.request(method, path, message, self.headers)
        return connection.getresponse()

    def ask(self, message):
        reply = self.send("POST", self.place.path, json.dumps(message))
        if session := reply.headers["Mcp-Session-Id"]:
            self.headers |= {{"Mcp-Session-Id": session, "MCP-Protocol-Version": self.revision}}
        if "event-stream" not in (reply.headers["Content-Type"] or ""):
            return reply.read().decode()
        return next(text for text in payloads(reply) if json.loads(text).get("id") == message["id"])

class Sse(Http):
    def __init__(self, one, revision):
        super().__init__(one, revision)
        self.stream = payloads(self.send("GET", self.place.path))
        self.post = next(self.stream)

    def ask(self, message):
        self.send("POST", self.post, json.dumps(message)).read()
        if "id" in message:
            return next(text for text in self.stream if json.loads(text).get("id") == message["id"])

for name, revision in json.loads(sys.argv[-1]):
    way = (Sse if told[name].get("type") == "sse" else Http)(told[name], revision)
    for line in {old_era(*CALLS)!r}:
        message = json.loads(line.replace("2025-11-25", revision))
        answer = way.ask(message)
        if "id" in message:
            print(answer)
    print(json.dumps({{"rest": ""}}), flush=True)
"""


@contextmanager
def everything(kind: str) -> Iterator[str]:
    """server-everything on loopback, outside of every session; its address without a path."""
    script = installed_npm("everything") / "dist/index.js"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [node(), str(script), kind]
    with subprocess.Popen(
        command, env={**os.environ, "PORT": str(port)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            for _ in range(600):
                with socket.socket() as tried:
                    if tried.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None, f"{kind} ended"
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


# What is talked to, and in which revision.
CONVERSATIONS = [["old", "2024-11-05"], *(["new", one] for one in (*REVISIONS[1:], "2025-11-25"))]


@contextmanager
def both_ways() -> Iterator[tuple[str, str, dict[str, object]]]:
    """A server of the new way over HTTP and one of the old one: their addresses, and how a client declares them."""
    with everything("streamableHttp") as new, everything("sse") as old:
        new, old = f"{new}/mcp", f"{old}/sse"
        yield new, old, {"mcpServers": {"new": {"type": "http", "url": new}, "old": {"type": "sse", "url": old}}}


def test_a_server_of_each_revision_over_http(box: Box) -> None:
    """Streamable HTTP since 2025-03-26, and the way of 2024-11-05."""
    world = box.inside.world
    claude = world.project / "claude"
    claude.write_text(CLIENT)
    claude.chmod(0o755)
    with both_ways() as (new, old, declared):
        (world.home / ".claude.json").write_text(json.dumps(declared))
        last = json.dumps(CONVERSATIONS)
        free = list(told(box.inside.control([claude, "--mcp-config", json.dumps(declared), last])))
        assert [revision for revision, _ in free] == [revision for _, revision in CONVERSATIONS]
        box.inside.write_profile("gated", PROFILE.replace("*/forbidden", f"*/{DENIED}"))
        for name, url in (("new", new), ("old", old)):
            approve(box, name, url)
        through = list(told(box.inside.run([claude, last])))
    compare(free, through)
    # The client repeats the answers on its own output.
    events = [event for event in box.mcp_events() if event["mcp"]["server"] != "claude"]
    verdicts = [(name, "deny" if name == DENIED else "allow") for name, _ in CALLS]
    assert paired(events) == verdicts * len(CONVERSATIONS)
    transports = {(event["mcp"]["server"], event["mcp"]["transport"]) for event in events}
    assert transports == {("new", "http"), ("old", "sse")}


def test_where_no_gate_stands_a_server_of_each_revision_over_http_is_on_record_with_its_answers(box: Box) -> None:
    """It runs outside of the session, and the client talks to it by itself."""
    claude = box.inside.world.project / "claude"
    claude.write_text(CLIENT)
    claude.chmod(0o755)
    with both_ways() as (new, old, declared):
        words = [claude, "--mcp-config", json.dumps(declared), json.dumps(CONVERSATIONS)]
        free = list(told(box.inside.control(words)))
        box.inside.profile = "dev-tools"
        options = [word for url in (new, old) for word in ("--net", f"127.0.0.1:{urlsplit(url).port}")]
        watched = list(told(box.inside.run(words, options=options)))
    assert [revision for revision, _ in watched] == [revision for revision, _ in free]
    # The client repeats the answers on its own output.
    events = [event for event in box.mcp_events() if event["mcp"]["server"] != "claude"]
    assert paired(events) == [(name, "allow") for name, _ in CALLS] * len(CONVERSATIONS)
    assert not any("peer" in event["mcp"] for event in events)
    answered = [
        event["mcp"] for event in events if event["op"] == "response" and event["mcp"]["method"] == "tools/call"
    ]
    assert {one["transport"] for one in answered} == {"sse"} and all(one["result_bytes"] > 0 for one in answered)


def approve(box: Box, name: str, url: str) -> None:
    found = starting.identify(Server(name, "", "", "", REMOTE, url=url), {}, box.inside.world.project)
    assert found is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCPGUARD_HOME", str(box.inside.world.state))
        approved.approve(name, "test", found, ())
