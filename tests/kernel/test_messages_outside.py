"""A client in a session and a server on loopback outside of it, both of the protocol's own library: each message of both is on
record once, with its pair."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from harness import REPOSITORY, SYSTEM_PYTHON, Json, Sandbox, need_root, sandbox

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

PROFILE = f"""
name: near
extends: [dev-tools]
files:
  read: ["{REPOSITORY}/.venv", "{sys.prefix}", "{sys.base_prefix}"]
  execute: ["{REPOSITORY}/.venv", "{sys.prefix}", "{sys.base_prefix}"]
network:
  allow: ["127.0.0.1:PORT"]
  listen: [localhost]
"""
# Words: the port, the transport, and a file for each message that came (`in`) or went (`out`), as the web server saw it.
SERVER = """
import json, sys
import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

port, transport, log = int(sys.argv[1]), sys.argv[2], open(sys.argv[3], "a", buffering=1)
server = MCPServer("far")

@server.tool()
def echo(text: str) -> str:
    return text

@server.tool()
def fails() -> str:
    raise ValueError("no luck")

@server.tool()
async def tells(context: Context) -> str:
    for at in range(3):
        await context.report_progress(at, 3, "on the way")
    return "told"

def note(way, text):
    for one in (found if isinstance(found := json.loads(text), list) else [found]):
        print(json.dumps([way, one]), file=log)

def watched(app):
    async def asked(scope, receive, send):
        if scope["type"] != "http":
            return await app(scope, receive, send)
        came, kind, gone = b"", "", b""
        async def receiving():
            nonlocal came
            event = await receive()
            came += event.get("body", b"")
            if event["type"] == "http.request" and not event.get("more_body") and came:
                note("in", came)
                came = b""
            return event
        async def sending(event):
            nonlocal kind, gone
            if event["type"] == "http.response.start":
                kind = dict(event["headers"]).get(b"content-type", b"").decode()
            elif "json" in kind:
                gone += event.get("body", b"")
                if not event.get("more_body") and gone:
                    note("out", gone)
            elif "event-stream" in kind:
                *whole, gone = (gone + event.get("body", b"")).replace(b"\\r", b"").split(b"\\n\\n")
                for one in whole:
                    for line in one.split(b"\\n"):
                        if line.startswith(b"data: {"):
                            note("out", line[6:])
            await send(event)
        await app(scope, receiving, sending)
    return asked

made = {
    "stream": lambda: server.streamable_http_app(),
    "json": lambda: server.streamable_http_app(json_response=True),
    "sse": lambda: server.sse_app(),
}[transport]()
uvicorn.run(watched(made), host="127.0.0.1", port=port, log_level="error", timeout_graceful_shutdown=1)
"""
# Words: the port, the transport, the mode; then what starts a server first, if any.
CLIENT = """
import asyncio, json, socket, subprocess, sys, time
from mcp import Client
from mcp.client.sse import sse_client

port, transport, mode, *server = sys.argv[1:]
address = f"http://127.0.0.1:{port}/"
started = subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) if server else None
while started:
    with socket.socket() as tried:
        if tried.connect_ex(("127.0.0.1", int(port))) == 0:
            break
    assert started.poll() is None
    time.sleep(0.1)

async def progress(*_):
    told.append("progress")

async def talk():
    way = sse_client(address + "sse") if transport == "sse" else address + "mcp"
    async with Client(way, mode=mode, read_timeout_seconds=60) as client:
        await client.list_tools()
        for text in ("hello \\u00e9", "x" * 100_000, "bye"):
            result = await client.call_tool("echo", {"text": text})
            told.append(result.content[0].text == text)
        told.append((await client.call_tool("fails", {})).is_error)
        told.append((await client.call_tool("tells", {}, progress_callback=progress)).content[0].text)
        told.append((await client.call_tool("nobody", {})).is_error)

told = []
try:
    asyncio.run(talk())
finally:
    if started:
        started.terminate()
        started.wait()
print(json.dumps(told))
"""
WAYS = [("stream", "legacy"), ("stream", "2026-07-28"), ("json", "legacy"), ("sse", "legacy")]


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def box(port: int) -> Iterator[Sandbox]:
    need_root()
    with sandbox() as made:
        made.write_profile("near", PROFILE.replace("PORT", str(port)))
        for name, text in (("server.py", SERVER), ("client.py", CLIENT)):
            (made.world.project / name).write_text(text)
        yield made


@contextlib.contextmanager
def far(box: Sandbox, port: int, transport: str, log: Path) -> Iterator[None]:
    """The server, in no session."""
    command = [sys.executable, str(box.world.project / "server.py"), str(port), transport, str(log)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            reached = False
            while not reached:
                assert server.poll() is None, "the server ended"
                with socket.socket() as tried:
                    tried.settimeout(1)
                    reached = tried.connect_ex(("127.0.0.1", port)) == 0
            yield
        finally:
            server.terminate()


def words(box: Sandbox, *more: object) -> list[str]:
    return [sys.executable, str(box.world.project / "client.py"), *map(str, more)]


def as_seen(log: Path) -> Counter[tuple[Any, ...]]:
    """Who sent it, method, id, tool, and whether it failed, of each message that the server's side saw."""
    asked: dict[str, Json] = {}
    found: Counter[tuple[Any, ...]] = Counter()
    for way, message in map(json.loads, log.read_text().splitlines()):
        id = json.dumps(message["id"]) if "id" in message else None
        if "method" in message:
            if id:
                asked[id] = message
            found[way, message["method"], id, message.get("params", {}).get("name"), None] += 1
        else:
            of = asked[id or ""]
            failed = "error" in message or bool(message["result"].get("isError"))
            found[way, of["method"], id, of.get("params", {}).get("name"), failed] += 1
    return found


def as_told(events: Sequence[Json]) -> Counter[tuple[Any, ...]]:
    found: Counter[tuple[Any, ...]] = Counter()
    for event in events:
        mcp = event["mcp"]
        tool = mcp.get("tool") if mcp.get("method") == "tools/call" else None
        failed = "error" in mcp if event["op"] == "response" else None
        id = json.dumps(mcp["id"]) if "id" in mcp else None
        found["in" if mcp["sender"] == "client" else "out", mcp.get("method"), id, tool, failed] += 1
    return found


def paired(events: Sequence[Json]) -> dict[str, list[Json]]:
    calls: dict[str, list[Json]] = {}
    for event in events:
        if event["op"] != "notification":
            calls.setdefault(event["mcp"]["call"], []).append(event)
    assert all([one["op"] for one in found] == ["request", "response"] for found in calls.values())
    return calls


def lost(box: Sandbox) -> list[Json]:
    """Of messages; a kernel that preempts at will loses other things, and says so."""
    return [event for event in box.events(None, "--kind", "loss") if "MCP" in event["detail"]]


@pytest.mark.parametrize(("transport", "mode"), WAYS)
def test_each_message_with_a_server_outside_is_on_record_once(
    box: Sandbox, port: int, transport: str, mode: str
) -> None:
    log = box.world.root / "seen"
    with far(box, port, transport, log):
        free = box.control(words(box, port, transport, mode))
        assert free.code == 0, free.err
        assert not (box.world.state / "state" / "events.db").exists(), "without a session nothing"
        log.write_text("")
        finished = box.run(words(box, port, transport, mode))
    assert finished.out == free.out, finished.err
    events = box.events(None, "--kind", "mcp")
    assert lost(box) == []
    assert as_told(events) == as_seen(log)
    calls = paired(events)
    long = [found for found in calls.values() if len(found[0]["mcp"].get("arguments", {}).get("text", "")) > 100]
    assert [found[1]["mcp"]["result_bytes"] > 100_000 for found in long] == [True]
    pid = {event["mcp"]["client"]["pid"] for event in events}
    assert len(pid) == 1 and not any("peer" in event["mcp"] for event in events)
    places = {"sse": {"/sse", "/messages/"}}.get(transport, {"/mcp"})
    assert {event["mcp"]["server"] for event in events} == {f"http://127.0.0.1:{port}{one}" for one in places}
    answers = [found[1]["mcp"] for found in calls.values()]
    assert all(one["duration_ns"] >= 0 and ("result_bytes" in one or "error" in one) for one in answers), answers


@pytest.mark.parametrize(("transport", "mode"), WAYS)
def test_each_message_with_a_server_inside_is_on_record_once(
    box: Sandbox, port: int, transport: str, mode: str
) -> None:
    log = box.world.project / "seen"
    server = [sys.executable, box.world.project / "server.py", port, transport, log]
    finished = box.run(words(box, port, transport, mode, *server))
    assert finished.code == 0, finished.err
    events = box.events(None, "--kind", "mcp")
    assert as_told(events) == as_seen(log)
    paired(events)
    assert {event["mcp"]["peer"]["pid"] == event["mcp"]["client"]["pid"] for event in events} == {False}


class Batching(BaseHTTPRequestHandler):
    """Answers each of a batch, in one body that comes in chunks; what is called `no` fails."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answers = [
            {"jsonrpc": "2.0", "id": one["id"]}
            | (
                {"error": {"code": -32000, "message": "it may not"}}
                if one["params"]["name"] == "no"
                else {"result": {"content": [{"type": "text", "text": one["params"]["name"] * 100_000}]}}
            )
            for one in asked
            if "id" in one
        ]
        body = json.dumps(answers[::-1]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at in range(0, len(body), 3000):
            part = body[at : at + 3000]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        pass


ASKS = """
import http.client, json, sys
line = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
def call(id, name):
    return {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": name}}
for first in (1, 4):
    batch = [call(first, "a"), call(first + 1, "no"), {"jsonrpc": "2.0", "method": "notifications/x"}, call(first + 2, "b")]
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    line.request("POST", "/mcp", json.dumps(batch), headers)
    print(len(line.getresponse().read()))
"""


def test_of_a_batch_each_has_its_own_answer(box: Sandbox, port: int) -> None:
    with HTTPServer(("127.0.0.1", port), Batching) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            finished = box.run([SYSTEM_PYTHON, "-c", ASKS, str(port)])
        finally:
            server.shutdown()
            thread.join()
    assert finished.code == 0 and len(set(finished.out.split())) == 1, finished
    events = box.events(None, "--kind", "mcp")
    assert lost(box) == []
    calls = {found[0]["mcp"]["id"]: [one["mcp"] for one in found] for found in paired(events).values()}
    assert {id: [one["tool"] for one in found] for id, found in calls.items()} == {
        1: ["a", "a"],
        2: ["no", "no"],
        3: ["b", "b"],
        4: ["a", "a"],
        5: ["no", "no"],
        6: ["b", "b"],
    }
    assert {id for id, (_, answer) in calls.items() if answer.get("error") == "it may not"} == {2, 5}
    assert all(answer["result_bytes"] > 100_000 for id, (_, answer) in calls.items() if id not in (2, 5))
    assert sum(event["op"] == "notification" for event in events) == 2


SERVES = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": asked["params"]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
with HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler) as server:
    open(sys.argv[2], "w").close()
    server.handle_request()
"""


def test_of_a_client_outside_each_call_is_on_record_once(box: Sandbox, port: int) -> None:
    """Its server is the session's."""
    ready = box.world.project / "ready"
    os.mkfifo(ready)
    sizes = (10, 100_000, 0)

    def ask() -> None:
        ready.read_bytes()  # it waits until the server has opened it
        line = http.client.HTTPConnection("127.0.0.1", port)
        for id, size in enumerate(sizes):
            params = {"name": f"tool-{id}", "text": "x" * size}
            body = json.dumps({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params})
            line.request("POST", "/mcp", body, {"Content-Type": "application/json"})
            assert len(line.getresponse().read()) > size
        line.close()

    client = threading.Thread(target=ask)
    client.start()
    finished = box.run([SYSTEM_PYTHON, "-c", SERVES, str(port), str(ready)])
    client.join()
    assert finished.code == 0, finished.err
    events = box.events(None, "--kind", "mcp")
    assert lost(box) == []
    calls = paired(events)
    assert {(asked["mcp"]["tool"], answer["mcp"]["tool"]) for asked, answer in calls.values()} == {
        (f"tool-{id}", f"tool-{id}") for id in range(len(sizes))
    }
    assert all(answer["mcp"]["result_bytes"] > size for size, (_, answer) in zip(sizes, calls.values(), strict=True))
    assert len({event["mcp"]["peer"]["pid"] for event in events}) == 1 and not any("client" in e["mcp"] for e in events)
