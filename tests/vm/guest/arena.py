"""Duels in a guest: the acts of tests/actors with mcpguard and without, on any file system, with somebody outside to ask.

A guest is slow, so a guarded run holds many acts, and its record is read here and not by starting `mcpguard log`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

KERNEL_TESTS = Path(__file__).parents[2] / "kernel"
sys.path.insert(0, str(KERNEL_TESTS))

from harness import Finished, Json, Sandbox  # noqa: E402
from matrix import Duel, Task, equip, perform  # noqa: E402
from world import World  # noqa: E402

from mcpguard.errors import StoreError  # noqa: E402
from mcpguard.events import query  # noqa: E402
from mcpguard.events.format import json_line  # noqa: E402
from mcpguard.events.sessions import Session  # noqa: E402
from mcpguard.events.store import Store  # noqa: E402

RUN_SECONDS = 400
# Added to every profile of the world: a socket of somebody outside is closed to the tree unless a rule names it.
OPEN_DOOR = 'name: base\nextends: [base]\nsockets: {allow: ["{workspace}/outside.sock"]}\n'
# What a guarded process has not either: a control that succeeds by a capability would prove nothing.
CAPLESS = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--no-new-privs")
Answer = Callable[[World], Sequence[int] | None]


@dataclass
class Outside:
    """A process that is not guarded and does what the acts ask it by a socket in the workspace.

    Attributes:
        answers: by request; each may return descriptors to be sent.
        pids: of the guarded run: mcpguard itself, once it was started.
    """

    world: World
    answers: Mapping[str, Answer]
    pids: list[int] = field(default_factory=list)

    @property
    def door(self) -> str:
        return str(self.world.project / "outside.sock")

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Answer until the end of the block."""
        profiles = self.world.state / "config" / "profiles"
        profiles.mkdir(parents=True, exist_ok=True)
        (profiles / "base.yaml").write_text(OPEN_DOOR)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(self.door)
            server.listen(8)
            thread = threading.Thread(target=self._serve, args=(server,), daemon=True)
            thread.start()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    server.shutdown(socket.SHUT_RDWR)
                thread.join()

    def _serve(self, server: socket.socket) -> None:
        while True:
            try:
                line, _ = server.accept()
            except OSError:
                return
            with line:
                request = line.recv(1000).decode()
                try:
                    sent = self.answers[request](self.world) or ()
                    said = b"done"
                except Exception as error:
                    sent, said = (), f"{type(error).__name__}: {error}".encode()
                with contextlib.suppress(OSError):
                    socket.send_fds(line, [said], list(sent))
                for fd in sent:
                    os.close(fd)


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
    become = (*("setpriv", "--reuid", user, "--regid", user, "--init-groups"),) if user else ()
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
                subprocess.run(["chown", "-R", f"{user}:{user}", str(world.root)], check=True)
            with outside.listening():
                finished, outcome = perform(sandbox, tasks, guarded=guarded, timeout=RUN_SECONDS, **more)
            outcomes.append(outcome)
            print(finished.err, file=sys.stderr)
            if user:
                subprocess.run(["chown", "-R", "0:0", str(world.state)], check=True)
        yield Duel(outcomes[0], outcomes[1], free, caged, recorded(caged))


@contextlib.contextmanager
def store_of(world: World) -> Iterator[Store]:
    """What mcpguard has on record in a world."""
    before = os.environ.get("MCPGUARD_HOME")
    os.environ["MCPGUARD_HOME"] = str(world.state)
    try:
        with Store.open(create=False) as store:
            yield store
    finally:
        del os.environ["MCPGUARD_HOME"]
        if before is not None:
            os.environ["MCPGUARD_HOME"] = before


def recorded(world: World, session: str | None = None) -> list[Json]:
    """The events of a session, the latest when none is named."""
    with store_of(world) as store:
        chosen = store.session(session).id
        return [json.loads(json_line(event)) for event in query.events(store, chosen, query.Filter())]


def session_of(world: World) -> Session:
    """The latest session of a world."""
    with store_of(world) as store:
        return store.session(None)


def start(sandbox: Sandbox, command: Sequence[str], *, options: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Begin a guarded run and leave it running."""
    words = [sys.executable, "-P", "-m", "mcpguard", "run", "-p", sandbox.profile, "-w", str(sandbox.world.project)]
    return subprocess.Popen(
        [*words, *options, "--", *command],
        cwd=sandbox.world.project,
        env=sandbox.world.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextlib.contextmanager
def somebody() -> Iterator[str]:
    """An ordinary user of this guest, who may become root by sudo, as who installs mcpguard can."""
    name = "somebody"
    if subprocess.run(["id", name], capture_output=True, check=False).returncode:
        subprocess.run(["useradd", "--user-group", "--no-create-home", "-s", "/bin/bash", name], check=True)
    rule = Path("/etc/sudoers.d/somebody")
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
        subprocess.run(["kill", f"-{signal}", word], check=True)


def await_quiet(world: World, seconds: float) -> None:
    """Wait until nothing has been added to the record for a while; at once where there is none."""
    with contextlib.suppress(StoreError), store_of(world) as store:
        number, last, since = store.number(store.session(None).id), -1, time.monotonic()
        while time.monotonic() - since < seconds:
            now = store.last_seq(number)
            if now != last:
                last, since = now, time.monotonic()
            time.sleep(0.5)


def children(pid: int) -> list[int]:
    """Child processes."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def copy_program(path: Path, to: Path) -> None:
    """A program under another name."""
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, to)
    to.chmod(0o755)


__all__ = ["Duel", "Finished", "Json", "Outside", "Sandbox", "Task", "World"]
