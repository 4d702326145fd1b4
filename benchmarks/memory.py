"""What one session holds in memory: when it does nothing, when its resolver and gate have started, and at full rate.

In the session a program waits for words: to ask for a name and start an MCP server by way of the gate, then to open, change,
ask and call as fast as it can for some seconds. Prints MiB of each of our processes, of the session's own maps and of what the
engine holds for all sessions, medians over sessions of which one follows the other; the highest of each is the kernel's own
count. Judges nothing.

usage: benchmarks/memory.py [--seconds 3] [--repetitions 15] [--json FILE]
Needs root and a C compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ours
from acts import cast_text
from events import ACTOR, FILES
from mcp import ECHO, PYTHON, approve
from peers import mcpguard

from mcpguard.session.gate import SHIM_WORDS

MIB = 1 << 20
PROFILE = """\
name: memory
extends: [dev-tools]
mcp:
  gate: true
  allow: ["*"]
"""
# Does what a line of its input says, and says when that is done.
INSIDE = """
import json, os, socket, subprocess, sys, threading, time

folder, seconds, shim, server = sys.argv[1], float(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])

def ask(number):
    try:
        socket.getaddrinfo(f"n{number}.nobody.test", 80)
    except OSError:
        pass

def call(number):
    params = {"name": "echo", "arguments": {"text": "x" * 100}}
    message = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
    gate.stdin.write(json.dumps(message).encode() + b"\\n")
    gate.stdin.flush()
    if not gate.stdout.readline():
        sys.exit("the server ended")

def repeat(act):
    number, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        number += 1
        act(number)

print("idle", flush=True)
for line in sys.stdin:
    if line == "start\\n":
        gate = subprocess.Popen(
            [*shim, os.environ["MCPGUARD_GATE"], "bench", "--", *server], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        ask(0)
        call(0)
        print("started", flush=True)
    else:
        threads = [threading.Thread(target=repeat, args=(act,)) for act in (ask, call)]
        changes = subprocess.Popen([f"{folder}/actor", "changes", folder, "4000", str(seconds)], stdout=subprocess.DEVNULL)
        for thread in threads:
            thread.start()
        repeat(lambda n: subprocess.run([f"{folder}/actor", "opens", folder, "64", "1", "100000"], stdout=subprocess.DEVNULL))
        for thread in threads:
            thread.join()
        changes.wait()
        print("full rate", flush=True)
"""


def prepared(folder: Path) -> dict[str, str]:
    """A workspace with what the session starts, a profile with a gate, an approved server; the environment of all."""
    workspace, home = folder / "workspace", folder / "home"
    workspace.mkdir()
    (home / "config/profiles").mkdir(parents=True)
    (home / "config/profiles/memory.yaml").write_text(PROFILE)
    (folder / "actor.c").write_text(ACTOR)
    subprocess.run(["cc", "-O2", "-o", str(workspace / "actor"), str(folder / "actor.c")], check=True)
    (workspace / "inside.py").write_text(INSIDE)
    (folder / "echo.py").write_text(ECHO)
    for number in range(FILES):
        (workspace / str(number)).touch()
    os.environ["MCPGUARD_HOME"] = str(home)
    approve(server(folder), dict(os.environ), workspace)
    return dict(os.environ)


def server(folder: Path) -> list[str]:
    return [PYTHON, "-I", "-S", str(folder / "echo.py")]


def held(supervisor: int) -> dict[str, Any]:
    """MiB of each role, of the maps that its processes hold, and of what the engine has pinned."""
    found = ours.processes(supervisor)
    return {
        "processes": {role: ours.memory(pid) for role, pid in found.items()},
        "maps": sum(ours.maps(list(found.values())).values()) / MIB,
        "engine": {kind: size / MIB for kind, size in ours.engine().items()},
    }


def measure(folder: Path, seconds: float, environment: dict[str, str]) -> dict[str, Any]:
    """One session: by state, in the order of time."""
    workspace = folder / "workspace"
    words = [PYTHON, str(workspace / "inside.py"), str(workspace), str(seconds)]
    words += [json.dumps(SHIM_WORDS), json.dumps(server(folder))]
    process = subprocess.Popen(
        [*mcpguard(), "run", "-q", "-p", "memory", "--read", str(folder / "echo.py"), "--", *words],
        cwd=workspace, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    states: dict[str, Any] = {}
    stdin, stdout = cast_text(process.stdin), cast_text(process.stdout)
    for order in ("", "start\n", "work\n"):
        stdin.write(order)
        stdin.flush()
        state = stdout.readline().strip()
        if not state:
            raise SystemExit("the session ended early")
        time.sleep(1)  # what was set going by it has come to rest
        states[state] = held(process.pid)
    stdin.close()
    process.wait(60)
    return states


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mcpguard-memory-", dir=Path.home()) as name:
        environment = prepared(Path(name))
        sessions = [measure(Path(name), arguments.seconds, environment) for _ in range(arguments.repetitions)]
    states = {state: [session[state] for session in sessions] for state in sessions[0]}
    for state, all_ in states.items():
        kinds = all_[0]["engine"]
        engine = ", ".join(f"{kind} {statistics.median(one['engine'][kind] for one in all_):.1f}" for kind in kinds)
        print(f"{state}: maps of the session {statistics.median(one['maps'] for one in all_):.1f} MiB; ", end="")
        print(f"the engine's own: {engine} MiB")
        for role in all_[0]["processes"]:
            found = [one["processes"][role] for one in all_ if role in one["processes"]]
            told = (f"{kind} {statistics.median(one[kind] for one in found):.0f}" for kind in found[0])
            print(f"       {role:12} {', '.join(told)} MiB")
    if arguments.json:
        arguments.json.write_text(json.dumps(states) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
