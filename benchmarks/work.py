"""What real work costs inside: version control, search, installing, compiling, testing; launch not included.

Everything is made on the spot and needs no network. Each piece of work is timed by a program inside of the arm, so the time of
the launch is left out (benchmarks/launch.py has that); arms take turns, and their order changes each time. Prints medians as
ratios to bare, and the quartiles of the ratios within one turn.

usage: benchmarks/work.py [--repetitions 15] [--only WORK...] [--arms NAME...] [--json FILE]
Needs root or sudo, git, make, a C compiler, npm, ripgrep; peers that are missing are named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from peers import Peer, peers

LEAST_REPETITIONS = 15
# Inside of an arm: how long a command takes, as seen there.
TIMER = """
import subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
took = time.perf_counter() - began
sys.stderr.buffer.write(done.stderr[-2000:])
print(f"took {took}", flush=True)
sys.exit(done.returncode)
"""
TIMER_NAME = "timer.py"
# A tracer takes ten times as long, and every arm takes all turns: these sizes keep the whole below half an hour.
FILES, COMMITS, WHEELS, PACKAGES, SOURCES, TESTS = 20_000, 300, 12, 30, 24, 30


Row = dict[str, object]


@dataclass(frozen=True)
class Work:
    """One piece of work.

    Attributes:
        words: the command.
        fresh: put away before each time, below the workspace.
    """

    words: list[str]
    fresh: tuple[str, ...] = ()


def git(workspace: Path) -> dict[str, Work]:
    """A repository of 20 000 files and 300 commits."""
    folder = workspace / "repository"
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    lines = []
    for commit in range(COMMITS):
        lines.append(f"commit refs/heads/main\ncommitter A <a@example.org> {1_700_000_000 + commit} +0000\ndata 1\nx\n")
        first = commit * FILES // COMMITS
        for number in range(first, (commit + 1) * FILES // COMMITS):
            content = f"line of file {number}\n" * (5 + number % 40)
            path = f"source/d{number % 97}/e{number % 13}/file{number}.txt"
            lines.append(f"M 100644 inline {path}\ndata {len(content)}\n{content}\n")
    subprocess.run(["git", "-C", str(folder), "fast-import", "--quiet"], input="".join(lines), text=True, check=True)
    subprocess.run(["git", "-C", str(folder), "checkout", "-q", "main"], check=True)
    command = ["git", "-c", f"safe.directory={folder}", "-C", str(folder)]
    return {"git status": Work([*command, "status"]), "git log --stat": Work([*command, "log", "--stat"])}


def search(workspace: Path) -> dict[str, Work]:
    return {"rg": Work(["rg", "-c", "file 1.*7", str(workspace / "repository")])}


def pip(workspace: Path) -> dict[str, Work]:
    """Twelve wheels of fifty modules each."""
    folder = workspace / "wheels"
    folder.mkdir()
    for number in range(WHEELS):
        name = f"bench{number}"
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            for module in range(50):
                wheel.writestr(f"{name}/m{module}.py", f"VALUE = {module}\n" * 30)
            wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(
                f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")
    subprocess.run(["/usr/bin/python3", "-m", "venv", str(workspace / "venv")], check=True)
    target = workspace / "target"
    words = [str(workspace / "venv/bin/python"), "-m", "pip", "install", "--quiet", "--no-index", "--no-cache-dir"]
    words += ["--disable-pip-version-check", "--target", str(target), *map(str, sorted(folder.glob("*.whl")))]
    return {"pip install": Work(words, ("target",))}


def npm(workspace: Path) -> dict[str, Work]:
    """Thirty packages from files beside."""
    folder = workspace / "npm"
    folder.mkdir()
    dependencies = {}
    for number in range(PACKAGES):
        made = workspace / "npm-packages" / f"p{number}"
        (made / "lib").mkdir(parents=True)
        (made / "package.json").write_text(json.dumps({"name": f"p{number}", "version": "1.0.0", "main": "lib/0.js"}))
        for file in range(25):
            (made / "lib" / f"{file}.js").write_text(f"module.exports = {file};\n" * 20)
        subprocess.run(["npm", "pack", "--silent", str(made)], cwd=folder, check=True, capture_output=True)
        dependencies[f"p{number}"] = f"file:p{number}-1.0.0.tgz"
    (folder / "package.json").write_text(json.dumps({"name": "x", "version": "1.0.0", "dependencies": dependencies}))
    lock = ["npm", "install", "--package-lock-only", "--silent", "--offline"]
    subprocess.run(lock, cwd=folder, check=True, capture_output=True)
    words = ["npm", "ci", "--silent", "--offline", "--no-audit", "--prefix", str(folder)]
    return {"npm ci": Work(words, ("npm/node_modules",))}


def compiler(workspace: Path) -> dict[str, Work]:
    """Twenty-four C files with the usual headers, two at once."""
    folder = workspace / "c"
    folder.mkdir()
    for number in range(SOURCES):
        body = "".join(f'int f{number}_{n}(int a) {{ return printf("%d", a * {n}); }}\n' for n in range(60))
        (folder / f"s{number}.c").write_text(f"#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n{body}")
    rules = ["all: $(patsubst %.c,out/%.o,$(wildcard *.c))", "out/%.o: %.c", "\t@mkdir -p out", "\t@cc -O1 -c -o $@ $<"]
    (folder / "Makefile").write_text("\n".join(rules) + "\n")
    return {"make -j2": Work(["make", "-s", "-j2", "-C", str(folder)], ("c/out",))}


def tests(workspace: Path) -> dict[str, Work]:
    """A suite of thirty modules of tests, of the standard library only."""
    folder = workspace / "suite"
    folder.mkdir()
    for number in range(TESTS):
        lines = ["import json, tempfile, unittest", "class T(unittest.TestCase):"]
        for test in range(10):
            lines.append(f"    def test_{test}(self):")
            lines.append("        with tempfile.TemporaryFile('w+') as file:")
            lines.append(f"            json.dump(list(range({200 * test})), file)")
        (folder / f"test_{number}.py").write_text("\n".join(lines) + "\n")
    return {"unittest": Work(["/usr/bin/python3", "-m", "unittest", "discover", "-q", "-s", str(folder)])}


MAKERS: dict[str, Callable[[Path], dict[str, Work]]] = {
    "git": git, "rg": search, "pip": pip, "npm": npm, "make": compiler, "unittest": tests,
}  # fmt: skip


def once(peer: Peer, work: Work, workspace: Path) -> float:
    """Seconds, as seen inside."""
    for name in work.fresh:
        # ext4 looks for room behind what was removed in the last minute, which takes longer than the work itself.
        with contextlib.suppress(FileNotFoundError):
            (workspace / name).rename(workspace.parent / f"done-{time.time_ns()}")
    done = peer.run(["/usr/bin/python3", str(workspace / TIMER_NAME), *work.words], workspace)
    took = [line for line in done.stdout.splitlines() if line.startswith("took ")]
    if done.returncode or not took:
        raise RuntimeError(f"{peer.name}: {work.words[0]}: status {done.returncode}: {done.stderr[-600:]}")
    return float(took[-1].split()[1])


def measure(
    able: list[Peer], works: dict[str, Work], repetitions: int, workspace: Path, keep: Callable[[list[Row]], None]
) -> None:
    """`keep` gets all rows so far after each piece of work."""
    rows: list[Row] = []
    chance = random.Random(1)
    for name, work in works.items():
        took: dict[str, list[float]] = {peer.name: [] for peer in able}
        running = list(able)
        for peer in able:  # warm caches, and find out who cannot do it
            try:
                once(peer, work, workspace)
            except RuntimeError as error:
                print(f"left out for {name}: {error}", file=sys.stderr)
                running.remove(peer)
        for _turn in range(repetitions):
            for peer in chance.sample(running, len(running)):
                took[peer.name].append(once(peer, work, workspace))
        bare = took["bare"]
        print(f"\n{name}: bare {statistics.median(bare) * 1000:.0f} ms")
        for peer in running:
            values = took[peer.name]
            ratio = statistics.median(values) / statistics.median(bare)
            low, _middle, high = statistics.quantiles([a / b for a, b in zip(values, bare, strict=True)], n=4)
            calm = min(values) / min(bare)
            print(
                f"  {peer.name:40}{ratio:7.3f}x   within a turn {low:.3f} to {high:.3f}   calmest {calm:.3f}",
                flush=True,
            )
            rows.append(
                {"work": name, "arm": peer.name, "ratio": ratio, "quartiles": [low, high], "calm": calm, "s": values}
            )
        keep(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=LEAST_REPETITIONS)
    parser.add_argument("--only", nargs="+", choices=[*MAKERS], default=[*MAKERS])
    parser.add_argument("--arms", nargs="+", help="beginnings of names, such as mcpguard; bare is always among them")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mcpguard-work-", dir=Path.home()) as name:
        folder = Path(name)
        workspace = folder / "workspace"
        workspace.mkdir()
        (workspace / TIMER_NAME).write_text(TIMER)
        able, missing = peers(folder, workspace)
        if arguments.arms:
            able = [peer for peer in able if peer.name == "bare" or peer.name.startswith(tuple(arguments.arms))]
        for line in missing:
            print(f"left out: {line}")
        only = ["git", *arguments.only] if "rg" in arguments.only and "git" not in arguments.only else arguments.only
        works: dict[str, Work] = {}
        for maker in (name for name in MAKERS if name in only):
            print(f"making what {maker} needs...", file=sys.stderr)
            works.update(MAKERS[maker](workspace))
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
        about = {"kernel": os.uname().release, "left_out": missing}

        def keep(rows: list[Row]) -> None:
            if arguments.json:
                arguments.json.write_text(json.dumps({**about, "rows": rows}) + "\n")

        measure(able, works, max(arguments.repetitions, LEAST_REPETITIONS), workspace, keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
