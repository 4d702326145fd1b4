"""Last counts become records of what they are about."""

from __future__ import annotations

from mcpguard.model.access import Access, Verdict
from mcpguard.wire.records import ForkRecord, Head, NetRecord, OpenRecord, SumRecord
from mcpguard.wire.series import Series

HEAD = Head(5, 10, 10, 1, "sh", 3)


def opened(series: int, path: str = "/f") -> OpenRecord:
    return OpenRecord(HEAD, path, Access.READ, "file", False, 1, False, series)


def test_what_is_owed_names_the_file_and_tells_no_loss_twice() -> None:
    series = Series()
    series.note(opened(4))
    ((record,), unknown) = series.rest([SumRecord(4, 7)])
    assert isinstance(record, OpenRecord)
    assert (record.path, record.count, record.head.lost_before, unknown) == ("/f", 7, 0, 0)


def test_records_without_a_series_are_not_kept() -> None:
    series = Series()
    series.note(ForkRecord(HEAD, 11))
    series.note(NetRecord(HEAD, "connect", Verdict.DENY, "::1", 1, "tcp", 0, "", 1))
    assert series.rest([SumRecord(0, 2)]) == ([], 2)


def test_the_oldest_are_forgotten_and_still_counted() -> None:
    series = Series(limit=2)
    for number in (1, 2, 1, 3):
        series.note(opened(number, f"/{number}"))
    records, unknown = series.rest([SumRecord(1, 10), SumRecord(2, 20), SumRecord(3, 30)])
    assert [r.path for r in records if isinstance(r, OpenRecord)] == ["/1", "/3"]
    assert unknown == 20
