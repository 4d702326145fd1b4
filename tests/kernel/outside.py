"""What lives outside the guarded tree and would be of use to it: a process with secrets, and sockets of services."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import SYSTEM_PYTHON
from netlab import Listener, listening
from world import World

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
def victim(world: World) -> Iterator[Victim]:
    """A waiting process of the same user, outside of every guarded tree."""
    held = world.root / "held"
    world.plant(held)
    canary = world.plant(world.root / "told")
    descriptor = os.open(held, os.O_RDONLY)
    environment = world.environment(VICTIM_TOKEN=canary)
    command = [SYSTEM_PYTHON, "-c", WAIT]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, pass_fds=[descriptor], text=True
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
