"""What many sessions at once cost: each launch beside those that live, and the memory of all of them.

Sessions are started one after the other and stay; at each number of living ones a few further launches of `true` are timed.
Kernel memory is what the kernel charges for maps: those of one session, and those that all sessions share.

usage: benchmarks/scale.py [--sessions 1 10 100] [--repetitions 15] [--json FILE]
Needs root, and some 60 MB for each session.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ours
from acts import cast_text
from peers import mcpguard

LEAST_REPETITIONS = 15
MIB = 1 << 20
# Says that it runs, and stays until its input ends.
STAYS = ["sh", "-c", "echo runs; read line"]


class Session:
    """One that stays."""

    def __init__(self, folder: Path) -> None:
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [*mcpguard(), "run", "-q", "--", *STAYS],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            **around(folder),
        )  # fmt: skip
        if cast_text(self.process.stdout).readline() != "runs\n":
            raise SystemExit(f"a session did not start: {cast_text(self.process.stderr).read()[-1000:]}")
        self.took_ms = (time.perf_counter() - began) * 1000


def end_all(sessions: list[Session]) -> None:
    for session in sessions:
        cast_text(session.process.stdin).close()
        session.process.stdin = None
    for session in sessions:
        _said, errors = session.process.communicate(timeout=300)
        if session.process.returncode not in (0, 1):  # `read` at its end
            print(f"a session ended with {session.process.returncode}: {errors[-1000:]}", file=sys.stderr)


def around(folder: Path) -> dict[str, Any]:
    return {"cwd": folder / "workspace", "env": {**os.environ, "MCPGUARD_HOME": str(folder / "home")}}


def launch_ms(folder: Path, words: list[str]) -> tuple[float, float]:
    """Milliseconds on the clock, and of processor time."""
    before, began = _cpu_s(), time.perf_counter()
    subprocess.run(words, check=True, capture_output=True, **around(folder))
    return (time.perf_counter() - began) * 1000, (_cpu_s() - before) * 1000


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def held(sessions: list[Session]) -> dict[str, Any]:
    """Memory of all sessions: MiB of each role (medians), and of maps."""
    roles: dict[str, list[dict[str, float]]] = {}
    owners: Counter[int] = Counter()
    charged: dict[int, int] = {}
    for session in sessions:
        found = ours.processes(session.process.pid)
        for role, pid in found.items():
            roles.setdefault(role, []).append(ours.memory(pid))
        its = ours.maps(list(found.values()))
        owners.update(its.keys())
        charged |= its
    shared = sum(size for map_, size in charged.items() if owners[map_] > 1) / MIB
    return {
        "processes": {
            role: {name: statistics.median(one[name] for one in all_) for name in all_[0]}
            for role, all_ in roles.items()
        },
        "maps_each": (sum(charged.values()) / MIB - shared) / len(sessions),
        "maps_shared": shared,
    }


def measure(numbers: list[int], repetitions: int, folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    sessions: list[Session] = []
    try:
        for number in sorted(numbers):
            while len(sessions) < number:
                sessions.append(Session(folder))
            bare, launches, used = [], [], []
            for _ in range(repetitions):
                bare.append(launch_ms(folder, ["true"])[0])
                took, cpu = launch_ms(folder, [*mcpguard(), "run", "-q", "--", "true"])
                launches.append(took)
                used.append(cpu)
            rows.append({"sessions": number, "launch_ms": launches, "cpu_ms": used, "bare_ms": bare, **held(sessions)})
            show(rows[-1])
    finally:
        end_all(sessions)
    return rows


def show(row: dict[str, Any]) -> None:
    low, middle, high = statistics.quantiles(row["launch_ms"], n=4)
    alone = statistics.median(row["bare_ms"])
    others = f" and {row['maps_shared']:.1f} MiB shared" if row["sessions"] > 1 else ", those of all among them"
    print(
        f"{row['sessions']:>4} living: a launch adds {middle - alone:.0f} ms (quartiles {low - alone:.0f} to "
        f"{high - alone:.0f}), {statistics.median(row['cpu_ms']):.0f} ms of processors; "
        f"maps {row['maps_each']:.1f} MiB each{others}",
        flush=True,
    )
    for role, one in row["processes"].items():
        print(f"       {role:12} rss {one['rss']:.0f} MiB, pss {one['pss']:.0f} MiB, its own {one['own']:.0f} MiB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--repetitions", type=int, default=LEAST_REPETITIONS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mcpguard-scale-") as name:
        folder = Path(name)
        (folder / "workspace").mkdir()
        rows = measure(arguments.sessions, max(arguments.repetitions, LEAST_REPETITIONS), folder)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
