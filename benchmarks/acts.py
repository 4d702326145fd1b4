"""What guarding costs a single act, beside bare, Landlock, bubblewrap and sandlock, by depth and number of rules.

Each arm is one process that measures all acts in small rounds, in turns over the arms: a slow moment of the host hits all of
them. Without a session: bare, Landlock and sandlock with as many grants as the profile has rules, and bubblewrap with one bind
mount of the workspace; peers that cannot be had are named, and left out in guests. While sessions live that do nothing:
unguarded. In sessions, with all that writing the record costs beside them: every tier that the host gives; for what goes
through a pipe also with a gate of MCP servers, for which the kernel looks at what is read there, too. These kinds take turns in
blocks, with new sessions in each. Prints medians, and ratios to bare of the medians and of the calmest rounds, and writes them
with the quartiles as JSON; judges nothing. Other sessions on the host make bare slower, too.

With --count the guest's clock counts the instructions that it executes, so that no host and no emulator blurs what is seen;
those of other processes, as the one that stores the record, are left out.

usage: benchmarks/acts.py [--blocks 4] [--rounds 5] [--rules 10 1000 10000] [--depths 5 9 30] [--acts ACT...] [--json FILE]
       benchmarks/acts.py --guest 6.12-bpf ...: the same in an emulated guest, in tier 1; 6.12-plain, 6.1-plain: in tier 2
       benchmarks/acts.py --guest 6.12-bpf --count ...: instructions in place of ns
Needs root, but for a guest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import select
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

ZERO = os.open("/dev/zero", os.O_RDONLY)
REPOSITORY = Path(__file__).resolve().parent.parent
NULL = os.open("/dev/null", os.O_WRONLY)
# One for all rounds: what goes through a new one is looked at until it is known to be no message.
PIPE = os.pipe()
WORDS = b"some words of a text as a program writes them for another one.\n\n"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: an end that leaves nothing behind
# Paths to grant, port of loopback, command: with its standard streams, unlike the peer of the other benchmarks.
SANDLOCK = """
import json, sys
from sandlock import Sandbox
grants, port = json.load(open(sys.argv[1])), sys.argv[2]
sandbox = Sandbox(fs_readable=grants, fs_writable=grants, net_allow=[f"127.0.0.1:{port}"])
sys.exit(sandbox.run_interactive(sys.argv[3:]))
"""
# On loopback, of what answers; the copy that the arms run has it.
PORT = 0
# Whether instructions are counted in place of time; the copy of a guest that does has it.
COUNTS = False
PIPED = ("pipe write", "pipe write+read")
ACTS = (
    *("getppid", "read", "write", *PIPED, "open+close", "stat", "create+unlink", "rename"),
    *("fork+exec", "connect", "UDP send"),
)
# How many of an act make one round.
TURNS = {
    "getppid": 10000,
    "read": 10000,
    "write": 10000,
    "pipe write": 1000,  # they find room
    "pipe write+read": 10000,
    "open+close": 1000,
    "stat": 1000,
    "create+unlink": 300,
    "rename": 300,
    "fork+exec": 5,
    "connect": 100,
    "UDP send": 1000,
}


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

    def connected() -> None:
        with socket.socket() as stream:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            stream.connect(("127.0.0.1", PORT))

    def piped() -> None:
        os.write(PIPE[1], WORDS)
        os.read(PIPE[0], len(WORDS))

    os.set_blocking(PIPE[0], False)
    with contextlib.suppress(BlockingIOError):
        while os.read(PIPE[0], 1 << 16):
            pass
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    return {
        "getppid": os.getppid,
        "read": lambda: os.read(ZERO, 1),
        "write": lambda: os.write(NULL, b"x"),
        "pipe write": lambda: os.write(PIPE[1], WORDS),
        "pipe write+read": piped,
        "open+close": opened,
        "stat": lambda: os.stat(there),
        "create+unlink": created,
        "rename": renamed,
        "fork+exec": executed,
        "connect": connected,
        "UDP send": lambda: datagrams.sendto(b"x", ("127.0.0.1", PORT)),
    }


def clock() -> int:
    """In ns. Where instructions are counted, those of this process and of its children that have ended."""
    if not COUNTS:
        return time.perf_counter_ns()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time_ns() + round((children.ru_utime + children.ru_stime) * 1_000_000_000)


def serve() -> None:
    """Measure one round of one act at one place for each line of standard input; answers in ns for one act."""
    for line in sys.stdin:
        name, folder = line.rstrip("\n").split("\t", 1)
        act, turns = acts(folder)[name], TURNS[name]
        begin = clock()
        for _ in range(turns):
            act()
        print((clock() - begin) / turns, flush=True)


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
        self.stdin.write(f"{act}\t{folder}\n")
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


def profile(folder: Path, rules: int, *, gate: bool = False) -> Path:
    """A profile with as many rules, most of them about names that are not there; the workspace is what is measured."""
    lines = ["name: bench", "files:", "  read:", "    - /etc", "    - /proc", "    - /dev", "    - /usr"]
    lines += [f"    - {folder}/nothing/number-{n:05d}/deeper" for n in range(max(0, rules - 9))]
    lines += ["  execute: [/usr]", '  write: ["{workspace}", /dev/null]']
    lines += ['  deny: ["{workspace}/**/.env*"]', f'network: {{allow: ["localhost:{PORT or 9}"]}}']
    lines += ['mcp: {gate: true, allow: ["*"]}'] if gate else []
    path = folder / f"bench-{rules}{'-gate' if gate else ''}.yaml"
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


Seen = dict[tuple[int, str, str], list[float]]


def peers(folder: Path) -> dict[str, list[str]]:
    """What stands before the words of an actor, for each peer that this host can have; names the others."""
    from peers import sandlock_package  # beside this file; a copy of it that is an arm has no such neighbour

    work, found = str(folder / "work"), {}
    if shutil.which("bwrap"):
        mounts = ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--bind", work, work]
        found["bubblewrap"] = ["bwrap", *mounts, "--"]
    package = sandlock_package(folder)
    if package:
        grants = str(folder / "grants.json")
        found["sandlock"] = ["env", f"PYTHONPATH={package}", sys.executable, "-c", SANDLOCK, grants, str(PORT)]
    for name in {"bubblewrap", "sandlock"} - found.keys():
        print(f"left out: {name} is not installed", flush=True)
    return found


def measure(
    rules: int,
    depths: list[int],
    blocks: int,
    rounds: int,
    folder: Path,
    tiers: list[int],
    chosen_acts: list[str],
    others: dict[str, list[str]],
) -> list[dict[str, Any]]:
    work = folder / "work"
    environment = {"MCPGUARD_HOME": str(folder / "home"), "PYTHONPATH": str(REPOSITORY / "src")}
    actor = ["/usr/bin/python3", "-I", "-S", str(folder / "acts.py")]
    grants = ["/usr", "/etc", "/proc", "/dev", "/bin", "/lib", str(work), str(folder / "acts.py")]
    for number in range(max(0, rules - len(grants))):
        path = folder / "grants" / f"number-{number:05d}"
        path.mkdir(parents=True, exist_ok=True)
        grants.append(str(path))
    (folder / "grants.json").write_text(json.dumps(grants))
    places = {depth: place(str(work), depth) for depth in depths}
    for there in places.values():
        Path(there, "file").write_text("x")
    quiet = {"bare": [*actor, "serve"], "landlock": [*actor, "landlock", str(folder / "grants.json")]}
    quiet |= {name: [*before, *actor, "serve"] for name, before in others.items()}
    live, gated = (
        {
            f"tier {tier}{', gate' if gate else ''}": [
                *(*mcpguard(), "run", "-q", "--tier", str(tier), "-p", str(profile(folder, rules, gate=gate))),
                *("--read", str(folder / "acts.py"), "--", *actor, "serve"),
            ]
            for tier in tiers
        }
        for gate in (False, True)
    )
    piped = [act for act in chosen_acts if act in PIPED]
    others_chosen = [act for act in chosen_acts if act not in PIPED]
    unguarded = {"unguarded": quiet["bare"]}
    seen: Seen = {}
    for _ in range(blocks):
        unload()
        for measured, idle, asked in (
            (quiet, {}, chosen_acts),
            (unguarded, live, chosen_acts),
            (live, {}, others_chosen),
            (live | gated, {}, piped),
        ):
            if not asked:
                continue
            waiting, arms = (
                [Arm(name, command, environment, str(work)) for name, command in commands.items()]
                for commands in (idle, measured)
            )
            for arm in waiting:
                arm.round("create+unlink", str(work))  # it has begun
            one_block(arms, places, rounds, seen, asked)
            for arm in arms + waiting:
                arm.close()
    return [row(rules, depth, act, name, times, seen[depth, act, "bare"]) for (depth, act, name), times in seen.items()]


@contextlib.contextmanager
def answering() -> Iterator[int]:
    """A port of loopback whose connections are taken and ended, and whose datagrams nobody reads."""
    with (
        socket.create_server(("127.0.0.1", 0)) as streams,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        port = streams.getsockname()[1]
        datagrams.bind(("127.0.0.1", port))

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    streams.accept()[0].close()

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield port
        streams.shutdown(socket.SHUT_RDWR)
        thread.join()


def unload() -> None:
    """Take programs on hooks away that earlier sessions left: they stay until the next boot, and bare is without them."""
    sys.path.insert(0, str(REPOSITORY / "src"))
    from mcpguard.backends import engine
    from mcpguard.kernel import pins

    with pins.locked():
        pins.prepare()
        engine._remove_others("none")
        pins._await_leaving()


def in_guest(lane: str, arguments: argparse.Namespace) -> int:
    """Measure in a guest, in the tier that its security modules permit; the JSON comes back. Ends after 100 minutes."""
    kernel, lsm = lane.split("-")
    words = ["--blocks", arguments.blocks, "--rounds", arguments.rounds, "--rules", *arguments.rules]
    words += ["--depths", *arguments.depths, "--tiers", {"bpf": 1, "plain": 2}[lsm], "--acts", *arguments.acts]
    words += ["--no-peers", *(["--count"] if arguments.count else [])]
    script = 'exec "$@" --base /vmtmp --json "$MCPGUARD_LANE_OUT/acts.json"'
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "tests/vm/lane.py", "run", "--kernel", kernel, "--lsm", lsm, "--timeout", "6000"]
        command += ["--count"] if arguments.count else []
        command += [
            "--out",
            out,
            "--",
            "sh",
            "-c",
            script,
            "sh",
            sys.executable,
            "benchmarks/acts.py",
            *map(str, words),
        ]
        code = subprocess.run(command, cwd=REPOSITORY, check=False).returncode
        if code == 0 and arguments.json:
            arguments.json.write_text(Path(out, "acts.json").read_text())
    return code


def one_block(arms: list[Arm], places: dict[int, str], rounds: int, seen: Seen, chosen: list[str]) -> None:
    for depth, there in places.items():
        for act in chosen:
            for turn in range(rounds + 1):
                for arm in arms:
                    took = arm.round(act, there)
                    if turn:  # the first round warms caches
                        seen.setdefault((depth, act, arm.name), []).append(took)


def row(rules: int, depth: int, act: str, arm: str, times: list[float], bare: list[float]) -> dict[str, Any]:
    median = statistics.median(times)
    spread = statistics.quantiles(times, n=4) if len(times) > 1 else [median] * 3
    return {
        "rules": rules,
        "depth": depth,
        "act": act,
        "arm": arm,
        "median_ns": round(median),
        "quartiles_ns": [round(spread[0]), round(spread[2])],
        "calm_ns": round(min(times)),
        "ratio": round(median / statistics.median(bare), 3),
        "calm_ratio": round(min(times) / min(bare), 3),
    }


def shown_cell(cell: dict[str, Any] | None) -> str:
    unit = "in" if COUNTS else "ns"
    return f"{cell['median_ns']:>13} {unit} {cell['ratio']:>5.2f}x {cell['calm_ratio']:>5.2f}x" if cell else ""


def show(rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(cell["arm"] for cell in rows))
    print(f"{'rules':>6} {'depth':>5} {'act':<14}" + "".join(f"{name:>30}" for name in names))
    for key in dict.fromkeys((cell["rules"], cell["depth"], cell["act"]) for cell in rows):
        cells = {cell["arm"]: cell for cell in rows if (cell["rules"], cell["depth"], cell["act"]) == key}
        shown = "".join(map(shown_cell, (cells.get(name) for name in names)))
        print(f"{key[0]:>6} {key[1]:>5} {key[2]:<14}{shown}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rules", type=int, nargs="+", default=[10, 1000, 10_000])
    parser.add_argument("--depths", type=int, nargs="+", default=[5, 9, 30])
    parser.add_argument("--tiers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--acts", nargs="+", default=list(ACTS), choices=ACTS)
    parser.add_argument("--guest", choices=["6.12-bpf", "6.12-plain", "6.1-bpf", "6.1-plain"])
    parser.add_argument("--count", action="store_true", help="instructions in place of time; with --guest")
    parser.add_argument("--no-peers", action="store_true", help="no bubblewrap, no sandlock")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--base", type=Path, default=None, help="where to work; a tmpfs or disk of its own")
    arguments = parser.parse_args()
    if arguments.guest:
        return in_guest(arguments.guest, arguments)
    global PORT
    with tempfile.TemporaryDirectory(prefix="mg", dir=arguments.base) as name, answering() as PORT:
        folder = Path(name).resolve()
        (folder / "work").mkdir()
        text = Path(__file__).read_text()
        text = text.replace(
            "REPOSITORY = Path(__file__).resolve().parent.parent", f"REPOSITORY = Path({str(REPOSITORY)!r})"
        )
        text = text.replace("\nCOUNTS = False\n", f"\nCOUNTS = {arguments.count}\n")
        (folder / "acts.py").write_text(text.replace("\nPORT = 0\n", f"\nPORT = {PORT}\n"))
        environment = {"MCPGUARD_HOME": str(folder / "home"), "PYTHONPATH": str(REPOSITORY / "src")}
        tiers = [tier for tier in arguments.tiers if able(tier, folder, environment)]
        print(f"tiers of this host: {tiers or 'none'}", flush=True)
        others = {} if arguments.no_peers else peers(folder)
        rows = [
            cell
            for rules in arguments.rules
            for cell in measure(
                rules, arguments.depths, arguments.blocks, arguments.rounds, folder, tiers, arguments.acts, others
            )
        ]
    show(rows)
    if arguments.json:
        found = {"kernel": os.uname().release, "unit": "instructions" if arguments.count else "ns", "rows": rows}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve()
    elif sys.argv[1:2] == ["landlock"]:
        serve_under_landlock(json.loads(Path(sys.argv[2]).read_text()))
    else:
        sys.exit(main())
