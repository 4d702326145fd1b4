"""The gate of a session, as the supervising process keeps it: its socket, and that there is one when a shim asks.

The socket is bound before anything is guarded and stays ours, so a gate that ended leaves nobody a place to stand in for it. A
gate that ends takes its connections along: the pipes break, and what goes on goes on without those servers. Who stood still
until that gate had looked at it is ended, for nobody will. The next shim gets the next gate.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mcpguard
from mcpguard.catalogue import starting
from mcpguard.catalogue.server import Server
from mcpguard.errors import HostError
from mcpguard.gate.line import ALL, HEARD, PATIENCE_S
from mcpguard.kernel import cgroup, proc
from mcpguard.mcp.policy import server_word
from mcpguard.profile.store import gate_directory, state_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mcpguard.model.event import Event

_ENTRY = f"{mcpguard.__path__[0]}/gate/__main__.py"
SHIM = f"{mcpguard.__path__[0]}/gate/shim.py"
# What an agent starts, before SOCKET NAME -- COMMAND. It would try to keep what it compiled, and may not.
SHIM_WORDS = (sys.executable, "-I", "-S", "-B", SHIM)
# Nothing of the user's but where mcpguard's own folders are: a variable may lead Python or the loader to a folder where the
# agent writes.
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
_OWN_FOLDERS = ("HOME", "MCPGUARD_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME")
_BACKLOG = 64
# sun_path, with its closing zero.
_LONGEST = 107
# One that ends at once is started more and more seldom.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 5.0
_END_S = 2.0
# It writes what it knows, for twice its own patience at most.
_LAST_S = 2 * PATIENCE_S + _END_S


class Gate:
    """One session's gate.

    Attributes:
        address: of its socket.
        facts: what `gate.servers.Servers` goes by; to be filled before `start`.
        held: packets with all calls that are held for a person, whenever they change; None: it holds none.
        keeping: the broker's end of the line on which servers are kept to less than the agent has; None: none are.
    """

    def __init__(self, session: str) -> None:
        """
        Raises:
            HostError: it cannot have its socket, so that no server could start.
        """
        self.facts: dict[str, Any] = {}
        self._tell_ends: Callable[[Sequence[tuple[int, int]], bool], None] = lambda _ends, _served: None
        self._session = session
        self._leaf = ""
        self._folder = gate_directory() / session
        self.address = str(self._folder / "socket")
        self._listener = self._bind()
        self._web: socket.socket | None = None
        self._remotes: dict[str, Server] = {}
        self.token = os.urandom(24).hex()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._said = b""  # of a line of the process's, so far
        self._handed_over = False  # it said so
        self._tell_lost: Callable[[], None] = lambda: None
        self._put_on_record: Callable[[Sequence[Event]], None] = lambda _events: None
        # Who stands still for the process, by PID and since when that lives: as which server. Another may get the number.
        self._still: dict[tuple[int, str], str] = {}
        self.held: socket.socket | None = None
        self._holds: socket.socket | None = None
        self.keeping: socket.socket | None = None
        self._keeps: socket.socket | None = None
        self._watched = False
        self._lock = threading.Lock()  # of what the process is told
        self._heard = threading.Event()
        self._keeper: threading.Thread | None = None

    def keep(self) -> None:
        """There are servers that are kept to less than the agent has."""
        self.keeping, self._keeps = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def _bind(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            if len(os.fsencode(self.address)) > _LONGEST:
                raise OSError(0, f"its path is longer than {_LONGEST} bytes")
            _remove_stale(self._folder.parent)
            _recover()
            self._folder.mkdir(mode=0o700, parents=True)
            listener.bind(self.address)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise HostError(
                f"MCP servers could not be guarded, so nothing was started: {self.address}",
                why=error.strerror or str(error),
                do="look at the folder's owner and the space on its disk, or set MCPGUARD_HOME to a shorter path",
                code="run.no-gate",
            ) from None
        return listener

    def file(self, name: str, content: bytes) -> str:
        """Keep a file that the tree may read, and cannot change, until the session ends; its path."""
        path = self._folder / name
        path.write_bytes(content)
        return str(path)

    @property
    def port(self) -> int | None:
        """On loopback, where remote servers are reached; None: there are none."""
        return None if self._web is None else int(self._web.getsockname()[1])

    def remote(self, server: Server) -> str:
        """The address by which an agent reaches a remote server. It has to show `token`.

        Raises:
            HostError: no port can be had.
        """
        try:
            if self._web is None:
                web = socket.socket()
                web.bind(("127.0.0.1", 0))
                web.listen(_BACKLOG)
                self._web = web
        except OSError as error:
            raise HostError(
                "remote MCP servers could not be guarded, so nothing was started",
                why=f"no port was free on 127.0.0.1: {error.strerror}",
                do="end programs that hold ports, and try again",
                code="run.no-gate-port",
            ) from None
        key = f"{len(self._remotes)}-{server_word(server.name)}"
        self._remotes[key] = server
        return f"http://127.0.0.1:{self.port}/{key}"

    def _web_facts(self) -> dict[str, Any] | None:
        if self._web is None:
            return None
        remotes = {key: plain(server) | {"headers": self._headers(server)} for key, server in self._remotes.items()}
        return {"listener": self._web.fileno(), "token": self.token, "remotes": remotes}

    def _headers(self, server: Server) -> dict[str, str]:
        """With variables in place of their names: the user's, as they do not come inside; but what a project declares gets no
        more than what the agent has."""
        known = self.facts["environment"] if server.scope == "project" else os.environ
        return {name: starting.expanded(value, known) for name, value in server.headers.items()}

    def start(
        self,
        leaf: str,
        tell_ends: Callable[[Sequence[tuple[int, int]], bool], None],
        tell_lost: Callable[[], None] = lambda: None,
        tell: Callable[[Sequence[Event]], None] = lambda _events: None,
        *,
        ask: bool = False,
    ) -> None:
        """Have shims answered from now on, until `close`.

        Args:
            leaf: path of the session's own cgroup leaf.
            tell_ends: called by another thread with the device and inode numbers of pipes and sockets whose messages the gate
                puts on record, and True; or of a conversation that it refused, and False.
            tell_lost: called by that thread when the gate's process ended before all that it knew was on record.
            tell: called by that thread with what else is to be on record.
            ask: calls that need a person's word may be held, while `watched`.
        """
        if ask:
            self.held, self._holds = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.held.setblocking(False)
        self._tell_ends, self._tell_lost, self._put_on_record = tell_ends, tell_lost, tell
        self._leaf = cgroup.in_tree(leaf)
        handed = {
            **self.facts,
            "session": self._session,
            "leaf": self._leaf,
            "listener": self._listener.fileno(),
            "web": self._web_facts(),
            "held": self._holds.fileno() if self._holds else -1,
            "keeps": self._keeps.fileno() if self._keeps else -1,
        }
        if self.keeping is not None:
            self.keeping.close()  # the broker has it
        self._keeper = threading.Thread(target=self._keep, args=(handed,), name="mcpguard-gate", daemon=True)
        self._keeper.start()

    def _keep(self, handed: dict[str, Any]) -> None:
        again = False
        pause_s = _FIRST_PAUSE_S
        listeners = [one.fileno() for one in (self._listener, self._web) if one is not None]
        handed_over = [*listeners, *(handed[name] for name in ("held", "keeps") if handed[name] >= 0)]
        # An agent that has servers starts them at once, and waits for them: then the gate comes up while the agent does.
        first_wait_s = 0 if self.facts.get("servers") else None
        while self._stop not in select.select([*listeners, self._stop], (), (), first_wait_s)[0]:
            first_wait_s = None
            self._process = None
            with contextlib.suppress(OSError):
                with self._lock:
                    facts = {**handed, "again": again, "watched": self._watched}
                    self._process = _spawn(json.dumps(facts).encode() + b"\n", handed_over)
                again = True
            if self._process is not None and self._wait(self._process):
                return
            if select.select([self._stop], (), (), pause_s)[0]:
                return
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _wait(self, process: subprocess.Popen[bytes]) -> bool:
        """Until it ends; True when that was meant to be."""
        with _held(process.pid) as held:
            stopped = self._hear(process, held)
        self._heard.set()
        if self._holds is not None:
            with contextlib.suppress(OSError):
                self._holds.send(b'{"calls": []}', socket.MSG_DONTWAIT)
        if stopped and process.stdin is not None:
            with self._lock:
                process.stdin.close()  # it writes what it knows, and ends
            try:
                process.wait(_LAST_S)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        self._hear_rest(process)
        if not self._handed_over:
            self._tell_lost()
        if not stopped:
            self._clear_up()
        return stopped

    def _clear_up(self) -> None:
        """The process has ended by itself: nobody will look at what those were executed as who stand still for it."""
        still, self._still = self._still, {}
        ended = [self._end(pid, began, name) for (pid, began), name in still.items()]
        if told := [event for event in ended if event is not None]:
            self._put_on_record(told)

    def _end(self, pid: int, began: str, name: str) -> Event | None:
        """End a process of the session, if it is still the one that began then; what is to be told of it."""
        with contextlib.suppress(OSError), _held(pid) as process:
            is_same = proc.stat_of(pid)[proc.START :][:1] == [began] and not proc.has_ended(pid)
            if is_same and cgroup.is_in(cgroup.place_of(pid), self._leaf):
                program = proc.program_of(pid)
                signal.pidfd_send_signal(process, signal.SIGKILL)
                return self._told_of(pid, program[0] if program else None, name)
        return None

    def _told_of(self, pid: int, exe: str | None, name: str) -> Event:
        from mcpguard.events.mcp import CLIENT
        from mcpguard.events.told_errors import detail_of
        from mcpguard.model.access import Verdict
        from mcpguard.model.event import Event, Kind, McpMessage, Peer

        error = HostError(
            f"the MCP server {name} was ended before it was asked anything",
            why="the gate was ended before it had seen what was executed",
            do="start the server again: it gets the next gate",
            code="mcp.gate-ended",
        )
        return Event(
            *(time.time_ns(), self._session, Kind.MCP, "refuse", Verdict.DENY),
            pid=pid,
            exe=exe,
            comm=exe.rpartition("/")[2][:15] if exe else None,
            detail=detail_of(error),
            mcp=McpMessage(name, "stdio", CLIENT, peer=Peer(pid, exe)),
        )

    def _hear(self, process: subprocess.Popen[bytes], held: int) -> bool:
        """Pass on which pipes and sockets its conversations use, until it ends or is to end; True for the latter."""
        waited = [held, self._stop]
        self._said, self._handed_over = b"", False
        self._still = {}
        if process.stdout is not None:
            waited.append(process.stdout.fileno())
        while True:
            ready = select.select(waited, (), ())[0]
            if held in ready or self._stop in ready:
                return self._stop in ready
            if not self._hear_more(waited[-1]):
                waited.pop()

    def _hear_more(self, said: int) -> bool:
        """Take what it says; False: there is no more."""
        more = os.read(said, 1 << 16)
        *lines, self._said = (self._said + more).split(b"\n")
        for line in lines:
            if line == HEARD:
                self._heard.set()
                continue
            if line == ALL:
                self._handed_over = True
                continue
            told = json.loads(line)
            if isinstance(told, dict):
                self._hear_of_still(told)
                continue
            served, ends = told
            self._tell_ends([(int(device), int(inode)) for device, inode in ends], bool(served))
        return bool(more)

    def _hear_of_still(self, told: Mapping[str, Any]) -> None:
        """Somebody stands still from now on, until the process has looked at it, or goes on."""
        if "goes" in told:
            self._still.pop((int(told["goes"]), str(told["began"])), None)
        else:
            self._still[int(told["stands"]), str(told["began"])] = str(told["name"])

    def _hear_rest(self, process: subprocess.Popen[bytes]) -> None:
        """What it said before it ended counts, or what was sent there would be told a second time."""
        if process.stdout is not None:
            os.set_blocking(process.stdout.fileno(), False)
            with contextlib.suppress(BlockingIOError):
                while self._hear_more(process.stdout.fileno()):
                    pass
            process.stdout.close()

    def watched(self, watched: bool) -> None:
        """Somebody watches who may answer, or nobody does; then no call is held. The process knows of it when this returns."""
        with self._lock:
            self._watched = watched
            self._heard.clear()
            told = self._tell({"watched": watched})
        if told:
            self._heard.wait(_END_S)

    def answer(self, call: str, answer: str, who: str) -> None:
        """A person's word on a held call: `once`, `session` or `refused`."""
        with self._lock:
            self._tell({"call": call, "answer": answer, "who": who})

    def _tell(self, news: dict[str, Any]) -> bool:
        """With the lock held. A process that ended is told nothing; the next one begins with what counts."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self._process.stdin.write(json.dumps(news).encode() + b"\n")
                self._process.stdin.flush()
                return True
        return False

    def close(self) -> None:
        """End it; what it knew is on record when this returns. To be called when the tree has ended; again: nothing."""
        if self._closed:
            return
        self._closed = True
        os.eventfd_write(self._stop, 1)
        if self._keeper is not None:
            self._keeper.join(_LAST_S + _END_S)
        self._listener.close()
        for one in (self._web, self.keeping, self._keeps):
            if one is not None:
                one.close()
        _remove(self._folder)
        _recover()


def plain(server: Server) -> dict[str, Any]:
    """Its fields, for another process."""
    return {
        name: dict(value) if isinstance(value := getattr(server, name), Mapping) else value for name in Server.__slots__
    }


@contextlib.contextmanager
def _held(pid: int) -> Iterator[int]:
    held = os.pidfd_open(pid)
    try:
        yield held
    finally:
        os.close(held)


def _spawn(line: bytes, listeners: Sequence[int]) -> subprocess.Popen[bytes]:
    # A session of its own: what the terminal sends is for the agent.
    process = subprocess.Popen(
        [sys.executable, "-E", "-P", _ENTRY],
        cwd="/",
        env={**{name: os.environ[name] for name in _OWN_FOLDERS if name in os.environ}, **_ENVIRONMENT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=listeners,
        start_new_session=True,
    )
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.write(line)
            process.stdin.flush()
    return process


def _recover() -> None:
    """What gates that were killed left on record, and not in the store."""
    with contextlib.suppress(OSError):
        if any((state_directory() / "mcp-journal").iterdir()):
            from mcpguard.gate.journal import recover

            recover()


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        folder.rmdir()


def _remove_stale(parent: Path) -> None:
    """Sessions that were killed leave theirs behind; nobody listens there."""
    with contextlib.suppress(OSError):
        for folder in parent.iterdir():
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
                try:
                    line.connect(str(folder / "socket"))
                except (ConnectionRefusedError, FileNotFoundError):
                    _remove(folder)
                except OSError:
                    pass
