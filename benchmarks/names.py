"""What rules by name cost: a look-up and a connection in a session, beside the same in a bare run.

Both arms are one process each, in a network namespace of their own with a name server that answers everything at once, and take
turns in small rounds. A look-up is one datagram to the server and the answer: `cached` asks for one name again and
again, `uncached` for a new one each time; bare there is no cache, so both go to the server. `connect` opens and closes a TCP
connection to an address that a look-up has opened. `parallel` keeps 32 look-ups under way. `hello` connects, sends the hello
that OpenSSL begins with and awaits one byte; `tls` makes a whole handshake. In these two a third arm is a session with
`sni: off`: what it does not have is the reading of the name. Prints medians with quartiles, the ratio of the medians and of
the calmest rounds, and writes them as JSON; judges nothing.

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
import ssl
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

CERTIFICATE = os.environ.get("BENCH_CERTIFICATE", "")
REPOSITORY = Path(__file__).resolve().parent.parent
SERVER, ADDRESS, PORT = ("127.77.0.53", 53), "203.0.113.1", 8080
HELLO_PORT, TLS_PORT = 8081, 8082
HOST = "same.bench.test"
ARMS = ("bare", "guarded")
OFF = "sni: off"
KINDS = ("cached", "uncached", "connect", "parallel", "hello", "tls")
READ = ("hello", "tls")
AT_ONCE = 32
PROFILE = f"""\
name: names
extends: [dev-tools]
files:
  read: ["{REPOSITORY}", "{sys.base_prefix}", "{sys.prefix}"]
  execute: ["{sys.base_prefix}", "{sys.prefix}"]
network:
  allow: ["*.bench.test:{PORT}-{TLS_PORT}"]
"""


# --- in the namespace: the server, and the two clients -------------------------------------------------------------


def serve() -> None:
    """Answer every question with one address, and take connections there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    with socket.socket(type=socket.SOCK_DGRAM) as names, contextlib.ExitStack() as stack:
        names.bind(SERVER)

        def accept(listener: socket.socket, port: int) -> None:
            while True:
                stream, _ = listener.accept()
                with stream, contextlib.suppress(OSError):
                    if port == HELLO_PORT:
                        stream.recv(1 << 16)
                        stream.sendall(b"x")
                    elif port == TLS_PORT:
                        context.wrap_socket(stream, server_side=True).close()

        for port in (PORT, HELLO_PORT, TLS_PORT):
            listener = stack.enter_context(socket.create_server((ADDRESS, port), backlog=128))
            threading.Thread(target=accept, args=(listener, port), daemon=True).start()
        print("ready", flush=True)
        record = bytes.fromhex("c00c000100010000003c0004") + socket.inet_aton(ADDRESS)
        while True:
            query, sender = names.recvfrom(4096)
            end = query.find(b"\0", 12) + 5
            names.sendto(query[:2] + bytes.fromhex("81800001000100000000") + query[12:end] + record, sender)


def question(name: str, number: int) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">6H", number & 0xFFFF, 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"


def greet(context: ssl.SSLContext) -> bytes:
    """The first bytes of a client."""
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=HOST).do_handshake()
    return outgoing.read()


def connect(kind: str, context: ssl.SSLContext, first_bytes: bytes) -> None:
    with socket.create_connection((ADDRESS, {"hello": HELLO_PORT, "tls": TLS_PORT}.get(kind, PORT)), 10) as stream:
        if kind == "hello":
            stream.sendall(first_bytes)
            stream.recv(1)
        elif kind == "tls":
            context.wrap_socket(stream, server_hostname=HOST).close()


def measure(kind: str, turns: int, first: int) -> float:
    """Nanoseconds for one."""
    context = ssl._create_unverified_context()  # the certificate is the benchmark's own
    first_bytes = greet(context)
    with socket.socket(type=socket.SOCK_DGRAM) as asking:
        asking.connect(SERVER)
        asking.settimeout(10)
        if kind == "parallel":
            return parallel(turns, first)
        began = time.perf_counter_ns()
        for turn in range(first, first + turns):
            if kind in ("connect", *READ):
                connect(kind, context, first_bytes)
            else:
                name = HOST if kind == "cached" else f"n{turn}.bench.test"
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


def certify(folder: Path) -> Path:
    """A certificate of nobody's, with its key, in one file."""
    made = folder / "certificate.pem"
    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    subprocess.run([*words, "-subj", f"/CN={HOST}", "-keyout", made, "-out", made], check=True, capture_output=True)
    return made


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
        certificate = dict(os.environ) | {"BENCH_CERTIFICATE": str(certify(folder))}
        with running([*prefix, sys.executable, __file__, "--as", "server"], env=certificate) as server:
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
    (folder / "home/config/profiles/unread.yaml").write_text(
        PROFILE.replace("name: names", "name: unread") + f"  {OFF}\n"
    )
    (folder / "workspace").mkdir()
    environment = dict(os.environ) | {"MCPGUARD_HOME": str(folder / "home")}
    inside = [sys.executable, __file__, "--as", "client"]
    mcpguard = [sys.executable, "-P", "-m", "mcpguard", "run", "-w", str(folder / "workspace"), "-p"]
    found: dict[str, dict[str, list[float]]] = {
        kind: {arm: [] for arm in (*ARMS, *((OFF,) if kind in READ else ()))} for kind in KINDS
    }
    with town(folder) as prefix, contextlib.ExitStack() as stack:

        def guarded(profile: str) -> subprocess.Popen[str]:
            words = [*prefix, *mcpguard, profile, "--", *inside]
            return stack.enter_context(running(words, env=environment, stderr=subprocess.DEVNULL))

        bare = stack.enter_context(running([*prefix, *inside]))
        arms = {"bare": bare, "guarded": guarded("names"), OFF: guarded("unread")}
        for process in arms.values():
            await_ready(process)
            ask(process, "cached", 5, 0)  # the resolver begins with the first question
        for turn in range(count):
            for kind in KINDS:
                for arm in found[kind]:
                    found[kind][arm].append(ask(arms[arm], kind, turns, (turn + 1) * 1_000_000))
    return found


def show(found: dict[str, dict[str, list[float]]]) -> None:
    for kind, arms in found.items():
        words = []
        for arm in arms:
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
