"""What passes between MCP clients and servers of a tree, as events: from pieces of streams that the kernel saw being sent.

Loaded when the first piece comes. A connection over pipes or sockets has two streams that know nothing of each other; they
are paired by what the server has as its standard input, by the ends of a socketpair, or by the answer to a question. Until
then, and as long as a gate may still say that a connection is its own, messages are held back for a moment.

It never asks for `initialize`, knows no list of methods, and takes what is JSON-RPC 2.0 for MCP. Files hold such lines, too,
and go through pipes: what a program writes to its own standard output, unasked and read by nobody as standard input, is data.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from mcpguard.events.mcp import CLIENT, SERVER, UNKNOWN, Talk, asks, call_id
from mcpguard.events.processes import Process
from mcpguard.events.server_names import server_name
from mcpguard.events.streams import Lines, Missing, Order
from mcpguard.mcp.masking import masked_text
from mcpguard.model.event import Event, Peer
from mcpguard.wire.records import Head, MessageRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mcpguard.events.ends import Ends
    from mcpguard.events.http_streams import Http

# Streams of a session that are followed at once, bytes of unfinished messages of all of them, and of those that are held back,
# requests that wait for an answer.
MOST_STREAMS = 2_048
MOST_HELD = 32 << 20
MOST_WAITING = 4_096
# Who sends on one of them.
MOST_SENDERS = 256
# How long a message waits for the other direction to show who the server is. Where there is a gate, it may still be the gate's
# own: a shim waits half a minute for that, and both take time to start.
HOLD_NS, GATED_HOLD_NS = 5_000_000_000, 60_000_000_000
MOST_HELD_BACK = 1_000
# A call that sends ends after what it sent has arrived: the answer may be seen before its question.
EARLY_NS = 1_000_000_000
_FOR_EVER = 1 << 63
# Messages of another kind before a stream is left alone.
MOST_FOREIGN = 3
# What only a server asks.
_OF_SERVERS = ("sampling/", "elicitation/", "roots/")

NOT_WHOLE = "MCP messages at least that were not seen whole: too long, or a part of them was missed"
NOT_READ = "MCP messages that could not be read"
FORGOTTEN = "MCP connections that were not followed to their end, because there were too many"

End = tuple[int, int]
Key = tuple[type, str | int]
# How often it is looked who reads what may be data.
_LOOK_NS = 200_000_000
# Who sent it, the message, its size, the transport.
_Held = tuple[Head, dict[str, Any], int, str]


@dataclass(slots=True)
class _Said:
    """What one process has sent on a connection.

    Attributes:
        sent: bytes.
        asks: a question of MCP was among it.
        begun, answered: as is `initialize`; and what clients say only when that was answered.
    """

    head: Head
    sent: int = 0
    asks: bool = False
    begun: bool = False
    answered: bool = False

    def note(self, messages: Iterable[object]) -> None:
        for one in messages:
            method = one.get("method") if isinstance(one, dict) and one.get("jsonrpc") == "2.0" else None
            begins = method == "initialize"
            is_question = isinstance(one, dict) and asks(method, one.get("params"))
            self.asks |= is_question
            self.answered |= self.begun and not begins and (is_question or method == "notifications/initialized")
            self.begun |= begins


@dataclass(slots=True, eq=False)
class _Stream:
    """What is sent from one end of a connection, or received at one from outside of the session.

    Attributes:
        framing: None until the first bytes tell which.
        partner: the other direction.
        role: who sends on it, `client` or `server`; empty: not known.
        asked: requests on it without an answer, by their ids; an id that is used twice waits twice.
        back, back_bytes: messages that are held back, and their size, since when.
        early: answers whose question is not seen yet, each with the time.
        heard: somebody was seen who has it as standard input; when that was looked for last.
        outside: it was received; `head` is of who did, and nobody knows who sent it.
        reader: who has it as standard input, where it is let go before anybody answered; 0: nobody, or it is not clear.
        said: by process, who sent last at the end.
    """

    channel: str
    own: End
    far: End | None
    ports: tuple[int, int]
    head: Head
    input: End
    output: bool
    outside: bool = False
    order: Order = field(default_factory=Order)
    framing: Lines | Http | None = None
    partner: _Stream | None = None
    role: str = ""
    asked: OrderedDict[Key, list[Event]] = field(default_factory=OrderedDict)
    back: list[_Held] = field(default_factory=list)
    back_bytes: int = 0
    since_ns: int = 0
    early: list[tuple[int, Key, _Held]] = field(default_factory=list)
    spoke: bool = False
    foreign: int = 0
    ids: set[Key] = field(default_factory=set)
    heard: bool = False
    looked_ns: int = 0
    reader: int = 0
    said: OrderedDict[int, _Said] = field(default_factory=OrderedDict)

    @property
    def is_foreign(self) -> bool:
        """Whether it is left alone, as long as the same process sends."""
        return self.foreign >= MOST_FOREIGN and not self.spoke

    @property
    def http(self) -> Http | None:
        """Its framing where that is HTTP."""
        return None if self.framing is None or isinstance(self.framing, Lines) else self.framing


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sends to an end, and how many bytes that were until now.

    Attributes:
        asks: with a question of MCP among them.
        unfinished: the last message has not come to its end.
        answered: it has said what clients say when their first question was answered.
        others: who sent there before.
    """

    peer: Peer
    sent: int
    asks: bool = False
    unfinished: bool = False
    answered: bool = False
    others: tuple[Sender, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """An end to which a question of MCP was sent, and by whom.

    Attributes:
        channel: `pipe` or `unix`.
    """

    end: End
    channel: str
    sender: Sender


class Observer:
    """Takes pieces, gives events. One thread at a time.

    Attributes:
        lost: what -> how many, since `take_lost`.
    """

    def __init__(
        self,
        session: str,
        epoch_of: Callable[[int], int],
        now_ns: Callable[[], int],
        who: Callable[[int], Process | None],
        ends: Ends | None = None,
        *,
        gated: bool = False,
    ) -> None:
        """
        Args:
            epoch_of: CLOCK_MONOTONIC nanoseconds to nanoseconds since the Unix epoch.
            now_ns: CLOCK_MONOTONIC.
            who: the process with a PID, as far as it is known.
            ends: who has which pipes and sockets; None: nobody knows, and nothing is taken for data.
            gated: somebody may `skip` what was sent long before.
        """
        self._ends = ends
        self._hold_ns = GATED_HOLD_NS if gated else HOLD_NS
        self.lost: Counter[str] = Counter()
        self._session = session
        self._epoch_of = epoch_of
        self._now_ns = now_ns
        self._who = who
        # By the end, and whether it is what was received there.
        self._streams: OrderedDict[tuple[End, bool], _Stream] = OrderedDict()
        self._skipped: dict[End | None, int] = {}
        self._skipped_ports: set[int] = set()
        # HTTP: by the server's port and the session, for answers that come on another connection.
        self._pool: OrderedDict[tuple[int, str, str, Key], tuple[_Stream, Event]] = OrderedDict()

    def skip(self, ends: Iterable[tuple[int, int]], served: bool = True) -> None:
        """These pipes and sockets, by `st_dev` and `st_ino`, are somebody else's to tell of: what was seen on them and not told
        is forgotten.

        Args:
            served: for good; else for a moment, as nobody listens there, and the tree may use them for something else.
        """
        until_ns = _FOR_EVER if served else self._now_ns() + EARLY_NS
        self._skipped.update({(_device(device), inode): until_ns for device, inode in ends})
        for stream in self._streams.values():
            if self._is_skipped(stream.own) or self._is_skipped(stream.far):
                stream.back, stream.back_bytes = [], 0

    def skip_port(self, port: int) -> None:
        """What is said to this port on loopback, and from it, is somebody else's to tell of."""
        self._skipped_ports.add(port)

    def _is_skipped(self, end: End | None) -> bool:
        return end in self._skipped and self._now_ns() < self._skipped[end]

    def feed(self, records: Iterable[MessageRecord]) -> list[Event]:
        """The events of pieces, in the order in which they were seen."""
        events: list[Event] = []
        for record in records:
            stream = self._stream(record)
            if stream is not None:
                for part, seen in stream.order.take(record):
                    events += self._part(stream, part, seen.head)
        events += self.tick()
        return events

    def tick(self, *, everything: bool = False) -> list[Event]:
        """What was held back long enough; call it at least once a second while there is something."""
        now_ns = self._now_ns()
        events: list[Event] = []
        for stream in list(self._streams.values()):
            if everything and stream.order.waits:
                for part, seen in stream.order.late():
                    events += self._part(stream, part, seen.head)
            hold_ns = HOLD_NS if stream.channel == "tcp" else self._hold_ns
            if stream.back and (everything or now_ns - stream.since_ns >= hold_ns or self._is_settled(stream)):
                events += self._let_go(stream)
            elif stream.back and now_ns - stream.looked_ns >= _LOOK_NS:
                self._look_for_readers(stream)
            events += self._take_early(stream, now_ns, everything=everything)
            if everything and stream.framing is not None and stream.framing.held:
                stream.framing.drop()
            self._count(stream)
        while sum(stream.back_bytes for stream in self._streams.values()) > MOST_HELD:
            events += self._let_go(max(self._streams.values(), key=lambda stream: stream.back_bytes))
        self._make_room()
        return events

    def sender_to(self, end: End) -> Sender | None:
        """Who sends to this end of a pipe or socket, the last one; None: nobody was seen to, in JSON-RPC."""
        found = (stream for stream in reversed(self._streams.values()) if stream.far == end and stream.channel != "tcp")
        stream = next(found, None)
        last, *others = self._senders_on(stream) if stream is not None else [None]
        return last and replace(last, others=tuple(filter(None, others)))

    def asked(self) -> list[Asked]:
        """Where questions of MCP are sent to that nobody else tells of."""
        return [
            Asked(stream.far, stream.channel, sender)
            for stream in self._streams.values()
            if stream.channel != "tcp" and stream.far is not None
            if any(said.asks for said in stream.said.values())
            if _FOR_EVER not in (self._skipped.get(stream.own), self._skipped.get(stream.far))
            for sender in self._senders_on(stream)
            if sender.asks
        ]

    def _senders_on(self, stream: _Stream) -> list[Sender]:
        """The last one first."""
        unfinished = stream.order.waits or (stream.framing is not None and bool(stream.framing.held))
        return [
            Sender(self._peer(said.head), said.sent, said.asks, unfinished, said.answered)
            for said in reversed(stream.said.values())
        ]

    def take_lost(self) -> dict[str, int]:
        """What was lost since the last time."""
        lost, self.lost = self.lost, Counter()
        return dict(lost)

    # Streams and their pairs.

    def _stream(self, record: MessageRecord) -> _Stream | None:
        if record.channel == "tcp" and not self._skipped_ports.isdisjoint(record.ports):
            return None
        place = record.own, record.heard
        if _FOR_EVER in (self._skipped.get(record.own), self._skipped.get(record.far)):
            self._streams.pop(place, None)
            return None
        stream = self._streams.get(place)
        if stream is None:
            stream = _Stream(
                *(record.channel, record.own, record.far, record.ports, record.head, record.input, record.output),
                outside=record.heard,
            )
            self._streams[place] = stream
            self._pair(stream)
        else:
            self._streams.move_to_end(place)
        if record.head.pid != stream.head.pid and stream.is_foreign:
            stream.order, stream.framing, stream.foreign = Order(), None, 0
        stream.head, stream.input, stream.output = record.head, record.input, record.output
        stream.far = record.far or stream.far
        if stream.is_foreign:
            return None
        return stream

    def _pair(self, new: _Stream) -> None:
        """Find the other direction by the ends alone."""
        for other in reversed(self._streams.values()):
            if other is new or other.partner is not None or other.channel != new.channel:
                continue
            if new.channel == "tcp":
                if other.ports == new.ports[::-1]:
                    _join(new, other)
                    return
            elif new.own == other.far and other.own == new.far and new.own != new.far:
                _join(new, other)
                if new.output and new.input == other.far:
                    new.role, other.role = SERVER, CLIENT
                elif other.output and other.input == new.far:
                    new.role, other.role = CLIENT, SERVER
                return
            elif _answers(new, other):
                _join(new, other, SERVER)
                return
            elif _answers(other, new):
                _join(new, other, CLIENT)
                return

    def _pair_by_answer(self, stream: _Stream, key: Key) -> None:
        """Whoever answers what only one other asked talks to it; among several, to an ancestor."""
        asking = [
            other
            for other in self._streams.values()
            if other is not stream
            and other.partner is None
            and other.channel != "tcp"
            and key in other.ids
            and self._may_answer(stream, other)
        ]
        if len(asking) > 1:
            above = self._ancestors(stream.head.pid)
            asking = [other for other in asking if other.head.pid in above]
        if len(asking) == 1:
            _join(stream, asking[0], SERVER)

    def _may_answer(self, stream: _Stream, other: _Stream) -> bool:
        """Whether who sends on one has the end open where the other arrives. Of who has ended only what was seen counts: a
        server that moved its streams, or a program that prints what looks like an answer."""
        if self._ends is None or other.far is None:
            return True
        holds = self._ends.holds(stream.head.pid, other.far)
        return not stream.output if holds is None else holds

    def _look_for_readers(self, stream: _Stream) -> None:
        stream.looked_ns = self._now_ns()
        if not stream.heard and stream.output and stream.far is not None and self._ends is not None:
            stream.heard = bool(self._ends.readers(stream.far))

    def _is_data(self, stream: _Stream) -> bool:
        """What a program prints that nobody was seen to ask, and that nobody reads as a server would. A client outside of the
        session is not seen to ask: it does so by the session's own standard input."""
        if self._ends is None or stream.channel == "tcp" or not stream.output or stream.heard:
            return False
        return not self._is_settled(stream) and stream.input != self._ends.input

    def _ancestors(self, pid: int) -> set[int]:
        found: set[int] = set()
        while (process := self._who(pid)) is not None and process.ppid not in found:
            pid = process.ppid
            found.add(pid)
        return found

    @staticmethod
    def _is_settled(stream: _Stream) -> bool:
        """Whether the other direction has shown who is there; HTTP answers without a message show it, too."""
        other = stream.partner
        return other is not None and (other.spoke or stream.channel == "tcp")

    def _make_room(self) -> None:
        while len(self._streams) > MOST_STREAMS:
            _end, stream = self._streams.popitem(last=False)
            if stream.back or stream.asked or stream.early or (stream.framing is not None and stream.framing.held):
                self.lost[FORGOTTEN] += 1
            if stream.partner is not None:
                stream.partner.partner = None
        held = sum(stream.framing.held for stream in self._streams.values() if stream.framing is not None)
        while held > MOST_HELD:
            largest = max(self._streams.values(), key=lambda one: one.framing.held if one.framing else 0)
            if largest.framing is None:
                return
            held -= largest.framing.held
            largest.framing.drop()
            self._count(largest)

    def _count(self, stream: _Stream) -> None:
        if stream.framing is not None and stream.framing.lost:
            if stream.spoke or stream.http is None:
                self.lost[NOT_WHOLE] += stream.framing.lost
            stream.framing.lost = 0

    # Bytes to messages.

    def _part(self, stream: _Stream, part: bytes | Missing, head: Head) -> Iterator[Event]:
        if stream.channel != "tcp":
            self._note(stream, part, head)
        if isinstance(part, Missing):
            if stream.framing is None:
                stream.framing = self._framing(stream, b"")
            stream.framing.missing(part)
            return
        if stream.framing is None:
            stream.framing = self._framing(stream, part)
        if isinstance(stream.framing, Lines):
            for line in stream.framing.feed(part):
                yield from self._text(stream, head, line, "stdio")
            return
        for payload in stream.framing.feed(part):
            if payload.event == "endpoint":
                self._name_session(stream, payload.text)
                continue
            yield from self._text(stream, head, payload.text, "sse" if payload.event else "http")

    @staticmethod
    def _note(stream: _Stream, part: bytes | Missing, head: Head) -> None:
        said = stream.said.setdefault(head.pid, _Said(head))
        stream.said.move_to_end(head.pid)
        said.head = head
        said.sent += part.count if isinstance(part, Missing) else len(part)
        # What others have begun there does not hide what it says.
        if isinstance(part, bytes) and len(stream.said) > 1:
            for line in part.split(b"\n"):
                with contextlib.suppress(ValueError, RecursionError):
                    said.note(_each(json.loads(line)))
        if len(stream.said) > MOST_SENDERS:
            quiet = (pid for pid, one in stream.said.items() if not one.asks and pid != head.pid)
            del stream.said[next(quiet, next(iter(stream.said)))]

    @staticmethod
    def _name_session(stream: _Stream, url: bytes) -> None:
        """The old transport tells at the beginning where to post; what comes on this connection belongs to that session."""
        from mcpguard.events.http_streams import session_of

        if stream.partner is not None and stream.partner.http is not None:
            stream.partner.http.session = session_of(url.decode("utf-8", "replace"))

    @staticmethod
    def _framing(stream: _Stream, first: bytes) -> Lines | Http:
        if stream.channel != "tcp":
            return Lines()
        from mcpguard.events.http_streams import Http

        asks = not b"HTTP/".startswith(first[:5]) if first else stream.partner is None or stream.partner.role == SERVER
        stream.role = CLIENT if asks else SERVER
        return Http(asks)

    def _text(self, stream: _Stream, head: Head, text: bytes, transport: str) -> Iterator[Event]:
        try:
            value = json.loads(text.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            if stream.spoke and text[:1] in (b"{", b"["):
                self.lost[NOT_READ] += 1
            return
        found = _each(value)
        messages = [one for one in found if isinstance(one, dict) and one.get("jsonrpc") == "2.0"]
        if not messages:
            stream.foreign += 1
            return
        stream.spoke = True
        if head.pid in stream.said:
            stream.said[head.pid].note(messages)
        for message in messages:
            key = _key(message)
            if key is not None and "method" in message:
                stream.ids.add(key)
                if len(stream.ids) > MOST_WAITING:
                    stream.ids.clear()
            elif key is not None and stream.partner is None and stream.channel != "tcp":
                self._pair_by_answer(stream, key)
            size = len(text) if found is not value else len(json.dumps(message, separators=(",", ":")))
            yield from self._message(stream, head, message, size, transport)

    def _message(
        self, stream: _Stream, head: Head, message: dict[str, Any], size: int, transport: str
    ) -> Iterator[Event]:
        if self._is_skipped(stream.own) or self._is_skipped(stream.far):
            return
        if self._is_settled(stream) and not stream.back:
            other = stream.partner
            if other is not None and other.back:
                yield from self._let_go(other)
            yield from self._event(stream, head, message, size, transport)
            return
        if not stream.back:
            stream.since_ns = self._now_ns()
            self._look_for_readers(stream)
        stream.back.append((head, message, size, transport))
        stream.back_bytes += size
        if self._is_settled(stream) or len(stream.back) >= MOST_HELD_BACK:
            yield from self._let_go(stream)

    def _let_go(self, stream: _Stream) -> list[Event]:
        back, stream.back, stream.back_bytes = stream.back, [], 0
        if self._is_skipped(stream.own) or self._is_skipped(stream.far) or self._is_data(stream):
            return []
        if stream.partner is None and stream.channel != "tcp":
            stream.reader = self._reader(stream)
        return [event for one in back for event in self._event(stream, *one)]

    def _reader(self, stream: _Stream) -> int:
        """Who will answer, by its standard input: who hands its input on is none of these."""
        if self._ends is None or stream.far is None:
            return 0
        readers = [pid for pid in self._ends.readers(stream.far) if pid != stream.head.pid]
        last = [pid for pid in readers if self._ancestors(pid) >= set(readers) - {pid}]
        return last[0] if len(last) == 1 else 0

    # Messages to events.

    def _take_early(self, stream: _Stream, now_ns: int, *, everything: bool) -> Iterator[Event]:
        """Answers whose question has come, or does not come any more."""
        early, stream.early = stream.early, []
        for since_ns, key, held in early:
            if everything or now_ns - since_ns >= EARLY_NS or self._question(stream, key, look=True):
                yield from self._event(stream, *held, late=True)
            else:
                stream.early.append((since_ns, key, held))

    def _event(
        self, stream: _Stream, head: Head, message: dict[str, Any], size: int, transport: str, *, late: bool = False
    ) -> Iterator[Event]:
        method, key = message.get("method"), _key(message)
        if not stream.role:
            self._settle_role(stream, method)
        talk = self._talk(stream, head, transport)
        time_ns = self._epoch_of(head.when_ns)
        if isinstance(method, str):
            call = None if key is None else call_id()
            event = talk.request(
                *(time_ns, stream.role, method, message.get("params")), id=None if key is None else key[1], call=call
            )
            if key is not None:
                self._remember(stream, key, event)
            yield event
        elif "result" in message or "error" in message:
            error = _error(message)
            failed = "error" in message
            asked = None if key is None else self._question(stream, key)
            if asked is None and key is not None and not late and len(stream.early) < MOST_HELD_BACK:
                stream.early.append((self._now_ns(), key, (head, message, size, transport)))
            elif asked is None:
                yield talk.stray(
                    *(time_ns, stream.role, None if key is None else key[1]),
                    result_bytes=None if failed else size,
                    error=error,
                )
            else:
                yield talk.response(time_ns, asked, result_bytes=None if failed else size, error=error)

    def _settle_role(self, stream: _Stream, method: object) -> None:
        """Whoever asks first is the client, unless it asks what servers ask."""
        other = stream.partner
        if other is not None and other.role:
            stream.role = SERVER if other.role == CLIENT else CLIENT
            return
        asks = isinstance(method, str) and not method.startswith(_OF_SERVERS)
        stream.role = CLIENT if asks else SERVER
        if other is not None:
            other.role = SERVER if asks else CLIENT

    def _talk(self, stream: _Stream, head: Head, transport: str) -> Talk:
        other = stream.partner
        there = self._sender(other) if other is not None else None
        if there is None and stream.reader and stream.role == CLIENT:
            there = Peer(stream.reader, self.exe_of(stream.reader))
        here = None if stream.outside else self._peer(head)
        client, server = (here, there) if stream.role == CLIENT else (there, here)
        return Talk(self._session, self._server(stream, server), transport, client, server)

    def _sender(self, stream: _Stream) -> Peer | None:
        return None if stream.outside else self._peer(stream.head)

    def exe_of(self, pid: int) -> str | None:
        """The program of a process, as far as it is known."""
        process = self._who(pid)
        return (process.exe or None) if process is not None else None

    def _peer(self, head: Head) -> Peer:
        return Peer(head.pid, self.exe_of(head.pid))

    def _server(self, stream: _Stream, server: Peer | None) -> str:
        if stream.channel == "tcp":
            asking = stream if stream.role == CLIENT else stream.partner
            if asking is not None and asking.http is not None and asking.http.url:
                return masked_text(asking.http.url)
            return f"http://localhost:{stream.ports[stream.role == CLIENT]}"
        process = self._who(server.pid) if server is not None else None
        return server_name(process.exe, process.argv) if process is not None else UNKNOWN

    # Questions and answers.

    def _remember(self, stream: _Stream, key: Key, event: Event) -> None:
        stream.asked.setdefault(key, []).append(event)
        if len(stream.asked) > MOST_WAITING:
            stream.asked.popitem(last=False)
        if stream.channel == "tcp":
            self._pool[(*self._scope(stream), stream.role, key)] = (stream, event)
            if len(self._pool) > MOST_WAITING:
                self._pool.popitem(last=False)

    def _question(self, stream: _Stream, key: Key, *, look: bool = False) -> Event | None:
        """The request that a response answers: on its own connection, else of the same HTTP session. It waits no more, unless
        this is only a look."""
        if stream.partner is not None and key in stream.partner.asked:
            asked = stream.partner.asked[key][0]
            if not look:
                _forget(stream.partner, key, asked)
                self._pool.pop((*self._scope(stream.partner), stream.partner.role, key), None)
            return asked
        place = (*self._scope(stream), SERVER if stream.role == CLIENT else CLIENT, key)
        found = self._pool.get(place) if stream.channel == "tcp" else None
        if found is None:
            return None
        if not look:
            del self._pool[place]
            _forget(found[0], key, found[1])
        return found[1]

    @staticmethod
    def _scope(stream: _Stream) -> tuple[int, str]:
        """The server's port, and the session: as requests name it, else the client's process."""
        asking = stream if stream.role == CLIENT else stream.partner
        port = stream.ports[stream.role == CLIENT]
        if asking is None:
            return port, ""
        session = asking.http.session if asking.http is not None else None
        return port, session or str(asking.head.pid)


def _join(one: _Stream, other: _Stream, role: str = "") -> None:
    one.partner, other.partner = other, one
    if role:
        one.role, other.role = role, SERVER if role == CLIENT else CLIENT


def _forget(stream: _Stream, key: Key, event: Event) -> None:
    """A request waits no more."""
    waiting = [one for one in stream.asked.get(key, ()) if one is not event]
    if waiting:
        stream.asked[key] = waiting
    else:
        stream.asked.pop(key, None)


def _answers(server: _Stream, client: _Stream) -> bool:
    """Does one stream come out of a program into whose standard input the other goes?"""
    return server.output and server.input == client.far and server.own != client.own


def _device(number: int) -> int:
    """A device as the kernel numbers it inside."""
    return os.major(number) << 20 | os.minor(number)


def _each(message: object) -> list[Any]:
    """The messages of one text, which may be a batch."""
    return message if isinstance(message, list) else [message]


def _key(message: dict[str, Any]) -> Key | None:
    id = message.get("id")
    return (type(id), id) if isinstance(id, str | int) and not isinstance(id, bool) else None


def _error(message: dict[str, Any]) -> tuple[int | None, str] | None:
    """What went wrong by JSON-RPC's word, or by the tool's own."""
    error, result = message.get("error"), message.get("result")
    if isinstance(error, dict):
        code = error.get("code")
        return (code if isinstance(code, int) and abs(code) < 1 << 62 else None), str(error.get("message", ""))
    if error is not None:
        return None, str(error)
    if isinstance(result, dict) and result.get("isError") is True:
        content = result.get("content")
        texts = [one.get("text") for one in content if isinstance(one, dict)] if isinstance(content, list) else []
        return None, next((text for text in texts if isinstance(text, str)), "the tool failed")
    return None
