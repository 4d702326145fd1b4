"""What a guarded launch costs, beside the neighbours that do a similar job, and where its time goes.

Runs `true` bare, under `mcpguard run`, bubblewrap, firejail with its profile, sandlock, strace and the npm package
@anthropic-ai/sandbox-runtime, in turns whose order changes, so that a slow moment of the host hits all of them. Prints medians
and ratios; judges nothing.
The phases of `mcpguard run` are measured in runs of their own. The package is compiled before, as pip does it.

usage: benchmarks/launch.py [--repetitions 20] [--json FILE]
Missing neighbours are named and left out; `tools/packages.sh bench` brings what they need.
"""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from peers import NPM_PACKAGE, SANDLOCK, mcpguard, npm_runtime, sandlock_package

OURS = "mcpguard run -- true"
LEAST_REPETITIONS = 15
# Ends of phases as the command itself sees them; it prints nothing, so stdout is free for them.
PHASES = r"""
import sys, time
from mcpguard.cli import run
from mcpguard.broker import client
ends = []
def end(name):
    ends.append(f"{time.monotonic() * 1000 - float(sys.argv[1])}\t{name}")
def around(owner, attribute, before, after):
    act = getattr(owner, attribute)
    def timed(*args, **named):
        if before:
            end(before)
        result = act(*args, **named)
        if after:
            end(after)
        return result
    setattr(owner, attribute, timed)
around(client, "fork", "interpreter, first imports", None)
def offer(self):
    from mcpguard.session import run as session  # imported by now, and not before it would be
    around(session, "_wait_for_agent", None, "the agent")
    return offered(self)
offered, client.Broker.offer = client.Broker.offer, offer
around(client.Broker, "load", "command line", None)
around(client.Broker, "offer", "policy, plan (the broker loads meanwhile)", "waiting for the broker")
around(client.Broker, "confined", "request; recorder loaded, session stored", "waiting until the child is confined")
around(client.Broker, "go", "the canary's refusal read from the ring", None)
def leave(code):
    end("last records, closing, cleaning up")
    print(*ends, sep="\n", flush=True)
    leave_for_good(code)
leave_for_good, run._leave = run._leave, leave
sys.exit(run.main(sys.argv[2:]))
"""


@dataclass(frozen=True)
class Contender:
    name: str
    command: list[str]
    environment: dict[str, str]


def contenders(folder: Path) -> tuple[list[Contender], list[str]]:
    """Those that run `true` here, and why the others do not."""
    home = {"MCPGUARD_HOME": str(folder / "home")}
    candidates = [
        Contender("true", ["true"], {}),
        Contender(OURS, [*mcpguard(), "run", "-q", "--", "true"], home),
        Contender("python3 -c pass", ["/usr/bin/python3", "-c", "pass"], {}),
    ]
    missing = []
    if shutil.which("bwrap"):
        candidates.append(Contender("bwrap --ro-bind / / true", ["bwrap", "--ro-bind", "/", "/", "true"], {}))
    else:
        missing.append("bwrap: not installed (apt-get install bubblewrap)")
    if shutil.which("firejail"):
        candidates.append(Contender("firejail true (its profile)", ["firejail", "--quiet", "true"], {}))
    else:
        missing.append("firejail: not installed (apt-get install firejail)")
    if shutil.which("strace"):
        candidates.append(Contender("strace -f true", ["strace", "-f", "-qq", "-o", "/dev/null", "true"], {}))
    else:
        missing.append("strace: not installed (apt-get install strace)")
    package = sandlock_package(folder)
    if package:
        words = [sys.executable, "-c", SANDLOCK, str(folder / "workspace"), "true"]
        candidates.append(Contender("sandlock", words, {"PYTHONPATH": str(package)}))
    else:
        missing.append("sandlock: pip could not install it")
    if shutil.which("npm"):
        runtime = npm_runtime(folder)
        if runtime:
            candidates.append(Contender("sandbox-runtime (npm)", [str(runtime), "true"], {}))
        else:
            missing.append(f"{NPM_PACKAGE}: npm could not install it")
    else:
        missing.append(f"{NPM_PACKAGE}: no npm")
    able = []
    for contender in candidates:
        done = start(contender, folder)
        if done.returncode == 0:
            able.append(contender)
        else:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"status {done.returncode}"]
            missing.append(f"{contender.name}: {last[0]}")
    return able, missing


def compile_package() -> None:
    """An installed package is compiled; a checkout may not be, and compiling at each start is not what is measured."""
    package = importlib.util.find_spec("mcpguard")
    if package and package.submodule_search_locations:
        compileall.compile_dir(package.submodule_search_locations[0], quiet=2)


def start(contender: Contender, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        contender.command,
        cwd=folder / "workspace",
        env={**os.environ, **contender.environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def phases(repetitions: int, folder: Path) -> dict[str, list[float]]:
    """Milliseconds of each phase of `mcpguard run`, one value a run, in their order."""
    took: dict[str, list[float]] = {}
    for _ in range(repetitions):
        began = time.monotonic() * 1000
        command = [sys.executable, "-P", "-c", PHASES, str(began), "-q", "--", "true"]
        done = start(Contender("phases", command, {"MCPGUARD_HOME": str(folder / "home")}), folder)
        if done.returncode:
            raise SystemExit(f"the phases could not be measured: {done.stderr}")
        before = 0.0
        for line in done.stdout.splitlines():
            when, name = line.split("\t")
            took.setdefault(name, []).append(float(when) - before)
            before = float(when)
    return took


def measure(able: list[Contender], repetitions: int, folder: Path) -> dict[str, list[float]]:
    """Milliseconds from start to end, one value a turn and contender."""
    took: dict[str, list[float]] = {contender.name: [] for contender in able}
    chance = random.Random(1)
    for _ in range(repetitions):
        for contender in chance.sample(able, len(able)):
            began = time.perf_counter()
            done = start(contender, folder)
            took[contender.name].append((time.perf_counter() - began) * 1000)
            if done.returncode:
                raise SystemExit(f"{contender.name} failed in the middle: {done.stderr}")
    return took


def report(took: dict[str, list[float]], missing: list[str], parts: dict[str, list[float]]) -> None:
    ours = statistics.median(took[OURS]) if OURS in took else None
    bare = statistics.median(took["true"])
    print(f"{'command':28} {'median ms':>10} {'p90 ms':>8} {'added ms':>9} {'mcpguard is':>12}")
    for name, values in took.items():
        middle = statistics.median(values)
        ninth = sorted(values)[int(len(values) * 0.9)]
        ratio = f"{ours / middle:11.2f}x" if ours else ""
        print(f"{name:28} {middle:10.1f} {ninth:8.1f} {middle - bare:9.1f} {ratio:>12}")
    for line in missing:
        print(f"left out  {line}")
    print(f"\n{'phase of mcpguard run':42} {'median ms':>10} {'until here':>11}")
    until = 0.0
    for name, values in parts.items():
        until += statistics.median(values)
        print(f"{name:42} {statistics.median(values):10.1f} {until:11.1f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--json", type=Path, help="gets every value")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mcpguard-launch-") as name:
        folder = Path(name)
        (folder / "workspace").mkdir()
        compile_package()
        able, missing = contenders(folder)
        repetitions = max(arguments.repetitions, LEAST_REPETITIONS)
        took = measure(able, repetitions, folder)
        parts = phases(repetitions, folder) if OURS in took else {}
    report(took, missing, parts)
    if arguments.json:
        arguments.json.write_text(json.dumps({"milliseconds": took, "phases": parts, "left_out": missing}) + "\n")
    return 0 if OURS in took else 1


if __name__ == "__main__":
    sys.exit(main())
