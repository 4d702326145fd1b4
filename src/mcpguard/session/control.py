"""The socket at which a running session takes more rules from its user, and tells who watches which questions are held.

What it listens to stands in `approve`.

The guarded tree has the same user id, so a name and its permissions keep nobody out. The folder is hidden from it and denied
in every profile; and who asks is looked at by the kernel's word alone: the user, a living process, and in no guarded leaf.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from mcpguard.errors import HostError, McpguardError
from mcpguard.kernel import cgroup
from mcpguard.model.values import dataclass
from mcpguard.profile.amend import Addition
from mcpguard.profile.store import control_directory
from mcpguard.session.approve import MOST_ADDITIONS, MOST_BYTES, VERSION, Outcome, Scope, address
from mcpguard.session.approve import peer as peer_of


class Decides(Protocol):
    """What a session goes by."""

    def approve(self, additions: Sequence[Addition], scope: Scope, who: str) -> Outcome:
        """What became of it; raises McpguardError."""
        ...

    def intruder(self, pid: int) -> None:
        """This process asked and may not."""
        ...


class Holds(Protocol):
    """What holds questions for names.

    Attributes:
        held: a packet with all that are held comes here whenever they change; None: none ever is.
    """

    held: socket.socket | None

    def watched(self, watched: bool) -> None:
        """Somebody watches who may answer, or nobody does."""
        ...

    def leave(self, name: str) -> None:
        """This one stays refused."""
        ...


class HoldsCalls(Protocol):
    """What holds calls of tools.

    Attributes:
        held: as of `Holds`; a packet is an object, and `calls` in it those that are held.
    """

    held: socket.socket | None

    def watched(self, watched: bool) -> None:
        """Somebody watches who may answer, or nobody does."""
        ...

    def answer(self, call: str, answer: str, who: str) -> None:
        """A person's word on a held call."""
        ...


# For whoever connects and then says nothing. Others are heard meanwhile; of more silent ones than this the oldest go.
_PATIENCE_S = 2.0
_MOST_SILENT = 16
_MOST_WAITING = 64
_MOST_WATCHERS = 16
_LONGEST_VALUE = 4096
_STALE_S = 60.0
_CREDENTIALS = struct.Struct("iII")
_ANSWERS = ("once", "session", "refused")


def serve(session: str, stop: int, live: Callable[[], Decides], holds: Holds, calls: HoldsCalls | None = None) -> None:
    """Take questions until `stop` (an eventfd) is written to. A socket that cannot be had is none: `approve` says so then.

    Args:
        live: makes what decides, when the first one comes.
        holds, calls: are told while somebody watches, and whoever does is told what they hold.
    """
    made: list[Decides] = []

    def decides() -> Decides:
        made[:] = made or [live()]
        return made[0]

    peers: list[_Peer] = []
    watchers = _Watchers(holds, calls)
    try:
        with contextlib.suppress(OSError), _listening(session) as listener:
            while stop not in (ready := _ready([stop, listener.fileno(), *watchers.numbers()], peers)):
                heard = time.monotonic()  # who speaks while another one is answered was not silent
                if listener.fileno() in ready:
                    with contextlib.suppress(OSError):
                        _welcome(listener.accept()[0], peers, decides)
                watchers.serve(ready)  # before somebody joins them whose question was what could be read
                for peer in [one for one in peers if one.line.fileno() in ready]:
                    peers.remove(peer)
                    with contextlib.ExitStack() as closing, contextlib.suppress(OSError):
                        closing.enter_context(peer)
                        if _converse(peer, decides, watchers):
                            closing.pop_all()
                _let_go(peers, heard)
    finally:
        for peer in peers:
            peer.close()
        watchers.close()


@dataclass(slots=True)
class _Peer:
    """Who connected, and was said hello to.

    Attributes:
        held: a pidfd.
        until: CLOCK_MONOTONIC, in seconds.
    """

    line: socket.socket
    pid: int
    held: int
    nonce: bytes
    until: float

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.line.close()
        os.close(self.held)


class _Watchers:
    """Who watches the session now. They say nothing more; their lines are open as long as they are there."""

    def __init__(self, holds: Holds, calls: HoldsCalls | None) -> None:
        self.holds = holds
        self.calls = calls
        self._peers: list[_Peer] = []
        # What each said last.
        self._news: dict[int, bytes] = {}

    def _lines(self) -> list[socket.socket]:
        return [one.held for one in (self.holds, self.calls) if one is not None and one.held is not None]

    def numbers(self) -> list[int]:
        """Descriptors to wait for."""
        return [one.fileno() for one in (*self._lines(), *(peer.line for peer in self._peers))]

    def waits(self, call: str) -> bool:
        """Whether a call is held, as far as that was told."""
        if self.calls is None or self.calls.held is None:
            return False
        news = json.loads(self._news.get(self.calls.held.fileno(), b'{"calls": []}'))
        return any(one["call"] == call for one in news["calls"])

    def add(self, peer: _Peer) -> None:
        """They hear what is held now, once what holds knows of them, and all that changes.

        Raises:
            HostError: there are too many, or nothing is ever held.
        """
        if not self._lines():
            raise _refused("it was not started with --ask, so nothing is held")
        if len(self._peers) >= _MOST_WATCHERS:
            raise _refused(f"{_MOST_WATCHERS} screens watch it already")
        peer.line.setblocking(False)
        if not self._peers:
            self._tell(watched=True)
        self._peers.append(peer)
        try:
            for news in self._news.values() or [b"[]"]:
                peer.line.send(news)
        except OSError:
            self._remove(peer)

    def serve(self, ready: Sequence[int]) -> None:
        """Pass on what is new, and let go who hung up, said something, or does not read."""
        for line in [one for one in self._lines() if one.fileno() in ready]:
            with contextlib.suppress(BlockingIOError):
                while news := line.recv(MOST_BYTES):
                    self._news[line.fileno()] = news
            for peer in list(self._peers):
                try:
                    peer.line.send(self._news[line.fileno()])
                except OSError:
                    self._remove(peer)
        for peer in [one for one in self._peers if one.line.fileno() in ready]:
            self._remove(peer)

    def _remove(self, peer: _Peer) -> None:
        self._peers.remove(peer)
        peer.close()
        if not self._peers:
            self._tell(watched=False)

    def _tell(self, *, watched: bool) -> None:
        self.holds.watched(watched)
        if self.calls is not None:
            self.calls.watched(watched)

    def close(self) -> None:
        for peer in list(self._peers):
            self._remove(peer)


def _ready(others: Sequence[int], peers: Sequence[_Peer]) -> list[int]:
    """What can be read now; nothing when somebody has been silent for too long."""
    patience = max(0.0, peers[0].until - time.monotonic()) if peers else None
    return select.select([*others, *(peer.line.fileno() for peer in peers)], (), (), patience)[0]


def _let_go(peers: list[_Peer], now: float) -> None:
    """The oldest stand first."""
    while peers and (len(peers) > _MOST_SILENT or peers[0].until <= now):
        peers.pop(0).close()


@contextlib.contextmanager
def _listening(session: str) -> Iterator[socket.socket]:
    folder = control_directory()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_stale(folder)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        begun, known = folder / f".{session}", folder / session
        with address(begun.name) as name:
            listener.bind(name)
        try:
            listener.listen(_MOST_WAITING)
            begun.rename(known)  # whoever finds the name is answered
            yield listener
        finally:
            begun.unlink(missing_ok=True)
            known.unlink(missing_ok=True)


def _remove_stale(folder: Path) -> None:
    """Sessions that were killed leave their sockets behind."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
            if path.lstat().st_mtime > time.time() - _STALE_S:
                continue
            try:
                with address(path.name) as name:
                    line.connect(name)
            except ConnectionRefusedError:
                path.unlink()


def _welcome(line: socket.socket, peers: list[_Peer], decides: Callable[[], Decides]) -> None:
    """Say hello, or turn away.

    A number is no process: who connected may have ended, and another one have its PID. So the PID is held, then looked at;
    what was sent after that must come from this PID; and it must still live in the end, so that it was the same all the time.
    """
    with contextlib.ExitStack() as undone:
        undone.enter_context(line)
        line.settimeout(_PATIENCE_S)
        # Before anything is sent: from now on every packet says who sent it.
        line.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        pid, uid = peer_of(line)
        held = _hold(pid) if uid == os.geteuid() else None
        if held is None:
            decides().intruder(pid)
            return
        undone.callback(os.close, held)
        if not outside(pid):
            decides().intruder(pid)
            return
        nonce = os.urandom(16).hex()
        line.send(json.dumps({"nonce": nonce}).encode())
        peers.append(_Peer(line, pid, held, nonce.encode(), time.monotonic() + _PATIENCE_S))
        undone.pop_all()


def _hold(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _converse(peer: _Peer, decides: Callable[[], Decides], watchers: _Watchers) -> bool:
    """Answer what one peer asks; True: they stay, to watch."""
    if (question := _question(peer)) is None:
        decides().intruder(peer.pid)
        return False
    if not question:  # somebody looked whether we are there
        return False
    try:
        asked = _read(question)
        if "watch" in asked:
            watchers.add(peer)
            return True
        if "leave" in asked:
            answer = _left(asked, watchers.holds)
        elif "call" in asked:
            answer = _answered(asked, peer.pid, watchers)
        else:
            answer = _answer(asked, peer.pid, decides())
    except McpguardError as error:
        answer = {"error": [error.what, error.why, error.do, error.code]}
    except Exception as error:  # whatever it is, the run goes on
        answer = {"error": [*_failed(error)]}
    peer.line.send(json.dumps(answer).encode())
    return False


def _question(peer: _Peer) -> bytes | None:
    """What the peer asks, empty when it hung up; None: it may not ask."""
    data, ancillary, flags, _address = peer.line.recvmsg(MOST_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
    senders = [
        _CREDENTIALS.unpack(payload)[:2]
        for level, kind, payload in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
    ]
    ended = bool(select.select([peer.held], (), (), 0)[0])
    if not data:
        return b""
    if senders != [(peer.pid, os.geteuid())] or ended or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        return None
    return data if peer.nonce in data else None


def outside(pid: int) -> bool:
    """Whether a process lives in no guarded leaf; False when it cannot be told."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    places = [line.removeprefix("0::") for line in lines if line.startswith("0::/")]
    return len(places) == 1 and f"/{cgroup.PARENT}/" not in f"{places[0]}/"


def _read(data: bytes) -> dict[str, Any]:
    try:
        question = json.loads(data)
        version = question["version"]
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(error) from None
    if version != VERSION:
        raise _refused(f"the session speaks version {VERSION}, who asks {str(version)[:20]}")
    return dict(question)


def _left(question: dict[str, Any], holds: Holds) -> dict[str, Any]:
    name = question["leave"]
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_VALUE:
        raise _refused("a name is a word")
    holds.leave(name)
    return {"left": name}


def _answered(question: dict[str, Any], pid: int, watchers: _Watchers) -> dict[str, Any]:
    call, answer = question["call"], question.get("answer")
    if not isinstance(call, str) or answer not in _ANSWERS:
        raise _refused(f"an answer to a call is one of {', '.join(_ANSWERS)}")
    if watchers.calls is None or not watchers.waits(call):
        raise HostError(
            "this call does not wait any more",
            why="it was answered, given up, or nobody answered in time",
            do="wait for the next one: an agent that was refused often tries again",
            code="live.too-late",
        )
    watchers.calls.answer(call, answer, _who(pid))
    return {"answered": call}


def _answer(question: dict[str, Any], pid: int, live: Decides) -> dict[str, Any]:
    try:
        scope, additions = question["scope"], question["additions"]
        if not isinstance(additions, list) or len(additions) > MOST_ADDITIONS:
            raise _refused(f"more than {MOST_ADDITIONS} rules, or no list of them")
        outcome = live.approve([_addition(one) for one in additions], Scope(scope), _who(pid))
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(error) from None
    return {"now": outcome.now, "later": outcome.later, "why": outcome.why}


def _addition(given: Any) -> Addition:
    if not isinstance(given, list) or len(given) != len(Addition._fields) - 1:
        raise ValueError("a rule is a list of three words")
    for word in given:
        if not isinstance(word, str) or not word.isprintable() or not 0 < len(word) <= _LONGEST_VALUE:
            raise ValueError("a rule is three printable words")
    return Addition(*given)


def _who(pid: int) -> str:
    """`comm[pid]`, as chains of processes have it."""
    try:
        comm = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        comm = "?"
    return f"{comm}[{pid}]"


def _unreadable(error: Exception) -> HostError:
    return _refused(f"{type(error).__name__}: {str(error)[:200]}")


def _refused(why: str) -> HostError:
    return HostError(
        "the session could not read what it was asked",
        why=why,
        do="use the `mcpguard watch` of the version that started the session",
        code="live.bad-question",
    )


def _failed(error: Exception) -> tuple[str, str, str, str]:
    return (
        "the session could not take the rules",
        f"{type(error).__name__}: {str(error)[:200]}",
        "it keeps the rules that it had; report this with the output of `mcpguard doctor`",
        "live.failed",
    )
