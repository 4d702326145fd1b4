"""What rules by name cost: a look-up and a connection in a session, beside the same in a bare run.

Both arms are one process each, in a network namespace of their own with a name server that answers everything at once, and take
turns in small rounds. A look-up is one datagram to the server and the answer: `cached` asks for one name again and
again, `uncached` for a new one each time; bare there is no cache, so both go to the server. `connect` opens and closes a TCP
connection to an address that a look-up has opened. `parallel` keeps 32 look-ups under way. Prints medians with quartiles, the
ratio of the medians and of the calmest rounds, and writes them as JSON; judges nothing.

usage: benchmarks/names.py [--rounds 15] [--turns 200] [--json FILE]
Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

REPOSITORY = Path(__file__).resolve().parent.parent
SERVER, ADDRESS, PORT = ("127.77.0.53", 53), "203.0.113.1", 8080
ARMS = ("bare", "guarded")
KINDS = ("cached", "uncached", "connect", "parallel")
AT_ONCE = 32
PROFILE = f"""\
name: names
extends: [dev-tools]
files:
  read: ["{REPOSITORY}", "{sys.base_prefix}", "{sys.prefix}"]
  execute: ["{sys.base_prefix}", "{sys.prefix}"]
network:
  allow: ["*.bench.test:{PORT}"]
"""


# --- in the namespace: the server, and the two clients -------------------------------------------------------------


def serve() -> None:
    """Answer every question with one address, and take connections there."""
    with socket.create_server((ADDRESS, PORT), backlog=128) as listener, socket.socket(type=socket.SOCK_DGRAM) as names:
        names.bind(SERVER)

        def accept() -> None:
            while True:
                listener.accept()[0].close()

        threading.Thread(target=accept, daemon=True).start()
        print("ready", flush=True)
        record = bytes.fromhex("c00c000100010000003c0004") + socket.inet_aton(ADDRESS)
        while True:
            query, sender = names.recvfrom(4096)
            end = query.find(b"\0", 12) + 5
            names.sendto(query[:2] + bytes.fromhex("81800001000100000000") + query[12:end] + record, sender)


def question(name: str, number: int) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">6H", number & 0xFFFF, 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"


def measure(kind: str, turns: int, first: int) -> float:
    """Nanoseconds for one."""
    with socket.socket(type=socket.SOCK_DGRAM) as asking:
        asking.connect(SERVER)
        asking.settimeout(10)
        if kind == "parallel":
            return parallel(turns, first)
        began = time.perf_counter_ns()
        for turn in range(first, first + turns):
            if kind == "connect":
                socket.create_connection((ADDRESS, PORT), 10).close()
            else:
                name = "same.bench.test" if kind == "cached" else f"n{turn}.bench.test"
                asking.send(question(name, turn))
                answer = asking.recv(512)
                if answer[3] & 15 or answer[7] != 1:
                    raise SystemExit(f"no address: {answer!r}")
        return (time.perf_counter_ns() - began) / turns


def parallel(turns: int, first: int) -> float:
    """New names, so many at once: nanoseconds for one."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(AT_ONCE)]
        for one in sockets:
            one.connect(SERVER)
        poll = select.poll()
        by_number = {one.fileno(): one for one in sockets}
        for number in by_number:
            poll.register(number, select.POLLIN)
        began, turn, answered = time.perf_counter_ns(), first, 0
        for one in sockets:
            one.send(question(f"p{turn}.bench.test", turn))
            turn += 1
        while answered < turns:
            ready = poll.poll(10_000)
            if not ready:
                raise SystemExit("no answer")
            for number, _ in ready:
                by_number[number].recv(512)
                answered += 1
                by_number[number].send(question(f"p{turn}.bench.test", turn))
                turn += 1
        return (time.perf_counter_ns() - began) / answered


def client() -> None:
    """Measure what each line of standard input says, and print it."""
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(*json.loads(line))), flush=True)


# --- outside --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def town(folder: Path) -> Iterator[list[str]]:
    """A network namespace with that server; the words that run a command there."""
    name = f"mgbench{os.getpid()}"
    (folder / "resolv.conf").write_text(f"nameserver {SERVER[0]}\n")
    commands = [
        f"ip netns add {name}",
        f"ip -n {name} link set lo up",
        f"ip -n {name} address add {ADDRESS}/32 dev lo",
    ]
    script = f'mount --make-rprivate / && mount --bind {folder}/resolv.conf /etc/resolv.conf && exec "$@"'
    prefix = ["nsenter", f"--net=/run/netns/{name}", "unshare", "-m", "sh", "-c", script, "sh"]
    try:
        for command in commands:
            subprocess.run(command.split(), check=True)
        with running([*prefix, sys.executable, __file__, "--as", "server"]) as server:
            await_ready(server)
            yield prefix
            server.terminate()
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)


@contextlib.contextmanager
def running(command: list[str], **more: Any) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more) as process:
        try:
            yield process
        finally:
            pipes(process)[0].close()
            process.terminate()


def pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    if process.stdin is None or process.stdout is None:
        raise SystemExit("it was started without pipes")
    return process.stdin, process.stdout


def await_ready(process: subprocess.Popen[str]) -> None:
    if pipes(process)[1].readline() != "ready\n":
        raise SystemExit(f"it did not start: {process.args!r}")


def ask(process: subprocess.Popen[str], kind: str, turns: int, first: int) -> float:
    to, of = pipes(process)
    to.write(json.dumps([kind, turns, first]) + "\n")
    to.flush()
    return float(json.loads(of.readline()))


def rounds(folder: Path, count: int, turns: int) -> dict[str, dict[str, list[float]]]:
    """kind -> arm -> nanoseconds for one, of each round."""
    (folder / "home/config/profiles").mkdir(parents=True)
    (folder / "home/config/profiles/names.yaml").write_text(PROFILE)
    (folder / "workspace").mkdir()
    environment = dict(os.environ) | {"MCPGUARD_HOME": str(folder / "home")}
    inside = [sys.executable, __file__, "--as", "client"]
    mcpguard = [sys.executable, "-P", "-m", "mcpguard", "run", "-p", "names", "-w", str(folder / "workspace"), "--"]
    found: dict[str, dict[str, list[float]]] = {kind: {arm: [] for arm in ARMS} for kind in KINDS}
    with (
        town(folder) as prefix,
        running([*prefix, *inside]) as bare,
        running([*prefix, *mcpguard, *inside], env=environment, stderr=subprocess.DEVNULL) as guarded,
    ):
        arms = {"bare": bare, "guarded": guarded}
        for process in arms.values():
            await_ready(process)
            ask(process, "cached", 5, 0)  # the resolver begins with the first question
        for turn in range(count):
            for kind in KINDS:
                for arm, process in arms.items():
                    found[kind][arm].append(ask(process, kind, turns, (turn + 1) * 1_000_000))
    return found


def show(found: dict[str, dict[str, list[float]]]) -> None:
    for kind, arms in found.items():
        words = []
        for arm in ARMS:
            low, middle, high = statistics.quantiles(arms[arm], n=4)
            words.append(f"{arm} {middle / 1000:8.1f} us ({low / 1000:.1f} to {high / 1000:.1f})")
        median = statistics.median(arms["guarded"]) / statistics.median(arms["bare"])
        calm = min(arms["guarded"]) / min(arms["bare"])
        more = (statistics.median(arms["guarded"]) - statistics.median(arms["bare"])) / 1000
        print(f"{kind:9} {'   '.join(words)}   added {more:7.1f} us   ratio {median:.2f}, calm {calm:.2f}")
    for arm in ARMS:
        print(f"{arm}: {1e9 / statistics.median(found['parallel'][arm]):.0f} look-ups a second, {AT_ONCE} at once")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--turns", type=int, default=200, help="of each kind in a round")
    parser.add_argument("--json", type=Path, help="gets all rounds, in nanoseconds for one")
    parser.add_argument("--as", dest="role", choices=["server", "client"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        (serve if options.role == "server" else client)()
        return
    with tempfile.TemporaryDirectory(prefix="mcpguard-names-") as folder:
        found = rounds(Path(folder), options.rounds, options.turns)
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
