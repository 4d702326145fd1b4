"""Server-sent events: bytes to events and back, however the bytes arrive."""

from __future__ import annotations

import re

from mcpguard.model.values import dataclass

_LINE = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event.

    Attributes:
        kind: its `event` field; empty means `message`.
        data: its `data` lines, joined with newlines.
        id: its `id` field, by which a client asks for what came later; None: it has none.
        retry: milliseconds to wait before connecting again, as written; empty: not said.
    """

    kind: str
    data: bytes
    id: str | None = None
    retry: str = ""


class EventTooLong(ValueError):
    """An event is longer than what can be judged."""


class Events:
    """Cuts a stream into events.

    Args:
        limit: bytes that one event may have.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = b""
        self._ended_with_return = False
        self._begin()

    def feed(self, chunk: bytes) -> list[StreamEvent]:
        """The events that end in `chunk`; comments are left out.

        Raises:
            EventTooLong: nothing can be fed any more.
        """
        if self._ended_with_return and chunk.startswith(b"\n"):
            chunk = chunk[1:]  # the other half of a line's end
        if chunk:
            self._ended_with_return = chunk.endswith(b"\r")
        *lines, self._rest = _LINE.split(self._rest + chunk)
        found = [event for event in map(self._line, lines) if event is not None]
        if self._size + len(self._rest) > self._limit:
            raise EventTooLong(f"an event has more than {self._limit} bytes")
        return found

    def _begin(self) -> None:
        self._kind, self._retry = "", ""
        self._id: str | None = None
        self._data: list[bytes] = []
        self._size = 0

    def _line(self, line: bytes) -> StreamEvent | None:
        if not line:
            event = StreamEvent(self._kind, b"\n".join(self._data), self._id, self._retry)
            something = bool(self._data or self._kind or self._retry or self._id is not None)
            self._begin()
            return event if something else None
        self._size += len(line)
        if self._size > self._limit:
            raise EventTooLong(f"an event has more than {self._limit} bytes")
        name, _colon, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._kind = _text(value)
        elif name == b"id" and b"\0" not in value:
            self._id = _text(value)
        elif name == b"retry" and value.isdigit():
            self._retry = _text(value)
        return None


def encode(event: StreamEvent) -> bytes:
    """An event as bytes; its data has one line, as a judged message has."""
    lines = []
    if event.kind:
        lines.append(f"event: {event.kind}")
    if event.id is not None:
        lines.append(f"id: {event.id}")
    if event.retry:
        lines.append(f"retry: {event.retry}")
    head = "".join(line + "\n" for line in lines).encode()
    return head + b"".join(b"data: " + line + b"\n" for line in event.data.split(b"\n")) + b"\n"


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
