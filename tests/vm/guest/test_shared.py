"""One engine for all sessions in the tiers of the hooks: loaded once, whoever runs, and clear of what ended or was killed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import arena
import pytest
from arena import Sandbox
from asked import Lane
from bare import policy_of
from puppet import puppet
from test_still import broker_of, leaf_of, wait_until

from mcpguard.backends import guard
from mcpguard.backends.engine import Engine
from mcpguard.kernel import bpf, cgroup, pins
from mcpguard.wire import _abi

pytestmark = pytest.mark.kernel

WAYS = {1: guard.LSM, 2: guard.MODIFY_RETURN}
NOTHING = {"heads": 0, "pages": 0, "places": 0}
PROFILE = "name: matrix\nextends: [dev-tools]\nfiles:\n  write: ['{workspace}']\n"


@pytest.fixture
def engine(tier: int) -> Iterator[Engine]:
    """The engine that runs use in this lane."""
    opened = guard.open_engine(WAYS[tier])
    try:
        yield opened
    finally:
        opened.close()


def loaded(engine: Engine) -> dict[str, int]:
    """The kernel's number of each program."""
    return {name: bpf.program_id(engine.program(name)) for name in engine.programs}


def known(engine: Engine) -> dict[int, int]:
    """The leaves of sessions, each with its slot."""
    sessions = engine.map("mg_sessions")
    values = {key: sessions.get(key, _abi.MG_SESSION.size) for key in sessions.keys(8)}
    return {number(key): _abi.MG_SESSION.unpack(value)[0] for key, value in values.items() if value}


def number(key: bytes) -> int:
    return int.from_bytes(key, sys.byteorder)


def key(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


def rules_of(engine: Engine, slot: int) -> dict[str, int]:
    """How much there is of the automata of a session: heads, pages of lines, places of file systems."""
    indices = range(slot * guard._PER_SLOT, (slot + 1) * guard._PER_SLOT)
    first, last = (place * _abi.MG_PAGES_LIMIT for place in (indices.start, indices.stop))
    sizes = {"mg_roots": _abi.MG_ROOT_KEY.size, "mg_branches": _abi.MG_BRANCH_KEY.size}
    places = [place for name, size in sizes.items() for place in engine.map(name).keys(size)]
    return {
        "heads": sum(any(engine.map("mg_policies").get(key(at), _abi.MG_POLICY.size) or b"") for at in indices),
        "pages": sum(engine.map("mg_tables").get(key(at), 4) is not None for at in range(first, last)),
        "places": sum(number(place[:4]) in indices for place in places),
    }


@contextlib.contextmanager
def box() -> Iterator[Sandbox]:
    with arena.world_at(Path("/vmtmp/worlds")) as world:
        made = Sandbox(world)
        made.write_profile("matrix", PROFILE)
        yield made


def test_another_run_loads_nothing_and_adds_one_session_whose_rules_go_with_it(engine: Engine, tier: int) -> None:
    programs, links, before = loaded(engine), engine.linked(), known(engine)
    with box() as made, puppet(made) as held:
        kind = f"-{WAYS[tier]}"
        assert [str(path) for path in Path(pins.ROOT).iterdir() if path.name.endswith(kind)] == [engine._folder]
        (added,) = known(engine).keys() - before.keys()
        assert added == cgroup.cgroup_id(str(leaf_of(held.pid)))
        slot = known(engine)[added]
        assert all(rules_of(engine, slot).values()), rules_of(engine, slot)
        assert loaded(engine) == programs
        assert links <= engine.linked(), "nothing was taken away to be attached anew"
        held.end()
    wait_until(lambda: added not in known(engine), "the end of its session")
    with pins.locked():  # whoever empties the slot has it
        assert rules_of(engine, slot) == NOTHING


def test_the_rules_of_a_session_that_was_killed_go_with_the_next_run(engine: Engine) -> None:
    before = known(engine)
    with box() as made:
        with puppet(made) as held:
            leaf = leaf_of(held.pid)
            (added,) = known(engine).keys() - before.keys()
            slot = known(engine)[added]
            for pid in (broker_of(held.process.pid), held.process.pid, held.pid):
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: "populated 0" in (leaf / "cgroup.events").read_text(), "the end of its tree")
        assert added in known(engine), "nobody was left to take it out"
        assert all(rules_of(engine, slot).values()), rules_of(engine, slot)
        assert made.run(["true"], timeout=arena.RUN_SECONDS).code == 0
    assert added not in known(engine)
    with pins.locked():
        assert rules_of(engine, slot) == NOTHING


def test_both_policies_of_a_session_with_an_edit_go_with_its_leaf(engine: Engine, tier: int, lane: Lane) -> None:
    """An edit writes the new one beside the old one, and whoever is killed then leaves both."""
    mount = cgroup.unified_mount()
    assert mount is not None
    leaf = cgroup.make_leaf(mount, f"edited-{os.getpid()}")
    session = engine.add_session(leaf.fd, leaf.id)
    plan = policy_of(lane.places("ext4")[0])
    rules = guard.Guard(session)
    one = rules.set_policy(plan)
    session.set_state(_abi.MG_SESSION_LIVE | _abi.MG_SESSION_FILES, *one)
    assert set(rules.set_policy(plan)).isdisjoint(one)
    slot = session.slot
    session.close()
    os.close(leaf.fd)
    leaf.remove()
    assert rules_of(engine, slot)["heads"] == 4
    guard.open_engine(WAYS[tier]).close()
    assert leaf.id not in known(engine)
    assert rules_of(engine, slot) == NOTHING
