"""How soon `mcpguard watch` shows a long record, and whether it stays awake while events rush in.

Makes a record in a temporary folder, opens the screen on it without a terminal, and measures: the first events on the screen;
all events summed up; the longest time that the screen's loop was busy, which is how long a key can wait; and memory. Then a
second process writes events at a rate for a while.

usage: benchmarks/watch.py [--events N] [--rate N] [--seconds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mcpguard.events.store import Store
from mcpguard.model.access import Access, Effect, Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.model.policy import PathRule, Policy, User
from mcpguard.model.profile import SystemSwitches
from mcpguard.model.rule import Origin
from mcpguard.policy.automaton import Automaton
from mcpguard.tui.app import TABS, WatchApp
from mcpguard.tui.stream import EventStream

BATCH = 5_000
PROCESSES, FOLDERS, FILES = 500, 300, 100
ORIGIN = Origin("bench", "bench.yaml", 1, "write /ws")


def policy() -> Policy:
    paths = (PathRule(Effect.ALLOW, Access.READ | Access.WRITE, "/ws", (), 1),)
    default = Origin("default", "default", 0, "no rule allows it")
    return Policy(
        digest="0" * 64,
        profile="bench",
        command=(),
        user=User(0, 0, (), "u", "/home/u"),
        workspace="/ws",
        tmp="/tmp",
        rules=(default, ORIGIN),
        reasons=("", ""),
        tables=Automaton.build(paths).to_bytes(),
        paths=paths,
        connect=(),
        listen=(),
        names=(),
        sockets=(),
        environment_remove=(),
        environment_keep=(),
        system=SystemSwitches(),
    )


def made_up(number: int, chance: random.Random) -> Event:
    """Mostly opens, some connections, programs, forks and exits, now and then a refusal."""
    pid, when = 1_000 + chance.randrange(PROCESSES), 1_760_000_000_000_000_000 + number * 1_000
    kind = chance.random()
    who = {"pid": pid, "ppid": 1_000, "exe": "/usr/bin/x", "comm": "x"}
    if kind < 0.9:
        verdict = Verdict.ALLOW if chance.random() < 0.999 else Verdict.DENY
        path = f"/ws/d{chance.randrange(FOLDERS)}/f{chance.randrange(FILES)}"
        return Event(when, "", Kind.FILE, "open", verdict, access="read", path=path, rule=ORIGIN, **who)
    if kind < 0.92:
        address = f"10.0.{chance.randrange(8)}.{chance.randrange(250)}"
        return Event(
            *(when, "", Kind.NET, "connect", Verdict.ALLOW),
            address=address,
            port=443,
            protocol="tcp",
            rule=ORIGIN,
            **who,
        )
    if kind < 0.94:
        path = f"/usr/bin/tool{chance.randrange(2_000)}"
        words = (path, f"--number={number}")
        return Event(
            when, "", Kind.EXEC, "exec", Verdict.ALLOW, access="execute", path=path, argv=words, rule=ORIGIN, **who
        )
    return Event(when, "", Kind.PROCESS, "fork" if kind < 0.97 else "exit", Verdict.ALLOW, **who)


def fill(path: Path, session: str, events: int) -> None:
    chance = random.Random(1)
    with Store.open(path) as store:
        for begin in range(0, events, BATCH):
            store.add(session, [made_up(number, chance) for number in range(begin, min(begin + BATCH, events))])


def rush(path: Path, session: str, rate: int, seconds: int) -> None:
    """Write `rate` events a second in ten batches each, as a recorder does."""
    chance = random.Random(2)
    with Store.open(path) as store:
        for piece in range(seconds * 10):
            began = time.monotonic()
            store.add(session, [made_up(piece * rate + n, chance) for n in range(rate // 10)])
            time.sleep(max(0.0, 0.1 - (time.monotonic() - began)))


class Loop:
    """The longest wait of the screen's loop since the last question, and the longest that it worked itself."""

    def __init__(self) -> None:
        self.worst_s = self.worked_s = 0.0
        self._task = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while True:
            began, worked = time.monotonic(), time.thread_time()
            await asyncio.sleep(0.005)
            self.worst_s = max(self.worst_s, time.monotonic() - began - 0.005)
            self.worked_s = max(self.worked_s, time.thread_time() - worked)

    def told(self) -> str:
        """Both, and begin anew. On a host with other work the first tells of that, too."""
        worst, worked, self.worst_s, self.worked_s = self.worst_s, self.worked_s, 0.0, 0.0
        return f"{worst * 1000:.0f} ms, of which {worked * 1000:.0f} ms work of its own"

    def close(self) -> None:
        self._task.cancel()


async def measure(path: Path, session: str, rate: int, seconds: int) -> list[tuple[str, str]]:
    with Store.open(path) as store:
        app = WatchApp(lambda: Store.open(path, create=False), store.session(session), "/home/u")
    rows: list[tuple[str, str]] = []
    began = time.monotonic()
    async with app.run_test(size=(120, 40)):
        loop = Loop()
        stream = app.query_one(EventStream)
        while not len(stream):
            await asyncio.sleep(0.01)
        rows.append(("first events on the screen", f"{time.monotonic() - began:.2f} s"))
        while app._summed < app._last or not app._last:
            await asyncio.sleep(0.05)
        rows.append(("all events summed up", f"{time.monotonic() - began:.2f} s"))
        rows.append(("longest wait of a key meanwhile", loop.told()))
        words = (__file__, "--rush", path, session, rate, seconds)
        writer = subprocess.Popen([sys.executable, *map(str, words)], stdin=subprocess.DEVNULL)
        tab = 0
        until = time.monotonic() + seconds / len(TABS)
        while writer.poll() is None:
            await asyncio.sleep(0.1)
            if time.monotonic() > until:
                rows.append((f"longest wait of a key at {rate} events a second, {TABS[tab]}", loop.told()))
                until += seconds / len(TABS)
                tab = min(tab + 1, len(TABS) - 1)
                app.action_tab(TABS[tab])
        loop.close()
    rows.append(("memory at most", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB"))
    return rows


async def open_screen(path: Path) -> None:
    """The screen on the latest session, until its first events are there; then the process ends."""
    with Store.open(path, create=False) as store:
        app = WatchApp(lambda: Store.open(path, create=False), store.sessions()[0], "/home/u")
    async with app.run_test(size=(120, 40)):
        stream = app.query_one(EventStream)
        while not len(stream):
            await asyncio.sleep(0.001)
        os._exit(0)


def main() -> None:
    if sys.argv[1:2] == ["--open"]:
        asyncio.run(open_screen(Path(sys.argv[2])))
    if sys.argv[1:2] == ["--rush"]:
        path, session, rate, seconds = sys.argv[2:]
        rush(Path(path), session, int(rate), int(seconds))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rate", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = folder / "events.db"
        with Store.open(path) as store:
            session = store.start_session(policy(), command=("x",), tier="3", coverage=(), now_ns=time.time_ns())
        print(f"writing {options.events} events...")
        fill(path, session, options.events)
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
        rows = asyncio.run(measure(path, session, options.rate, options.seconds))
        for name, value in rows:
            print(f"{name:<64}{value}")
        if options.json:
            options.json.write_text(json.dumps(dict(rows)) + "\n")


if __name__ == "__main__":
    main()
