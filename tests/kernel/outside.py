"""What lives outside the guarded tree and would be of use to it: a process with secrets, and sockets of services."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import SYSTEM_PYTHON
from netlab import Listener, listening
from world import World

Answer = Callable[[World], Sequence[int] | None]
# Added to every profile of the world: a socket of somebody outside is closed to the tree unless a rule names it.
OPEN_DOOR = 'name: base\nextends: [base]\nsockets: {allow: ["{workspace}/outside.sock"]}\n'
WAIT = "import sys; print('ready', flush=True); sys.stdin.read()"


@dataclass(frozen=True)
class Victim:
    """A process that only waits, with canaries in its environment and in a file that it holds open.

    Attributes:
        fd: number of the open file in that process.
        stack: where its stack begins, and how many bytes it has; the environment lies in it.
    """

    pid: int
    fd: int
    stack: tuple[int, int]


@contextlib.contextmanager
def victim(world: World, become: tuple[str, ...] = ()) -> Iterator[Victim]:
    """A waiting process of the same user, outside of every guarded tree.

    Args:
        become: words that take rights from it, where the acts have not all of root's.
    """
    held = world.root / "held"
    world.plant(held)
    canary = world.plant(world.root / "told")
    descriptor = os.open(held, os.O_RDONLY)
    environment = world.environment(VICTIM_TOKEN=canary)
    with subprocess.Popen(
        [*become, SYSTEM_PYTHON, "-c", WAIT],
        cwd=world.root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        pass_fds=[descriptor],
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        start, end = next(line for line in lines if "[stack]" in line).split()[0].split("-")
        try:
            yield Victim(process.pid, descriptor, (int(start, 16), int(end, 16) - int(start, 16)))
        finally:
            # An act may have stopped it.
            process.send_signal(signal.SIGCONT)
            process.kill()
            os.close(descriptor)


SOCKETS = {
    "ssh agent": ("ssh/agent.sock", socket.SOCK_STREAM),
    "docker": ("run/docker.sock", socket.SOCK_STREAM),
    "session bus": ("run/bus", socket.SOCK_STREAM),
    "display": (".X11-unix/X7", socket.SOCK_STREAM),
    "terminal multiplexer": ("tmux-0/default", socket.SOCK_STREAM),
    "datagrams": ("run/datagrams", socket.SOCK_DGRAM),
    "packets": ("run/packets", socket.SOCK_SEQPACKET),
}


def socket_paths(world: World, more: Mapping[str, str] | None = None) -> dict[str, tuple[str, int]]:
    """Where the outside sockets of a world are, with their kinds; those with @ are abstract.

    Args:
        more: stream sockets besides, below the root of the world.
    """
    places = {name: (str(world.root / "services" / path), int(kind)) for name, (path, kind) in SOCKETS.items()}
    places |= {name: (str(world.root / path), int(socket.SOCK_STREAM)) for name, path in (more or {}).items()}
    places["abstract"] = (f"@mcpguard-test-{world.root.name}", int(socket.SOCK_STREAM))
    places["abstract datagrams"] = (f"@mcpguard-test-{world.root.name}-dgram", int(socket.SOCK_DGRAM))
    return places


@contextlib.contextmanager
def services(world: World, more: Mapping[str, str] | None = None) -> Iterator[Listener]:
    """A listener at every outside socket of a world."""
    specs: list[dict[str, Any]] = []
    for name, (path, kind) in socket_paths(world, more).items():
        if not path.startswith("@"):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        specs.append({"name": name, "family": int(socket.AF_UNIX), "kind": kind, "address": path})
    with listening(json.loads(json.dumps(specs))) as listener:
        yield listener


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
            os.chmod(self.door, 0o777)  # whoever does the acts may ask
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
