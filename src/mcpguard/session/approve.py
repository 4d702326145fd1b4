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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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
    try:
        answer = _asked(session, question)
        if "error" not in answer:
            return Outcome(tuple(map(str, answer["now"])), tuple(map(str, answer["later"])), str(answer["why"]))
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


class Watch:
    """A line to a session that holds questions from when this is made until it is closed."""

    def __init__(self, session: str) -> None:
        """
        Raises:
            OSError, ValueError, LookupError, TypeError: it does not run, does not ask, or does not answer.
        """
        self._line = _said(session, {"version": VERSION, "watch": True})
        self._line.settimeout(_ANSWER_S)
        try:
            self._unread = self._line.recv(MOST_BYTES)
        except OSError:
            self._line.close()
            raise

    def news(self) -> list[Question] | None:
        """All that is held, when that has changed since it was asked last; does not wait.

        Raises:
            OSError, ValueError, TypeError: the session hung up, or holds nothing.
        """
        newest, self._unread = self._unread or None, b""
        while select.select([self._line], (), (), 0)[0]:
            newest = self._line.recv(MOST_BYTES)
            if not newest:
                raise ConnectionResetError("the session hung up")
        if newest is None:
            return None
        return [
            Question(str(name), str(kind), int(pid), int(ppid), str(comm), int(since), int(count))
            for name, kind, pid, ppid, comm, since, count in json.loads(newest)
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
