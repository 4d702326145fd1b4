"""What the gate costs an MCP server: its start, and each call, beside the same server started directly.

One client talks to two servers in turns, one direct and one by way of the gate, so that a slow moment of the host hits both.
The gate is the process that sessions have, with its store and the user's catalogue; only the sandbox around the tree is left
out, for it costs both alike. Prints medians and differences; judges nothing.

With --flow the session has a rule about the flow of data, for which answers are searched for credentials.

usage: benchmarks/mcp.py [--calls 300] [--starts 15] [--flow] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

PACKAGE = Path(__file__).parents[1] / "src" / "mcpguard"
PYTHON = "/usr/bin/python3"
ECHO = """
import json, sys
for line in sys.stdin.buffer:
    message = json.loads(line)
    result = {"content": [{"type": "text", "text": message["params"]["arguments"]["text"]}]}
    sys.stdout.buffer.write(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode() + b"\\n")
    sys.stdout.buffer.flush()
"""
SIZES = {"20 B": 20, "100 kB": 100_000}


def begin_session() -> str:
    """A session in a new store, as `mcpguard run` begins one."""
    from mcpguard.events.ids import new_id
    from mcpguard.events.store import Store
    from mcpguard.profile.load import load
    from mcpguard.session.policy import compile_for

    session = new_id(time.time_ns())
    with_rules = compile_for(load("default"), str(Path.cwd()))
    store = Store.open()
    store.start_session(with_rules, command=["x"], tier="none", coverage=[], now_ns=time.time_ns(), session=session)
    store.close()
    return session


def approve(command: Sequence[str], environment: dict[str, str], folder: Path) -> None:
    from mcpguard.catalogue import approved, starting
    from mcpguard.catalogue.server import STDIO, Server

    server = Server("bench", "", "", "", STDIO, command=command[0], args=tuple(command[1:]))
    if found := starting.identify(server, environment, folder):
        approved.approve("bench", "bench", found, ())


def start_gate(
    session: str, environment: dict[str, str], folder: Path, *, flow: bool = False
) -> tuple[subprocess.Popen[bytes], str]:
    """The gate's process, and the address of its socket."""
    from mcpguard.kernel.cgroup import place_of
    from mcpguard.mcp.policy import McpPolicy, Pattern, Rule, dump
    from mcpguard.model.access import Effect
    from mcpguard.model.mcp import AfterTaint, McpKind
    from mcpguard.model.rule import Origin

    rule = Rule(Effect.ALLOW, Pattern("*", (McpKind.TOOL,), "*", ""), (), "", Origin("bench", "bench", 1, "*"))
    policy = McpPolicy((rule,), gate=True, after_taint=AfterTaint.REFUSE if flow else AfterTaint.ALLOW)
    address = str(folder / "socket")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen()
    facts = {
        "session": session,
        "leaf": place_of(os.getpid()),
        "listener": listener.fileno(),
        "held": -1,
        "keeps": -1,
        "watched": False,
        "tables": "",
        "engines": {},
        "environment": environment,
        "workspace": str(folder),
        "servers": [],
        "confined": [],
        "mcp": json.dumps(dump(policy)),
    }
    gate = subprocess.Popen(
        [sys.executable, "-E", "-P", str(PACKAGE / "gate" / "__main__.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=[listener.fileno()],
    )
    pipe_of(gate.stdin).write(json.dumps(facts).encode() + b"\n")
    pipe_of(gate.stdin).flush()
    return gate, address


def pipe_of(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("the process has no pipe")
    return stream


class Client:
    """One server, and the time that things take with it."""

    def __init__(self, words: Sequence[str], environment: dict[str, str], folder: Path) -> None:
        self._begun = time.perf_counter()
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=folder
        )

    def call(self, text: str, number: int) -> float:
        """Microseconds of a round trip."""
        stdin, stdout = pipe_of(self._process.stdin), pipe_of(self._process.stdout)
        begun = time.perf_counter()
        message = {"jsonrpc": "2.0", "id": number, "method": "tools/call"}
        params = {"name": "echo", "arguments": {"text": text}}
        stdin.write(json.dumps({**message, "params": params}).encode() + b"\n")
        stdin.flush()
        answer = json.loads(stdout.readline())
        if answer["result"]["content"][0]["text"] != text:
            raise ValueError(f"another answer: {answer}")
        return (time.perf_counter() - begun) * 1e6

    def first_answer(self) -> float:
        """Milliseconds from the start to the answer to a first call."""
        self.call("x", 0)
        return (time.perf_counter() - self._begun) * 1e3

    def end(self) -> None:
        self._process.communicate()


def measure(calls: int, starts: int, *, flow: bool = False) -> dict[str, dict[str, list[float]]]:
    """All values, by what was measured and by way."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MCPGUARD_HOME"] = str(folder / "mcpguard")
        (folder / "echo.py").write_text(ECHO)
        environment = {"PATH": "/usr/bin:/bin", "HOME": name}
        server = [PYTHON, "-I", "-S", str(folder / "echo.py")]
        approve(server, environment, folder)
        gate, address = start_gate(begin_session(), environment, folder, flow=flow)
        shim = [sys.executable, "-I", "-S", "-B", str(PACKAGE / "gate" / "shim.py"), address, "bench", "--", *server]
        ways = {"direct": server, "gate": shim}
        first = Client(shim, environment, folder)
        found = {"first start, ms": {"gate": [first.first_answer()]}}
        first.end()
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(starts):
            for way, words in ways.items():
                client = Client(words, environment, folder)
                times[way].append(client.first_answer())
                client.end()
        found["start, ms"] = times
        clients = {way: Client(words, environment, folder) for way, words in ways.items()}
        for size, length in SIZES.items():
            times = {way: [] for way in ways}
            for number in range(calls):
                for way, client in clients.items():
                    times[way].append(client.call("x" * length, number))
            found[f"call of {size}, µs"] = times
        for client in clients.values():
            client.end()
        gate.communicate()
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--starts", type=int, default=15)
    parser.add_argument("--flow", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options.calls, options.starts, flow=options.flow)
    if options.json:
        options.json.write_text(json.dumps(found) + "\n")
    for what, values in found.items():
        by_way = {way: statistics.median(one) for way, one in values.items()}
        direct, gate = by_way.get("direct"), by_way["gate"]
        more = "" if direct is None else f"   direct {direct:8.1f}   more {gate - direct:8.1f}"
        print(f"{what:22} gate {gate:8.1f}{more}")


if __name__ == "__main__":
    main()
