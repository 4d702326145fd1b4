"""A network of the tests' own: two namespaces joined by a cable, with listeners that tell what arrived.

The programs under test live in the near namespace, so that ports and addresses are never those of the host.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from harness import ACTORS

NEAR, FAR, FORBIDDEN = "10.77.0.1", "10.77.0.2", "10.77.0.3"
NEAR6, FAR6 = "fd77::1", "fd77::2"
METADATA = "169.254.169.254"
_CLONE_NEWNET = 0x40000000


def enter_network(path: str) -> None:
    """Move the calling thread into a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path) as namespace:
        if libc.setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def certificate(folder: Path, *names: str) -> tuple[Path, Path]:
    """A certificate that a site with these names shows and its clients trust, and its key."""
    shown, key = folder / "ca.pem", folder / "key.pem"
    alike = ",".join(f"DNS:{name}" for name in names)
    words = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test "
        f"-addext subjectAltName={alike} -keyout {key} -out {shown}"
    )
    subprocess.run(["openssl", *words.split()], check=True, capture_output=True)
    return shown, key


@contextlib.contextmanager
def site(
    namespace: str,
    where: tuple[str, int],
    handler: Callable[..., BaseHTTPRequestHandler],
    shown: tuple[Path, Path] | None = None,
) -> Iterator[None]:
    """A site in the network namespace of that name.

    Args:
        shown: certificate and key; None: it speaks plain HTTP.
    """
    served: list[ThreadingHTTPServer] = []
    ready = threading.Event()

    def serve() -> None:
        enter_network(f"/run/netns/{namespace}")
        with ThreadingHTTPServer(where, handler) as server:
            server.daemon_threads = True
            if shown is not None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(*shown)
                server.socket = context.wrap_socket(server.socket, server_side=True)
            served.append(server)
            ready.set()
            server.serve_forever()

    threading.Thread(target=serve, daemon=True).start()
    assert ready.wait(10)
    yield
    served[0].shutdown()


@dataclass
class Listener:
    """A running listener; `stop` ends it and returns what arrived, by the name of the address."""

    process: subprocess.Popen[str]
    arrived: dict[str, list[str]] = field(default_factory=dict)

    def stop(self) -> dict[str, list[str]]:
        if self.process.poll() is None:
            out, _ = self.process.communicate(timeout=30)
            self.arrived = json.loads(out)
        return self.arrived

    def has(self, name: str, token: str) -> bool:
        """Whether a text with the token arrived there, once the listener was stopped."""
        return any(token in text for text in self.arrived[name])


@contextlib.contextmanager
def listening(specs: Sequence[dict[str, Any]], prefix: Sequence[str] = ()) -> Iterator[Listener]:
    """A listener at the addresses of `specs` (see `listener.py`), up when the block begins."""
    command = [*prefix, sys.executable, str(ACTORS / "listener.py"), json.dumps(list(specs))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        listener = Listener(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield listener
        finally:
            listener.stop()


def everywhere(ports: Sequence[int]) -> list[dict[str, Any]]:
    """TCP and UDP at every address of a namespace, IPv4 and IPv6; the names are `tcp PORT` and `udp PORT`."""
    kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
    return [
        {"name": f"{word} {port}", "family": int(socket.AF_INET6), "kind": int(kind), "address": ["::", port]}
        for word, kind in kinds.items()
        for port in ports
    ]


# Comes to a port that a file names, as soon as the file is there, and says hello.
VISITOR = """
import os, socket, sys, time
while not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
with socket.create_connection((sys.argv[1], int(open(sys.argv[2]).read())), timeout=20) as visit:
    visit.sendall(b"hello")
"""


@contextlib.contextmanager
def visitor(host: str, port_file: Path, prefix: Sequence[str] = ()) -> Iterator[None]:
    """Somebody outside who comes to the port that `port_file` will name."""
    command = [*prefix, sys.executable, "-c", VISITOR, host, str(port_file)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


@dataclass(frozen=True)
class Lab:
    """The two namespaces, by name."""

    near: str
    far: str

    @staticmethod
    def enter(name: str) -> tuple[str, ...]:
        """The words that run a command in a namespace; the mounts stay those of the host."""
        return ("nsenter", f"--net=/run/netns/{name}")


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"ip {' '.join(words)}: {done.stderr.strip()}")


@contextlib.contextmanager
def lab() -> Iterator[Lab]:
    """Two joined namespaces with the addresses named above, removed at the end."""
    made = Lab(f"mgt{os.getpid()}a", f"mgt{os.getpid()}b")
    try:
        for name in (made.near, made.far):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", made.near, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", made.far)
        for name, addresses in (
            (made.near, (f"{NEAR}/24", f"{NEAR6}/64")),
            (made.far, (f"{FAR}/24", f"{FORBIDDEN}/24", f"{METADATA}/32", f"{FAR6}/64")),
        ):
            for address in addresses:
                ip("-n", name, "address", "add", address, "dev", "cable", *(["nodad"] if ":" in address else []))
            ip("-n", name, "link", "set", "cable", "up")
        ip("-n", made.near, "route", "add", f"{METADATA}/32", "dev", "cable")
        permit_ping = "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range"
        subprocess.run([*made.enter(made.near), "sh", "-c", permit_ping], check=True)
        yield made
    finally:
        for name in (made.near, made.far):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
