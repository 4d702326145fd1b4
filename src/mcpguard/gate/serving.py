"""The gate of one session: takes shims in, has them become their servers, and stands between those and the agent.

One thread and one epoll for all that is said; who wants to become a server is looked at by others beside it. Everything that
comes from inside the tree is hostile: packets, descriptors, lines, and how fast they come. A shim that sends what no shim
sends is turned away and counted; nothing it sends makes the gate wait or end.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shlex
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mcpguard.errors import HostError, McpguardError
from mcpguard.events.mcp import CLIENT
from mcpguard.events.told_errors import detail_of
from mcpguard.gate import peers
from mcpguard.gate.admission import Admission
from mcpguard.gate.held import Held
from mcpguard.gate.keeper import Keeper
from mcpguard.gate.ledger import SOON_S, Ledger
from mcpguard.gate.line import LONGEST_NAME, MOST_ARGUMENTS, MOST_BYTES, PATIENCE_S, VERSION
from mcpguard.gate.peers import Stranger
from mcpguard.gate.relay import Inlet, Judges, Outlet, Relay
from mcpguard.gate.workers import Workers
from mcpguard.kernel import cgroup, proc
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind, McpMessage, Peer
from mcpguard.model.values import dataclass

MOST_LINE = 4 << 20
# An agent has a few dozen servers; each takes four descriptors, and nine while it is let in.
MOST_RELAYS = 128
MOST_ENTRANTS = 32
# How many are looked at at once: an agent starts all its servers together, and what one executes may take seconds to read.
MOST_LOOKED_AT = 8
# For a packet that does not come, and for a shim that does not become its server.
_PATIENCE_S = 10.0
# A shim waits half a minute for its answer, and then goes away by itself.
_IDENTIFIED_S = 60.0
_REST_S = 0.5
_PIPE_BYTES = 1 << 18
# How many refusals of one kind are on record one by one.
_MOST_TOLD = 20
_ARGUMENT_BYTES = 1 << 16
_LONGEST_DETAIL = 2000


class Admits(Protocol):
    """What knows which servers may start."""

    def admit(self, name: str, argv: list[str], pid: int) -> Admission:
        """Called by several threads at once. Raises McpguardError: it may not."""
        ...

    def judge(self, name: str, admission: Admission, peer: int, client: int) -> Judges:
        """What judges the messages of a server that was admitted."""
        ...


@dataclass(slots=True)
class _Entrant:
    """Somebody who connected.

    Attributes:
        until: CLOCK_MONOTONIC, in seconds.
        client: what the shim passed, the agent's ends; -1: they have not come.
        server: our ends of the pipes to the server.
        asked: it has said what it wants to become, and what that really is is being looked at.
        over: it was let go, or is served; nobody need look at it any more.
        stands: since when that lives which is told of as standing still for us; empty: nobody is.
        ended: its end of the line is closed: it was executed, or it is no shim.
        seen: what it was executed as. Taken by a thread as soon as the line ends: it stands still until then.
    """

    line: socket.socket
    peer: peers.Peer
    until: float
    name: str = ""
    argv: tuple[str, ...] = ()
    admission: Admission | None = None
    client: tuple[int, int] = (-1, -1)
    server: tuple[int, int] = (-1, -1)
    asked: bool = False
    over: bool = False
    stands: str = ""
    ended: bool = False
    seen: peers.Executed | None = None

    def look(self, seen: Callable[[], None]) -> None:
        """Have `seen` called by another thread when there is something in it.

        Raises:
            OSError: it cannot look.
        """
        line = os.dup(self.line.fileno())

        def until_it_ends() -> None:
            waited = select.poll()
            waited.register(line, select.POLLIN)
            waited.poll(2000 * _PATIENCE_S)
            self.seen = peers.executed(self.peer.pid)
            os.close(line)
            seen()

        try:
            threading.Thread(target=until_it_ends, name="look", daemon=True).start()
        except RuntimeError as error:  # no room for another thread
            os.close(line)
            raise OSError(str(error)) from None

    def close(self) -> None:
        self.over = True
        with contextlib.suppress(OSError):
            peers.stop_no_more(self.line)
            self.peer.go_on()
        with contextlib.suppress(OSError):
            self.line.shutdown(socket.SHUT_RDWR)  # whoever looks at it stops waiting
        self.line.close()
        self.peer.close()
        peers.close_all([number for number in (*self.client, *self.server) if number >= 0])


class Gate:
    """Serves until it is told to end."""

    def __init__(
        self,
        session: str,
        leaf: str,
        listener: socket.socket,
        admits: Admits,
        ledger: Ledger,
        tell_ends: Callable[[Sequence[int], bool], None] = lambda _ends, _served: None,
        held: Held | None = None,
        heard: Callable[[], None] = lambda: None,
        keeper: Keeper | None = None,
        tell_still: Callable[[int, str, str, bool], None] = lambda _pid, _began, _name, _still: None,
    ) -> None:
        """
        Args:
            leaf: of the session, as `kernel.cgroup.place_of` tells it.
            listener: a SEQPACKET socket that the tree can reach.
            tell_ends: called with the descriptors of a conversation before its first message is read, and with the client's of
                one that does not come to be: whether it does is the second argument.
            held: calls that wait for a person; hears the news, and how time passes.
            heard: called when it has.
            keeper: has servers kept to less than their agent has.
            tell_still: called before a process that began then, of that server, stands still until we have looked at it, and
                when it goes on; a gate that is killed has nobody go on. Raises OSError: nobody hears it.
        """
        self._tell_still = tell_still
        self._keeper = keeper or Keeper(None)
        self._heard = heard
        self._held = held or Held()
        self._news = b""
        self._tell_ends = tell_ends
        self._session = session
        self._leaf = leaf
        self._listener = listener
        self._admits = admits
        self._ledger = ledger
        self._poll = select.epoll()
        self._workers = Workers(MOST_LOOKED_AT)
        self._entrants: dict[int, _Entrant] = {}
        self._watched: dict[int, tuple[Relay, bool, int]] = {}
        self._relays: set[Relay] = set()
        self._turned_away: dict[str, int] = {}
        self._next_tick = 0.0
        self._resting = 0.0  # until then nobody is accepted

    def serve(self, news: int, begun: bytes = b"") -> bool:
        """Until `news` ends: a pipe with lines for `held`, of which `begun` was read already.

        Returns:
            Whether all is on record, or counted as lost.
        """
        self._take_news(begun)
        self._listener.setblocking(False)
        self._poll.register(self._listener, select.EPOLLIN)
        self._poll.register(news, select.EPOLLIN)
        self._poll.register(self._workers.done, select.EPOLLIN)
        while True:
            waits = self._entrants or self._resting or self._held.watched
            timeout = SOON_S if self._ledger.behind else 1.0 if waits else -1
            ready = self._poll.poll(timeout)
            # Relays first: they only close descriptors, so no number has become another one's when it is looked at.
            others: set[int] = set()
            for number, events in ready:
                if (watched := self._watched.get(number)) is not None:
                    self._forward(*watched, events)
                else:
                    others.add(number)
            for entrant in [one for number, one in self._entrants.items() if number in others]:
                self._serve_one(entrant, self._hear)
            if self._workers.done in others:
                self._workers.hand_over()
            if self._listener.fileno() in others:
                self._welcome()
            if news in others and not self._hear_news(news):
                return self._end()
            # Who only passes messages on need not look at everything else each time.
            if others or not ready or time.monotonic() >= self._next_tick:
                self._tick()

    def _hear_news(self, news: int) -> bool:
        """Take what came; False: there will be no more."""
        more = os.read(news, MOST_BYTES)
        self._take_news(more)
        return bool(more)

    def _take_news(self, more: bytes) -> None:
        *lines, self._news = (self._news + more).split(b"\n")
        for line in lines:
            self._held.hear(json.loads(line))
            self._heard()

    def _forward(self, relay: Relay, is_inlet: bool, side: int, events: int) -> None:
        try:
            relay.ready(is_inlet, side, events)
        except Exception:  # of one conversation; the others go on
            with contextlib.suppress(Exception):
                relay.end()

    def _serve_one(self, entrant: _Entrant, step: Callable[[_Entrant], None]) -> None:
        """Whatever fails, such as for want of descriptors or memory, fails for this one alone."""
        try:
            step(entrant)
        except Exception as failed:
            if entrant.over:
                return  # its numbers may be others' now
            if entrant.admission is not None:
                entrant.peer.kill()
            self._let_go(entrant, f"the gate failed: {type(failed).__name__}: {failed}")

    def _tick(self) -> None:
        now = time.monotonic()
        self._next_tick = now + SOON_S / 2
        for entrant in [one for one in self._entrants.values() if one.until < now]:
            late = entrant.asked and entrant.admission is None
            silent = "a shim that said nothing, or did not become its server"
            self._let_go(entrant, "a server that takes too long to be read" if late else silent)
        if 0 < self._resting < now:
            self._resting = 0.0
            self._poll.modify(self._listener, select.EPOLLIN)
        self._held.tick()
        self._ledger.flush_due()

    def _end(self) -> bool:
        for relay in list(self._relays):
            relay.end()
        for entrant in list(self._entrants.values()):
            if entrant.admission is not None:
                entrant.peer.kill()  # nobody will see what it has become
            self._forget(entrant)
        self._workers.end()
        return self._ledger.finish(PATIENCE_S)

    # --- who comes in -----------------------------------------------------------------------------------------------

    def _welcome(self) -> None:
        try:
            line, _address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:
            # Who waits still waits, so we would be woken at once and without end.
            self._resting = time.monotonic() + _REST_S
            self._poll.modify(self._listener, 0)
            return
        line.setblocking(False)
        try:
            peer = peers.welcome(line, self._leaf)
        except Stranger as stranger:
            line.close()
            self._turn_away(str(stranger))
            return
        if len(self._entrants) >= MOST_ENTRANTS:
            # Who is served says what it wants at once. Those that are becoming their servers come last.
            oldest = min(self._entrants.values(), key=lambda one: (one.admission is not None, one.until))
            self._let_go(oldest, "more shims at once than an agent has servers")
        entrant = self._entrants[line.fileno()] = _Entrant(line, peer, time.monotonic() + _PATIENCE_S)
        try:
            self._poll.register(line, select.EPOLLIN)
        except OSError as error:
            self._let_go(entrant, f"a shim that could not be heard: {error}")

    def _hear(self, entrant: _Entrant) -> None:
        try:
            data, found = peers.hear(entrant.line, MOST_BYTES)
        except BlockingIOError:
            return
        except (Stranger, OSError) as wrong:
            self._let_go(entrant, str(wrong))
            return
        if entrant.admission is not None:
            peers.close_all(found)
            if data:
                self._let_go(entrant, "a shim that went on talking")
                return
            self._poll.unregister(entrant.line)
            entrant.ended = True
            self._executed(entrant)
            return
        if not data or entrant.asked:
            peers.close_all(found)
            self._let_go(entrant, "a shim that went on talking" if data else "")
            return
        entrant.client = (found[0], found[1])
        self._question(entrant, data)

    def _question(self, entrant: _Entrant, data: bytes) -> None:
        try:
            entrant.name, entrant.argv = _read(data)
            _take_over(entrant.client)
        except (ValueError, OSError, RecursionError) as wrong:
            entrant.name, entrant.argv = "", ()
            self._answer_no(entrant, _no_shim(wrong))
            self._let_go(entrant, f"a request that no shim makes: {wrong}")
            return
        entrant.asked = True
        entrant.until = time.monotonic() + _IDENTIFIED_S
        # Beside us: what it would execute is read to its end for that, and others have calls to make.
        self._workers.do(
            lambda: self._identify(entrant),
            lambda answer: self._serve_one(entrant, lambda one: self._answer(one, answer)),
        )

    def _identify(self, entrant: _Entrant) -> Admission | None:
        """In another thread: what an entrant may become; None where nobody waits for that any more."""
        if entrant.over:
            return None
        return self._admits.admit(entrant.name, list(entrant.argv), entrant.peer.pid)

    def _answer(self, entrant: _Entrant, answer: Admission | Exception | None) -> None:
        """It is known what the entrant may become. One that was let go meanwhile becomes nothing."""
        if entrant.over or answer is None:
            return
        try:
            if isinstance(answer, Exception):
                raise answer
            if len(self._relays) >= MOST_RELAYS:
                raise _too_many()
            self._keep(entrant, answer)
        except Exception as failed:  # whatever it is, the others go on
            error = failed if isinstance(failed, McpguardError) else _broken(failed)
            self._tell("refuse", Verdict.DENY, entrant, detail_of(error))
            self._answer_no(entrant, error)
            self._let_go(entrant, "")
            return
        self._answer_go(entrant, answer)

    def _keep(self, entrant: _Entrant, admission: Admission) -> None:
        """Have it kept to what its rules leave, before it is told to go on.

        Raises:
            HostError: it is not.
        """
        place = self._place_of(entrant, admission)
        if place == entrant.peer.place:
            return
        if entrant.peer.place != self._leaf:
            raise _kept_already(entrant.name)
        self._keeper.keep(entrant.peer.held, admission.kept)

    def _place_of(self, entrant: _Entrant, admission: Admission) -> str:
        """The leaf that a server is to live in. Of one that is kept to nothing: that of who starts it."""
        return f"{self._leaf}/{admission.kept}" if admission.kept else entrant.peer.place

    def _answer_go(self, entrant: _Entrant, admission: Admission) -> None:
        theirs: list[int] = []
        try:
            theirs_in, ours_out = os.pipe2(os.O_CLOEXEC)
            theirs.append(theirs_in)
            entrant.server = (-1, ours_out)
            ours_in, theirs_out = os.pipe2(os.O_CLOEXEC)
            theirs.append(theirs_out)
            entrant.server = (ours_in, ours_out)
            for number in (ours_in, ours_out):
                os.set_blocking(number, False)
                with contextlib.suppress(OSError):  # an account may have used up its share
                    fcntl.fcntl(number, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            entrant.look(lambda: self._workers.say(lambda: self._serve_one(entrant, self._executed)))
            # The session's first process is not stopped: its broker would take that for the person's Ctrl-Z.
            if peers.has_its_starter(entrant.peer.pid, self._leaf):
                began = entrant.peer.began()
                self._tell_still(entrant.peer.pid, began, entrant.name, True)
                entrant.stands = began
                peers.stop_at_its_end(entrant.line, entrant.peer.pid)
            packet = json.dumps({"go": admission.order()}).encode("utf-8", "surrogateescape")
            socket.send_fds(entrant.line, [packet], [theirs_in, theirs_out], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as error:
            self._let_go(entrant, f"a shim that could not be told to go on: {error}")
            return
        finally:
            peers.close_all(theirs)
        entrant.admission = admission
        entrant.until = time.monotonic() + _PATIENCE_S

    def _executed(self, entrant: _Entrant) -> None:
        """Once its line has ended and is looked at: serve it, if it became what was admitted."""
        admission, seen = entrant.admission, entrant.seen
        if entrant.over or not entrant.ended or admission is None or seen is None:
            return
        pid = entrant.peer.pid
        wrong = _mismatch(pid, seen, admission, self._place_of(entrant, admission))
        if wrong or entrant.peer.ended():
            error = _another(entrant.name, wrong or "it ended before it became its server")
            self._tell("refuse", Verdict.DENY, entrant, detail_of(error))
            entrant.peer.kill()
            self._let_go(entrant, "")
            return
        self._tell("start", Verdict.ALLOW, entrant, " ".join(admission.argv)[:300])
        judges = self._admits.judge(entrant.name, admission, pid, proc.parent_of(pid))
        client_in, client_out = entrant.client
        server_in, server_out = entrant.server
        entrant.client = entrant.server = (-1, -1)
        inlets = (_inlet(client_in), _inlet(server_in))
        outlets = (_outlet(server_out), _outlet(client_out))
        relay = Relay(self._poll, judges, inlets, outlets, MOST_LINE, self._ended)
        self._relays.add(relay)
        self._watched.update(relay.descriptors())
        self._forget(entrant)
        self._tell_ends((client_in, client_out, server_in, server_out), True)
        try:
            relay.begin()
        except OSError:
            relay.end()

    def _ended(self, relay: Relay) -> None:
        self._relays.discard(relay)
        self._watched = {number: one for number, one in self._watched.items() if one[0] is not relay}

    # --- who is not let in ------------------------------------------------------------------------------------------

    def _answer_no(self, entrant: _Entrant, error: McpguardError) -> None:
        packet = json.dumps({"refused": [error.what, error.why, error.do, error.code]}).encode("utf-8", "replace")
        with contextlib.suppress(OSError):
            entrant.line.send(packet, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def _let_go(self, entrant: _Entrant, why: str) -> None:
        if why:
            self._turn_away(why, entrant)
        self._tell_ends([end for end in entrant.client if end >= 0], False)
        self._forget(entrant)

    def _forget(self, entrant: _Entrant) -> None:
        self._entrants.pop(entrant.line.fileno(), None)
        with contextlib.suppress(OSError):
            self._poll.unregister(entrant.line)
        entrant.close()
        if entrant.stands:
            with contextlib.suppress(OSError):
                self._tell_still(entrant.peer.pid, entrant.stands, entrant.name, False)

    def _turn_away(self, why: str, entrant: _Entrant | None = None) -> None:
        """Put it on record, while such things are few."""
        kind = why.partition(":")[0]
        count = self._turned_away[kind] = self._turned_away.get(kind, 0) + 1
        if count <= _MOST_TOLD or count % 1000 == 0:
            more = f" ({count} so far)" if count >= _MOST_TOLD else ""
            self._tell("refuse", Verdict.DENY, entrant, f"{why}{more}")

    def _tell(self, op: str, verdict: Verdict, entrant: _Entrant | None, detail: str) -> None:
        pid = exe = argv = message = None
        if entrant is not None:
            pid, argv = entrant.peer.pid, entrant.argv or None
            exe = peers.path_of(pid)
            if entrant.name:
                message = McpMessage(entrant.name, "stdio", CLIENT, peer=Peer(pid, exe))
        comm = exe.rpartition("/")[2][:15] if exe else None
        self._ledger.note(
            Event(
                *(time.time_ns(), self._session, Kind.MCP, op, verdict),
                pid=pid,
                exe=exe,
                comm=comm,
                argv=argv,
                detail=detail[:_LONGEST_DETAIL],
                mcp=message,
            )
        )
        self._ledger.flush()  # such events are few, and the gate may be killed


def _read(data: bytes) -> tuple[str, tuple[str, ...]]:
    """Name and arguments of a question; raises ValueError."""
    question: Any = json.loads(data)
    if not isinstance(question, dict) or question.get("version") != VERSION:
        raise ValueError("another version")
    name, argv = question.get("name"), question.get("argv")
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise ValueError("no name")
    if not isinstance(argv, list) or not 0 < len(argv) <= MOST_ARGUMENTS:
        raise ValueError("no arguments, or too many")
    if not all(isinstance(word, str) and "\0" not in word for word in argv) or not argv[0]:
        raise ValueError("arguments that are none")
    if sum(len(word.encode("utf-8", "surrogateescape")) for word in argv) > _ARGUMENT_BYTES:
        raise ValueError("arguments that are too long")
    return name, tuple(argv)


def _take_over(client: tuple[int, int]) -> None:
    """Make the agent's ends fit to be used; raises ValueError where they are none, and OSError."""
    for number, mode in zip(client, (os.O_RDONLY, os.O_WRONLY), strict=True):
        if peers.is_pipe(number):
            # Anew, for whoever holds the same description could have it wait again, and us with it.
            mine = os.open(f"/proc/self/fd/{number}", mode | os.O_NONBLOCK | os.O_CLOEXEC)
            os.dup2(mine, number, inheritable=False)
            os.close(mine)
        elif not peers.is_stream(number):
            raise ValueError("standard input and output that are no pipes and no unix stream sockets")


def _inlet(number: int) -> Inlet:
    return Inlet(number, is_socket=not peers.is_pipe(number))


def _outlet(number: int) -> Outlet:
    return Outlet(number, is_socket=not peers.is_pipe(number))


def _no_shim(wrong: Exception) -> HostError:
    return HostError(
        "the gate could not read what it was asked",
        why=str(wrong),
        do="start servers by `mcpguard mcp shim NAME -- COMMAND`, with pipes or sockets for input and output",
        code="mcp.bad-question",
    )


def _another(name: str, why: str) -> HostError:
    return HostError(
        f"the MCP server {name} was ended before it was asked anything",
        why=why,
        do=f"see what it is: mcpguard mcp show {shlex.quote(name)}; mcpguard log --kind process tells what was executed",
        code="mcp.another-program",
    )


def _too_many() -> HostError:
    return HostError(
        "no more MCP servers can be started in this session",
        why=f"{MOST_RELAYS} are running",
        do="end some of them",
        code="mcp.too-many",
    )


def _kept_already(name: str) -> HostError:
    return HostError(
        f"the MCP server {name} was not started",
        why="a server starts it that is kept to a profile, and it is to be kept to another one",
        do="have the agent start it, or name both servers in one rule of mcp.confine",
        code="mcp.kept-already",
    )


def _broken(error: Exception) -> HostError:
    return HostError(
        "the MCP server was not started",
        why=f"the gate failed: {type(error).__name__}: {error}",
        do="report this with the output of `mcpguard doctor`",
        code="mcp.gate-failed",
    )


def _mismatch(pid: int, seen: peers.Executed, admission: Admission, place: str) -> str:
    """Why a process is not the server that was admitted; empty when it is."""
    if cgroup.place_of(pid) != place:
        return "it is no process of this session any more, or not kept to what it should be"
    forms = [form for form in admission.forms if form.image == seen.image]
    if not forms:
        return "it became another program than the one that was admitted"
    if not any(seen.arguments == b"".join(word + b"\0" for word in form.argv) for form in forms):
        return "it was executed with other arguments than those that were admitted"
    if not admission.gave(seen.environment):
        return "it was executed with another environment than the one that it was given"
    if not admission.starts_in(seen.folder, seen.folder_id):
        return "it was executed in another folder than the one that was admitted"
    return ""
