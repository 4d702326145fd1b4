"""What guarding costs a single act, beside bare and Landlock, by depth and number of rules.

One process measures all acts in small rounds, in turns over the arms, so that a slow moment of the host hits all of them. Arms:
bare; unguarded while a session lives; Landlock with as many grants as the profile has rules; mcpguard in every tier that the
host gives. Prints medians and ratios to bare, and writes them as JSON; judges nothing.

usage: benchmarks/acts.py [--rounds 15] [--rules 10 1000] [--depths 5 9 30] [--json FILE]
Needs root. In a guest (tiers 1 and 2): tests/vm/lane.py run --kernel 6.12 -- .venv/bin/python benchmarks/acts.py
"""

from __future__ import annotations

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

REPOSITORY = Path(__file__).resolve().parent.parent
ACTS = ("open+close", "stat", "create+unlink", "rename", "fork+exec")
# How many of an act make one round.
TURNS = {"open+close": 1000, "stat": 1000, "create+unlink": 300, "rename": 300, "fork+exec": 5}


def place(base: str, depth: int) -> str:
    """A directory `depth` components below the root of its file system."""
    here = base
    while here.count("/") < depth - 1:
        here += "/level"
    os.makedirs(here, exist_ok=True)
    return here


def acts(folder: str) -> dict[str, Callable[[], object]]:
    """The acts on a directory."""
    there, made, moved = f"{folder}/file", f"{folder}/made", f"{folder}/moved"

    def opened() -> None:
        os.close(os.open(there, os.O_RDONLY))

    def created() -> None:
        os.close(os.open(made, os.O_WRONLY | os.O_CREAT, 0o600))
        os.unlink(made)

    def renamed() -> None:
        os.rename(there, moved)
        os.rename(moved, there)

    def executed() -> None:
        pid = os.posix_spawn("/bin/true", ["true"], {})
        os.waitpid(pid, 0)

    return {
        "open+close": opened,
        "stat": lambda: os.stat(there),
        "create+unlink": created,
        "rename": renamed,
        "fork+exec": executed,
    }


def serve() -> None:
    """Measure one round of one act at one place for each line of standard input; answers in ns for one act."""
    for line in sys.stdin:
        name, folder = line.rstrip("\n").split(" ", 1)
        act, turns = acts(folder)[name], TURNS[name]
        begin = time.perf_counter_ns()
        for _ in range(turns):
            act()
        print((time.perf_counter_ns() - begin) / turns, flush=True)


def serve_under_landlock(grants: list[str]) -> None:
    """The same with a Landlock ruleset on these paths and on what the interpreter needs."""
    sys.path.insert(0, str(REPOSITORY / "src"))
    from mcpguard.kernel import landlock, mounts, privileges

    ruleset = landlock.Ruleset(landlock.abi(), scopes=0)
    everything = landlock.READ | landlock.WRITE | landlock.EXECUTE
    for path in map(os.path.realpath, grants):
        fd = mounts.open_exact(path)
        ruleset.allow(fd, everything if os.path.isdir(path) else everything & landlock.FILE_RIGHTS)
        os.close(fd)
    privileges.set_no_new_privs()
    ruleset.restrict_self()
    serve()


def cast_text(stream: IO[str] | None) -> IO[str]:
    """A pipe that was asked for is there."""
    if stream is None:
        raise SystemExit("a pipe is missing")
    return stream


class Arm:
    """One process that measures on request."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], folder: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, **environment},
        )
        self.stdin, self.stdout, self.stderr = map(
            cast_text, (self.process.stdin, self.process.stdout, self.process.stderr)
        )

    def round(self, act: str, folder: str) -> float:
        self.stdin.write(f"{act} {folder}\n")
        self.stdin.flush()
        ready, _, _ = select.select([self.stdout], [], [], 300)
        answer = self.stdout.readline() if ready else ""
        if not answer:
            self.process.kill()
            raise SystemExit(f"{self.name}: {self.stderr.read()[-2000:]}")
        return float(answer)

    def close(self) -> None:
        self.stdin.close()
        self.process.wait(60)


def profile(folder: Path, rules: int) -> Path:
    """A profile with as many rules, most of them about names that are not there; the workspace is what is measured."""
    lines = ["name: bench", "files:", "  read:", "    - /etc", "    - /proc", "    - /dev", "    - /usr"]
    lines += [f"    - {folder}/nothing/number-{n:05d}/deeper" for n in range(max(0, rules - 9))]
    lines += ["  execute: [/usr]", '  write: ["{workspace}", /dev/null]']
    lines += ['  deny: ["{workspace}/**/.env*"]', "network: {}"]
    path = folder / f"bench-{rules}.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def able(tier: int, folder: Path, environment: dict[str, str]) -> bool:
    """Whether this host gives a tier."""
    command = [*mcpguard(), "run", "-q", "--tier", str(tier), "-p", str(profile(folder, 10)), "--", "/bin/true"]
    return (
        subprocess.run(
            command, cwd=folder / "work", env={**os.environ, **environment}, capture_output=True, check=False
        ).returncode
        == 0
    )


def mcpguard() -> list[str]:
    return [sys.executable, "-P", "-m", "mcpguard"]


def measure(rules: int, depths: list[int], rounds: int, folder: Path, tiers: list[int]) -> list[dict[str, Any]]:
    work = folder / "work"
    environment = {"MCPGUARD_HOME": str(folder / "home"), "PYTHONPATH": str(REPOSITORY / "src")}
    actor = ["/usr/bin/python3", "-I", "-S", str(folder / "acts.py")]
    grants = ["/usr", "/etc", "/proc", "/dev", "/bin", "/lib", str(work), str(folder / "acts.py")]
    for number in range(max(0, rules - len(grants))):
        path = folder / "grants" / f"number-{number:05d}"
        path.mkdir(parents=True, exist_ok=True)
        grants.append(str(path))
    chosen = str(profile(folder, rules))
    arms = [Arm("bare", [*actor, "serve"], environment, str(work))]
    for tier in tiers:
        run = [*mcpguard(), "run", "-q", "--tier", str(tier), "-p", chosen, "--read", str(folder / "acts.py"), "--"]
        arms.append(Arm(f"tier {tier}", [*run, *actor, "serve"], environment, str(work)))
    arms.append(Arm("unguarded meanwhile", [*actor, "serve"], environment, str(work)))
    arms.append(Arm("landlock", [*actor, "landlock", json.dumps(grants)], environment, str(work)))
    rows = []
    for depth in depths:
        there = place(str(work), depth)
        Path(there, "file").write_text("x")
        for act in ACTS:
            seen: dict[str, list[float]] = {arm.name: [] for arm in arms}
            for turn in range(rounds + 1):
                for arm in arms:
                    took = arm.round(act, there)
                    if turn:  # the first round warms caches
                        seen[arm.name].append(took)
            bare = statistics.median(seen["bare"])
            for name, times in seen.items():
                median = statistics.median(times)
                spread = statistics.quantiles(times, n=4) if len(times) > 1 else [median] * 3
                rows.append(
                    {
                        "rules": rules,
                        "depth": depth,
                        "act": act,
                        "arm": name,
                        "median_ns": round(median),
                        "quartiles_ns": [round(spread[0]), round(spread[2])],
                        "ratio": round(median / bare, 3),
                        "added_ns": round(median - bare),
                    }
                )
    for arm in arms:
        arm.close()
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(row["arm"] for row in rows))
    print(f"{'rules':>6} {'depth':>5} {'act':<14}" + "".join(f"{name:>22}" for name in names))
    for key in dict.fromkeys((row["rules"], row["depth"], row["act"]) for row in rows):
        cells = {row["arm"]: row for row in rows if (row["rules"], row["depth"], row["act"]) == key}
        shown = "".join(
            f"{cells[n]['median_ns']:>12} ns {cells[n]['ratio']:>5.2f}x" if n in cells else "" for n in names
        )
        print(f"{key[0]:>6} {key[1]:>5} {key[2]:<14}{shown}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rules", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--depths", type=int, nargs="+", default=[5, 9, 30])
    parser.add_argument("--tiers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--base", type=Path, default=None, help="where to work; a tmpfs or disk of its own")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mg", dir=arguments.base) as name:
        folder = Path(name).resolve()
        (folder / "work").mkdir()
        (folder / "acts.py").write_text(
            Path(__file__)
            .read_text()
            .replace("REPOSITORY = Path(__file__).resolve().parent.parent", f"REPOSITORY = Path({str(REPOSITORY)!r})")
        )
        environment = {"MCPGUARD_HOME": str(folder / "home"), "PYTHONPATH": str(REPOSITORY / "src")}
        tiers = [tier for tier in arguments.tiers if able(tier, folder, environment)]
        print(f"tiers of this host: {tiers or 'none'}", flush=True)
        rows = [
            row
            for rules in arguments.rules
            for row in measure(rules, arguments.depths, arguments.rounds, folder, tiers)
        ]
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps({"kernel": os.uname().release, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve()
    elif sys.argv[1:2] == ["landlock"]:
        serve_under_landlock(json.loads(sys.argv[2]))
    else:
        sys.exit(main())
