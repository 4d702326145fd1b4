"""Runs programs in a scratch world, guarded and not, and reads back what mcpguard recorded.

A promise about a refusal needs three things, and the helpers here make all three cheap: the same act succeeds without
mcpguard, it fails under it, and an event names the process and the rule. Nothing here fakes a kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "demo"))

from world import World  # noqa: E402

from mcpguard.session.coverage import TIER_NAMES  # noqa: E402

Json = dict[str, Any]
ACTORS = REPOSITORY / "tests" / "actors"
SYSTEM_PYTHON = "/usr/bin/python3"
# An emulated guest is many times slower than any host.
RUN_SECONDS = 600 if os.environ.get("MCPGUARD_LANE_KERNEL") else 90
TIER_OF_LANE = {"bpf": 1, "plain": 2}
# The exit code of a run that failed before its program was started: then there is no session.
BEFORE_THE_CHILD = 125
# A Python program that makes the terminal on its standard input the controlling one, as a terminal emulator does.
TERMINAL_LEADER = """
import os, sys
os.setsid()
os.close(os.open(os.ttyname(0), os.O_RDWR))
os.execvp(sys.argv[1], sys.argv[1:])
"""


def need_root() -> None:
    """Stop a kernel test where there is no root: a skip on a laptop, a failure where MCPGUARD_KERNEL_TESTS=require."""
    if os.geteuid() == 0:
        return
    if os.environ.get("MCPGUARD_KERNEL_TESTS") == "require":
        pytest.fail("kernel tests are required and this is not root")
    pytest.skip("needs root")


@dataclass(frozen=True)
class Finished:
    """What became of one program.

    Attributes:
        code: its exit code; a signal n shows as 128 + n, guarded or not.
        out, err: what it wrote.
        pid: of the program that was started, which is mcpguard itself in a guarded run.
    """

    code: int
    out: str
    err: str
    pid: int

    def json_lines(self) -> list[Json]:
        """The output lines that are JSON objects; anything else a program wrote is passed over."""
        lines = []
        for line in self.out.splitlines():
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    lines.append(value)
        return lines


@dataclass
class Sandbox:
    """One world and one profile to run programs in.

    Attributes:
        world: the scratch folders and canaries.
        profile: name of a built-in profile, or of one given to `write_profile`.
        variables: set in the environment of every program, besides those of the world.
        prefix: words put before every command, such as those that enter a network namespace.
    """

    world: World
    profile: str = "default"
    variables: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()

    def write_profile(self, name: str, text: str) -> Path:
        """Install a profile of the user's under `name`, and use it from now on."""
        folder = self.world.state / "config" / "profiles"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.yaml"
        path.write_text(text)
        self.profile = name
        return path

    def control(self, command: Sequence[str | Path], **more: Any) -> Finished:
        """Run a program in the world without mcpguard."""
        return execute([*self.prefix, *map(str, command)], self.world.project, self._environment(), **more)

    def run(self, command: Sequence[str | Path], *, options: Sequence[str] = (), **more: Any) -> Finished:
        """Run a program in the world under `mcpguard run`, with the project as its workspace."""
        options = (*options, *os.environ.get("MCPGUARD_RUN_OPTIONS", "").split())
        words = ["run", "-p", self.profile, "-w", str(self.world.project), *options, "--", *map(str, command)]
        return self.mcpguard(*words, **more)

    def mcpguard(self, *words: str, **more: Any) -> Finished:
        """Run the mcpguard command itself, in the project."""
        command = [*self.prefix, *mcpguard_command(), *words]
        finished = execute(command, self.world.project, self._environment(), **more)
        if words[0] == "run" and "--tier" not in words:
            assert_tier_of_lane(self.world, finished)
        return finished

    def events(self, session: str | None = None, *filters: str) -> list[Json]:
        """What was recorded for a session, the latest when none is named, oldest first."""
        asked = ["log", *([session] if session else []), "--format", "json", *filters]
        finished = self.mcpguard(*asked)
        assert finished.code == 0, finished.err
        return [json.loads(line) for line in finished.out.splitlines()]

    def denials(self, session: str | None = None) -> list[Json]:
        """The recorded denials of a session."""
        return self.events(session, "--verdict", "deny")

    def assert_told(self, end: str, rule: str | None = "") -> None:
        """The latest session recorded a denial of a path that ends so, with the program and the rule.

        Args:
            rule: a part of its text; None: rules allow it, and the session's own view of the host does not have it.
        """
        denials = self.denials()
        found = [event for event in denials if event.get("path", "").endswith(end)]
        if rule is not None:
            found = [event for event in found if rule in event.get("rule", {}).get("text", "")]
        assert found, denials
        assert rule is None or found[0]["rule"]["file"], found
        assert found[0]["pid"] > 0 and found[0]["exe"].startswith("/"), found

    def _environment(self) -> dict[str, str]:
        return self.world.environment(**self.variables)


def mcpguard_command() -> list[str]:
    """How to start the mcpguard under test."""
    return [sys.executable, "-P", "-m", "mcpguard"]


def execute(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    *,
    stdin: str | None = None,
    timeout: float = RUN_SECONDS,
    pass_fds: Sequence[int] = (),
) -> Finished:
    """Run one program to its end, in a session of its own, with nothing but the given environment."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        pass_fds=pass_fds,
    )
    try:
        out, err = process.communicate(stdin, timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"{command[:8]} did not end within {timeout} s\n{out[-2000:]}\n{err[-2000:]}") from None
    code = process.returncode
    return Finished(128 - code if code < 0 else code, out, err, process.pid)


def assert_tier_of_lane(world: World, finished: Finished) -> None:
    """In a guest the latest session must have had the tier that the guest was booted for, and not quietly a lesser one."""
    expected = TIER_OF_LANE.get(os.environ.get("MCPGUARD_LANE_LSM", ""))
    if expected is None or finished.code == BEFORE_THE_CHILD:
        return
    # A copy, with what was only appended yet: nothing is written and no lock is taken, for the store may be another user's.
    with tempfile.TemporaryDirectory() as folder:
        for file in (world.state / "state").glob("events.db*"):
            shutil.copy(file, folder)
        with contextlib.closing(sqlite3.connect(Path(folder, "events.db"))) as connection:
            tiers = connection.execute("SELECT tier FROM sessions ORDER BY started_ns DESC LIMIT 1").fetchall()
    assert tiers == [(TIER_NAMES[expected],)], f"this lane gives tier {expected}, and the session had {tiers}"


@contextlib.contextmanager
def sandbox(profile: str = "default") -> Iterator[Sandbox]:
    """A sandbox in a new world, removed at the end."""
    with World.create() as world:
        yield Sandbox(world, profile)


def assert_names_rule(event: Json, place: str) -> None:
    """A denial is worth something only when it tells who, with what program, and by which rule."""
    assert event["pid"] > 0
    assert event["exe"].startswith("/")
    assert place in event["rule"]["text"], event
    assert event["rule"]["file"], event
