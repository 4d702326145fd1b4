"""A guarded tree of our own making: a cgroup leaf with a session of the real engine, and functions run inside and outside.

No launcher, no namespaces, no seccomp: what is refused here is refused by these programs alone.
"""

from __future__ import annotations

import json
import os
import select
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mcpguard.backends import cgroup_bpf
from mcpguard.backends.engine import Engine, Session, on_calls
from mcpguard.kernel.cgroup import Leaf
from mcpguard.kernel.ring import Ring
from mcpguard.model.access import Effect
from mcpguard.wire import _abi, decode
from mcpguard.wire.encode import NetRow
from mcpguard.wire.records import NetRecord, Record, UnixRecord

R = TypeVar("R")
WAIT_S = 20.0


def allow(address: str, prefix: int, rule: int, *, ports: tuple[int, int] = (0, 65535), protocols: int = 3) -> NetRow:
    """A row that allows, in the form of the connect and listen tables; IPv4 prefixes count from 0 to 32."""
    return _row(address, prefix, ports, protocols, Effect.ALLOW, rule)


def deny(address: str, prefix: int, rule: int, *, ports: tuple[int, int] = (0, 65535), protocols: int = 3) -> NetRow:
    """A row that denies."""
    return _row(address, prefix, ports, protocols, Effect.DENY, rule)


def _row(address: str, prefix: int, ports: tuple[int, int], protocols: int, effect: Effect, rule: int) -> NetRow:
    from mcpguard.policy.network import mapped

    return mapped(address), prefix + (96 if "." in address else 0), [(*ports, protocols, effect, rule)]


@dataclass
class Tree:
    """One leaf in the engine. The record of system calls is made for every session; a tree shows it after `trace`."""

    leaf: Leaf
    engine: Engine
    session: Session
    network: cgroup_bpf.CgroupAttachment | None = None
    traced: bool = False
    flags: int = _abi.MG_SESSION_LIVE
    rings: dict[str, Ring] = field(default_factory=dict)
    seen: dict[str, list[Record]] = field(default_factory=lambda: {"mg_denials": [], "mg_activity": []})

    @classmethod
    def plant(cls, leaf: Leaf, engine: Engine | None = None, **sizes: int) -> Tree:
        """A leaf with a session, and nothing attached."""
        engine = engine or Engine.open()
        tree = cls(leaf, engine, engine.add_session(leaf.fd, leaf.id, **sizes))
        tree.session.await_maps()  # children of the test could not: the thread that waits is not in them
        for name, size in tree.session.sizes.items():
            tree.rings[name] = Ring(os.dup(tree.session.fds[name]), size)
        return tree

    def guard(self, *, guard_unix: bool = False, resolver: int = 0, **settings: Any) -> Tree:
        """Attach the network programs and give them rules, and the port of a resolver."""
        chosen = cgroup_bpf.Settings(**settings)
        self.network = cgroup_bpf.attach(self.session, guard_unix=guard_unix)
        self.network.set_rules(chosen)
        self.flags |= chosen.flags
        self.session.set_state(self.flags, resolver=resolver)
        return self

    def trace(self) -> Tree:
        """Show the record of system calls from now on."""
        self.session.set_state(self.flags)
        self.traced = True
        return self

    def let_go(self) -> None:
        """Close all descriptors but those of the rings, as when we are killed."""
        self.session.close()
        self.engine.close()

    def close(self) -> None:
        for ring in self.rings.values():
            ring.close()
            os.close(ring.fd)
        self.rings = {}
        self.leaf.kill()
        self.leaf.await_empty()
        if self.session.maps:
            self.session.remove()
        self.let_go()

    def run(self, function: Callable[[], R]) -> R:
        """Run a function in a child inside the leaf; its result travels as JSON."""
        return in_child(function, self.leaf.enter)

    def denials(self) -> list[Record]:
        """All records of the ring of denials so far."""
        return self._drained("mg_denials")

    def activity(self) -> list[Record]:
        """All records of the ring of activity so far."""
        return self._drained("mg_activity")

    def _drained(self, name: str) -> list[Record]:
        while samples := self.rings[name].drain():
            self.seen[name] += [record for record in map(decode.record, samples) if self.traced or _is_verdict(record)]
        return self.seen[name]

    def net_denials(self) -> list[NetRecord]:
        return [r for r in self.denials() if isinstance(r, NetRecord)]

    def unix_denials(self) -> list[UnixRecord]:
        return [r for r in self.denials() if isinstance(r, UnixRecord)]

    def await_denial(self, matches: Callable[[Record], bool]) -> Record:
        """Wait, by the ring's own readiness, until a matching denial is there."""
        deadline = time.monotonic() + WAIT_S
        while True:
            for record in self.denials():
                if matches(record):
                    return record
            left = deadline - time.monotonic()
            assert left > 0, f"no such denial among {self.denials()}"
            select.select([self.rings["mg_denials"]], [], [], left)


def _is_verdict(record: Record) -> bool:
    return isinstance(record, NetRecord | UnixRecord)


def engine_on_calls() -> Engine:
    """The engine that records as in tiers 1 and 2, where the kernel takes that; else as in tier 3."""
    return Engine.open(lambda: (on_calls(),), "-calls")


def in_child(function: Callable[[], R], before: Callable[[], None] = lambda: None) -> R:
    """Run a function in a forked child; its result travels as JSON, its failure as an assertion."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            before()
            os.write(writer, json.dumps({"result": function()}).encode())
            code = 0
        except BaseException:
            os.write(writer, json.dumps({"failure": traceback.format_exc()}).encode())
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = json.loads(pipe.read())
    os.waitpid(pid, 0)
    assert "result" in answer, answer.get("failure")
    result: R = answer["result"]
    return result


def errno_of(act: Callable[[], object]) -> int:
    """0 when the act succeeds, else its errno."""
    try:
        act()
    except OSError as error:
        return error.errno or -1
    return 0


def each(tree: Tree, act: Callable[[], object]) -> Iterator[tuple[str, int]]:
    """The errno of an act outside and inside."""
    yield "outside", in_child(lambda: errno_of(act))
    yield "inside", tree.run(lambda: errno_of(act))
