"""A tree that the kernel asks no program about stands still, and goes on when it asks again; a person can end it meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import arena
import pytest
from arena import Sandbox, World
from asked import Lane
from harness import SYSTEM_PYTHON, mcpguard_command
from launcher import Account, Terminal
from puppet import Puppet, puppet
from test_live_files import PROFILE, alone

from mcpguard.broker.__main__ import NAME as BROKER
from mcpguard.kernel import cgroup
from mcpguard.session.coverage import TIER_NAMES

pytestmark = pytest.mark.kernel

# Stands on a terminal as agents do: keys come as they are, and none is a signal.
AGENT = """
import os, tty
tty.setraw(0)
print("ready", flush=True)
while (key := os.read(0, 1)) not in (b"", b"q"):
    print("key", key[0], flush=True)
"""


@pytest.fixture
def box(lane: Lane) -> Iterator[Sandbox]:
    with arena.world_at(lane.places("ext4")[0]) as world:
        made = Sandbox(world)
        made.write_profile("matrix", PROFILE)
        world.plant(note(world))
        yield made


def note(world: World) -> Path:
    """A file that no rule allows."""
    return world.home / "notes/list"


def switches(tier: int, lane: Lane) -> list[tuple[Path, str, str, str]]:
    """What root can turn outside so that programs are no longer asked: where, to what and back, and how it is told."""
    asked = (Path("/proc/sys/kernel/ftrace_enabled"), "0", "1", "kernel.ftrace_enabled is 0")
    preempted = (Path("/sys/kernel/debug/sched/preempt"), "full", lane.preempt, "preempts at will now (full)")
    return [asked, preempted] if tier == 2 and alone(tier, lane) else [asked]


@contextlib.contextmanager
def turned(switch: Path, off: str, on: str) -> Iterator[None]:
    switch.write_text(off)
    try:
        yield
    finally:
        switch.write_text(on)


def wait_until(fact: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + arena.RUN_SECONDS
    while not fact():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.05)


def state(pid: int) -> str:
    """Its state in one letter; Z also when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except FileNotFoundError:
        return "Z"


def leaf_of(pid: int) -> Path:
    path = next(line[3:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::"))
    return Path(f"{cgroup.unified_mount()}{path}")


def await_still(held: Puppet, still: bool) -> None:
    events = leaf_of(held.pid) / "cgroup.events"
    wait_until(lambda: f"frozen {still:d}" in events.read_text(), f"frozen {still:d}")


def broker_of(pid: int) -> int:
    """The broker that a run started, itself or by sudo."""
    below = arena.children(pid)
    for one in below:
        if Path(f"/proc/{one}/comm").read_text().rstrip() == BROKER:
            return one
    return next(found for one in below if (found := broker_of(one)))


def test_the_tree_stands_still_while_the_kernel_asks_no_program(box: Sandbox, lane: Lane, tier: int) -> None:
    with puppet(box) as held:
        for switch, off, on, _told in switches(tier, lane):
            assert held.ask("read", note(box.world)) == "EACCES"
            with turned(switch, off, on):
                await_still(held, True)
            await_still(held, False)
            assert held.ask("read", note(box.world)) == "EACCES"
        code, said = held.end()
    events = arena.recorded(box.world, held.session)
    assert code == 0
    lost = [event["detail"] for event in events if event["kind"] == "loss"]
    for *_how, told in switches(tier, lane):
        assert sum(told in line for line in lost) == 1, lost
        assert said.count(told) == 2, "at once and at the end"
    assert said.count("the agent goes on") == len(switches(tier, lane)), said
    assert [event["op"] for event in events if event["op"] == "thaw"] == ["thaw"] * len(switches(tier, lane))


def test_what_stands_still_would_read_what_is_refused(box: Sandbox, lane: Lane, tier: int) -> None:
    """The control: where the hooks alone keep it, nothing else does. The broker is stopped, or it would freeze the tree."""
    with puppet(box) as held:
        broker = broker_of(held.process.pid)
        assert held.ask("read", note(box.world)) == "EACCES"
        os.kill(broker, signal.SIGSTOP)
        wait_until(lambda: state(held.process.pid) == "T", "the stop of the run, which follows its broker")
        with turned(*switches(tier, lane)[0][:3]):
            unasked = held.ask("read", note(box.world))
            held.process.send_signal(signal.SIGCONT)  # it wakes the broker
            await_still(held, True)
        await_still(held, False)
        assert held.ask("read", note(box.world)) == "EACCES"
        assert held.end()[0] == 0
    assert unasked == ("" if alone(tier, lane) else "EACCES")


def test_while_no_program_is_asked_a_run_can_be_ended_and_another_has_the_weaker_tier(
    box: Sandbox, lane: Lane, tier: int
) -> None:
    """It is not remembered: the next one has the better tier again."""
    with puppet(box) as held, turned(*switches(tier, lane)[0][:3]):
        assert held.process.stderr is not None
        assert any("the agent stands still" in line for line in held.process.stderr), "the run knows of it"
        held.process.send_signal(signal.SIGTERM)
        code, _said = held.end()
        assert code == 128 + signal.SIGKILL
        if lane.kernel == "6.1":  # its Landlock is too old for tier 3, so nothing is started
            assert box.run(["true"], timeout=arena.RUN_SECONDS).code == 125
        else:
            with puppet(box) as weaker:
                assert weaker.end()[0] == 0
            assert arena.session_of(box.world).tier == TIER_NAMES[3]
    assert box.run(["true"], timeout=arena.RUN_SECONDS).code == 0
    assert arena.session_of(box.world).tier == TIER_NAMES[tier]


def test_a_tree_that_stands_still_ends_with_its_broker(box: Sandbox, lane: Lane, tier: int) -> None:
    with puppet(box) as held, turned(*switches(tier, lane)[0][:3]):
        await_still(held, True)
        os.kill(broker_of(held.process.pid), signal.SIGKILL)
        code, said = held.end()
        wait_until(lambda: state(held.pid) == "Z", "the end of the tree")
    assert code == 125
    assert "the broker ended while the agent was running" in said


def test_a_tree_that_nobody_would_let_go_on_is_ended_by_the_next_run(box: Sandbox, lane: Lane, tier: int) -> None:
    with puppet(box) as held, turned(*switches(tier, lane)[0][:3]):
        await_still(held, True)
        leaf = leaf_of(held.pid)
        for pid in (held.process.pid, broker_of(held.process.pid)):
            os.kill(pid, signal.SIGKILL)
        held.process.wait()
    assert "frozen 1" in (leaf / "cgroup.events").read_text()
    assert state(held.pid) != "Z"
    assert box.run(["true"], timeout=arena.RUN_SECONDS).code == 0
    wait_until(lambda: state(held.pid) == "Z", "the end of the tree")
    assert box.run(["true"], timeout=arena.RUN_SECONDS).code == 0
    assert not leaf.exists()


# --- the person at the terminal ---------------------------------------------------------------------------------


@contextlib.contextmanager
def on_terminal(box: Sandbox, user: str) -> Iterator[Terminal]:
    """A guarded agent, by sudo where the user is not root; it has begun."""
    account = Account(user, tuple(mcpguard_command()))
    words = ["run", "-p", box.profile, "-w", str(box.world.project), "--", SYSTEM_PYTHON, "-c", AGENT]
    with account.terminal([*account.mcpguard, *words], cwd=box.world.project, env=box.world.environment()) as terminal:
        terminal.wait_for("ready")
        yield terminal


@pytest.mark.parametrize("user", ["root", "somebody"])
def test_ctrl_c_ends_what_stands_still_whoever_takes_the_keys(user: str, box: Sandbox, lane: Lane, tier: int) -> None:
    """An agent that takes keys as they come is told of no signal, and sudo keeps a terminal of its own between."""
    with arena.somebody(), contextlib.ExitStack() as stack:
        arena.give(box.world.root, user)
        terminal = stack.enter_context(on_terminal(box, user))
        stack.enter_context(turned(*switches(tier, lane)[0][:3]))
        terminal.wait_for("the agent stands still")
        terminal.send("\x03")
        assert terminal.end()[0] == 128 + signal.SIGKILL


@pytest.mark.parametrize("user", ["root", "somebody"])
def test_what_goes_on_takes_keys_as_before(user: str, box: Sandbox, lane: Lane, tier: int) -> None:
    with arena.somebody(), contextlib.ExitStack() as stack:
        arena.give(box.world.root, user)
        terminal = stack.enter_context(on_terminal(box, user))
        with turned(*switches(tier, lane)[0][:3]):
            terminal.wait_for("the agent stands still")
        terminal.wait_for("the agent goes on")
        terminal.send("\x03")
        terminal.wait_for("key 3")
        terminal.send("q")
        assert terminal.end()[0] == 0
