"""Which tier a host gives, and what it says about it; what its programs cost the kernel's verifier."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import arena
import pytest
from arena import Finished, Json, Sandbox, World
from asked import Lane
from kernels import STOCK

from mcpguard.backends import calls, guard, tracing
from mcpguard.backends.calls import Calls, _function
from mcpguard.backends.engine import ANY_CALL, ANY_SEND, CALLS, EVENT, Engine, on_calls
from mcpguard.broker import rehearsal, tiers
from mcpguard.errors import HostError, KernelError
from mcpguard.events.sessions import Session
from mcpguard.kernel import bpf, btf, cgroup, landlock, pins
from mcpguard.session.coverage import TIER_NAMES
from mcpguard.wire import _abi

pytestmark = pytest.mark.kernel

PROFILE = """\
name: matrix
extends: [dev-tools]
files:
  write: ["{workspace}"]
  deny: ["{workspace}/vault"]
"""
# The kernel's limit is a million; what comes near it on one kernel is refused on the next. The dearest program costs
# 95 900 on 6.12, and 130 400 on 7.3, whose verifier tells more states apart.
MOST_INSTRUCTIONS = 100_000
MOST_ON_NEWER = 150_000
RMDIR = 84


@dataclass(frozen=True)
class Ran:
    """One guarded run: how it ended, its record, its events."""

    finished: Finished
    session: Session
    events: list[Json]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with arena.world_at(Path("/vmtmp/worlds")) as made:
        made.plant(made.project / "vault/key")
        yield made


def run(world: World, *options: str) -> Ran:
    sandbox = Sandbox(world)
    sandbox.write_profile("matrix", PROFILE)
    finished = sandbox.run(["cat", "vault/key"], options=options, timeout=arena.RUN_SECONDS)
    return Ran(finished, arena.session_of(world), arena.recorded(world))


@pytest.fixture(scope="module")
def chosen(world: World) -> Ran:
    return run(world)


def assert_refused(ran: Ran, world: World) -> None:
    assert ran.finished.code == 1, ran.finished
    assert not any(canary in ran.finished.out for canary in world.canaries.values())
    denied = [e for e in ran.events if e["verdict"] == "deny" and e.get("path") == f"{world.project}/vault/key"]
    assert denied, ran.events
    assert denied[0]["exe"].endswith("/cat")
    assert denied[0]["pid"] > 0
    assert "vault" in denied[0]["rule"]["text"]


def test_the_best_tier_is_chosen_and_recorded(chosen: Ran, world: World, tier: int) -> None:
    assert chosen.session.tier == TIER_NAMES[tier], chosen.session
    assert_refused(chosen, world)


def test_the_record_says_what_holds(chosen: Ran, tier: int, lane: Lane) -> None:
    files = next(part for part in chosen.session.coverage if part.kind == "files")
    if tier == 2 and lane.preempts:
        assert "preempts at will" in " ".join(files.gaps), files
    else:
        assert not files.gaps, files
        assert ("modify-return" in files.by) == (tier == 2)


def test_tier_3_can_be_asked_for(world: World) -> None:
    if landlock.abi() < 3:
        ran = run(world, "--tier", "3")
        assert ran.finished.code == 125
        assert "Landlock ABI 3 is needed" in ran.finished.err
        return
    ran = run(world, "--tier", "3")
    assert ran.session.tier == TIER_NAMES[3]
    assert_refused(ran, world)


def test_tier_1_is_there_or_refused_with_what_to_do(world: World, lane: Lane) -> None:
    if lane.lsm == "bpf":
        return
    before = arena.session_of(world).id
    ran = run(world, "--tier", "1")
    assert ran.finished.code == 125
    assert ran.finished.out == ""
    assert "bpf is not among the active security modules" in ran.finished.err
    assert "lsm=" in ran.finished.err
    assert ran.session.id == before, "nothing was started, so nothing is on record"


def test_tier_2_can_be_asked_for_where_tier_1_is_there(world: World, lane: Lane) -> None:
    if lane.lsm != "bpf":
        return
    ran = run(world, "--tier", "2")
    assert ran.session.tier == TIER_NAMES[2]
    assert_refused(ran, world)


def test_programs_that_are_never_called_are_found_out(lane: Lane) -> None:
    """They load and attach, and the rehearsal still tells whether anybody asks them."""
    mount = cgroup.unified_mount()
    assert mount is not None
    leaf = cgroup.make_leaf(mount, f"rehearsal-{os.getpid()}")
    engine = guard.open_engine(guard.LSM)
    try:
        session = engine.add_session(leaf.fd, leaf.id)
        try:
            session.set_state(_abi.MG_SESSION_LIVE | _abi.MG_SESSION_FILES)
            assert guard.detach_verify(engine) == [], "every program is attached"
            done, unsure = rehearsal.not_refused(leaf)
            assert (done == []) == (lane.lsm == "bpf"), done
            assert unsure == [] or lane.lsm != "bpf"
            place = (leaf.id % _abi.MG_PLACES).to_bytes(4, sys.byteorder)
            engine.map("mg_leaf_places").set(place, bytes(4))
            assert {*rehearsal.NEEDED} < {*rehearsal.not_refused(leaf)[0]}, (
                "who has no place is not guarded, and no tier holds"
            )
            engine.map("mg_leaf_places").set(place, (1).to_bytes(4, sys.byteorder))
            assert (rehearsal.not_refused(leaf)[0] == []) == (lane.lsm == "bpf")
            session.set_state(0)
            done, unsure = rehearsal.not_refused(leaf)
            with rehearsal._Place("names") as place:
                acts = rehearsal._acts(place)
                names = {name for name, _number, act in acts if rehearsal._number_of(act) != errno.ENOSYS}
            assert {*done, *unsure} == names, "where nothing is guarded, nothing is refused"
            assert {*unsure} <= {"setting an attribute", "removing an attribute"}, "6.1 knows none in memory"
        finally:
            session.remove()
            session.close()
    finally:
        engine.close()
        os.close(leaf.fd)
        leaf.remove()


def test_an_asked_tier_that_does_not_hold_is_an_error(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the list of modules cannot be read."""
    monkeypatch.setattr(tiers, "_ACTIVE_MODULES", "/nowhere")
    mount = cgroup.unified_mount()
    assert mount is not None
    leaf = cgroup.make_leaf(mount, f"asked-{os.getpid()}")
    try:
        if lane.lsm == "bpf":
            armed = tiers.arm(leaf, 1)
            armed.session.remove()
            armed.session.close()
            armed.engine.close()
        else:
            with pytest.raises(HostError, match="does not hold"):
                tiers.arm(leaf, 1)
    finally:
        os.close(leaf.fd)
        leaf.remove()


def test_only_where_programs_may_be_skipped_everybody_pays_for_the_record(lane: Lane, tier: int) -> None:
    """A tracepoint of system calls makes every call of every process slower."""
    mount = cgroup.unified_mount()
    assert mount is not None
    leaf = cgroup.make_leaf(mount, f"recorded-{os.getpid()}")
    try:
        armed = tiers.arm(leaf, tier)
        try:
            assert tracing.detach_verify(armed.engine) == []
            skips = lane.preempts
            everybodys = {ANY_CALL, ANY_SEND} & armed.engine.linked()
            assert everybodys == ({ANY_CALL, ANY_SEND} if skips else set()), armed.engine.absent
            way = "sys_exit" if lane.keeps_tracepoints else EVENT
            assert {armed.engine.tracepoint(program) for program in everybodys} == ({way} if skips else set())
            assert bool(tracing.why_everybody_pays(armed.engine)) == skips
            on_calls = {name for name in armed.engine.linked() if name.startswith(CALLS)}
            assert (f"{CALLS}filtered" in on_calls) != skips
            assert on_calls == set() if skips else len(on_calls) > 70
        finally:
            armed.session.remove()
            armed.session.close()
            armed.engine.close()
    finally:
        os.close(leaf.fd)
        leaf.remove()


def another_build(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(bpf.OBJECTS, folder)
    (folder / "more.bpf.o").write_bytes(str(folder).encode())
    monkeypatch.setattr(bpf, "OBJECTS", folder)


def refuse_attach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another tool may hold a function."""
    attach = bpf.attach_traced

    def refuse(program: int, about: str) -> int:
        if about.startswith(f"{CALLS}rename"):
            raise KernelError("bpf_raw_tracepoint_open", errno.EBUSY, do="nothing")
        return attach(program, about)

    monkeypatch.setattr(bpf, "attach_traced", refuse)


def merge_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler may put a call's function into its caller: the program is attached, and another function does the work."""
    fit = Calls.fit

    def misplace(self: Calls, opened: bpf.Object) -> None:
        fit(self, opened)
        name = next(name for name in opened.programs if name.startswith(f"{CALLS}mkdir_"))
        opened.set_target(name, _function("rmdir"))
        self._wanted.remove(next(name for name in self._wanted if name.startswith(f"{CALLS}rmdir_")))
        monkeypatch.setattr(calls, "_call_each", lambda numbers: each([one for one in numbers if one != RMDIR]))

    each = calls._call_each
    monkeypatch.setattr(Calls, "fit", misplace)


def hide_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of which the kernel does not tell cannot have a program."""
    functions = btf.functions

    def without(names: Iterable[str]) -> dict[str, btf.Function]:
        return {name: one for name, one in functions(names).items() if not name.endswith("_sys_unlink")}

    monkeypatch.setattr(btf, "functions", without)


@pytest.mark.parametrize("spoil", [refuse_attach, merge_function, hide_function])
def test_where_one_program_does_not_hold_the_tracepoint_stands_in_for_all(
    lane: Lane, spoil: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record with a hole would be worse than one that costs more."""
    if lane.preempts:
        lane.not_here("programs on calls are not used")
    another_build(tmp_path / "objects", monkeypatch)
    spoil(monkeypatch)
    engine = Engine.open(lambda: (on_calls(),))
    try:
        assert engine.has(ANY_CALL) and engine.has(ANY_SEND)
        assert not [name for name in (*engine.programs, *engine.linked()) if name.startswith(CALLS)]
        assert tracing.why_everybody_pays(engine)
    finally:
        folder = engine._folder
        engine.close()
    with pins.locked():
        pins.remove(folder)


def test_so_few_are_attached_that_all_can_go_at_once(
    lane: Lane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes 256 links apart at a time, and stands still when all of them wait for what comes after."""
    if lane.preempts:
        lane.not_here("programs on calls are not used")
    engines = []
    for number in range(3):
        another_build(tmp_path / f"objects-{number}", monkeypatch)
        engines.append(Engine.open(lambda: (on_calls(),)))
    numbers: list[int] = []
    try:
        have = [sum(name.startswith(CALLS) for name in engine.linked()) for engine in engines]
        assert sum(map(bool, have)) <= 1, have
        numbers = [bpf.program_id(engine.program(name)) for engine in engines for name in engine.linked()]
    finally:
        folders = [engine._folder for engine in engines]
        for engine in engines:
            engine.close()
    for folder in folders:  # as by hand: all at once, in no order that we know
        shutil.rmtree(folder)
    deadline = time.monotonic() + 60
    while any(map(bpf.program_exists, numbers)):
        assert time.monotonic() < deadline, "the kernel does not get on"
        time.sleep(0.1)


def test_no_hooks_are_attached_that_could_not_all_go_at_once(
    lane: Lane, tier: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where other builds have sessions a weaker tier is taken, which says why, until they have ended."""
    mount = cgroup.unified_mount()
    assert mount is not None
    leaf = cgroup.make_leaf(mount, f"many-{os.getpid()}")
    monkeypatch.setattr(tiers, "REFUSED_TIERS", str(tmp_path / "refused"))
    folders = []
    try:
        for attached, expected in ((guard.LINKS_LIMIT, 3), (0, tier)):
            another_build(tmp_path / f"objects-{attached}", monkeypatch)
            with monkeypatch.context() as changed:
                changed.setattr(pins, "links", lambda attached=attached: attached)
                armed = tiers.arm(leaf, None)
            folders.append(armed.engine._folder)
            try:
                assert armed.tier == expected, armed.reasons
                assert ("other builds" in armed.reasons.get(tier, "")) == (expected == 3)
            finally:
                armed.session.remove()
                armed.session.close()
                armed.engine.close()
    finally:
        os.close(leaf.fd)
        leaf.remove()
        with pins.locked():
            for folder in folders:
                pins.remove(folder)


def test_what_the_programs_cost_the_verifier_is_bounded(chosen: Ran, lane: Lane, tier: int) -> None:
    engine: Engine = guard.open_engine({1: guard.LSM, 2: guard.MODIFY_RETURN}[tier])
    try:
        cost = {name: bpf.program_facts(engine.program(name)).verified_insns for name in engine.programs}
    finally:
        engine.close()
    out = os.environ.get("MCPGUARD_LANE_OUT")
    if out:
        told = {"kernel": os.uname().release, "tier": tier, "verified_insns": dict(sorted(cost.items()))}
        (Path(out) / "verifier.json").write_text(json.dumps(told, indent=1) + "\n")
    assert len([name for name in cost if name.startswith(("mg_lsm_", "mg_mod_"))]) > 30
    most = MOST_INSTRUCTIONS if lane.kernel in STOCK else MOST_ON_NEWER
    assert {name: count for name, count in cost.items() if not 0 < count < most} == {}
