"""A gate of this process's own cgroup, and shims that ask it: real processes, sockets and pipes, without a session."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from events_help import begin, make_policy

import mcpguard
from mcpguard.catalogue.identity import resolve
from mcpguard.errors import HostError
from mcpguard.events.mcp import Talk
from mcpguard.events.query import Filter, events
from mcpguard.events.store import Store
from mcpguard.gate.admission import Admission, forms_of
from mcpguard.gate.conversation import Conversation
from mcpguard.gate.held import Held
from mcpguard.gate.ledger import Ledger
from mcpguard.gate.pins import Pins
from mcpguard.gate.servers import _keeper, _others
from mcpguard.gate.serving import Gate
from mcpguard.kernel import cgroup
from mcpguard.mcp.judge import Judge, Taint
from mcpguard.mcp.policy import McpPolicy, Pattern, Rule
from mcpguard.model.access import Effect
from mcpguard.model.mcp import McpKind
from mcpguard.model.rule import Origin

SHIM = f"{mcpguard.__path__[0]}/gate/shim.py"
PYTHON = os.path.realpath(sys.executable)
# A server that says what it was asked, and its environment.
SERVER = """
import json, os, sys
for line in sys.stdin.buffer:
    message = json.loads(line)
    if "id" in message and "method" in message:
        params = message.get("params", {})
        text = json.dumps(dict(os.environ)) if params.get("name") == "environment" else json.dumps(params.get("arguments"))
        result = {"content": [{"type": "text", "text": text}]}
        if message["method"] == "tools/list":
            result = {"tools": [{"name": name, "inputSchema": {}} for name in ("echo", "environment", "forbidden")]}
        sys.stdout.buffer.write(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode() + b"\\n")
        sys.stdout.buffer.flush()
"""


def rule(effect: Effect, server: str, name: str, kind: McpKind = McpKind.TOOL) -> Rule:
    origin = Origin("test", "test.yaml", 7, f"{server}/{name}")
    return Rule(effect, Pattern(server, (kind,), name, ""), (), "", origin)


@dataclass
class World:
    """A gate that serves in a thread.

    Attributes:
        refused: names of servers that may not start.
        admitted: what was started, by name, instead of what the shim asked for.
        taint: what the session has read.
        classes: of tools, as `classes.of_package` has them.
        held: calls that wait for a person.
        told: packets with all that are held.
        news: a pipe to the gate, as the session has it.
    """

    address: str
    store: Store
    session: str
    environment: dict[str, str]
    policy: McpPolicy
    refused: set[str] = field(default_factory=set)
    pins: Path = Path("/nowhere")
    admitted: dict[str, Admission] = field(default_factory=dict)
    ledger: Ledger | None = None
    taint: Taint = field(default_factory=lambda: Taint({}))
    classes: dict[str, Any] = field(default_factory=dict)
    held: Held = field(default_factory=Held)
    told: socket.socket | None = None
    news: int = -1

    def tell(self, **news: Any) -> None:
        """What the session says to its gate; whether somebody watches is known there when this returns."""
        os.write(self.news, json.dumps(news).encode() + b"\n")
        until = time.monotonic() + 60
        while self.held.watched is not news.get("watched", self.held.watched):
            assert time.monotonic() < until
            time.sleep(0.01)

    def settle(self, asked: str = "") -> None:
        """Until everything that was judged is on record, and a request with this id is among it."""
        until = time.monotonic() + 60
        while (self.ledger is not None and self.ledger.behind) or (
            asked and asked not in [one.mcp.id for one in self.events("request")[-4:]]
        ):
            assert time.monotonic() < until
            time.sleep(0.005)

    def waits(self) -> dict[str, Any]:
        """The first call that is held."""
        assert self.told is not None
        self.told.settimeout(60)
        while not (calls := json.loads(self.told.recv(1 << 16))["calls"]):
            pass
        found: dict[str, Any] = calls[0]
        return found

    def admit(self, name: str, argv: list[str], pid: int) -> Admission:
        if name in self.refused:
            raise HostError(
                f"the MCP server {name} is not approved", why="nobody did", do="approve it", code="mcp.unvetted"
            )
        environment = {name: self.environment[name] for name in ("PATH", "HOME")} | {"DECLARED": "yes"}
        cwd = os.readlink(f"/proc/{pid}/cwd")
        program = str(resolve(argv[0], environment, cwd) or "")
        if not program:
            raise HostError(f"{argv[0]} cannot be executed", why="-", do="-", code="mcp.no-program")
        forms = forms_of(program, argv)
        found = Admission(program, tuple(argv), environment, forms, cwd, pins=Pins(self.pins))
        return self.admitted.get(name, found)

    def judge(self, name: str, admission: Admission, peer: int, client: int) -> Conversation:
        assert self.ledger is not None
        others = _others(admission.pins)
        judge = Judge(self.policy, name, self.classes, admission.pins, self.taint, os.path.realpath, others=others)
        pins = _keeper(admission.pins)
        talk = Talk(self.session, name, "stdio")
        return Conversation(judge, talk, self.ledger, keep_pins=pins, hold=self.held.hold, drop=self.held.drop)

    def start(self, name: str, argv: Sequence[str], **more: Any) -> subprocess.Popen[bytes]:
        """What an agent does: start the shim of a server."""
        words = [PYTHON, "-I", "-S", SHIM, self.address, name, "--", *argv]
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(words, **{**streams, **more})

    def events(self, op: str | None = None) -> list[Any]:
        """What is on record, oldest first."""
        return [one for one in events(self.store, self.session, Filter()) if op in (None, one.op)]

    def wait_for(self, op: str, text: str = "") -> Any:
        """An event that is on record soon."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            for one in self.events(op):
                if text in str(one.detail):
                    return one
            time.sleep(0.02)
        raise AssertionError(f"no {op} {text}: {[(e.op, e.detail) for e in self.events()]}")


def wait_until(state: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not state():
        assert time.monotonic() < until
        time.sleep(0.01)


@contextlib.contextmanager
def gate(folder: Path, *, leaf: str | None = None) -> Iterator[World]:
    """A gate; by default everything is allowed but the tool `forbidden`."""
    policy = McpPolicy((rule(Effect.ALLOW, "*", "*"), rule(Effect.DENY, "*", "forbidden")))
    store = Store.open(folder / "events.db")
    session = begin(store, make_policy())
    given = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "SECRET_API_KEY": "canary"}
    address = str(folder / "socket")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen(64)
    reader, writer = os.pipe()
    own = Store.open(folder / "events.db")
    told, line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    world = World(address, store, session, given, policy, pins=folder / "pins.json", ledger=Ledger(own, session))
    world.held, world.told, world.news = Held(line), told, writer
    assert world.ledger is not None
    serving = Gate(session, leaf or cgroup.place_of(os.getpid()), listener, world, world.ledger, held=world.held)
    thread = threading.Thread(target=serving.serve, args=(reader,), daemon=True)
    thread.start()
    try:
        yield world
    finally:
        os.close(writer)
        thread.join(10)
        assert not thread.is_alive(), "the gate did not end"
        os.close(reader)
        for one in (listener, told, line):
            one.close()
        own.close()
        store.close()


def request(method: str, params: Mapping[str, Any] | None = None, id: int | str = 1) -> bytes:
    message = {"jsonrpc": "2.0", "id": id, "method": method, "params": dict(params or {})}
    return json.dumps(message).encode() + b"\n"


def call(tool: str, arguments: Mapping[str, Any] | None = None, id: int | str = 1) -> bytes:
    return request("tools/call", {"name": tool, "arguments": dict(arguments or {})}, id)
