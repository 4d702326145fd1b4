"""Real servers in sessions whose profile is joined with `mcp-read-only`: they read, and change nothing."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import ThreadingHTTPServer

import pytest
from harness import Json, need_root, sandbox
from mcp_box import Box
from test_mcp_runners import VARIABLES, uv_installs, with_uv
from test_mcp_servers import NPM, PYPI, Site, answers, by_npx, failed, names, old_era

pytestmark = [pytest.mark.kernel, pytest.mark.agent, pytest.mark.timeout(400)]

PROFILE = """\
name: gated
extends: [{}]
mcp:
  gate: true
  allow: ["*"]
"""
# The order of what is extended does not matter.
ORDERS = {"filesystem": 1, "memory": -1, "git": 1, "fetch": -1}


@pytest.fixture
def box() -> Iterator[Box]:
    need_root()
    with sandbox() as inside:
        yield Box(inside)


def declared(name: str, box: Box) -> list[str]:
    """As most settings have it: by the package, for by a path nobody knows what its tools do."""
    project, home = box.inside.world.project, box.inside.world.home
    if name in NPM:
        box.inside.variables["npm_config_offline"] = "true"
        command = by_npx(f"@modelcontextprotocol/server-{name}@{NPM[name]}", home)
        if name == "filesystem":
            return [*command, str(project)]
        return ["env", f"MEMORY_FILE_PATH={project}/memory.jsonl", *command]
    with_uv(box)
    package = f"mcp-server-{name}=={PYPI[f'mcp-server-{name}']}"
    uv_installs(box, ["uv", "tool", "install", "--link-mode", "copy", "--compile-bytecode", package])
    box.inside.variables |= {**VARIABLES, "UV_OFFLINE": "1"}
    return ["uvx", package, *(("--ignore-robots-txt", "--allow-private-ips") if name == "fetch" else ())]


def calls(name: str, box: Box, site: str) -> tuple[list[tuple[str, Json]], list[tuple[str, Json]]]:
    """What reads, and what changes something; each of them can be done with nothing done before."""
    project = str(box.inside.world.project)
    someone = {"name": "someone", "entityType": "person", "observations": ["new"]}
    made: dict[str, tuple[list[tuple[str, Json]], list[tuple[str, Json]]]] = {
        "filesystem": (
            [("read_text_file", {"path": f"{project}/app.py"}), ("list_directory", {"path": project})],
            [
                ("write_file", {"path": f"{project}/made", "content": "x"}),
                ("create_directory", {"path": f"{project}/folder"}),
                ("edit_file", {"path": f"{project}/app.py", "edits": [{"oldText": "Hello", "newText": "Bye"}]}),
            ],
        ),
        "memory": (
            [("read_graph", {}), ("search_nodes", {"query": "x"})],
            [("create_entities", {"entities": [someone]}), ("delete_entities", {"entityNames": ["nobody"]})],
        ),
        "git": (
            [("git_status", {"repo_path": project}), ("git_log", {"repo_path": project})],
            [
                ("git_create_branch", {"repo_path": project, "branch_name": "made"}),
                ("git_add", {"repo_path": project, "files": ["client.py"]}),
                ("git_commit", {"repo_path": project, "message": "made"}),
                ("git_reset", {"repo_path": project}),
            ],
        ),
        "fetch": ([("fetch", {"url": f"{site}/page"})], []),
    }
    return made[name]


def state(box: Box) -> tuple[object, ...]:
    """What the calls that change something would change."""
    project = box.inside.world.project
    known = project / "memory.jsonl"
    return (
        (project / "app.py").read_text(),
        sorted(path.name for path in project.iterdir()),
        sorted(path.name for path in (project / ".git/refs/heads").iterdir()),
        known.exists() and known.read_text(),
    )


@pytest.mark.parametrize("name", ORDERS)
def test_what_reads_passes_and_what_changes_something_is_refused(name: str, box: Box) -> None:
    with ExitStack() as stack:
        site = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Site))
        threading.Thread(target=site.serve_forever, daemon=True).start()
        stack.callback(site.shutdown)
        place = f"127.0.0.1:{site.server_port}"
        command = declared(name, box)
        box.options = ("--net", place)
        box.approve("s", command)
        reads, changes = calls(name, box, f"http://{place}")
        lines = old_era(*reads, *changes)
        parents = ["claude-code", "mcp-read-only"][:: ORDERS[name]]
        box.inside.write_profile("gated", PROFILE.format(", ".join(parents)))
        before = state(box)
        finished = box.talk("s", *lines, command=command)
        through = answers(finished.out)
        recorded = [one for one in box.mcp_events() if one["mcp"].get("method") == "tools/call"]
        assert state(box) == before
        # The control: the same without that profile.
        box.inside.write_profile("gated", PROFILE.format("claude-code"))
        without = answers(box.talk("s", *lines, command=command).out)
    numbers = range(1, len(reads) + 1)
    assert not any(failed(through[number]) for number in numbers), finished
    assert [through[number] for number in numbers] == [without[number] for number in numbers]
    refused = range(len(reads) + 1, len(reads) + len(changes) + 1)
    assert not any("error" in json.loads(without[number]) or failed(without[number]) for number in refused), without
    assert (state(box) != before) is bool(changes)
    listed = set(names(through["list"]))
    assert {tool for tool, _ in reads} <= listed < set(names(without["list"])) or name == "fetch"
    assert not {tool for tool, _ in changes} & listed
    for number, (tool, _) in zip(refused, changes, strict=True):
        told = json.loads(through[number])["error"]["message"]
        found = re.search(r"\(mcpguard log --call (\S+)\)", told)
        assert found and f"blocked by policy: {tool}: with mcp-read-only" in told, told
        (event,) = [one for one in recorded if one["mcp"]["call"] == found[1]]
        assert (event["verdict"], event["op"], event["mcp"]["tool"]) == ("deny", "request", tool)
        assert event["rule"]["file"] == "builtin:mcp-read-only.yaml", event
    shown = [one["mcp"]["tool"] for one in recorded if one["verdict"] == "allow" and one["op"] == "request"]
    assert shown == [tool for tool, _ in reads]
