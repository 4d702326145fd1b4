"""A real guarded run of a small program that tries forbidden and honest acts of every kind, and reports each errno.

This rehearses a tier: it uses `mcpguard run` as a person would, with a profile, a
workspace and a store of its own in a scratch folder, and leaves nothing behind. It draws no conclusions; `doctor` does.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mcpguard.model.values import dataclass, field

TIMEOUT_S = 60
_HEADER_BYTES = 12
# Flags of an answer, one question, one answer; and its record up to the address: the question's name, A, IN, 60 s, 4 bytes.
_ONE_ANSWER = bytes.fromhex("81800001000100000000")
_SAME_NAME_A_A_MINUTE = bytes.fromhex("c00c000100010000003c0004")
# Such a run as a person's, but for the server that its resolver asks.
_RUN = (
    "from mcpguard.session.resolver import Resolver; Resolver.servers = ({server!r},); "
    "import sys; from mcpguard.cli.main import main; sys.exit(main())"
)

# Runs inside, isolated and without site-packages. Prints {act: "done" or the symbol of the errno}.
PROGRAM = """
import errno, json, os, socket, sys
place = json.loads(sys.argv[1])
seen = {}

def act(name, do):
    try:
        do()
        seen[name] = "done"
    except OSError as error:
        seen[name] = errno.errorcode.get(error.errno, str(error))

def execute(path):
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(path, [path])
        except OSError as error:
            os._exit(error.errno)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, os.strerror(code))

def connect(family, kind, address):
    with socket.socket(family, kind) as link:
        link.settimeout(5)
        link.connect(address)
        link.send(b"x")

def ask_for(name, code):
    # Nobody is at that server: the session's own resolver answers in its place.
    server = ("192.0.2.53", 53)
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.settimeout(20)
        link.sendto(bytes.fromhex("4d4701000001000000000000") + labels + bytes.fromhex("0000010001"), server)
        answer, sender = link.recvfrom(512)
    if sender != server or answer[3] & 15 != code or (not code and socket.inet_aton(place["address"]) not in answer):
        raise OSError(errno.EPROTO, "")

def reach_its_address():
    # To connect datagrams sends nothing. Without a way there the kernel says so, once the guard has let it through.
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
            link.connect((place["address"], place["named"]))
    except OSError as error:
        if error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN):
            raise

act("read.honest", lambda: open(place["honest"]).close())
act("read.denied", lambda: open(place["denied"]).close())
act("read.outside", lambda: open(place["outside"]).close())
act("write.honest", lambda: open(place["workspace"] + "/made", "w").close())
act("write.readonly", lambda: open(place["readonly"], "a").close())
act("write.outside", lambda: open(place["outside"] + ".made", "w").close())
act("execute.honest", lambda: execute(place["program"]))
act("execute.outside", lambda: execute(place["tool"]))
act("network.honest", lambda: connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", place["allowed"])))
act("network.tcp4", lambda: connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", place["tcp4"])))
act("network.udp4", lambda: connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", place["tcp4"])))
if place["tcp6"]:
    act("network.tcp6", lambda: connect(socket.AF_INET6, socket.SOCK_STREAM, ("::1", place["tcp6"])))
act("names.unknown", lambda: ask_for(place["other"], 3))
act("names.closed", reach_its_address)
act("names.answer", lambda: ask_for(place["name"], 0))
act("names.open", reach_its_address)
act("unix.pathname", lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, place["socket"]))
act("unix.abstract", lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, chr(0) + place["abstract"]))
act("process.signal", lambda: os.kill(place["pid"], 0))
act("process.memory", lambda: open("/proc/%d/mem" % place["pid"], "rb").close())
print(json.dumps(seen))
"""


@dataclass(frozen=True, slots=True)
class CanaryResult:
    """What the canary met.

    Attributes:
        acts: for each act `done`, or the symbol of its errno; empty when the run did not start.
        recorded: the denied read is in the event store, with its rule.
        trouble: why the run did not start, in its own words; empty when it did.
        by: for each kind of rule what carries it, as the session says it.
    """

    acts: dict[str, str]
    recorded: bool
    trouble: str
    by: Mapping[str, str] = field(default_factory=dict)


def run_canary(tier: int) -> CanaryResult:
    """Run it in one tier; takes about as long as two launches. Never raises for a host that cannot: that is the result."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mcpguard-doctor-"))).resolve()
        place = stack.enter_context(_scene(folder))
        asked = stack.enter_context(_name_server(place))
        profile = _write_profile(folder, place)
        python = os.path.realpath(sys.executable)
        command = [
            "run",
            "--tier",
            str(tier),
            "-p",
            str(profile),
            "--",
            python,
            "-I",
            "-S",
            "-c",
            PROGRAM,
            json.dumps(place),
        ]
        try:
            done = _mcpguard(folder, command, entry=("-c", _RUN.format(server=place["server"])))
        except subprocess.TimeoutExpired:
            return CanaryResult({}, False, f"the guarded canary did not end within {TIMEOUT_S} seconds")
        try:
            acts = json.loads(done.stdout)
        except ValueError:
            return CanaryResult({}, False, done.stderr.strip() or f"the canary ended with status {done.returncode}")
        if any(place["other"].encode().partition(b".")[0] in question for question in asked):
            acts["names.leaked"] = "done"
        return CanaryResult(acts, _is_recorded(folder, place["denied"]), "", _carried_by(folder))


def _mcpguard(
    folder: Path, arguments: list[str], *, entry: tuple[str, str] = ("-m", "mcpguard")
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", *entry, *arguments],
        cwd=folder / "workspace",
        # `doctor` tells sudo's refusals apart by their words.
        env={**os.environ, "MCPGUARD_HOME": str(folder / "home"), "LANGUAGE": "en"},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )


def _is_recorded(folder: Path, path: str) -> bool:
    done = _mcpguard(folder, ["log", "--verdict", "deny", "--format", "json"])
    with contextlib.suppress(ValueError):
        events = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
        return any(event.get("path") == path and event.get("rule") for event in events)
    return False


def _carried_by(folder: Path) -> dict[str, str]:
    done = _mcpguard(folder, ["sessions", "--format", "json"])
    with contextlib.suppress(ValueError):
        sessions = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
        return {str(row["kind"]): str(row["by"]) for one in sessions for row in one["coverage"]}
    return {}


def _write_profile(folder: Path, place: dict[str, Any]) -> Path:
    system = sorted({"/usr", "/bin", "/lib", "/lib64", "/etc", "/proc", sys.base_prefix})
    profile = folder / "doctor.yaml"
    profile.write_text(
        "name: doctor\n"
        "files:\n"
        f"  read: {json.dumps(system)}\n"
        f"  execute: {json.dumps([path for path in system if path not in ('/etc', '/proc')])}\n"
        '  write: ["{workspace}", /dev/null]\n'
        '  readonly: ["{workspace}/readonly"]\n'
        '  deny: ["{workspace}/denied"]\n'
        "network:\n"
        f'  allow: ["127.0.0.1:{place["allowed"]}", "{place["name"]}:{place["named"]}"]\n',
        encoding="utf-8",
    )
    return profile


@contextlib.contextmanager
def _name_server(place: dict[str, Any]) -> Iterator[list[bytes]]:
    """A server on loopback that has one address for every name; what it was asked. `place` gets where it is."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        place["server"] = f"127.0.0.1#{server.getsockname()[1]}"

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    query, sender = server.recvfrom(4096)
                    if not query:
                        return
                    asked.append(query)
                    end = query.find(b"\0", _HEADER_BYTES) + 5  # the name's last byte, type and class
                    record = _SAME_NAME_A_A_MINUTE + socket.inet_aton(place["address"])
                    server.sendto(query[:2] + _ONE_ANSWER + query[_HEADER_BYTES:end] + record, sender)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield asked
        finally:
            with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.sendto(b"", server.getsockname())
            thread.join(TIMEOUT_S)


@contextlib.contextmanager
def _scene(folder: Path) -> Iterator[dict[str, Any]]:
    """Files, listeners and sockets for the acts; each forbidden one would succeed without a guard."""
    workspace = folder / "workspace"
    workspace.mkdir()
    (folder / "home").mkdir(mode=0o700)
    for name in ("honest", "denied", "readonly"):
        (workspace / name).write_text(name)
    (folder / "outside").write_text("outside")
    tool = workspace / "tool"
    tool.write_text("#!/bin/sh\nexit 0\n")
    tool.chmod(0o755)
    abstract = f"mcpguard-doctor-{os.getpid()}"
    with contextlib.ExitStack() as stack:

        def listen(family: int, address: Any) -> int:
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.bind(address)
            listener.listen(8)
            return int(listener.getsockname()[1]) if family != socket.AF_UNIX else 0

        tcp6 = 0
        with contextlib.suppress(OSError):
            tcp6 = listen(socket.AF_INET6, ("::1", 0))
        listen(socket.AF_UNIX, str(folder / "socket"))
        listen(socket.AF_UNIX, f"\0{abstract}")
        yield {
            "workspace": str(workspace),
            "honest": str(workspace / "honest"),
            "denied": str(workspace / "denied"),
            "readonly": str(workspace / "readonly"),
            "outside": str(folder / "outside"),
            "program": "/bin/true",
            "tool": str(tool),
            "allowed": listen(socket.AF_INET, ("127.0.0.1", 0)),
            "tcp4": listen(socket.AF_INET, ("127.0.0.1", 0)),
            "tcp6": tcp6,
            "socket": str(folder / "socket"),
            "abstract": abstract,
            "pid": os.getpid(),
            # No name of anybody's and, for documentation, nobody's address.
            "name": "allowed.mcpguard.invalid",
            "other": "other.mcpguard.invalid",
            "address": "192.0.2.77",
            "named": 4433,
        }
