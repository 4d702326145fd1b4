"""What one process sends on a connection, put together again from pieces: in order, cut into messages, within bounds.

Pure. What is missing is counted, and the stream is taken up again where the next message begins.
"""

from __future__ import annotations

from collections.abc import Iterator

from mcpguard.model.values import dataclass
from mcpguard.wire.records import MessageRecord

# Longer messages are not kept; the kernel tells no more of one call either.
LONGEST = 1 << 20
# Pieces that may wait for one that comes late, as two threads send on one connection.
MOST_EARLY = 64


@dataclass(frozen=True, slots=True)
class Missing:
    """So many bytes that nobody saw."""

    count: int


class Order:
    """Pieces of a stream in the order of their offsets."""

    def __init__(self) -> None:
        self._next: int | None = None
        self._early: dict[int, MessageRecord] = {}

    def take(self, record: MessageRecord) -> Iterator[tuple[bytes | Missing, MessageRecord]]:
        """Bytes and what is missing, each with the record that it was seen with."""
        if self._next is None or record.offset < self._next:
            # A connection that the kernel had forgotten begins anew; so does one that we see from its middle.
            if self._next is not None or record.offset:
                yield Missing(0), record
            self._next = record.offset
        self._early[record.offset] = record
        yield from self._ready()
        if len(self._early) > MOST_EARLY:
            yield from self.late()

    def late(self) -> Iterator[tuple[bytes | Missing, MessageRecord]]:
        """Do without what did not come."""
        while self._early:
            record = self._early[min(self._early)]
            yield Missing(record.offset - (self._next or 0)), record
            self._next = record.offset
            yield from self._ready()

    @property
    def reached(self) -> int:
        """How many bytes were sent, as far as they came in order."""
        return self._next or 0

    @property
    def waits(self) -> bool:
        """Whether something came whose place is not reached."""
        return bool(self._early)

    def _ready(self) -> Iterator[tuple[bytes | Missing, MessageRecord]]:
        while self._next is not None and (record := self._early.pop(self._next, None)) is not None:
            self._next += len(record.data) + record.lost
            if record.data:
                yield record.data, record
            if record.lost:
                yield Missing(record.lost), record


class Lines:
    """Messages that end with a line feed, one a line. One that is too long or has a hole is lost, and counted.

    Attributes:
        held: bytes of a message that has not ended.
        lost: messages at least that were not whole.
    """

    def __init__(self, longest: int = LONGEST) -> None:
        self.held = 0
        self.lost = 0
        self._longest = longest
        self._parts: list[bytes] = []
        self._skips = False

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that end in `data`; blank lines are none."""
        *ended, rest = data.split(b"\n")
        found = []
        for part in ended:
            self._keep(part)
            if not self._skips and (line := b"".join(self._parts).strip(b" \t\r")):
                found.append(line)
            self._begin()
        self._keep(rest)
        return found

    def missing(self, gap: Missing) -> None:
        """Bytes that nobody saw: whatever they belonged to is lost. What comes behind is taken for a beginning; when it was the
        end of a message, it is none."""
        if gap.count or self.held:
            self.lost += 1
        self._begin()

    def drop(self) -> None:
        """Give up what has not ended."""
        if self.held:
            self.lost += 1
            self._begin()
            self._skips = True

    def _begin(self) -> None:
        self._parts, self.held, self._skips = [], 0, False

    def _keep(self, part: bytes) -> None:
        if self._skips or not part:
            return
        if self.held + len(part) > self._longest:
            self.lost += 1
            self._begin()
            self._skips = True
            return
        self._parts.append(part)
        self.held += len(part)
