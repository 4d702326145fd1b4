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
        # In one piece: of many small ones each would take more room than its bytes.
        self._begun = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that end in `data`, without their newline; empty lines are left out.

        Raises:
            TooLong: a line has more bytes than the limit; nothing can be fed any more.
        """
        head, newline, rest = data.partition(b"\n")
        if not newline:
            self._keep(head)
            return []
        if self._begun:
            self._keep(head)
            head, self._begun = bytes(self._begun), bytearray()
        lines = [head, *rest.split(b"\n")]
        self._keep(lines.pop())
        if any(len(line) > self._limit for line in lines):
            raise TooLong(f"a message has more than {self._limit} bytes")
        return [line for line in lines if line]

    @property
    def pending(self) -> int:
        """Bytes of a line that has not ended."""
        return len(self._begun)

    def _keep(self, data: bytes) -> None:
        if len(self._begun) + len(data) > self._limit:
            limit, self._limit, self._begun = self._limit, -1, bytearray()  # nothing is short enough any more
            raise TooLong(f"a message has more than {limit} bytes")
        self._begun += data
