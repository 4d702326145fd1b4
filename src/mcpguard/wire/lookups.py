"""What the resolver tells the recorder of one question, as a line of JSON in one packet.

Bounded: whatever a program asked for, a line is no longer than LINE_BYTES.
"""

from __future__ import annotations

from mcpguard.model import plain_json as json
from mcpguard.model.access import Verdict
from mcpguard.wire.records import Head, LookupRecord

LINE_BYTES = 8192
MOST_ADDRESSES = 64
_MOST_NAME = 1100  # 255 bytes, each escaped
_MOST_WORDS = 400
# Words of a question for an address that was held for a person begin so.
UNANSWERED = "held, and nobody allowed it"


def encode(record: LookupRecord) -> bytes:
    """The line of a record; names, words and lists are cut where they would not fit."""
    head = record.head
    return json.dumps(
        [
            *(head.when_ns, head.pid, head.tid, head.ppid, head.comm, head.lost_before),
            *(record.host[:_MOST_NAME], record.asked, record.verdict.value, record.rule, record.detail[:_MOST_WORDS]),
            list(record.addresses[:MOST_ADDRESSES]),
        ]
    ).encode()


def decode(line: bytes) -> LookupRecord:
    """Raises ValueError: not such a line."""
    try:
        when, pid, tid, ppid, comm, lost, host, asked, verdict, rule, detail, addresses = json.loads(line)
        return LookupRecord(
            Head(int(when), int(pid), int(tid), int(ppid), str(comm), int(lost)),
            str(host),
            str(asked),
            Verdict(verdict),
            int(rule),
            str(detail),
            tuple(str(address) for address in addresses),
        )
    except (TypeError, AttributeError) as error:
        raise ValueError(f"not a line of the resolver: {error}") from None
