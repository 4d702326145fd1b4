"""How fast the record is: from the kernel to the store, what is lost, and what our processes hold meanwhile.

1. Opens: processes of the tree open few files as fast as they can. The kernel sums equal opens up: few records stand for many.
   Beside them the same under Landlock alone, with grants like the session's: what tier 3 cannot go below.
2. Changes: each makes and removes a file of its own name, which nothing sums up. At growing paces, in turns; the actor has a
   processor for itself, and all of ours shares another.
3. Flood: a million opens of many files with one denial in their midst, which must be on record.
Each run is compared with what the actor counted: what the store and its losses do not account for is said.

usage: benchmarks/events.py [--repetitions 15] [--paces 2000 ...] [--seconds 2] [--json FILE]
Needs root and a C compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ours
from peers import mcpguard

LEAST_REPETITIONS = 15
FILES, FLOOD_FILES, FLOOD = 64, 4_000, 1_000_000
PACES = [2_000, 10_000, 20_000, 40_000]
# actor opens FOLDER FILES PROCESSES OPENS [SECRET]: opens in all, with a look at the secret half-way.
# actor changes FOLDER PACE SECONDS: pairs of create and unlink, so many a second.
# Prints: how many acts, seconds.
ACTOR = r"""
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void opens(const char *folder, long files, long times, const char *secret)
{
	char path[4096];

	for (long i = 0; i < times; i++) {
		int fd;

		snprintf(path, sizeof(path), "%s/%ld", folder, i % files);
		fd = open(path, O_RDONLY);
		if (fd < 0)
			exit(3);
		close(fd);
		if (secret && i == times / 2 && open(secret, O_RDONLY) >= 0)
			exit(4);
	}
	exit(0);
}

static long changes(const char *folder, double pace, double seconds)
{
	char path[4096];
	double began = now();
	long done = 0;

	while (now() - began < seconds) {
		struct timespec moment = { .tv_nsec = 1000000 };

		while (done < (now() - began) * pace && now() - began < seconds) {
			snprintf(path, sizeof(path), "%s/c%ld", folder, done);
			close(open(path, O_WRONLY | O_CREAT, 0600));
			if (unlink(path))
				exit(3);
			done++;
		}
		nanosleep(&moment, 0);
	}
	return done;
}

int main(int argc, char **argv)
{
	double began = now();
	long done;

	if (!strcmp(argv[1], "opens")) {
		long processes = atol(argv[4]);
		int status;

		done = atol(argv[5]) / processes * processes;
		for (long i = 0; i < processes; i++)
			if (!fork())
				opens(argv[2], atol(argv[3]), done / processes, i || argc < 7 ? 0 : argv[6]);
		while (wait(&status) > 0)
			if (status)
				return 5;
	} else {
		done = 2 * changes(argv[2], atof(argv[3]), atof(argv[4]));
	}
	printf("%ld %.6f\n", done, now() - began);
	return 0;
}
"""


# Landlock alone, then the words.
UNDER_LANDLOCK = """
import os, sys
from mcpguard.kernel import landlock, mounts, privileges
ruleset = landlock.Ruleset(landlock.abi(), scopes=0)
for path in ("/usr", "/etc", "/proc", "/dev", sys.argv[1]):
    fd = mounts.open_exact(path)
    ruleset.allow(fd, landlock.READ | landlock.WRITE | landlock.EXECUTE)
    os.close(fd)
privileges.set_no_new_privs()
ruleset.restrict_self()
os.execv(sys.argv[2], sys.argv[2:])
"""


class Bench:
    """A workspace with an actor, a secret and files to open."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.workspace = folder, folder / "workspace"
        self.workspace.mkdir()
        source = folder / "actor.c"
        source.write_text(ACTOR)
        subprocess.run(["cc", "-O2", "-o", str(self.workspace / "actor"), str(source)], check=True)
        (self.workspace / ".env").write_text("SECRET=1\n")
        for number in range(FLOOD_FILES):
            (self.workspace / str(number)).touch()
        self.environment = {**os.environ, "MCPGUARD_HOME": str(folder / "home")}

    def act(self, *words: object) -> list[str]:
        return [str(self.workspace / "actor"), str(words[0]), str(self.workspace), *map(str, words[1:])]

    def bare(self, words: list[str]) -> dict[str, Any]:
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        return dict(zip(("acts", "seconds"), map(float, done.stdout.split()), strict=True))

    def under_landlock(self, words: list[str]) -> dict[str, Any]:
        return self.bare([sys.executable, "-c", UNDER_LANDLOCK, str(self.workspace), *words])

    def guarded(self, words: list[str], before: tuple[str, ...] = ()) -> dict[str, Any]:
        """What the actor counted, what is on record, and what our processes took; `before` stands before our own words."""
        shutil.rmtree(self.folder / "home", ignore_errors=True)
        process = subprocess.Popen(
            [*before, *mcpguard(), "run", "-q", "--", *words],
            cwd=self.workspace, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        seen: dict[str, dict[str, float]] = {}
        watching = threading.Thread(target=_watch, args=(process, seen))
        watching.start()
        began = time.perf_counter()
        try:
            said, errors = process.communicate(timeout=60)
        finally:
            process.terminate()  # nothing to one that ended
            watching.join()
        if process.returncode:
            raise SystemExit(f"{words}: status {process.returncode}: {errors[-1000:]}")
        acts, seconds = map(float, said.split())
        return {
            "acts": acts,
            "seconds": seconds,
            "whole": time.perf_counter() - began,
            "memory": seen,
            **self.recorded(),
        }

    def recorded(self) -> dict[str, Any]:
        done = subprocess.run(
            [*mcpguard(), "log", "--format", "json"],
            cwd=self.workspace, env=self.environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        events = [json.loads(line) for line in done.stdout.splitlines()]
        inside = [e for e in events if str(e.get("path", "")).startswith(f"{self.workspace}/")]
        # The actor's own program and its look at the secret are no acts of the benchmark.
        acts = [e for e in inside if e["kind"] == "file" and e["verdict"] == "allow"]
        return {
            "events": len(events),
            "on_record": sum(e.get("count", 1) for e in acts),
            "lost": sum(e.get("count", 1) for e in events if e["kind"] == "loss"),
            "denied": sum(e["verdict"] == "deny" and e.get("path", "").endswith("/.env") for e in events),
        }


def _watch(process: subprocess.Popen[str], seen: dict[str, dict[str, float]]) -> None:
    """The last look at each of our processes, while they live; the peak is the kernel's own."""
    while process.poll() is None:
        try:
            for role, pid in ours.processes(process.pid).items():
                seen[role] = {**ours.memory(pid), "cpu_s": ours.cpu_s(pid)}
        except (OSError, KeyError, IndexError):  # it ended in between
            pass
        time.sleep(0.1)


def opens(bench: Bench, repetitions: int) -> list[dict[str, Any]]:
    """Few files by as many processes as there are processors, in turns over the arms."""
    words = bench.act("opens", FILES, os.cpu_count(), FLOOD)
    chance, rows = random.Random(1), []
    arms = {"bare": bench.bare, "landlock": bench.under_landlock, "guarded": bench.guarded}
    for _ in range(repetitions):
        rows += [{"arm": name, **run(words)} for name, run in chance.sample(list(arms.items()), len(arms))]
    rates = {arm: [row["acts"] / row["seconds"] for row in rows if row["arm"] == arm] for arm in arms}
    middle = {arm: statistics.median(values) for arm, values in rates.items()}
    low, _, high = statistics.quantiles(rates["guarded"], n=4)
    guarded = [row for row in rows if row["arm"] == "guarded"]
    print(
        f"opens a second: bare {middle['bare']:,.0f}, Landlock alone {middle['landlock']:,.0f}, "
        f"guarded {middle['guarded']:,.0f} (quartiles {low:,.0f} to {high:,.0f}), "
        f"ratio {middle['bare'] / middle['guarded']:.2f}; records lost {sum(r['lost'] for r in guarded)}, opens unaccounted "
        f"for {sum(r['acts'] - r['on_record'] for r in guarded if not r['lost']):.0f} of {sum(r['acts'] for r in guarded):,.0f}"
    )
    _show_memory(guarded)
    return rows


def changes(bench: Bench, paces: list[int], seconds: float, repetitions: int) -> list[dict[str, Any]]:
    processors = sorted(os.sched_getaffinity(0))
    its, actors = (("taskset", "-c", str(number)) for number in (processors[0], processors[-1]))
    chance, rows = random.Random(1), list[dict[str, Any]]()
    for _ in range(repetitions):
        for pace in chance.sample(paces, len(paces)):
            words = [*actors, *bench.act("changes", pace // 2, seconds)]
            rows.append({"pace": pace, **bench.guarded(words, its)})
    print(f"{'paced at':>9} {'made/s':>8} {'lost':>8} {'ended later by':>15} {'supervisor peak':>16}")
    for pace in paces:
        runs = [row for row in rows if row["pace"] == pace]
        made = statistics.median(run["acts"] / run["seconds"] for run in runs)
        lost = statistics.median(run["lost"] / run["acts"] for run in runs)
        late = statistics.median(run["whole"] - run["seconds"] for run in runs)
        peak = max(run["memory"].get("supervisor", {}).get("peak", 0.0) for run in runs)
        print(f"{pace:>9,} {made:>8,.0f} {lost:>8.1%} {late:>13.2f} s {peak:>12.0f} MiB", flush=True)
    return rows


def flood(bench: Bench, repetitions: int) -> list[dict[str, Any]]:
    words = bench.act("opens", FLOOD_FILES, os.cpu_count(), FLOOD, bench.workspace / ".env")
    rows = [bench.guarded(words) for _ in range(repetitions)]
    rate = statistics.median(row["acts"] / row["seconds"] for row in rows)
    missing = sum(row["denied"] == 0 for row in rows)
    print(
        f"flood of {FLOOD:,} opens of {FLOOD_FILES:,} files at {rate:,.0f} a second: the denial was on record in "
        f"{len(rows) - missing} of {len(rows)} runs; records lost {sum(row['lost'] for row in rows)}"
    )
    _show_memory(rows)
    return rows


def _show_memory(rows: list[dict[str, Any]]) -> None:
    for role in dict.fromkeys(role for row in rows for role in row["memory"]):
        found = [row["memory"][role] for row in rows if role in row["memory"]]
        middle = {name: statistics.median(one[name] for one in found) for name in found[0]}
        print(
            f"       {role:12} rss {middle['rss']:.0f} MiB, peak {middle['peak']:.0f} MiB, "
            f"{middle['cpu_s']:.2f} s of a processor"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=LEAST_REPETITIONS)
    parser.add_argument("--paces", type=int, nargs="+", default=PACES)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mcpguard-events-", dir=Path.home()) as name:
        bench = Bench(Path(name))
        found = {
            "opens": opens(bench, arguments.repetitions),
            "changes": changes(bench, arguments.paces, arguments.seconds, arguments.repetitions),
            "flood": flood(bench, arguments.repetitions),
        }
    if arguments.json:
        arguments.json.write_text(json.dumps(found) + "\n")
    return 1 if any(not row["denied"] for row in found["flood"]) else 0


if __name__ == "__main__":
    sys.exit(main())
