"""Bytes of a stdio stream to lines: one message is one line."""

from __future__ import annotations


class TooLong(ValueError):
    """A message is longer than the limit, so it cannot be judged, and the stream cannot be followed any more."""


class Lines:
    """Cuts a stream into lines, however its bytes arrive.

    Args:
        limit: bytes that a line may have; the closing newline is not counted.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._length = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that end in `data`, without their newline; empty lines are left out.

        Raises:
            TooLong: a line has more bytes than the limit; nothing can be fed any more.
        """
        head, newline, rest = data.partition(b"\n")
        if not newline:
            self._keep(head)
            return []
        self._keep(head)
        lines = [b"".join(self._parts), *rest.split(b"\n")]
        self._parts, self._length = [], 0
        self._keep(lines.pop())
        if any(len(line) > self._limit for line in lines):
            raise TooLong(f"a message has more than {self._limit} bytes")
        return [line for line in lines if line]

    @property
    def pending(self) -> int:
        """Bytes of a line that has not ended."""
        return self._length

    def _keep(self, data: bytes) -> None:
        self._length += len(data)
        if self._length > self._limit:
            self._parts = []
            raise TooLong(f"a message has more than {self._limit} bytes")
        if data:
            self._parts.append(data)
