"""Asking a session that runs for more rules: what `watch` calls, and how the two talk.

The line is a unix socket in the user's state directory, which no guarded process may reach; what is checked at its other end
stands in `control`. One packet each: the session's nonce, the question with that nonce, the answer.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from mcpguard.errors import HostError
from mcpguard.model.values import dataclass
from mcpguard.profile.amend import Addition
from mcpguard.profile.store import control_directory

VERSION = 1
# Of one packet; a question is a few hundred bytes.
MOST_BYTES = 1 << 16
MOST_ADDITIONS = 64
# The session may look a name up and waits for the kernel and for the broker.
_ANSWER_S = 20.0
_HELLO_S = 5.0
# sun_path, with its closing zero.
_LONGEST = 107


_Read = TypeVar("_Read")


class Scope(enum.StrEnum):
    """How far an approval reaches. The session takes the same rules; who asks has made them as wide as is meant."""

    ONCE = "once"
    SESSION = "session"
    PROFILE = "profile"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an approval.

    Attributes:
        now: rules that hold in the session from now on.
        later: rules that only the next run can have.
        why: why these are not had now, one sentence; empty when there are none.
    """

    now: tuple[str, ...]
    later: tuple[str, ...]
    why: str


def approve(session: str, additions: Sequence[Addition], scope: Scope) -> Outcome:
    """Have a running session of this user take more rules; returns when they hold.

    Args:
        session: its whole id.
        additions: rules that allow; with PROFILE they are written into the profile already.

    Raises:
        HostError: it does not run, does not answer, or says no; then it keeps the rules that it had.
    """
    question = {"version": VERSION, "scope": scope.value, "additions": [list(one[:3]) for one in additions]}

    def outcome(answer: dict[str, Any]) -> Outcome:
        return Outcome(tuple(map(str, answer["now"])), tuple(map(str, answer["later"])), str(answer["why"]))

    return _answered(session, question, outcome)


def decide(session: str, call: str, answer: str) -> None:
    """A person's word on a held call: `once`, `session` or `refused`.

    Raises:
        HostError: the session does not run or does not answer, or the call does not wait any more.
    """
    _answered(session, {"version": VERSION, "call": call, "answer": answer}, lambda _: None)


def _answered(session: str, question: dict[str, Any], read: Callable[[dict[str, Any]], _Read]) -> _Read:
    try:
        answer = _asked(session, question)
        if "error" not in answer:
            return read(answer)
        what, why, do, code = (str(line) for line in answer["error"])
    except (FileNotFoundError, ConnectionRefusedError):
        raise _no_answer(session, "it has ended, or began less than a second ago") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise _no_answer(session, f"it hung up or took too long ({error})") from None
    raise HostError(what, why=why, do=do, code=code)


@dataclass(frozen=True, slots=True)
class Question:
    """A question for the address of a name that is held for an answer.

    Attributes:
        kind: `A` or `AAAA`.
        pid, ppid, comm: who asked first.
        since_ns: since the Unix epoch.
        count: how often it was asked.
    """

    name: str
    kind: str
    pid: int
    ppid: int
    comm: str
    since_ns: int
    count: int


@dataclass(frozen=True, slots=True)
class HeldCall:
    """A call of a tool that waits for a person's word.

    Attributes:
        call: its name in the log.
        arguments: JSON text, bounded, secrets masked.
        classes: what the tool does, joined with `+`; empty: nobody knows.
        why: it needs their word.
        pid, comm: of the client; 0 and empty: unknown.
        since_ns: since the Unix epoch.
    """

    call: str
    server: str
    transport: str
    tool: str
    arguments: str
    classes: str
    why: str
    pid: int
    comm: str
    since_ns: int


def _held_call(told: dict[str, Any]) -> HeldCall:
    *words, pid, comm, since_ns = (told[name] for name in HeldCall.__slots__)
    call, server, transport, tool, arguments, classes, why = map(str, words)
    return HeldCall(call, server, transport, tool, arguments, classes, why, int(pid), str(comm), int(since_ns))


class Watch:
    """A line to a session that holds questions from when this is made until it is closed.

    Attributes:
        calls: held calls, as `news` heard of them last.
    """

    def __init__(self, session: str) -> None:
        """
        Raises:
            OSError, ValueError, LookupError, TypeError: it does not run, does not ask, or does not answer.
        """
        self._line = _said(session, {"version": VERSION, "watch": True})
        self._names: list[Question] = []
        self.calls: list[HeldCall] = []
        self._line.settimeout(_ANSWER_S)
        self._unread = True
        try:
            self._take(json.loads(self._line.recv(MOST_BYTES)))
        except (OSError, ValueError):
            self._line.close()
            raise

    def news(self) -> list[Question] | None:
        """All names that are held, when they or `calls` have changed since it was asked last; does not wait.

        Raises:
            OSError, ValueError, LookupError, TypeError: the session hung up, or holds nothing.
        """
        changed, self._unread = self._unread, False
        while select.select([self._line], (), (), 0)[0]:
            newest = self._line.recv(MOST_BYTES)
            if not newest:
                raise ConnectionResetError("the session hung up")
            self._take(json.loads(newest))
            changed = True
        return self._names if changed else None

    def _take(self, told: Any) -> None:
        if isinstance(told, dict):
            self.calls = [_held_call(one) for one in told["calls"]]
        else:
            self._names = [
                Question(str(name), str(kind), int(pid), int(ppid), str(comm), int(since), int(count))
                for name, kind, pid, ppid, comm, since, count in told
            ]

    def close(self) -> None:
        self._line.close()


def leave(session: str, name: str) -> None:
    """Have a held question for a name refused now, and not held again; where the session has ended, nothing."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        _asked(session, {"version": VERSION, "leave": name})


def _asked(session: str, question: dict[str, Any]) -> dict[str, Any]:
    with _said(session, question) as line:
        line.settimeout(_ANSWER_S)
        answer: dict[str, Any] = json.loads(line.recv(MOST_BYTES))
        return answer


def _said(session: str, question: dict[str, Any]) -> socket.socket:
    """A line on which a question was just asked."""
    with contextlib.ExitStack() as undone:
        line = undone.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        line.settimeout(_HELLO_S)
        with address(session) as name:
            line.connect(name)
        if peer(line)[1] != os.geteuid():
            raise PermissionError("somebody else answers")
        nonce = json.loads(line.recv(MOST_BYTES))["nonce"]
        line.send(json.dumps({**question, "nonce": nonce}).encode())
        undone.pop_all()
        return line


def _no_answer(session: str, why: str) -> HostError:
    return HostError(
        f"session {session} does not take rules now",
        why=why,
        do="allow it in the profile: the next run has it",
        code="live.no-answer",
    )


@contextmanager
def address(session: str) -> Iterator[str]:
    """The address of a session's socket, also where its path is longer than an address can be."""
    folder = control_directory()
    path = str(folder / session)
    if len(os.fsencode(path)) <= _LONGEST:
        yield path
        return
    held = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{held}/{session}"
    finally:
        os.close(held)


def peer(line: socket.socket) -> tuple[int, int]:
    """PID and uid of who connected, or listens, at the other end, by the kernel's word."""
    pid, uid, _gid = struct.unpack("iII", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid
