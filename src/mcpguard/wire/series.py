"""Turns the last counts of aggregates into records, for which it remembers what each series was about.

A `SumRecord` says only how many more; who and what stood in the records before. Memory is bounded: the oldest series are
forgotten, and what is left of those is given as one number.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from mcpguard.model.values import replace
from mcpguard.wire.records import CallRecord, NetRecord, OpenRecord, PathCallRecord, Record, SumRecord, UnixRecord

Counted = OpenRecord | PathCallRecord | CallRecord | NetRecord | UnixRecord
REMEMBERED = 32768


class Series:
    """What the aggregates of one session are about."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._latest: OrderedDict[int, Counted] = OrderedDict()
        self._limit = limit

    def note(self, record: Record) -> None:
        """Remember a record that belongs to a series."""
        if not isinstance(record, Counted) or not record.series:
            return
        self._latest[record.series] = record
        self._latest.move_to_end(record.series)
        if len(self._latest) > self._limit:
            self._latest.popitem(last=False)

    def rest(self, sums: Iterable[SumRecord]) -> tuple[list[Record], int]:
        """The records that are still owed, and how many more belong to series that were forgotten or never arrived."""
        owed: list[Record] = []
        unknown = 0
        for one in sums:
            latest = self._latest.get(one.series)
            if latest is None:
                unknown += one.count
                continue
            head = replace(latest.head, lost_before=0)
            owed.append(replace(latest, head=head, count=one.count))
        return owed, unknown
