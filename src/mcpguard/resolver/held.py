"""Questions for names that no rule covers, held while a person who watches may answer: a few at once, each name once.

An answer is nothing but other rules, or a name that is left refused. Nothing is asked for meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Collection

import dns.rdatatype

from mcpguard.model.values import dataclass
from mcpguard.resolver.replies import ADDRESSES
from mcpguard.wire.lookups import UNANSWERED

HELD_S = 30.0
MOST_NAMES = 8
# glibc, musl and Go give up on a datagram after five seconds. An answer that was cut has them ask again by a stream, and glibc
# waits on that for as long as it takes.
DATAGRAM_S = 4.0
_MOST_KNOWN = 1000
_TELL_AFTER_S = 0.1
_SHOWN_COMM = 64


class Cut(Exception):
    """It is held on, but whoever asked by a datagram must come again by a stream before they give up."""


@dataclass(slots=True)
class _Name:
    """One held name.

    Attributes:
        kind, pid, ppid, comm: of the first question.
        count: of questions so far.
        over: why it stays refused; empty: the rules say.
    """

    kind: str
    pid: int
    ppid: int
    comm: str
    since_ns: int
    count: int
    over: asyncio.Future[str]


class Held:
    """Held names of one session. Off until somebody watches."""

    def __init__(self, line: socket.socket | None, own: Callable[[], tuple[str, Collection[str]]]) -> None:
        """
        Args:
            line: a packet with all held names goes there whenever they change; None: nothing is ever held.
            own: this host's name, and the domains that its C library tries behind a name.
        """
        self._line = line
        self._own = own
        self._watched = False
        self._left: set[str] = set()
        self._names: dict[str, _Name] = {}
        self._known: dict[str, None] = {}
        self._telling: asyncio.TimerHandle | None = None

    def watch(self, watched: bool) -> None:
        """Somebody watches from now on, or nobody; then nothing is held any more."""
        if watched and not self._watched:
            self._known.clear()
        self._watched = watched and self._line is not None
        if not self._watched:
            self._release(f"{UNANSWERED}, and nobody watches any more", lambda _: True)

    def leave(self, names: Collection[str]) -> None:
        """A person said that these stay refused."""
        self._left |= set(names)
        self._release(f"{UNANSWERED}: left refused in watch", self._left.__contains__)

    def look_again(self, covered: Callable[[str], bool]) -> None:
        """There are other rules.

        Args:
            covered: whether a rule speaks of a name now.
        """
        self._release("", covered)

    async def wait(self, name: str, kind: dns.rdatatype.RdataType, who: tuple[int, int, str], *, stream: bool) -> str:
        """Hold a question for a name that no rule covers, if it is to be held.

        Args:
            who: pid, ppid and name of the process.

        Returns:
            Why it is refused; empty: the rules say.

        Raises:
            Cut
        """
        held = self._names.get(name)
        if held is None:
            if not self._may_hold(name, kind):
                return ""
            held = self._hold(name, kind, who)
        else:
            held.count += 1
            self._tell_soon()
        if stream:
            return await asyncio.shield(held.over)
        done, _ = await asyncio.wait([held.over], timeout=DATAGRAM_S)
        if not done:
            raise Cut
        return held.over.result()

    def _may_hold(self, name: str, kind: dns.rdatatype.RdataType) -> bool:
        return (
            self._watched
            and kind in ADDRESSES
            and len(self._names) < MOST_NAMES
            and name not in self._known
            and name not in self._left
            and not self._is_routine(name)
        )

    def _is_routine(self, name: str) -> bool:
        """A name without a domain, the host's own, and what the C library only tried with a domain behind it."""
        host, search = self._own()
        tried = next((name.removesuffix(f".{end}") for end in search if name.endswith(f".{end}")), "")
        return "." not in name or name == host or "." in tried or tried == host.partition(".")[0]

    def _hold(self, name: str, kind: dns.rdatatype.RdataType, who: tuple[int, int, str]) -> _Name:
        loop = asyncio.get_running_loop()
        pid, ppid, comm = who
        asked = dns.rdatatype.to_text(kind)
        held = _Name(asked, pid, ppid, comm[:_SHOWN_COMM], time.time_ns(), 1, loop.create_future())
        self._names[name] = held
        # Who watches is asked once: the question stands open there, and an answer holds for the next attempt.
        while len(self._known) >= _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[name] = None
        words = f"{UNANSWERED} within {HELD_S:.0f} seconds"
        timer = loop.call_later(HELD_S, self._release, words, lambda one: self._names.get(one) is held)
        held.over.add_done_callback(lambda _: timer.cancel())
        self._tell_soon()
        return held

    def _release(self, words: str, which: Callable[[str], bool]) -> None:
        for name in [name for name in self._names if which(name)]:
            self._names.pop(name).over.set_result(words)
            self._tell_soon()

    def _tell_soon(self) -> None:
        if self._line is not None and self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(_TELL_AFTER_S, self._tell)

    def _tell(self) -> None:
        self._telling = None
        told = [
            [name, one.kind, one.pid, one.ppid, one.comm, one.since_ns, one.count] for name, one in self._names.items()
        ]
        try:
            if self._line is not None:
                self._line.send(json.dumps(told).encode(), socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._tell_soon()
        except OSError:  # nobody is there any more
            return
