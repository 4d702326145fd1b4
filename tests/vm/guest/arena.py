"""Duels in a guest: the acts of tests/actors with mcpguard and without, on any file system, with somebody outside to ask.

A guest is slow, so a guarded run holds many acts, and its record is read here and not by starting `mcpguard log`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

KERNEL_TESTS = Path(__file__).parents[2] / "kernel"
# What programs of the tests import: acts that run inside know one another by their own names.
sys.path[:0] = [str(KERNEL_TESTS), str(KERNEL_TESTS.parent / "actors"), str(KERNEL_TESTS.parent / "launch")]

from harness import Finished, Json, Sandbox  # noqa: E402
from matrix import CAPLESS, Duel, Task, equip, perform  # noqa: E402
from outside import Answer, Outside  # noqa: E402
from world import World  # noqa: E402

from mcpguard.broker.__main__ import NAME as BROKER  # noqa: E402
from mcpguard.errors import StoreError  # noqa: E402
from mcpguard.events import query  # noqa: E402
from mcpguard.events.format import json_line  # noqa: E402
from mcpguard.events.sessions import Session  # noqa: E402
from mcpguard.events.store import Store  # noqa: E402

RUN_SECONDS = 400


@contextlib.contextmanager
def world_at(parent: Path) -> Iterator[World]:
    """A world below a folder. Removed by a program that is not afraid of depth."""
    made = World.create(parent)
    try:
        yield made
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", str(made.root)], check=False)


@contextlib.contextmanager
def fight(
    profile: str,
    prepare: Callable[[World, Outside], Sequence[Task]],
    parent: Path,
    *,
    answers: Mapping[str, Answer] | None = None,
    options: Sequence[str] = (),
    user: str = "",
) -> Iterator[Duel]:
    """As `matrix.duel`, with worlds below `parent`; the control has no capabilities, as nothing guarded has.

    Args:
        user: who does it all, mcpguard included; root when empty.
    """
    become = as_user(user) if user else ()
    with world_at(parent) as free, world_at(parent) as caged:
        outcomes = []
        for world, guarded in ((free, False), (caged, True)):
            equip(world)
            sandbox = Sandbox(world, prefix=become or (() if guarded else CAPLESS))
            sandbox.write_profile("matrix", profile)
            outside = Outside(world, answers or {})
            tasks = prepare(world, outside)
            more = {"options": options} if guarded else {}
            plan = world.project / "plan.json"
            plan.touch()
            if user:
                give(world.root, user)
            with outside.listening():
                finished, outcome = perform(sandbox, tasks, guarded=guarded, timeout=RUN_SECONDS, **more)
            outcomes.append(outcome)
            print(finished.err, file=sys.stderr)
            if user:
                give(world.state, "root")
        yield Duel(outcomes[0], outcomes[1], free, caged, recorded(caged))


@contextlib.contextmanager
def store_at(home: Path) -> Iterator[Store]:
    """What mcpguard has on record in a home of its own."""
    before = os.environ.get("MCPGUARD_HOME")
    os.environ["MCPGUARD_HOME"] = str(home)
    try:
        with Store.open(create=False) as store:
            yield store
    finally:
        del os.environ["MCPGUARD_HOME"]
        if before is not None:
            os.environ["MCPGUARD_HOME"] = before


def recorded(world: World, session: str | None = None) -> list[Json]:
    """The events of a session, the latest when none is named."""
    return recorded_at(world.state, session)


def recorded_at(home: Path, session: str | None = None) -> list[Json]:
    """The same in a home of mcpguard's."""
    with store_at(home) as store:
        chosen = store.session(session).id
        return [json.loads(json_line(event)) for event in query.events(store, chosen, query.Filter())]


def session_of(world: World) -> Session:
    """The latest session of a world."""
    with store_at(world.state) as store:
        return store.session(None)


def start(sandbox: Sandbox, command: Sequence[str], *, options: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Begin a guarded run and leave it running."""
    words = [sys.executable, "-P", "-m", "mcpguard", "run", "-p", sandbox.profile, "-w", str(sandbox.world.project)]
    return subprocess.Popen(
        [*sandbox.prefix, *words, *options, "--", *command],
        cwd=sandbox.world.project,
        env=sandbox.world.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def as_user(name: str) -> tuple[str, ...]:
    """What to put before a command of this user's."""
    return ("setpriv", "--reuid", name, "--regid", name, "--init-groups")


def give(folder: Path, user: str) -> None:
    """Make a folder and all in it a user's own."""
    subprocess.run(["chown", "-R", f"{user}:{user}", str(folder)], check=True)


@contextlib.contextmanager
def somebody(name: str = "somebody") -> Iterator[str]:
    """An ordinary user of this guest, who may become root by sudo, as who installs mcpguard can."""
    if subprocess.run(["id", name], capture_output=True, check=False).returncode:
        subprocess.run(["useradd", "--user-group", "--no-create-home", "-s", "/bin/bash", name], check=True)
    rule = Path("/etc/sudoers.d") / name
    rule.write_text(f"{name} ALL=(ALL) NOPASSWD: ALL\n")
    rule.chmod(0o440)
    # The repository may lie in a home that is root's own.
    for folder in KERNEL_TESTS.parents:
        folder.chmod(folder.stat().st_mode | 0o055)
    try:
        yield name
    finally:
        rule.unlink()


def stand(world: World, signal: str) -> None:
    """Stop or continue the user's mcpguard of this world, if there is one."""
    pattern = f"mcpguard run .*{world.project}"
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False)
    for word in found.stdout.split():
        # As root its broker has the same words; it goes on.
        if Path(f"/proc/{word}/comm").read_text().rstrip() != BROKER:
            subprocess.run(["kill", f"-{signal}", word], check=True)


def look_for(world: World, name: str) -> None:
    """Fail unless a refusal of this file of the project is on record; content where nothing is guarded."""
    with contextlib.suppress(StoreError), store_at(world.state) as store:
        path = str(world.project / name)
        assert store.read("SELECT 1 FROM events WHERE verdict = 'deny' AND path = ?", (path,)), (
            f"{name} is not told yet"
        )


def children(pid: int) -> list[int]:
    """Child processes."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def copy_program(path: Path, to: Path) -> None:
    """A program under another name."""
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, to)
    to.chmod(0o755)


__all__ = ["CAPLESS", "Duel", "Finished", "Json", "Outside", "Sandbox", "Task", "World"]
