"""HTTP/1.1 as it is read beside the road: the JSON and the server-sent events that one direction of a connection carries.

Loaded when HTTP is seen. Never answers and never forwards; what cannot be followed is counted and left out until the next
request or response begins.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import h11

from mcpguard.events.streams import LONGEST, Missing
from mcpguard.mcp.event_stream import Events, EventTooLong
from mcpguard.model.values import dataclass

_START = re.compile(rb"(?:GET|POST|DELETE|PUT|HEAD|OPTIONS|PATCH) \S+ HTTP/1\.[01]\r\n|HTTP/1\.[01] \d{3}")
_JSON, _EVENTS = "application/json", "text/event-stream"
_SESSIONS = ("sessionid", "session_id", "session")


@dataclass(frozen=True, slots=True)
class Payload:
    """A text that may be a message.

    Attributes:
        event: the name of a server-sent event; None: the text was a body of its own.
    """

    text: bytes
    event: str | None = None


class Http:
    """One direction.

    Attributes:
        held: bytes of what has not ended.
        lost: messages at least that were not whole.
        url: of the last request: the host that it names, and its path.
        session: what names the MCP session in it; None: nothing does.
    """

    def __init__(self, asks: bool) -> None:
        """
        Args:
            asks: requests, else responses.
        """
        self.held = 0
        self.lost = 0
        self.url = ""
        self.session: str | None = None
        self._asks = asks
        self._connection = _connection(asks)
        self._broken = False
        self._type = ""
        self._body: list[bytes] = []
        self._unpack: zlib._Decompress | None = None
        self._stream = Events(LONGEST)

    def feed(self, data: bytes) -> list[Payload]:
        """The texts that end in `data`."""
        if self._broken:
            begin = _START.match(data)
            if begin is None:
                # A body whose head was not seen.
                return [Payload(data)] if data.startswith(b"{") else []
            self._restart(b"")
        found: list[Payload] = []
        try:
            self._connection.receive_data(data)
            found.extend(self._read())
        except (h11.RemoteProtocolError, zlib.error, ValueError):
            self.missing(Missing(1))
        return found

    def missing(self, gap: Missing) -> None:
        """Bytes that nobody saw."""
        if gap.count or self.held:
            self.lost += 1
        self._restart(b"")
        self._broken = True

    def drop(self) -> None:
        """Give up what has not ended."""
        if self.held:
            self.missing(Missing(0))

    def _restart(self, rest: bytes) -> None:
        self._connection = _connection(self._asks)
        self._broken = False
        self._end_body()
        if rest:
            self._connection.receive_data(rest)

    def _read(self) -> Iterator[Payload]:
        while True:
            event = self._connection.next_event()
            if isinstance(event, h11.Request | h11.Response):
                self._head(event)
            elif isinstance(event, h11.Data):
                yield from self._part(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                if self._type == _JSON and self._body:
                    yield Payload(b"".join(self._body))
                self._restart(self._connection.trailing_data[0])
            elif not isinstance(event, h11.InformationalResponse):
                return

    def _head(self, head: h11.Request | h11.Response) -> None:
        found = {bytes(name).lower(): bytes(value).decode("latin-1") for name, value in head.headers}
        self._end_body()
        kind = found.get(b"content-type", "").partition(";")[0].strip().lower()
        self._type = kind or (_JSON if self._asks else "")
        if found.get(b"content-encoding", "").lower() in ("gzip", "x-gzip", "deflate"):
            self._unpack = zlib.decompressobj(47)
        if isinstance(head, h11.Request):
            target = bytes(head.target).decode("latin-1")
            self.url = "http://" + found.get(b"host", "?") + urlsplit(target).path
            self.session = found.get(b"mcp-session-id") or session_of(target)

    def _part(self, data: bytes) -> Iterator[Payload]:
        if self._type not in (_JSON, _EVENTS):
            return
        if self._unpack is not None:
            data = self._unpack.decompress(data, LONGEST)
        if self._type == _EVENTS:
            yield from self._events(data)
            return
        self.held += len(data)
        if self.held > LONGEST:
            self.lost += 1
            self._end_body()
        else:
            self._body.append(data)

    def _events(self, data: bytes) -> Iterator[Payload]:
        try:
            found = self._stream.feed(data)
        except EventTooLong:
            self.lost += 1
            self._end_body()
            return
        self.held = self._stream.pending
        yield from (Payload(event.data, event.kind or "message") for event in found if event.data)

    def _end_body(self) -> None:
        self._type, self._body, self._unpack = "", [], None
        self._stream = Events(LONGEST)
        self.held = 0


def session_of(url: str) -> str | None:
    """What names the session in the address that the old transport posts to."""
    found = {name.lower(): values for name, values in parse_qs(urlsplit(url).query).items()}
    return next((found[name][0] for name in _SESSIONS if name in found), None)


def _connection(asks: bool) -> h11.Connection:
    made = h11.Connection(h11.SERVER if asks else h11.CLIENT, max_incomplete_event_size=64 << 10)
    if not asks:
        # It reads the answers to what it asked itself.
        made.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
        made.send(h11.EndOfMessage())
    return made
