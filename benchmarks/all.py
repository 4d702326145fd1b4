"""Every benchmark, one after the other: their tables as they come, then one of all, and all numbers in one file.

`make bench` runs this.

Peers that are missing are named (`make bench` installs what can be had). A script that takes longer than MOST_S is ended, and
the others go on. Takes some 40 minutes on a small machine and wants it for itself: what runs beside it is in the numbers.

usage: benchmarks/all.py [--only NAME...] [--quick] [--out benchmarks/results.json]
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import table

HERE = Path(__file__).parent
MOST_S = 1500.0
# Programs that are compared with, and the packages that bring them; those of npm and of the Python index come by themselves.
PEERS = {
    "bwrap": "bubblewrap",
    "firejail": "firejail",
    "strace": "strace",
    "rg": "ripgrep",
    "npm": "npm",
    "socat": "socat",
    "qemu-system-x86_64": "qemu-system-x86",
}
# Tiers that this host may not have: instructions are counted in emulated guests, where a time would say nothing.
GUEST = ["--guest", "6.12-bpf", "--count", "--blocks", "1", "--rounds", "1", "--rules", "10"]
GUESTS = {"acts-tier-1": GUEST, "acts-tier-2": ["6.12-plain" if word == "6.12-bpf" else word for word in GUEST]}
# Name -> (words of a whole run, words of a quick one).
SCRIPTS: dict[str, tuple[list[str], list[str]]] = {
    "launch": ([], []),
    "decision": ([], ["--rounds", "15", "--rules", "10", "1000"]),
    "acts": ([], ["--rules", "10", "--depths", "5", "9"]),
    "work": ([], ["--only", "git", "unittest"]),
    "events": ([], ["--paces", "5000", "--repetitions", "3"]),
    "scale": ([], ["--sessions", "1", "10"]),
    "memory": ([], ["--seconds", "2", "--repetitions", "2"]),
    "names": ([], []),
    "mcp": ([], ["--calls", "100"]),
    "store": ([], ["--events", "1000000"]),
    "watch": ([], ["--seconds", "10"]),
    **{name: (words, [*words, "--depths", "5", "--acts", "getppid", "open+close"]) for name, words in GUESTS.items()},
}


def run(name: str, words: list[str], found: Path) -> object:
    """The numbers of one script; None where it failed, after it said why."""
    script = HERE / f"{'acts' if name in GUESTS else name}.py"
    print(f"\n=== {name}: {HERE.name}/{script.name} {' '.join(words)}", flush=True)
    began = time.monotonic()
    # With a group of its own, whatever it started ends with it.
    process = subprocess.Popen([sys.executable, str(script), *words, "--json", str(found)], start_new_session=True)
    try:
        status: object = process.wait(MOST_S)
    except subprocess.TimeoutExpired:
        status = f"nothing after {MOST_S:.0f} s"
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
    print(f"({name} took {time.monotonic() - began:.0f} s)", flush=True)
    if not found.exists():
        print(f"{name} failed: {status}", flush=True)
        return None
    return json.loads(found.read_text())


def machine() -> dict[str, object]:
    """What the numbers are from."""
    about = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in about if line.startswith("model name")), "?")
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "model": model,
        "python": platform.python_version(),
        "load": os.getloadavg(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*SCRIPTS], default=[*SCRIPTS])
    parser.add_argument("--quick", action="store_true", help="the same in a few minutes, with fewer cases")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    missing = [package for program, package in PEERS.items() if not shutil.which(program)]
    results: dict[str, object] = {"machine": machine(), "missing": missing}
    with tempfile.TemporaryDirectory(prefix="mcpguard-bench-") as folder:
        for name in arguments.only:
            results[name] = run(name, SCRIPTS[name][arguments.quick], Path(folder, f"{name}.json"))
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    results["table"] = [dataclasses.asdict(line) for line in table.lines(results)]
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n=== all\n{table.text(table.lines(results))}")
    for package in missing:
        print(f"left out: {package} is not installed")
    failed = [name for name in arguments.only if results[name] is None]
    print(f"\n{arguments.out}: every number" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
