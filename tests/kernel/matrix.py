"""Runs a list of acts without mcpguard and with it, each time in a new world, and holds the two against each other.

One guarded run performs many acts: what an act costs is a fork, not a launch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from harness import ACTORS, REPOSITORY, SYSTEM_PYTHON, Finished, Json, Sandbox, assert_names_rule
from world import World

NO_SUCH_SOCKET = "quiet: there is no such socket"
# What a guarded process has not either: a control that succeeds by a capability would prove nothing.
CAPLESS = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--no-new-privs")
STATIC_ACTS = REPOSITORY / ".cache" / "actors"


@dataclass(frozen=True)
class Task:
    """One act to perform: the name of a function of the actor, and its arguments."""

    id: str
    act: str
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What the actor says of one act: see `acts.py`."""

    id: str
    pid: int
    ok: bool
    errno: str
    out: str


@dataclass(frozen=True)
class Duel:
    """The same acts without mcpguard and with it.

    Attributes:
        control, guarded: outcomes by the id of the task.
        free, caged: the worlds that they happened in.
        events: everything recorded for the guarded run.
    """

    control: dict[str, Outcome]
    guarded: dict[str, Outcome]
    free: World
    caged: World
    events: list[Json]

    def denials(self, id: str) -> list[Json]:
        """The recorded denials of the process that did the act, and of all that it started.

        Not the C library's look for a name service that this host does not have: it says nothing about the act.
        """
        family = self.descendants(self.guarded[id].pid)
        found = [e for e in self.events if e["verdict"] == "deny" and e.get("pid") in family]
        return [e for e in found if not e.get("detail", "").startswith(NO_SUCH_SOCKET)]

    def descendants(self, ancestor: int) -> set[int]:
        """A process of the guarded run and everything that came from it."""
        parents = {e["pid"]: e["ppid"] for e in self.events if e.get("pid") and e.get("ppid")}
        family = {ancestor}
        while more := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= more
        return family

    def assert_allowed(self, id: str) -> None:
        """The act succeeds both ways and leaves no denial."""
        assert self.control[id].ok, self.control[id]
        assert self.guarded[id].ok, (self.guarded[id], self.denials(id))
        assert not self.denials(id)

    def assert_refused(self, id: str) -> None:
        """The act succeeds without mcpguard and fails under it."""
        assert self.control[id].ok, self.control[id]
        assert not self.guarded[id].ok, self.guarded[id]
        assert self.guarded[id].errno != "CRASH", self.guarded[id].out

    def assert_recorded(self, id: str, place: str = "") -> None:
        """A denial with the program and the rule was recorded for the act."""
        found = self.denials(id)
        assert found, (self.guarded[id], "no denial was recorded")
        named = [e for e in found if place in e.get("rule", {}).get("text", "")]
        assert named, found
        assert_names_rule(named[0], place)


def static_acts(name: str = "acts") -> Path:
    """A compiled static actor, built when its source changed."""
    source = ACTORS / f"{name}.c"
    built = STATIC_ACTS / f"{name}-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        command = ["gcc", "-static", "-O1", "-Wall", "-Wextra", "-pthread", "-o", f"{built}.new", str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.fail(f"the static actor cannot be built: {done.stderr}")
        Path(f"{built}.new").replace(built)
    return built


def equip(world: World) -> None:
    """Put the actor into the project of a world."""
    for source in ACTORS.glob("*.py"):
        shutil.copy(source, world.project)
    shutil.copy(static_acts(), world.project / "acts")


def perform(
    sandbox: Sandbox, tasks: Sequence[Task], *, guarded: bool, **more: Any
) -> tuple[Finished, dict[str, Outcome]]:
    """Do the acts in one run and collect the outcomes; every act must have one."""
    plan = sandbox.world.project / "plan.json"
    plan.write_text(json.dumps([vars(task) | {"args": dict(task.args)} for task in tasks]))
    command = [SYSTEM_PYTHON, "-B", "acts.py", "plan.json"]
    finished = sandbox.run(command, **more) if guarded else sandbox.control(command, **more)
    outcomes = {line["id"]: Outcome(**line) for line in finished.json_lines()}
    missing = [task.id for task in tasks if task.id not in outcomes]
    assert not missing, (missing, finished)
    return finished, outcomes


@contextmanager
def duel(profile: str, prepare: Callable[[World], Sequence[Task]], prefix: tuple[str, ...] = ()) -> Iterator[Duel]:
    """Perform what `prepare` asks for in a free and in a guarded world; `profile` is the YAML of the guarded one."""
    with World.create() as free, World.create() as caged:
        outcomes = []
        for world, guarded in ((free, False), (caged, True)):
            equip(world)
            sandbox = Sandbox(world, prefix=prefix)
            sandbox.write_profile("matrix", profile)
            outcomes.append(perform(sandbox, prepare(world), guarded=guarded)[1])
        yield Duel(outcomes[0], outcomes[1], free, caged, Sandbox(caged).events())
