"""Records, policies and clocks for the tests of `events`: everything real but the kernel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mcpguard.events.clock import Clock
from mcpguard.events.processes import Process
from mcpguard.events.recorder import Recorder
from mcpguard.events.store import Store
from mcpguard.model.access import Access, Effect, Verdict
from mcpguard.model.event import Event
from mcpguard.model.policy import PathRule, Policy, User
from mcpguard.model.profile import SystemSwitches
from mcpguard.model.rule import Origin
from mcpguard.policy.automaton import Automaton
from mcpguard.wire.records import (
    CallRecord,
    ExecRecord,
    ExitRecord,
    ForkRecord,
    Head,
    NetRecord,
    OpenRecord,
    PathCallRecord,
    UnixRecord,
)

AGENT = Process(pid=1000, ppid=900, exe="/usr/bin/node", argv=("claude",), comm="claude", start_ns=1)
ALL = Access.READ | Access.WRITE | Access.EXECUTE
NOBODY = User(uid=65534, gid=65534, groups=(65534,), name="nobody", home="/nonexistent")
START_EPOCH_NS = 1_795_000_000_000_000_000
SECOND = 1_000_000_000


class FakeClock(Clock):
    """Stands still until it is told to go on; the machine booted 100 s before the epoch time it starts at."""

    def __init__(self) -> None:
        self.now_ns = 100 * SECOND
        self.set_ns = 0

    def epoch_ns(self) -> int:
        return START_EPOCH_NS + self.set_ns + self.now_ns - 100 * SECOND

    def monotonic_ns(self) -> int:
        return self.now_ns

    def forward(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND)

    def set(self, seconds: float) -> None:
        """Put the clock on the wall forward, and that alone."""
        self.set_ns += int(seconds * SECOND)


def me() -> User:
    return User(os.geteuid(), os.getegid(), tuple(os.getgroups()), "me", "/root")


def make_policy(*rules: tuple[Effect, Access, str], user: User | None = None, audit: bool = False) -> Policy:
    """A policy of these path rules; rule n of `Policy.rules` is the n-th argument, 0 the default."""
    paths = tuple(
        PathRule(effect, access, pattern, (), number) for number, (effect, access, pattern) in enumerate(rules, 1)
    )
    origins = tuple(
        Origin("test", "test.yaml", 10 + number, f"{effect.value}: {pattern}")
        for number, (effect, _, pattern) in enumerate(rules, 1)
    )
    return Policy(
        digest="0" * 64,
        profile="test",
        command=("agent",),
        user=user or me(),
        workspace="/ws",
        tmp="/tmp",
        rules=(Origin("test", "builtin", 0, "default: deny"), *origins),
        reasons=("", *(f"because {number}" for number in range(1, len(rules) + 1))),
        tables=Automaton.build(paths).to_bytes(),
        paths=paths,
        connect=(),
        listen=(),
        names=(),
        sockets=(),
        environment_remove=(),
        environment_keep=(),
        system=SystemSwitches(),
        audit=audit,
    )


OPEN_POLICY = ((Effect.ALLOW, ALL, "/ws"), (Effect.DENY, ALL, "/ws/secret"), (Effect.READONLY, Access.WRITE, "/ws/ro"))


def head(pid: int = 1000, ppid: int = 900, comm: str = "claude", when_ns: int = 100 * SECOND, lost: int = 0) -> Head:
    return Head(when_ns, pid, pid, ppid, comm, lost)


def opened(path: str, access: Access = Access.READ, *, who: Head | None = None, count: int = 1) -> OpenRecord:
    return OpenRecord(who or head(), path, access, "file", False, count, False)


def refused(
    op: str,
    path: str | Path,
    error: int,
    *,
    access: Access = Access.READ,
    base: str = "/",
    path2: str | Path | None = None,
    follow: bool = True,
    who: Head | None = None,
    count: int = 1,
) -> PathCallRecord:
    """A path call that ended with `error`; 0 for one that went well."""
    second = None if path2 is None else str(path2)
    base2 = None if second is None else base
    return PathCallRecord(who or head(), op, access, error, base, str(path), base2, second, follow, count)


def call(op: str, error: int, argument: int = 0, argument2: int = 0, *, who: Head | None = None) -> CallRecord:
    return CallRecord(who or head(), op, 0, argument, argument2, error)


def connection(address: str, verdict: Verdict, rule: int = 0, *, port: int = 443, count: int = 1) -> NetRecord:
    return NetRecord(head(), "connect", verdict, address, port, "tcp", rule, "", count)


def unix(path: str, verdict: Verdict) -> UnixRecord:
    return UnixRecord(head(), "connect", verdict, path, 0, "")


def forked(child: int, parent: int = 1000, when_ns: int = 100 * SECOND) -> ForkRecord:
    return ForkRecord(head(parent, when_ns=when_ns), child)


def executed(pid: int, exe: str, *argv: str, when_ns: int = 100 * SECOND) -> ExecRecord:
    return ExecRecord(head(pid, 1000, exe.rsplit("/", 1)[-1], when_ns), exe, argv, False)


def ended(pid: int, code: int = 0, when_ns: int = 100 * SECOND) -> ExitRecord:
    return ExitRecord(head(pid, 1000, when_ns=when_ns), code)


def begin(store: Store, policy: Policy, **changes: object) -> str:
    given: dict[str, object] = {
        "command": ["agent", "-p", "hello"],
        "tier": "landlock",
        "coverage": (),
        "now_ns": START_EPOCH_NS,
    }
    return store.start_session(policy, **(given | changes))  # type: ignore[arg-type]


class Bench:
    """A store, a session and its recorder in a folder of the test."""

    def __init__(self, folder: Path, policy: Policy | None = None) -> None:
        self.clock = FakeClock()
        self.policy = policy or make_policy(*OPEN_POLICY)
        self.store = Store.open(folder / "state" / "events.db")
        self.session = begin(self.store, self.policy)
        self.names: dict[str, str] = {}
        self.recorder = Recorder(self.store, self.session, self.policy, AGENT, self.clock, names=self.names)

    def feed(self, *records: object) -> None:
        self.recorder.feed(records)  # type: ignore[arg-type]

    def events(self) -> list[Event]:
        from mcpguard.events.query import Filter, events

        return list(events(self.store, self.session, Filter()))

    def all_events(self, *records: object) -> list[Event]:
        """Everything that is stored when the run has ended."""
        self.feed(*records)
        self.recorder.finish()
        return self.events()


def without_detail(events: Sequence[Event]) -> list[Event]:
    return [replace(event, detail=None) for event in events]
