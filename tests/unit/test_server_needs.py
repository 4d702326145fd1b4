"""What one MCP server did, told from what others did, and as what it is proposed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_learn import world  # noqa: F401 - a fixture
from typer.testing import CliRunner

from mcpguard.cli.commands import build
from mcpguard.errors import UsageError
from mcpguard.events.store import Store
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind, McpMessage, Peer
from mcpguard.model.rule import Origin
from mcpguard.model.values import replace
from mcpguard.session.policy import load_policy

AGENT, SERVER, CHILD, OTHER = 100, 200, 300, 400
BEGAN = 10
Record = Callable[..., None]


@pytest.fixture
def record(world: Path) -> Record:  # noqa: F811
    """Store a session in which the agent started a server by way of a shim, and these events."""

    def make(*more: Event, name: str = "s") -> None:
        message = McpMessage(name, "stdio", "client", peer=Peer(SERVER))
        events = [
            Event(1, "", Kind.PROCESS, "fork", Verdict.ALLOW, pid=SERVER, ppid=AGENT),
            Event(2, "", Kind.EXEC, "exec", Verdict.ALLOW, access="execute", path="/usr/bin/python3", pid=SERVER),
            Event(BEGAN, "", Kind.EXEC, "exec", Verdict.ALLOW, access="execute", path="/usr/bin/server", pid=SERVER),
            Event(BEGAN + 1, "", Kind.MCP, "start", Verdict.ALLOW, pid=SERVER, mcp=message),
            *more,
        ]
        with Store.open() as store:
            policy = load_policy("default")
            made = store.start_session(policy, command=("x",), tier="t", coverage=(), now_ns=time.time_ns())
            store.add(made, events)

    return make


def opened(path: Path, at: int = 20, pid: int = SERVER, op: str = "open", access: str = "read") -> Event:
    return Event(at, "", Kind.FILE, op, Verdict.ALLOW, access=access, path=str(path), pid=pid, comm="server")


def learned(*words: str) -> dict[str, set[str]]:
    done = CliRunner().invoke(build(), ["profile", "learn", "--server", "s", "--format", "json", *words])
    assert done.exit_code == 0, done.stderr
    found: dict[str, set[str]] = {}
    for one in json.loads(done.stdout)["proposed"]:
        found.setdefault(one["key"], set()).add(one["value"])
    return found


def test_only_its_own_processes_count_and_only_once_the_shim_is_it(world: Path, record: Record) -> None:  # noqa: F811
    home = world / "home"
    record(
        opened(home / "of-the-shim", at=5),
        opened(home / "of-the-agent", pid=AGENT),
        opened(home / "notes/own"),
        Event(15, "", Kind.PROCESS, "fork", Verdict.ALLOW, pid=CHILD, ppid=SERVER),
        opened(home / "notes/of-a-child", pid=CHILD),
        Event(15, "", Kind.PROCESS, "fork", Verdict.ALLOW, pid=OTHER, ppid=AGENT),
        opened(home / "notes/of-another", pid=OTHER),
        Event(30, "", Kind.PROCESS, "fork", Verdict.ALLOW, pid=SERVER, ppid=AGENT),
        opened(home / "of-a-later-process-with-its-number", at=31),
    )
    assert learned() == {"files.read": {"~/notes/of-a-child", "~/notes/own"}}


def test_what_was_started_before_the_shim_was_the_server_is_not_its(world: Path, record: Record) -> None:  # noqa: F811
    """Whoever executes the shim may have started others before, which go on."""
    record(
        Event(3, "", Kind.PROCESS, "fork", Verdict.ALLOW, pid=CHILD, ppid=SERVER),
        opened(world / "home/of-the-agent", pid=CHILD),
        Event(21, "", Kind.PROCESS, "fork", Verdict.ALLOW, pid=OTHER, ppid=CHILD),
        opened(world / "home/of-its-child", at=22, pid=OTHER),
        opened(world / "home/own"),
    )
    assert learned() == {"files.read": {"~/own"}}


def test_no_server_s_name_takes_the_place_of_a_built_in_profile(world: Path, record: Record) -> None:  # noqa: F811
    record(opened(world / "home/own"), name="server")
    done = CliRunner().invoke(build(), ["profile", "learn", "--server", "server", "--install", "--yes"])
    assert isinstance(done.exception, UsageError) and done.exception.code == "learn.built-in"
    assert not list((world / "guard").glob("config/profiles/*"))
    named = ["profile", "learn", "--server", "server", "--name", "mine", "--install", "--yes"]
    assert CliRunner().invoke(build(), named).exit_code == 0


def test_of_what_was_refused_only_what_its_own_profile_refused_counts(world: Path, record: Record) -> None:  # noqa: F811
    home = world / "home"
    kept = Origin("gated", "gated.yaml", 9, "mcp confine s small")
    none = Origin("default", "default", 0, "no rule allows it")
    record(
        *(replace(opened(home / name), verdict=Verdict.DENY, rule=rule) for name, rule in (("a", kept), ("b", none)))
    )
    assert learned() == {"files.read": {"~/a"}}


def test_an_installation_is_read_as_a_whole_and_a_home_that_looks_like_one_is_not(world: Path, record: Record) -> None:  # noqa: F811
    home = world / "home"
    (home / "tool").mkdir()
    for place in (home / "tool", home):
        (place / "pyvenv.cfg").write_text("")
    record(
        opened(home / "tool/lib/python3.11/site-packages/x/y.py"),
        opened(home / "tool/pyvenv.cfg"),
        opened(home / "lib/python3.11/site-packages/z.py"),
        opened(home / "web/node_modules/a/node_modules/b/index.js"),
    )
    assert learned() == {"files.read": {"~/tool", "~/web/node_modules", "~/lib/python3.11"}}


@pytest.mark.parametrize("op", ["create", "rename", "unlink"])
def test_no_home_is_proposed_for_a_name_that_went(op: str, world: Path, record: Record) -> None:  # noqa: F811
    home = world / "home"
    record(
        opened(home / ".gone", op=op, access="write"),
        opened(home / "notes/gone", op=op, access="write"),
        opened(world / "project/gone", op=op, access="write"),
    )
    assert learned() == {"files.write": {"{workspace}", "~/notes", "~/.gone"}}


def test_a_profile_that_is_there_is_added_to(world: Path, record: Record) -> None:  # noqa: F811
    home = world / "home"
    folder = world / "guard/config/profiles"
    folder.mkdir(parents=True)
    (folder / "mcp-s.yaml").write_text("name: mcp-s\nextends: [mcp-server]\nfiles:\n  read: [~/notes] # mine\n")
    record(opened(home / "notes/own"), opened(home / "more"))
    assert learned() == {"files.read": {"~/more"}}
    assert learned("--install", "--yes") == {"files.read": {"~/more"}}
    written = (folder / "mcp-s.yaml").read_text()
    assert "# mine" in written and "~/more" in written
    assert learned() == {}
