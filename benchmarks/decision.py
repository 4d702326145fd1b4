"""What one decision about a file costs in the kernel: the path automaton beside Landlock, by depth and number of rules.

The automaton is asked by system call, many times in one, about a real file (tests/kernel/parity.py); no hook is needed, so any
host will do. Landlock has no such question: its cost is what an open and close take longer in a process that it confines than
in one that it does not, in small rounds, in turns. Both are given the same workspace and as many other rules. Prints medians
and what the calmest rounds say, in ns, and writes them with the quartiles as JSON; judges nothing. On a busy host compare the
calm ones. Before that, how long a profile of as many rules takes from YAML to tables, and how large those are.

usage: benchmarks/decision.py [--rounds 40] [--rules 10 1000 10000] [--depths 5 9 30] [--json FILE]
Needs root and clang.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY / "src"), str(REPOSITORY / "tests/kernel")]

import acts  # noqa: E402
from parity import Parity  # noqa: E402

from mcpguard.kernel import landlock, mounts, privileges  # noqa: E402
from mcpguard.model.access import Access, Effect  # noqa: E402
from mcpguard.model.policy import PathRule  # noqa: E402
from mcpguard.policy.automaton import Automaton  # noqa: E402
from mcpguard.profile.load import load  # noqa: E402
from mcpguard.session.policy import compile_for  # noqa: E402

ALL = Access.READ | Access.WRITE | Access.EXECUTE
DECISIONS, OPENS = 3000, 1000  # in a round
COMPILATIONS = 15


def automaton(work: str, rules: int) -> Automaton:
    """A workspace with a protected name in it, what a system needs, and as many rules as asked for about other places."""
    made = [
        PathRule(Effect.ALLOW, Access.READ, path, (), number)
        for number, path in enumerate(("/etc", "/proc", "/dev"), 1)
    ]
    made += [
        PathRule(Effect.ALLOW, Access.READ | Access.EXECUTE, "/usr", (), 4),
        PathRule(Effect.ALLOW, ALL, work, (), 5),
        PathRule(Effect.DENY, ALL, f"{work}/**/.env*", (), 6),
    ]
    above = os.path.dirname(work)
    made += [PathRule(Effect.ALLOW, ALL, f"{above}/other/number-{n:05d}", (), n) for n in range(7, rules + 1)]
    return Automaton.build(made)


def sizes(folder: Path, numbers: list[int]) -> list[dict[str, Any]]:
    """By number of rules: ms from a profile to a policy, and bytes of its tables, which is what the kernel gets."""
    profiles = {rules: str(acts.profile(folder, rules)) for rules in numbers}
    rows: list[dict[str, Any]] = [{"rules": rules, "compile_ms": []} for rules in numbers]
    for _ in range(COMPILATIONS):
        for row in rows:
            begin = time.perf_counter_ns()
            policy = compile_for(load(profiles[row["rules"]]), str(folder / "work"))
            row["compile_ms"].append((time.perf_counter_ns() - begin) / 1e6)
            row["bytes"] = len(policy.tables)
    for row in rows:
        print(
            f"{row['rules']:>6} rules: compiled in {statistics.median(row['compile_ms']):.1f} ms to {row['bytes']:,} bytes"
        )
    return rows


def opens(path: str) -> float:
    """ns for an open and close."""
    begin = time.perf_counter_ns()
    for _ in range(OPENS):
        os.close(os.open(path, os.O_RDONLY))
    return (time.perf_counter_ns() - begin) / OPENS


class Confined:
    """A process under Landlock that opens files on request."""

    def __init__(self, grants: list[str]) -> None:
        self._questions, self._answers = os.pipe(), os.pipe()
        if os.fork() == 0:
            try:
                self._serve(grants)
            finally:
                os._exit(1)

    def _serve(self, grants: list[str]) -> None:
        os.close(self._questions[1])
        ruleset = landlock.Ruleset(landlock.abi(), scopes=0)
        for path in grants:
            fd = mounts.open_exact(path)
            ruleset.allow(fd, landlock.READ | landlock.WRITE | landlock.EXECUTE)
            os.close(fd)
        privileges.set_no_new_privs()
        ruleset.restrict_self()
        while path := os.read(self._questions[0], 4096).decode():
            os.write(self._answers[1], f"{opens(path)}".encode())

    def opens(self, path: str) -> float:
        os.write(self._questions[1], path.encode())
        return float(os.read(self._answers[0], 64))

    def close(self) -> None:
        for fd in (*self._questions, *self._answers):
            os.close(fd)
        os.wait()


def file_at(work: str, depth: int) -> str:
    """A file in a directory of that many components."""
    here = work
    while here.count("/") < depth:
        here += "/level"
    os.makedirs(here, exist_ok=True)
    Path(here, "file").write_text("x")
    return f"{here}/file"


def measure(parity: Parity, folder: Path, rules: int, depths: list[int], rounds: int) -> list[dict[str, Any]]:
    work, others = str(folder / "work"), folder / "other"
    grants = ["/etc", "/proc", "/dev", "/usr", work]
    for number in range(len(grants) + 2, rules + 1):
        (others / f"number-{number:05d}").mkdir(parents=True, exist_ok=True)
        grants.append(str(others / f"number-{number:05d}"))
    parity.place(automaton(work, rules), mounts.visible(mounts.table()))
    confined = Confined(grants)
    rows = []
    for depth in depths:
        path = file_at(work, depth)
        fd = os.open(path, os.O_PATH)
        seen = parity.ask(fd)
        if seen.detail or seen.allowed != ALL:
            raise SystemExit(f"{path} is not judged as it should be: {seen}")
        times: dict[str, list[float]] = {"automaton": [], "bare": [], "confined": []}
        for turn in range(rounds + 1):
            begin = time.perf_counter_ns()
            parity.ask(fd, Access.READ, rounds=DECISIONS)
            decision = (time.perf_counter_ns() - begin) / DECISIONS
            taken = {"automaton": decision, "bare": opens(path), "confined": confined.opens(path)}
            if turn:  # the first warms caches
                for name, took in taken.items():
                    times[name].append(took)
        os.close(fd)
        added = [slow - fast for slow, fast in zip(times["confined"], times["bare"], strict=True)]
        rows.append(row(rules, depth, "automaton", times["automaton"], min(times["automaton"])))
        rows.append(row(rules, depth, "landlock", added, min(times["confined"]) - min(times["bare"])))
    confined.close()
    return rows


def row(rules: int, depth: int, name: str, times: list[float], calm: float) -> dict[str, Any]:
    low, median, high = map(round, statistics.quantiles(times, n=4))
    return {
        "rules": rules,
        "depth": depth,
        "arm": name,
        "median_ns": median,
        "quartiles_ns": [low, high],
        "calm_ns": round(calm),
    }


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'rules':>6} {'depth':>5} {'automaton':>24} {'Landlock':>24}   ratio  calm")
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        cells = [f"{cell['median_ns']:>8} ns, calm {cell['calm_ns']:>5} ns" for cell in (ours, theirs)]
        ratios = [f"{ours[name] / theirs[name]:>6.2f}" for name in ("median_ns", "calm_ns")]
        print(f"{ours['rules']:>6} {ours['depth']:>5} {cells[0]:>24} {cells[1]:>24}  {'  '.join(ratios)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--rules", type=int, nargs="+", default=[10, 1000, 10_000])
    parser.add_argument("--depths", type=int, nargs="+", default=[5, 9, 30])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--base", type=Path, default=None, help="where to work; a tmpfs or disk of its own")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="mg", dir=arguments.base) as name:
        folder = Path(name).resolve()
        (folder / "work").mkdir()
        compiled = sizes(folder, arguments.rules)
        parity = Parity(folder)
        for rules in arguments.rules:
            rows += measure(parity, folder, rules, arguments.depths, arguments.rounds)
        parity.close()
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps({"sizes": compiled, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
