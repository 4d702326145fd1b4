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
        self._rest: list[bytes] = []
        self._waiting = 0
        self._ended_with_return = False
        self._begin()

    def feed(self, chunk: bytes) -> list[StreamEvent]:
        """The events that end in `chunk`; comments are left out.

        Raises:
            EventTooLong: nothing can be fed any more.
        """
        if not chunk:
            return []
        half, self._ended_with_return = self._ended_with_return, chunk.endswith(b"\r")
        if half and chunk.startswith(b"\n"):
            chunk = chunk[1:]  # the other half of a line's end
        # Only what came is searched: a long line in small pieces would be read again with each of them.
        *lines, rest = _LINE.split(chunk)
        found = []
        for line in lines:
            event = self._line(b"".join([*self._rest, line]))
            self._rest, self._waiting = [], 0
            if event is not None:
                found.append(event)
        if rest:
            self._rest.append(rest)
            self._waiting += len(rest)
        if self.pending > self._limit:
            raise EventTooLong(f"an event has more than {self._limit} bytes")
        return found

    @property
    def pending(self) -> int:
        """Bytes of an event that has not ended."""
        return self._size + self._waiting

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
        elif name == b"event" and _is_plain(value):
            self._kind = _text(value)
        elif name == b"id" and _is_plain(value):
            # Other characters end a line for some readers, and what follows would be read as another field.
            self._id = _text(value)
        elif name == b"retry" and value.isdigit():
            self._retry = _text(value)
        return None


def encode(event: StreamEvent) -> bytes:
    """An event as bytes; its data has one line, as a judged message has."""
    fields = []
    if event.kind:
        fields.append(f"event: {event.kind}")
    if event.id is not None:
        fields.append(f"id: {event.id}")
    if event.retry:
        fields.append(f"retry: {event.retry}")
    fields += [f"data: {line}" for line in event.data.decode("utf-8", "replace").split("\n")] if event.data else []
    return "".join(field + "\n" for field in fields).encode() + b"\n"


def _is_plain(value: bytes) -> bool:
    return value.isascii() and value.decode().isprintable()


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
