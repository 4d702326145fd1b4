"""Calls that need a person's word, held while somebody watches who may give it: a few at once, each for a while.

An answer is for one call, or for every call of that tool in the session. What nobody answers is refused. Conversations of two
threads hold calls here; news come in, and time passes, in one of them.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping

from mcpguard.model.event import Event
from mcpguard.model.values import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ONCE, SESSION, REFUSED = "once", "session", "refused"
# Clients that are made with the protocol's own libraries give a call a minute.
HELD_S = 50.0
MOST_CALLS = 4
_MOST_LEFT = 1000
# What an answer is told to: one of the words above, or none where nobody gave one, and words for the log.
Decided = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class _Call:
    """One held call.

    Attributes:
        until: CLOCK_MONOTONIC, in seconds.
        same: what makes another call the same one.
        told: what whoever watches is shown.
    """

    until: float
    same: str
    told: Mapping[str, Any]
    decided: Decided


class Held:
    """Held calls of one session. Off until somebody watches.

    Args:
        line: a packet with all that are held goes there whenever they change; None: nothing is ever held.
    """

    def __init__(self, line: socket.socket | None = None) -> None:
        self._line = line
        self._lock = threading.Lock()
        self._calls: dict[str, _Call] = {}
        self._left: dict[str, None] = {}
        self._untold = False
        self.watched = False

    def hold(self, asked: Event, why: str, decided: Decided) -> str:
        """Hold a call.

        Args:
            asked: its request; it has a message with a name of the call.
            why: it is not simply let through.
            decided: called once with the answer, in the thread of `hear` and `tick`, unless it is dropped before.

        Returns:
            Why it is refused at once; empty: it is held.
        """
        message = asked.mcp
        if self._line is None or message is None or message.call is None:
            return "this session does not ask for it (mcpguard run --ask)"
        if message.cut:
            why = f"{why}; its arguments are longer than what is shown"
        told = {
            "call": message.call,
            "server": message.server,
            "transport": message.transport,
            "tool": message.tool or "",
            "arguments": message.arguments or "",
            "classes": message.classes or "",
            "why": why,
            "pid": asked.pid or 0,
            "comm": asked.comm or "",
            "since_ns": asked.time_ns,
        }
        same = json.dumps([message.server, message.tool, message.arguments])
        with self._lock:
            if not self.watched:
                return "nobody watches who could give it (mcpguard watch)"
            if same in self._left:
                return "this very call was refused in watch before"
            if len(self._calls) >= MOST_CALLS:
                return f"{MOST_CALLS} calls wait for it already"
            self._calls[message.call] = _Call(time.monotonic() + HELD_S, same, told, decided)
            self._tell()
        return ""

    def hold_in_loop(self, asked: Event, why: str, decided: Decided) -> str:
        """Hold a call of a thread with an asyncio loop; `decided` is called there."""
        import asyncio  # the thread without one does not need it

        loop = asyncio.get_running_loop()

        def decided_there(answer: str, words: str) -> None:
            loop.call_soon_threadsafe(decided, answer, words)

        return self.hold(asked, why, decided_there)

    def drop(self, call: str) -> None:
        """Nobody waits for this one any more."""
        with self._lock:
            if self._calls.pop(call, None) is not None:
                self._tell()

    def hear(self, news: Mapping[str, Any]) -> None:
        """What the session says: `watched`, true or false; `call`, `answer` and `who`, for one call."""
        if "watched" in news:
            self._watch(watched=bool(news["watched"]))
        if "call" in news:
            self._answer(str(news["call"]), str(news["answer"]), str(news["who"]))

    def tick(self) -> None:
        """Refuse what waited too long. To be called every second while `watched`."""
        now = time.monotonic()
        self._release(lambda one: one.until <= now, "", f"nobody gave it within {HELD_S:.0f} seconds")
        if self._untold:
            with self._lock:
                self._tell()

    def _watch(self, *, watched: bool) -> None:
        with self._lock:
            self.watched = watched and self._line is not None
        if not watched:
            self._release(lambda _: True, "", "nobody watches any more")

    def _answer(self, call: str, answer: str, who: str) -> None:
        with self._lock:
            found = self._calls.get(call)
            if found is not None and answer == REFUSED:
                while len(self._left) >= _MOST_LEFT:
                    del self._left[next(iter(self._left))]
                self._left[found.same] = None
        words = {ONCE: "allowed once", SESSION: "allowed for the session"}.get(answer, "refused")
        self._release(lambda one: one is found, answer, f"{words} in watch, by {who}")

    def _release(self, which: Callable[[_Call], bool], answer: str, words: str) -> None:
        with self._lock:
            over = [call for call, one in self._calls.items() if which(one)]
            released = [self._calls.pop(call) for call in over]
            if released:
                self._tell()
        for one in released:
            with contextlib.suppress(Exception):  # of one conversation; what is not decided does not go on
                one.decided(answer, words)

    def _tell(self) -> None:
        if self._line is None:
            return
        packet = json.dumps({"calls": [one.told for one in self._calls.values()]}, ensure_ascii=False)
        try:
            self._line.send(packet.encode("utf-8", "backslashreplace"), socket.MSG_DONTWAIT)
            self._untold = False
        except BlockingIOError:
            self._untold = True
        except OSError:  # nobody is there any more
            return
