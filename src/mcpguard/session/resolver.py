"""The resolver of a session, as the supervising process keeps it: its sockets, its rules, and that there is always one.

The sockets are ours and bound before anything is guarded, so questions wait in them while no resolver runs, and nobody else can
take their port. The first question starts it, so a session that asks nothing has none. One that ends is started again, with the
same sockets, for the next question; meanwhile names do not resolve and nothing opens.
One that cannot even begin is told of, and questions are answered here with "try again later".
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping, Sequence

import mcpguard
from mcpguard.errors import HostError
from mcpguard.model import plain_json as json

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from typing import Any

    from mcpguard.model.policy import Policy

_ENTRY = f"{mcpguard.__path__[0]}/resolver/__main__.py"
# Nothing of the user's: a variable may lead Python or the loader to a folder where the agent writes.
# With a home Python asks nobody for one as it starts: that would wait for a name service that does not answer.
_ENVIRONMENT = {"HOME": "/nonexistent", "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
_TRIES = 50
_BACKLOG = 64
_BATCH = 1000
# From <linux/sock_diag.h>; the last number are datagrams that found no room.
_SO_MEMINFO, _MEMORY = 55, "=9I"
# A resolver that ends at once is started more and more seldom.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 5.0
# One that has lived so long had no trouble in beginning.
_WELL_S = 10.0
_LOOK_S = 0.1
_HEADER_BYTES = 12
_ROOM_BYTES = 1 << 20
_ADOPT_S = 5.0
_MOST_LEFT = 1000


def _bind() -> list[socket.socket]:
    """Datagram and stream sockets on 127.0.0.1 and, where there is IPv6, on ::1, all with one port that the kernel chose."""
    for _ in range(_TRIES):
        bound: list[socket.socket] = []
        try:
            port = 0
            for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                    if family == socket.AF_INET6 and not _has_ipv6():
                        continue
                    one = socket.socket(family, kind)
                    bound.append(one)
                    one.bind((host, port))
                    port = port or int(one.getsockname()[1])
                    if kind == socket.SOCK_STREAM:
                        one.listen(_BACKLOG)
            return bound
        except OSError:
            for one in bound:
                one.close()
    raise HostError(
        "names could not be guarded, so nothing was started",
        why="no port was free on 127.0.0.1 and ::1 at once",
        do="end programs that hold ports, and try again",
        code="run.no-resolver-port",
    )


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


def rules_to_json(policy: Policy) -> dict[str, Any]:
    """What the resolver must know of a policy."""
    return {
        "names": [
            [entry.pattern, entry.port_low, entry.port_high, entry.protocols, entry.effect.value, entry.rule]
            for entry in policy.names
        ],
        "connect": [
            [
                *(entry.address.hex(), entry.prefix, entry.port_low, entry.port_high, entry.protocols),
                *(entry.effect.value, entry.rule),
            ]
            for entry in policy.connect
        ],
        "audit": policy.audit,
    }


class Feed:
    """What the resolver tells of each question, to be read like a ring."""

    def __init__(self, line: socket.socket, sockets: Sequence[socket.socket], untold: int) -> None:
        """
        Args:
            sockets: where questions arrive.
            untold: descriptor of the resolver's own count, 8 bytes.
        """
        self._line = line
        self._datagrams = [one for one in sockets if one.type == socket.SOCK_DGRAM]
        self._untold = untold
        self._missing = 0

    def fileno(self) -> int:
        return self._line.fileno()

    def drain(self) -> list[bytes]:
        """Lines that are there now, oldest first; at most a thousand."""
        found: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while len(found) < _BATCH:
                found.append(self._line.recv(1 << 16))
        return found

    def missing(self) -> int:
        """Questions so far of which nothing was told: the kernel's sockets had no room for them, or the resolver had none."""
        with contextlib.suppress(OSError, struct.error):
            full = sum(
                struct.unpack(_MEMORY, one.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, struct.calcsize(_MEMORY)))[-1]
                for one in self._datagrams
            )
            self._missing = full + int.from_bytes(os.pread(self._untold, 8, 0), "little")
        return self._missing

    def filled(self) -> float:
        """It has room for as long as anybody gathers."""
        return 0.0

    def unread(self) -> int:
        """Whether there is more: the kernel tells the bytes of the next line only."""
        import fcntl  # a launch waits for what is imported before it
        import termios

        size = fcntl.ioctl(self._line, termios.FIONREAD, bytes(4))
        return int(struct.unpack("=I", size)[0] > 0)


def _write(process: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
    if process.stdin is not None:
        process.stdin.write(json.dumps(message).encode() + b"\n")
        process.stdin.flush()


def _is_ready(process: subprocess.Popen[bytes]) -> bool:
    """Wait until it serves; False: it ended before."""
    return process.stdout is not None and os.read(process.stdout.fileno(), 1) == b"+"


def _refuse_one(served: socket.socket) -> None:
    """Take one question, or one connection, and say that it failed (SERVFAIL). Does not wait."""
    if served.type == socket.SOCK_STREAM:
        served.setblocking(False)
        served.accept()[0].close()
        return
    question, sender = served.recvfrom(1 << 16, socket.MSG_DONTWAIT)
    if len(question) >= _HEADER_BYTES and not question[2] & 0x80:
        answer = question[:2] + bytes((question[2] | 0x80, 0x82)) + question[4:]
        served.sendto(answer, socket.MSG_DONTWAIT, sender)


class Resolver:
    """One session's resolver.

    Attributes:
        port: where the sockets are bound.
        feed: what it tells of each question.
        held: packets with all questions that are held for a person, whenever they change; None: it holds none.
        servers: `ADDRESS` or `ADDRESS#PORT`, asked in place of the host's own; empty: those.
    """

    held: socket.socket | None = None
    servers: Sequence[str] = ()

    def __init__(self) -> None:
        """Raises HostError: there is no port for it."""
        self._sockets = _bind()
        self.port = int(self._sockets[0].getsockname()[1])
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM_BYTES)
        self._ours = ours
        self._untold = os.memfd_create("mcpguard-untold")
        os.pwrite(self._untold, bytes(8), 0)
        self.feed = Feed(ours, self._sockets, self._untold)
        self._handed: dict[str, Any] = {}
        self._policy: Policy | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._stopping = os.eventfd(0)
        self._keeper: threading.Thread | None = None
        # The process that runs now serves, or has ended without.
        self._begun = threading.Event()
        self._told = False
        # Rules that the process was given and has not said to have taken.
        self._owed = 0
        self._holds: socket.socket | None = None
        # What `watched` and `leave` said last.
        self._said: dict[str, Any] = {"watched": False, "left": []}

    def start(
        self,
        policy: Policy,
        descriptors: Mapping[str, int],
        kept: Mapping[int, tuple[int, Policy]] | None = None,
        *,
        ask: bool = False,
    ) -> None:
        """Have questions answered from now on until `close`, in a process of its own that the first one starts.

        Args:
            descriptors: what the broker handed over; `mg_names`, its like of `kept`, and `mg_questions` are copied.
            kept: of servers that are kept to less, by the slot of their tables: the rule that keeps them, and what is left to
                them besides `policy`.
            ask: names that no rule covers may be held, while `watched`.
        """
        if ask:
            self.held, self._holds = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.held.setblocking(False)
        self._policy = policy
        self._handed = {
            "sockets": [one.fileno() for one in self._sockets],
            "record": self._theirs.fileno(),
            "untold": self._untold,
            "names_map": os.dup(descriptors["mg_names"]),
            "questions_map": os.dup(descriptors["mg_questions"]),
            "held": self._holds.fileno() if self._holds else -1,
            "servers": list(self.servers),
            "kept": {
                slot: {"names_map": os.dup(descriptors[f"mg_names.{slot}"]), "rule": rule, **rules_to_json(own)}
                for slot, (rule, own) in (kept or {}).items()
            },
        }
        self._keeper = threading.Thread(target=self._keep, name="resolver", daemon=True)
        self._keeper.start()

    def _keep(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while self._await_question():
            since = time.monotonic()
            process = self._spawn()
            served = process is not None and _is_ready(process)
            self._begun.set()
            if process is not None:
                process.wait()
            if self._holds is not None:
                with contextlib.suppress(OSError):
                    self._holds.send(b"[]", socket.MSG_DONTWAIT)
            if served and time.monotonic() - since > _WELL_S:
                pause_s = _FIRST_PAUSE_S
            if not served and not self._stop.is_set():
                self._tell_of_failure()
                self._refuse(pause_s)
            elif self._stop.wait(pause_s):
                return
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _await_question(self) -> bool:
        """Wait until somebody asks; False: it is over."""
        poll = select.poll()
        for number in (self._stopping, *(one.fileno() for one in self._sockets)):
            poll.register(number, select.POLLIN)
        poll.poll()
        return not self._stop.is_set()

    def _tell_of_failure(self) -> None:
        """Say once, to the person and on record, that no name resolves."""
        if self._told:
            return
        self._told = True
        from mcpguard.model.access import Verdict
        from mcpguard.session.start import tell
        from mcpguard.wire import lookups
        from mcpguard.wire.records import Head, LookupRecord

        words = "the resolver of this session does not start, so names do not resolve"
        head = Head(time.monotonic_ns(), os.getpid(), os.getpid(), os.getppid(), "mcpguard", 0)
        with contextlib.suppress(OSError):
            record = LookupRecord(head, "", "", Verdict.DENY, 0, words, ())
            self._theirs.send(lookups.encode(record), socket.MSG_DONTWAIT)
        tell(f"{words}; is dnspython whole? `{sys.executable} -E -P -c 'import dns.message'`")

    def _refuse(self, pause_s: float) -> None:
        """For so long, answer whoever asks that it failed, instead of nobody."""
        poll = select.poll()
        by_number = {one.fileno(): one for one in self._sockets}
        for number in by_number:
            poll.register(number, select.POLLIN)
        until = time.monotonic() + pause_s
        while not self._stop.is_set() and (left_s := until - time.monotonic()) > 0:
            for number, _ in poll.poll(min(left_s, _LOOK_S) * 1000):
                with contextlib.suppress(OSError):
                    _refuse_one(by_number[number])

    def _spawn(self) -> subprocess.Popen[bytes] | None:
        import subprocess  # most launches wait for everything that is imported, and ask for no name

        facts = self._handed
        handed = [*facts["sockets"], facts["record"], facts["untold"], facts["names_map"], facts["questions_map"]]
        handed += [facts["held"]] if facts["held"] >= 0 else []
        handed += [one["names_map"] for one in facts["kept"].values()]
        with self._lock, contextlib.suppress(OSError):
            if self._stop.is_set() or self._policy is None:
                return None
            # A session of its own: what the terminal sends is for the agent.
            process = subprocess.Popen(
                [sys.executable, "-E", "-P", _ENTRY],
                cwd="/",
                env=_ENVIRONMENT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=handed,
                start_new_session=True,
            )
            self._process = process
            self._owed = 0
            self._begun.clear()
            _write(process, {**facts, **rules_to_json(self._policy), **self._said})
            return process
        return None

    def adopt(self, policy: Policy) -> None:
        """Answer by another policy; when this returns it is answered by, or by the next resolver where none runs now."""
        with self._lock:
            self._policy = policy
            self._tell(rules_to_json(policy))

    def watched(self, watched: bool) -> None:
        """Somebody watches who may answer questions, or nobody does; then none is held."""
        with self._lock:
            self._said["watched"] = watched
            self._tell({"watched": watched})

    def leave(self, name: str) -> None:
        """A person said that this name stays refused; it is held no more."""
        with self._lock:
            self._said["left"] = [*self._said["left"], name][-_MOST_LEFT:]
            self._tell({"left": [name]})

    def _tell(self, news: dict[str, Any]) -> None:
        """Have the process that runs take something, with the lock held; returns when it has."""
        process = self._process
        if process is None or process.stdout is None:
            return
        with contextlib.suppress(OSError):
            _write(process, news)
            self._owed += 1
            while (
                self._owed
                and self._begun.wait(_ADOPT_S)
                and select.select([process.stdout], (), (), _ADOPT_S)[0]
                and (said := os.read(process.stdout.fileno(), 64))
            ):
                self._owed -= len(said)

    def close(self) -> None:
        """End it. What it told and nobody has read yet stays in `feed`."""
        with self._lock:
            self._stop.set()
            os.eventfd_write(self._stopping, 1)
            if self._process is not None:
                self._process.kill()
        if self._keeper is not None:
            self._keeper.join()
        self.feed.missing()
        for one in self._sockets:
            one.close()
