"""Which tier a host gives, and what it says about it; what its programs cost the kernel's verifier."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import arena
import pytest
from arena import Finished, Json, Sandbox, World
from asked import Lane

from mcpguard.backends import guard
from mcpguard.backends.engine import Engine
from mcpguard.broker import rehearsal, tiers
from mcpguard.errors import HostError
from mcpguard.events.sessions import Session
from mcpguard.kernel import bpf, cgroup, landlock
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
# The kernel's limit is a million; what comes near it on one kernel is refused on the next. The dearest program costs 18 200.
MOST_INSTRUCTIONS = 50_000


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
    if tier == 2 and tiers.preemption() not in ("none", "voluntary"):
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
            done = rehearsal.not_refused(leaf)
            assert (done == []) == (lane.lsm == "bpf"), done
            session.set_state(0)
            assert len(rehearsal.not_refused(leaf)) == 3, "where nothing is guarded, nothing is refused"
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
    assert {name: count for name, count in cost.items() if not 0 < count < MOST_INSTRUCTIONS} == {}
