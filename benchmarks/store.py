"""Whether a long record slows anything down: the same commands on a store of 10 thousand and of 10 million events.

Makes both in a temporary folder (the large one takes some 2 GB and minutes), a hundred sessions each, one event in a thousand
a refusal; then asks in turns. `first events` is what `mcpguard watch` reads before its first screen, `first screen` the whole
of it with the start of Python, without a terminal. At last the large one is more than its limit: ends of runs forget some of it
for a moment each, then it is brought to half at once. Prints medians and ratios.

usage: benchmarks/store.py [--events 10000000] [--repetitions 15] [--json FILE]
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from watch import policy

from mcpguard.events import query, retention
from mcpguard.events.store import Store
from mcpguard.events.window import newest

SESSIONS, SMALL, LEAST_REPETITIONS = 100, 10_000, 15
# Made by the database itself: a recorder would take ten times as long, and this is about reading.
FILL = """
WITH RECURSIVE counted(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM counted WHERE i < :events)
INSERT INTO events (session, seq, time_ns, kind, op, verdict, access, path, pid, ppid, exe, comm, rule, count)
SELECT :session, i, :began + i * 1000, iif(i % 20, 'file', 'process'), iif(i % 20, 'open', 'fork'),
  iif(i % 1000, 'allow', 'deny'), iif(i % 20, 'read', NULL),
  iif(i % 20, '/home/u/project/source/d' || (i % 300) || '/module-' || (i % 977) || '.py', NULL),
  1000 + i % 500, 1000, '/usr/bin/python3.11', 'python3', 1, 1
FROM counted
"""


def fill(path: Path, events: int) -> str:
    """Make a store; the id of its latest session."""
    with Store.open(path) as store:
        for number in range(SESSIONS):
            began = time.time_ns() - (SESSIONS - number) * 60 * 10**9
            session = store.start_session(policy(), command=("x",), tier="3", coverage=(), now_ns=began)
            store._connection.execute(
                FILL, {"events": events // SESSIONS, "session": store.number(session), "began": began}
            )
            store.end_session(session, exit_code=0, now_ns=began + 50 * 10**9)
    return session


def command(home: Path, *words: str) -> Callable[[], None]:
    environment = {**os.environ, "MCPGUARD_HOME": str(home)}

    def run() -> None:
        subprocess.run(
            [sys.executable, "-m", "mcpguard", *words],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )

    return run


def first_events(path: Path, session: str) -> Callable[[], None]:
    def run() -> None:
        with Store.open(path, create=False) as store:
            newest(store, store.number(session), session, query.Filter(), 1_000)

    return run


def first_screen(path: Path) -> Callable[[], None]:
    words = [sys.executable, str(Path(__file__).with_name("watch.py")), "--open", str(path)]
    return lambda: subprocess.run(words, check=True) and None


def tidy(path: Path) -> Callable[[], None]:
    """What the end of each run asks."""

    def run() -> None:
        with Store.open(path, create=False) as store:
            retention.tidy(store, retention.Limits(None, 365 * 86_400), time.time_ns())

    return run


def forget_half(path: Path, ends: int) -> dict[str, Any]:
    """ms of each end of a run; s until half is forgotten, and until the file is written anew; MiB of it before and after."""
    before, took = path.stat().st_size, list[float]()
    began = time.perf_counter()
    with Store.open(path, create=False) as store:
        kept = retention.Limits(store.size() // 2, None)
        for _ in range(ends):
            end = time.perf_counter()
            retention.tidy(store, kept, time.time_ns())
            took.append((time.perf_counter() - end) * 1000)
        retention.tidy(store, kept, time.time_ns(), budget_s=None)
        forgotten = time.perf_counter()
        store.give_back(whole=True)
        written = time.perf_counter()
    sizes = {"before_mib": before / (1 << 20), "after_mib": path.stat().st_size / (1 << 20)}
    return {"ends_ms": took, "forgotten_s": forgotten - began, "written_s": written - forgotten, **sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--repetitions", type=int, default=LEAST_REPETITIONS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arms: dict[str, dict[str, Callable[[], None]]] = {}
        for name, events in (("small", SMALL), ("large", arguments.events)):
            home = Path(folder, name)
            path = home / "state" / "events.db"
            path.parent.mkdir(parents=True)
            print(f"writing {events} events...", file=sys.stderr)
            session = fill(path, events)
            arms[name] = {
                "log --verdict deny": command(home, "log", "--verdict", "deny"),
                "log --verdict deny --path GLOB": command(home, "log", "--verdict", "deny", "--path", "*.py"),
                "sessions": command(home, "sessions"),
                "watch: first events": first_events(path, session),
                "watch: first screen": first_screen(path),
                "end of a run: is it too much?": tidy(path),
            }
            size = path.stat().st_size / (1 << 20)
            print(f"{size:.0f} MiB, {size * (1 << 20) / events:.0f} bytes an event", file=sys.stderr)
        rows = []
        for what in arms["small"]:
            took: dict[str, list[float]] = {name: [] for name in arms}
            for _ in range(max(arguments.repetitions, LEAST_REPETITIONS)):
                for name, acts in arms.items():
                    began = time.perf_counter()
                    acts[what]()
                    took[name].append((time.perf_counter() - began) * 1000)
            small, large = (statistics.median(took[name]) for name in ("small", "large"))
            quartiles = statistics.quantiles(took["large"], n=4)
            rows.append({"what": what, "small_ms": small, "large_ms": large, "quartiles_ms": quartiles})
            print(f"{what:<34}{small:10.1f} ms {large:10.1f} ms {large / small:8.2f}x")
        kept = forget_half(path, LEAST_REPETITIONS)
        print(
            f"half of {kept['before_mib']:.0f} MiB is forgotten in {kept['forgotten_s']:.1f} s, by ends of runs of "
            f"{statistics.median(kept['ends_ms']):.0f} ms first; written anew in {kept['written_s']:.1f} s: "
            f"{kept['after_mib']:.0f} MiB"
        )
    if arguments.json:
        found = {"events": arguments.events, "rows": rows, "retention": kept}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
