"""Drives the pinned claude-code headless against the fake model server, in a scratch world."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import REPOSITORY, Finished, Json, Sandbox
from real_agent import AgentUnavailableError, claude_binary, put_in_home
from world import World

QUIET = {
    "ANTHROPIC_API_KEY": "x",
    "IS_SANDBOX": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_AUTOUPDATER": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}
# It waits for its servers before it asks the model, but no longer than a while: a first call waits for the rest.
WAITS = {"MCP_CONNECTION_NONBLOCKING": "false", "MCP_TIMEOUT": "60000"}
WAIT: tuple[str, Json] = ("WaitForMcpServers", {})


@dataclass
class Agent:
    """A world with claude-code in its home and a model server that does what the prompt says.

    Attributes:
        requests: file with one JSON line for each request that reached the model.
    """

    sandbox: Sandbox
    model_port: int
    requests: Path

    @property
    def world(self) -> World:
        return self.sandbox.world

    def ask(self, *calls: tuple[str, Json], guarded: bool) -> tuple[Finished, list[Json]]:
        """Let the agent make tool calls, one a turn; returns its end and the result of each call."""
        if guarded:
            return self.ask_by(f"127.0.0.1:{self.model_port}", *calls)
        finished = self.sandbox.control(["claude", *_words(calls)])
        return finished, results_of(finished)

    def ask_by(self, target: str, *calls: tuple[str, Json]) -> tuple[Finished, list[Json]]:
        """The same, guarded, with the model at a target that its profile names besides."""
        project = str(self.world.project)
        words = ["run", "-w", project, "--net", target, "claude-code", *_words(calls)]
        finished = self.sandbox.mcpguard(*words)
        return finished, results_of(finished)


def _words(calls: Sequence[tuple[str, Json]]) -> list[str]:
    prompt = " ".join(f"<<call {tool} {json.dumps(arguments)}>>" for tool, arguments in calls)
    return ["-p", "--output-format", "json", "--allowedTools", "Bash,Read,Edit,Write", "--", prompt]


def results_of(finished: Finished) -> list[Json]:
    """The tool results that the agent's answer reports, in the order of the calls."""
    assert finished.code == 0, finished.err + finished.out
    answer = json.loads(finished.out)
    assert answer["terminal_reason"] == "completed", answer
    results: list[Json] = json.loads(answer["result"].removeprefix("DONE "))
    return results


@contextlib.contextmanager
def agent(*, obedient: bool = False, prefix: tuple[str, ...] = ()) -> Iterator[Agent]:
    """An agent in a new world. Where the agent cannot be had, the test fails: it is what the product is for.

    Args:
        obedient: its model does what results of tools ask for.
        prefix: what it and its model are started by, such as what enters a network of its own.
    """
    try:
        binary = claude_binary()
    except AgentUnavailableError as missing:
        pytest.fail(f"the real agent is needed for this test: {missing}")
    with World.create() as world:
        put_in_home(binary, world.home)
        requests = world.root / "requests.jsonl"
        command = [*prefix, sys.executable, str(REPOSITORY / "demo" / "fake_model.py"), "--log", str(requests)]
        command += ["--obedient"] if obedient else []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as model:
            assert model.stdout is not None
            port = int(model.stdout.readline())
            variables = {**QUIET, "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}"}
            try:
                yield Agent(Sandbox(world, "claude-code", variables, prefix), port, requests)
            finally:
                model.terminate()


# What a small MCP server goes on with: it has LISTED, called(name, arguments), which returns a text, and note(line).
SERVE = r"""
for line in sys.stdin.buffer:
    note(line)
    message = json.loads(line)
    method, params = message.get("method"), message.get("params", {})
    if "id" not in message:
        continue
    result = {}
    if method == "initialize":
        version = params["protocolVersion"]
        result = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": {"name": "x", "version": "1"}}
    elif method == "tools/list":
        result = {"tools": [{"name": name, "description": name, "inputSchema": {"type": "object"}} for name in LISTED]}
    elif method == "tools/call":
        try:
            text, failed = called(params["name"], params["arguments"]), False
        except OSError as error:
            text, failed = f"it failed: {error}", True
        result = {"content": [{"type": "text", "text": text}], "isError": failed}
    sys.stdout.buffer.write(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode() + b"\n")
    sys.stdout.buffer.flush()
"""


# A remote server with two tools of `test_mcp_claude.SERVER`: it says its port, and keeps what it hears in a file. Its words are
# that file, and a port where it matters which.
FAR = r"""
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Far(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        line = self.rfile.read(int(self.headers["Content-Length"]))
        with open(sys.argv[1], "ab") as heard:
            heard.write(line + b"\n")
        message = json.loads(line)
        method, params, result = message.get("method"), message.get("params", {}), {}
        if method == "initialize":
            version = params["protocolVersion"]
            result = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": {"name": "x", "version": "1"}}
        elif method == "tools/list":
            listed = ("echo", "forbidden")
            result = {"tools": [{"name": name, "description": name, "inputSchema": {"type": "object"}} for name in listed]}
        elif method == "tools/call":
            result = {"content": [{"type": "text", "text": "echo " + json.dumps(params["arguments"])}]}
        if "id" in message:
            self.answer(200, json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode())
        else:
            self.answer(202)

    def do_GET(self):
        self.answer(405)

    def do_DELETE(self):
        self.answer(200)

    def answer(self, status, data=b""):
        self.send_response(status)
        if data:
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2]) if sys.argv[2:] else 0), Far)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextlib.contextmanager
def far(heard: Path, *prefix: str) -> Iterator[str]:
    """A remote server on loopback, by its URL.

    Args:
        heard: what it gets, a line each; made here.
        prefix: what it is started by, such as what enters a network of its own.
    """
    heard.touch()
    command = [*prefix, sys.executable, "-c", FAR, str(heard)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/mcp"
        finally:
            server.terminate()
