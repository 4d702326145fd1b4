"""Each real agent with all reference servers in one session: what it calls, what comes back, and what is on record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest
from agent_run import QUIET, WAIT, WAITS
from harness import Json
from real_agent import CACHE, VERSION
from test_mcp_agents import BUILD, KINDS, PROFILE, Kind, Server, results_of, started, written
from test_mcp_claude import approve
from test_mcp_servers import installed_npm, installed_pypi, node
from world import World

pytestmark = [pytest.mark.kernel, pytest.mark.agent]


def claude(world: World, _url: str, mine: Server, _others: Server) -> World:
    return written(world.home / ".claude.json", {"mcpServers": mine})


CLAUDE = Kind(
    f"@anthropic-ai/claude-code-{BUILD}@{VERSION}",
    f"@anthropic-ai/claude-code-{BUILD}/claude",
    (
        "claude",
        "-p",
        "--allowedTools",
        "Bash,mcp__files,mcp__far,mcp__everything,mcp__memory,mcp__git,mcp__time,mcp__fetch",
        "--",
    ),
    "mcp__{}__{}",
    ("Bash", "command", {}),
    claude,
    "url",
    {**QUIET, **WAITS, "ANTHROPIC_BASE_URL": "{}"},
    folder=f"claude-code-{VERSION}",
)
AGENTS = {**KINDS, "claude-code": CLAUDE}
# What has one wait for its servers, where it does not do so by itself.
WAITING: dict[str, Json] = {"codex": {"required": True, "startup_timeout_sec": 60}}
# What one calls first, where it waits for them no longer than a while.
FIRST: dict[str, list[tuple[str, Json]]] = {"claude-code": [WAIT]}
# What the fetch server fetches, in the network of the agent.
PAGES = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        self.wfile.write(f"the page {self.path}".encode())

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextmanager
def pages(prefix: Sequence[str]) -> Iterator[int]:
    """A site on loopback, by its port."""
    with subprocess.Popen([*prefix, sys.executable, "-c", PAGES], stdout=subprocess.PIPE, text=True) as site:
        assert site.stdout is not None
        try:
            yield int(site.stdout.readline())
        finally:
            site.terminate()


# In the network of the agent, so that it is free.
PORT = 18766
# Those that take the address of a server of 2024-11-05 under a word of its own.
OLD = ("gemini-cli", "qwen-code")


@contextmanager
def everything_over_http(prefix: Sequence[str], transport: str) -> Iterator[str]:
    """One of the six once more, on loopback; its address."""
    command = [*prefix, node(), str(installed_npm("everything") / "dist/index.js"), transport]
    variables = {**os.environ, "PORT": str(PORT)}
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            assert any(f"on port {PORT}" in line for line in server.stderr), "it ended"
            threading.Thread(target=server.stderr.read, daemon=True).start()
            yield f"http://127.0.0.1:{PORT}/{'sse' if transport == 'sse' else 'mcp'}"
        finally:
            server.terminate()


def servers(world: World) -> Server:
    """The six, as settings declare them."""
    python = str(installed_pypi())

    def of_node(name: str, *args: str, **env: str) -> Json:
        return {
            "command": node(),
            "args": [str(installed_npm(name) / "dist/index.js"), *args],
            **({"env": env} if env else {}),
        }

    def of_python(name: str, *args: str) -> Json:
        return {"command": python, "args": ["-m", f"mcp_server_{name}", *args]}

    return {
        "files": of_node("filesystem", str(world.project)),
        "everything": of_node("everything", "stdio"),
        "memory": of_node("memory", MEMORY_FILE_PATH=str(world.project / "memory.jsonl")),
        "git": of_python("git"),
        "time": of_python("time", "--local-timezone", "UTC"),
        "fetch": of_python("fetch", "--ignore-robots-txt", "--allow-private-ips"),
    }


Call = tuple[str, str, Json]


def calls(world: World, site: str) -> list[tuple[Call, Call]]:
    """Of each server one that the rules deny for one of its arguments, and then one that they do not."""
    project = str(world.project)
    someone = {"name": "someone", "entityType": "person", "observations": ['says "h\u00e9" \\ ']}
    noon = {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}
    made: dict[str, tuple[tuple[str, Json], tuple[str, Json]]] = {
        "files": (
            ("read_text_file", {"path": f"{project}/.gitignore"}),
            ("read_text_file", {"path": f"{project}/app.py"}),
        ),
        "everything": (("echo", {"message": "secret"}), ("echo", {"message": 'h\u00e9llo \\ " '})),
        "memory": (("search_nodes", {"query": "secret"}), ("create_entities", {"entities": [someone]})),
        "git": (
            ("git_show", {"repo_path": project, "revision": "HEAD"}),
            ("git_log", {"repo_path": project, "max_count": 1}),
        ),
        "time": (("get_current_time", {"timezone": "UTC"}), ("convert_time", noon)),
        "fetch": (("fetch", {"url": f"{site}/closed"}), ("fetch", {"url": f"{site}/open"})),
        "far": (("echo", {"message": "secret"}), ("echo", {"message": "from afar"})),
    }
    return [((server, *denied), (server, *allowed)) for server, (denied, allowed) in made.items()]


def rules(denied: Sequence[Call]) -> str:
    """Each by the last of its arguments."""
    return "".join(
        f"    - tool: {server}/{tool}\n      where: {{{name}: {{equals: {json.dumps(value)}}}}}\n"
        for server, tool, arguments in denied
        for name, value in list(arguments.items())[-1:]
    )


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", AGENTS)
def test_every_call_of_six_servers_and_one_over_http_is_on_record_once_and_the_rules_hold(name: str) -> None:
    kind = AGENTS[name]
    with ExitStack() as stack:
        driven = stack.enter_context(started(kind))
        port = stack.enter_context(pages(driven.sandbox.prefix))
        transport = "sse" if name in OLD else "streamableHttp"
        address = stack.enter_context(everything_over_http(driven.sandbox.prefix, transport))
        far = {"url" if name in OLD else kind.url: address}
        more = {"type": "http"} if name == "claude-code" else {}
        world, mine = driven.world, {**servers(driven.world), "far": {**far, **more}}
        settings = {one: {**declared, **WAITING.get(name, {})} for one, declared in mine.items()}
        kind.declare(world, f"http://127.0.0.1:{driven.model_port}", settings, {})
        pairs = calls(world, f"http://127.0.0.1:{port}")
        shell, said, rest = kind.shell
        made = [call for pair in pairs for call in pair]
        first = FIRST.get(name, [])
        wanted = first + [(kind.tool.format(server, tool), arguments) for server, tool, arguments in made]
        wanted.append((shell, {said: "echo still here", **rest}))
        prompt = " ".join(f"<<call {tool} {json.dumps(arguments)}>>" for tool, arguments in wanted)
        direct = results_of(free := driven.sandbox.control(kind.words(prompt), timeout=150))
        assert len(direct) == len(wanted), free
        del direct[: len(first)]
        (world.project / "memory.jsonl").unlink()
        profile = PROFILE.format(profile=name, keep=json.dumps([*kind.variables]))
        profile = profile.replace("environment:\n", rules([denied for denied, _ in pairs]) + "environment:\n")
        driven.sandbox.write_profile("gated", profile)
        for one in mine:
            approve(driven, one)
        options = ["-w", str(world.project), "--read", str(CACHE)]
        options += [word for one in (driven.model_port, port) for word in ("--net", f"127.0.0.1:{one}")]
        finished = driven.sandbox.mcpguard("run", "-p", "gated", *options, "--", *kind.words(prompt), timeout=150)
        assert finished.code == 0, finished
        results = results_of(finished)
        assert len(results) == len(wanted) and "still here" in results[-1], finished
        del results[: len(first)]
        events = (event["mcp"] | event for event in driven.sandbox.events(None, "--kind", "mcp"))
        # Local and remote ones come to the record by two ways.
        record = sorted(
            (event for event in events if event.get("method") == "tools/call"), key=lambda event: str(event["time"])
        )
        shown = [(one["server"], one["tool"], one["op"], one["verdict"]) for one in record]
        expected: list[tuple[str, str, str, str]] = []
        for (server, denied, _), (_, allowed, _) in pairs:
            expected.append((server, denied, "request", "deny"))
            expected += [(server, allowed, op, "allow") for op in ("request", "response")]
        assert shown == expected, (finished, record)
        ways = {one["transport"] for one in record if one["server"] == "far"}
        assert ways == {"sse" if name in OLD else "http"}
        for number in range(len(pairs)):
            refused, asked, answered = (one["call"] for one in record[3 * number : 3 * number + 3])
            assert asked == answered != refused
            assert "blocked by policy" in results[2 * number] and refused in results[2 * number]
            assert "blocked by policy" not in direct[2 * number], direct
            assert results[2 * number + 1] == direct[2 * number + 1], "byte for byte"
