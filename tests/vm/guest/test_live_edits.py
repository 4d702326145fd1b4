"""Rules that change while a session runs, in the kernel's own hooks: what holds at once, and no wrong verdict on the way."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import arena
import pytest
from arena import Sandbox, World
from asked import Lane
from matrix import static_acts
from puppet import puppet

from mcpguard.broker.engine import Engine
from mcpguard.errors import KernelError
from mcpguard.kernel import cgroup, mounts, privileges
from mcpguard.kernel.cgroup import Leaf
from mcpguard.kernel.ring import Ring
from mcpguard.model.access import Access, Effect
from mcpguard.model.policy import Policy, User
from mcpguard.model.profile import Profile
from mcpguard.model.rule import FileRule, Origin
from mcpguard.policy.compile import compile_policy, extend_policy
from mcpguard.session.places import guard_plan
from mcpguard.wire import decode
from mcpguard.wire.records import FileRecord

pytestmark = pytest.mark.kernel

SWAPS, THREADS, OPENS = 200, 6, 2000
# A socket of another kind than it is asked for is told so before anybody is asked.
REFUSED = ("EPERM", "EACCES", "ENOENT", "ECONNREFUSED", "EPROTOTYPE")
ALL = Access.READ | Access.WRITE | Access.EXECUTE
PROFILE = """\
name: puppet
extends: [base]
files:
  deny: ["~/notes/private"]
sockets:
  allow: ["{workspace}/**"]
"""


@pytest.fixture
def world() -> Iterator[World]:
    with arena.world_at(Path("/vmtmp")) as made:
        yield made


# --- a storm of opens while the policy is replaced --------------------------------------------------------------


def rule(effect: Effect, access: Access, path: Path) -> FileRule:
    return FileRule(effect, access, str(path), Origin("storm", "storm.yaml", 1, f"{effect} {access} {path}"))


def policies(world: World) -> tuple[Policy, Policy]:
    """Without and with a rule for the third file."""
    files = (
        rule(Effect.ALLOW, ALL, world.project),
        rule(Effect.ALLOW, ALL, static_acts().parent),
        rule(Effect.DENY, ALL, world.project / "vault"),
    )
    profile = Profile("storm", "storm.yaml", files=files)
    user = User(0, 0, (), "root", str(world.home))
    one = compile_policy(profile, user=user, workspace=str(world.project), tmp=str(world.tmp))
    return one, extend_policy(one, files=[rule(Effect.ALLOW, Access.READ, world.home / "third")])


@contextlib.contextmanager
def new_leaf() -> Iterator[Leaf]:
    mount = cgroup.unified_mount()
    assert mount is not None
    made = cgroup.make_leaf(mount, f"test-{os.getpid()}-live")
    try:
        yield made
    finally:
        made.kill()
        made.remove()


def settle(leaf: Leaf) -> None:
    """Live in the leaf from now on, without capabilities, as everything guarded does."""
    leaf.enter()
    privileges.drop_bounding_set()
    privileges.drop_capabilities()


@dataclass
class Asker:
    """A process of the leaf that opens a file whenever it is asked."""

    commands: int
    answers: int

    @classmethod
    def start(cls, leaf: Leaf, path: Path) -> Asker:
        commands, answers = os.pipe(), os.pipe()
        if os.fork() == 0:
            os.close(commands[1])
            settle(leaf)
            while os.read(commands[0], 1):
                try:
                    os.close(os.open(path, os.O_RDONLY))
                    os.write(answers[1], b"y")
                except PermissionError:
                    os.write(answers[1], b"n")
            os._exit(0)
        os.close(commands[0])
        os.close(answers[1])
        return cls(commands[1], answers[0])

    def opens(self) -> bool:
        os.write(self.commands, b"?")
        return os.read(self.answers, 1) == b"y"


def storm(leaf: Leaf, path: Path) -> subprocess.Popen[str]:
    """Several threads of one guarded process that open one file again and again."""
    words = [str(static_acts()), "storm", str(path), str(THREADS), str(OPENS)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: settle(leaf))


def told(done: subprocess.Popen[str]) -> dict[str, int]:
    words = done.communicate()[0].split()
    return {words[at]: int(words[at + 1]) for at in range(0, len(words), 2)}


def test_no_open_is_judged_wrongly_while_policies_change(world: World, tier: int, lane: Lane) -> None:
    """Where programs of tier 2 may be skipped, their refusals are no promise: Landlock and mounts stand below, not here."""
    skips = tier == 2 and lane.preempts
    honest, denied, third = world.project / "honest", world.project / "vault/key", world.home / "third"
    for path in (honest, denied, third):
        world.plant(path)
    one, other = policies(world)
    plans = [guard_plan(policy, mounts.table()) for policy in (one, other)]
    met: dict[Path, list[dict[str, int]]] = {honest: [], denied: []}
    met_names = {path.name for path in (honest, denied, third)}
    with new_leaf() as leaf, Engine(leaf, False, None) as engine:
        assert engine.tier == tier
        engine.go_live()
        engine.set_rules({"connect": [], "listen": [], "hosts": [], "unix": []})
        engine.set_guard(plans[0], 0)
        engine.arm({})
        asker = Asker.start(leaf, third)
        assert not asker.opens()
        running = {path: storm(leaf, path) for path in met}
        swaps = 0
        while swaps < SWAPS or not all(met.values()):
            swaps += 1
            engine.update({}, plans[swaps % 2])
            opens, may = asker.opens(), bool(swaps % 2)
            assert opens == may or (skips and not may), f"after swap {swaps}"
            for path, process in running.items():
                if process.poll() is not None:
                    met[path].append(told(process))
                    running[path] = storm(leaf, path)
        for path, process in running.items():
            met[path].append(told(process))
        records = denials(engine)
        missed = engine.final()["missed"]
    opened = THREADS * OPENS
    came_through = sum(one["opened"] for one in met[denied])
    print(json.dumps({"swaps": swaps, "storms": [len(met[honest]), len(met[denied])], "skips": [came_through, missed]}))
    assert met[honest] == [{"opened": opened, "refused": 0, "missing": 0}] * len(met[honest])
    if skips:
        assert sum(one["refused"] for one in met[denied]) > 0
        assert missed >= came_through > 0, (
            "what came through was counted by the kernel, and the session says so at its end"
        )
    else:
        assert missed == 0
        assert met[denied] == [{"opened": 0, "refused": opened, "missing": 0}] * len(met[denied])
    deny = next(number for number, origin in enumerate(one.rules) if origin.text.startswith("deny"))
    names = [(Path(record.name).name, record.rule) for record in records]
    assert {seen for seen in names if seen[0] in met_names} == {("key", deny), ("third", 0)}


def denials(engine: Engine) -> list[FileRecord]:
    """What the hooks put on record."""
    facts = engine.facts()
    fds = dict(zip(facts["descriptors"], engine.descriptors(), strict=True))
    ring = Ring(os.dup(fds["mg_denials"]), int(facts["rings"]["mg_denials"]))
    found = []
    while batch := ring.drain():
        found += [record for record in map(decode.record, batch) if isinstance(record, FileRecord)]
    ring.close()
    return found


def test_what_the_kernel_refuses_leaves_the_old_policy_in_force(world: World, tier: int) -> None:
    """It is tried again and again, beside the one that counts."""
    honest, third = world.project / "honest", world.home / "third"
    for path in (honest, third):
        world.plant(path)
    one, other = policies(world)
    plans = [guard_plan(policy, mounts.table()) for policy in (one, other)]
    with new_leaf() as leaf, Engine(leaf, False, None) as engine:
        engine.go_live()
        engine.set_rules({"connect": [], "listen": [], "hosts": [], "unix": []})
        engine.set_guard(plans[0], 0)
        engine.arm({})
        askers = [Asker.start(leaf, honest), Asker.start(leaf, third)]
        assert [asker.opens() for asker in askers] == [True, False]
        for attempt in range(3):
            with no_descriptors(), pytest.raises(KernelError):
                engine.update({}, plans[1])
            assert [asker.opens() for asker in askers] == [True, False], attempt
        engine.update({}, plans[1])
        assert [asker.opens() for asker in askers] == [True, True]


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """The kernel gives this process nothing more to hold, so no map can be made."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- from the question to the kernel ----------------------------------------------------------------------------


def test_what_is_allowed_while_the_session_runs_holds_for_the_next_attempt(world: World, tier: int, lane: Lane) -> None:
    """In tier 2 a socket that is there at launch is hidden, so it waits; and so do files where hooks can be skipped."""
    sandbox = Sandbox(world)
    sandbox.write_profile("puppet", PROFILE)
    notes, private = world.home / "notes/list", world.home / "notes/private/diary"
    for path in (notes, private):
        world.plant(path)
    served = world.home / "served"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(served))
        listening.listen(8)
        with puppet(sandbox) as held:
            assert held.ask("read", notes) == "EACCES"
            outcome = held.approve(("files", "read", str(notes.parent)), ("sockets", "allow", str(served)))
            later = [
                held.ask("read", notes),
                held.ask("unix", served),
                held.ask("read", private),
                held.ask("write", notes),
            ]
            _code, said = held.end()
    events = arena.recorded(world, held.session)
    print(said)
    rules = (f"read {notes.parent}", f"sockets allow {served}")
    reads = [event for event in events if event.get("path") == str(notes) and event["access"] == "read"]
    if tier > 1 and lane.preempts:
        assert outcome.now == ()
        assert set(outcome.later) == set(rules)
        assert later[0] == "EACCES"
        assert {event["verdict"] for event in reads} == {"deny"}
        return
    if tier > 1:
        assert (outcome.now, outcome.later) == (rules[:1], rules[1:])
        assert later[0] == "" and later[1] != "" and later[2:] == ["EACCES", "EACCES"]
    else:
        assert outcome == type(outcome)(rules, (), "")
        assert later == ["", "", "EACCES", "EACCES"]
    assert [event["verdict"] for event in reads] == ["deny", "allow"]
    assert reads[0]["rule"]["text"] == "no rule allows it"
    assert (reads[1]["rule"]["file"], reads[1]["rule"]["text"]) == ("approved in watch", rules[0])
    (diary,) = [event for event in events if event.get("path") == str(private)]
    assert diary["rule"]["text"] == "deny ~/notes/private"
    told_of = [event["rule"]["text"] for event in events if event["op"] == "approve" and "rule" in event]
    assert told_of == list(outcome.now)


def test_the_tree_does_not_reach_where_rules_are_taken(world: World) -> None:
    sandbox = Sandbox(world)
    open_profile = 'name: puppet\nextends: [base]\nfiles:\n  read: [/]\n  execute: [/]\nsockets:\n  allow: ["/**"]\n'
    sandbox.write_profile("puppet", open_profile)
    with puppet(sandbox) as held:
        held.approve(("network", "allow", "127.0.0.1:1"))
        path, link = held.control(), world.project / "link"
        assert held.ask("link", path.parent, link) == ""
        for name in (path, f"/proc/self/root{path}", link / path.name):
            for kind in ("SEQPACKET", "STREAM", "DGRAM"):
                assert held.ask("unix", name, kind) in REFUSED, (name, kind)
        assert held.ask("names", path.parent) in ("EACCES", "EPERM")
        assert held.ask("read", path) in ("EACCES", "EPERM")
        assert held.approve(("network", "allow", "127.0.0.1:2")).now
        held.end()
    events = arena.recorded(world, held.session)
    refused = [event for event in events if event["kind"] == "unix" and event["verdict"] == "deny"]
    assert any(str(path.parent) in event["rule"]["text"] for event in refused)
