"""A record of one session, made by hand through the store that `run` writes to."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from events_help import OPEN_POLICY, make_policy

from mcpguard.events.mcp import Talk
from mcpguard.events.sessions import Session
from mcpguard.events.store import Store
from mcpguard.model.access import Verdict
from mcpguard.model.coverage import Coverage, Strength
from mcpguard.model.event import Event, Kind, Peer
from mcpguard.model.policy import Policy
from mcpguard.tui.app import WatchApp

BEGAN_NS = 1_760_000_000_000_000_000
WAIT_S = 60
AGENT, CHILD = 4_000_001, 4_000_002
COVERAGE = (Coverage("files", Strength.PARTIAL, "Landlock", ("a gap",)), Coverage("network", Strength.FULL, "BPF"))


class Recorded:
    """A store with one session; `add` writes more events, each a millisecond after the one before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.policy: Policy = make_policy(*OPEN_POLICY)
        self.store = Store.open(path)
        self.id = self.store.start_session(
            self.policy, command=("agent",), tier="3 landlock", coverage=COVERAGE, now_ns=BEGAN_NS
        )
        self._now = BEGAN_NS

    def holds(self, tier: str, *coverage: Coverage, modes: tuple[str, ...] = ()) -> None:
        """Have the session say that of itself."""
        self.id = self.store.start_session(
            self.policy, command=("agent",), tier=tier, coverage=coverage, now_ns=BEGAN_NS + 1, modes=modes
        )

    def event(self, kind: Kind, op: str, **fields: Any) -> Event:
        self._now += 1_000_000
        given: dict[str, Any] = {
            "verdict": Verdict.ALLOW,
            "pid": AGENT,
            "ppid": 1,
            "comm": "agent",
            "exe": "/usr/bin/agent",
        }
        rule = fields.pop("rule", None)
        made = Event(self._now, self.id, kind, op, **(given | fields))
        return made if rule is None else replace(made, rule=self.policy.rules[rule])

    def add(self, *events: Event) -> None:
        self.store.add(self.id, events)

    def opens(self, count: int, folder: str = "/ws/src") -> list[Event]:
        return [
            self.event(Kind.FILE, "open", access="read", path=f"{folder}/f{number}", rule=1) for number in range(count)
        ]

    def story(self) -> None:
        """A process that starts another, opens, connects, and is refused twice."""
        self.add(
            self.event(Kind.EXEC, "exec", access="execute", path="/usr/bin/agent", argv=("agent", "--now"), rule=1),
            self.event(Kind.PROCESS, "fork", pid=CHILD, ppid=AGENT, comm="agent"),
            self.event(
                Kind.EXEC,
                "exec",
                access="execute",
                path="/usr/bin/cat",
                exe="/usr/bin/cat",
                argv=("cat", "x"),
                pid=CHILD,
                ppid=AGENT,
                comm="cat",
                rule=1,
            ),
            *self.opens(3),
            self.event(
                Kind.FILE,
                "open",
                access="read",
                path="/ws/secret/key",
                verdict=Verdict.DENY,
                errno="EACCES",
                pid=CHILD,
                ppid=AGENT,
                comm="cat",
                exe="/usr/bin/cat",
                rule=2,
            ),
            self.event(
                Kind.NET, "connect", host="api.example.com", address="192.0.2.1", port=443, protocol="tcp", rule=1
            ),
            self.event(Kind.NET, "connect", address="192.0.2.9", port=80, protocol="tcp", verdict=Verdict.DENY, rule=0),
            self.event(Kind.PROCESS, "exit", pid=CHILD, ppid=AGENT, comm="cat", detail="status 1"),
        )

    def talk(self) -> None:
        """Calls of two MCP servers: answered, failed, refused; and one that a server asks."""
        client, files, web = (
            Peer(AGENT, "/usr/bin/agent"),
            Peer(CHILD, "/usr/bin/node"),
            Peer(CHILD + 1, "/usr/bin/web"),
        )
        near, far = Talk(self.id, "@mcp/files", "stdio", client, files), Talk(self.id, "web", "http", client, web)
        call = "tools/call"
        read = near.request(self._now, "client", call, {"name": "read", "arguments": {"path": "/a"}}, id=1, call="a1")
        lost = near.request(self._now, "client", call, {"name": "read", "arguments": {"path": "/b"}}, id=2, call="a2")
        self.add(
            near.request(self._now, "client", "tools/list", id=0, call="a0"),
            read,
            near.response(self._now + 2_000_000, read, result_bytes=100),
            lost,
            near.response(self._now + 4_000_000, lost, error=(None, "no such file")),
            near.request(self._now, "server", "roots/list", id=0, call="b0"),
            far.request(
                *(self._now, "client", call, {"name": "delete", "arguments": {}}),
                id=1,
                call="c1",
                verdict=Verdict.DENY,
                detail="no rule allows it",
            ),
        )

    def end(self) -> None:
        self.store.end_session(self.id, exit_code=3, now_ns=self._now)

    def session(self) -> Session:
        return self.store.session(self.id)

    def app(self, home: str = "/home/u", **options: Any) -> WatchApp:
        return WatchApp(lambda: Store.open(self.path, create=False), self.session(), home, **options)


async def until(pilot: Any, holds: Callable[[], bool], what: str = "") -> None:
    """Wait for a state of the screen, bounded."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        await pilot.pause(0.05)
        if holds():
            return
    pytest.fail(f"it never came to be: {what or holds}")


def objects(events: Sequence[Event]) -> list[str]:
    return [event.path or event.address or event.op for event in events]
