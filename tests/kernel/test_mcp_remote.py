"""Remote MCP servers in a session: the agent reaches them by way of the gate only, and holds no key of theirs."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator

import pytest
from harness import SYSTEM_PYTHON, Finished, Json, Sandbox, need_root, sandbox
from test_mcp_gate import PROFILE

from mcpguard.catalogue import approved, starting
from mcpguard.catalogue.server import REMOTE, Server

pytestmark = pytest.mark.kernel

# What claude does with a remote server, as far as it matters here: a call by the address and the headers that it was told.
CLAUDE = f"""#!{SYSTEM_PYTHON}
import json, os, re, sys, urllib.error, urllib.request
told = json.loads(sys.argv[sys.argv.index("--mcp-config") + 1])["mcpServers"]["far"]
call = {{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {{"name": sys.argv[-2], "arguments": {{"a": 1}}}}}}
url = sys.argv[-1] if sys.argv[-1].startswith("http") else told["url"]
def filled(value):
    return re.sub(r"\\$\\{{(\\w+)\\}}", lambda found: os.environ[found[1]], value)
headers = {{name: filled(value) for name, value in told["headers"].items()}}
headers |= {{"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}}
try:
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(call).encode(), headers), timeout=30) as reply:
        print(reply.read().decode())
except urllib.error.HTTPError as error:
    print(json.dumps({{"status": error.code}}))
except OSError as error:
    print(json.dumps({{"refused": str(error)}}))
print(json.dumps(dict(os.environ)))
"""


OLD = "Bearer old"


class Far(http.server.BaseHTTPRequestHandler):
    """A remote server; `heard` is what came, with its key."""

    heard: list[tuple[str | None, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.heard.append((self.headers["Authorization"], body))
        if self.headers["Authorization"] == OLD:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Bearer resource_metadata="https://far.example/x"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        answer = {
            "jsonrpc": "2.0",
            "id": json.loads(body)["id"],
            "result": {"content": [{"type": "text", "text": "hello"}]},
        }
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class World:
    """A session's world with a remote server outside of it."""

    def __init__(self, inside: Sandbox, url: str, heard: list[tuple[str | None, bytes]]) -> None:
        self.inside, self.url, self.heard = inside, url, heard
        self.headers = {"Authorization": "Bearer ${FAR_KEY}"}
        inside.variables["FAR_KEY"] = "s3cret-of-far"
        inside.write_profile("gated", PROFILE.replace("  keep: [ANTHROPIC_API_KEY]", "  remove: [FAR_KEY]"))
        home = inside.world.home
        (home / ".claude.json").write_text(
            json.dumps({"mcpServers": {"far": {"type": "http", "url": url, "headers": self.headers}}})
        )
        self.claude = inside.world.project / "claude"
        self.claude.write_text(CLAUDE)
        self.claude.chmod(0o755)

    def approve(self, url: str | None = None) -> None:
        server = Server("far", "", "", "", REMOTE, url=url or self.url)
        found = starting.identify(server, {}, self.inside.world.project)
        assert found is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MCPGUARD_HOME", str(self.inside.world.state))
            approved.approve("far", "test", found, ())

    def run(self, *words: str) -> Finished:
        return self.inside.run([str(self.claude), *words])

    def asked(self) -> list[Json]:
        return [event for event in self.inside.events(None, "--kind", "mcp") if event["op"] == "request"]


@pytest.fixture
def world() -> Iterator[World]:
    need_root()
    heard: list[tuple[str | None, bytes]] = []
    handler = type("Handler", (Far,), {"heard": heard})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with sandbox() as inside:
            yield World(inside, f"http://127.0.0.1:{server.server_port}/mcp", heard)
    finally:
        server.shutdown()
        server.server_close()


def test_an_approved_server_is_reached_by_the_gate_and_by_nothing_else(world: World) -> None:
    world.approve()
    finished = world.run("echo", "x")
    answer, environment = finished.json_lines()
    assert answer["result"]["content"][0]["text"] == "hello", finished
    key, body = world.heard[0]
    assert key == "Bearer s3cret-of-far"
    assert json.loads(body)["params"]["name"] == "echo"
    assert "s3cret-of-far" not in json.dumps(environment)
    direct = world.run("echo", world.url)
    assert "refused" in direct.json_lines()[0], direct
    assert len(world.heard) == 1
    assert [event["verdict"] for event in world.inside.events(None, "--kind", "net") if event["op"] == "connect"][
        -1
    ] == "deny"


def test_what_is_denied_is_refused_and_on_record(world: World) -> None:
    world.approve()
    finished = world.run("forbidden", "x")
    assert "nobody may" in finished.json_lines()[0]["error"]["message"], finished
    assert world.heard == []
    (asked,) = world.asked()
    assert (asked["verdict"], asked["mcp"]["transport"], asked["mcp"]["tool"]) == ("deny", "http", "forbidden")
    assert world.run("echo", "x").json_lines()[0]["result"], "the control"
    assert [event["verdict"] for event in world.asked()] == ["allow"], "once, though the kernel saw it, too"


def refusals(world: World) -> list[tuple[str, str]]:
    """Servers that were asked for in the latest session and may not be used."""
    events = world.inside.events(None, "--kind", "mcp")
    return [(one["mcp"]["server"], one["verdict"]) for one in events if one["op"] == "refuse"]


@pytest.mark.parametrize("other", [None, "http://127.0.0.1:9/mcp"])
def test_a_server_that_is_not_what_was_approved_is_refused(world: World, other: str | None) -> None:
    if other is not None:
        world.approve(other)
    finished = world.run("echo", "x")
    assert "approved" in finished.json_lines()[0]["error"]["message"], finished
    assert world.heard == []
    assert refusals(world) == [("far", "deny")]
    world.approve()
    assert world.run("echo", "x").json_lines()[0]["result"], "the control"


def test_an_approved_server_that_the_profile_does_not_name_is_refused(world: World) -> None:
    world.approve()
    named = "  gate: true\n  servers: [{}]\n"
    world.inside.write_profile("gated", PROFILE.replace("  gate: true\n", named.format("near")))
    finished = world.run("echo", "x")
    assert "does not start in this profile" in finished.json_lines()[0]["error"]["message"], finished
    assert world.heard == []
    assert refusals(world) == [("far", "deny")]
    world.inside.write_profile("gated", PROFILE.replace("  gate: true\n", named.format("f*")))
    assert world.run("echo", "x").json_lines()[0]["result"], "the control"


def test_a_server_that_wants_a_login_is_told_to_the_agent_in_the_log_and_at_the_end_of_the_run(world: World) -> None:
    world.approve()
    assert "wants a login" not in world.run("echo", "x").err, "the control"
    world.inside.variables["FAR_KEY"] = "old"
    finished = world.run("echo", "x")
    lines = finished.json_lines()[0]["error"]["message"].splitlines()
    assert lines[0] == "mcpguard: the MCP server far wants a login" and lines[3] == "  code  mcp.login"
    assert "401 (Bearer) to the key in its headers" in lines[1]
    assert f'"Bearer ${{NAME}}"}} for this server in {world.inside.world.home}/.claude.json' in lines[2]
    assert finished.err.splitlines()[-4:] == lines
    (answered,) = [one for one in world.inside.events(None, "--kind", "mcp") if one["op"] == "response"]
    assert answered["mcp"]["error"] == "the MCP server far wants a login"
    assert all(line.split(None, 1)[1] in answered["detail"] for line in lines)
    for words in ((), ("--kind", "mcp"), ("--call", answered["mcp"]["call"])):
        assert world.inside.mcpguard("log", *words).err.splitlines()[-4:] == lines
    assert world.inside.mcpguard("log", "--kind", "file").err == ""


def test_what_a_project_declares_gets_no_more_than_the_agent_has(world: World) -> None:
    """A repository could name any variable of the user's in a header."""
    (world.inside.world.home / ".claude.json").unlink()
    declared = {"mcpServers": {"far": {"type": "http", "url": world.url, "headers": world.headers}}}
    (world.inside.world.project / ".mcp.json").write_text(json.dumps(declared))
    world.approve()
    assert world.run("echo", "x").json_lines()[0]["result"]
    assert world.heard[0][0] == "Bearer ${FAR_KEY}"


def test_nobody_without_the_token_is_answered(world: World) -> None:
    world.approve()
    world.claude.write_text(CLAUDE.replace('"Content-Type":', '"Authorization": "Bearer x", "Content-Type":'))
    assert world.run("echo", "x").json_lines()[0] == {"status": 403}
    assert world.heard == []
