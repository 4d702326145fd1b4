"""Values of the maps of aggregates. Apart from `decode`, for the broker needs no more than this of it."""

from __future__ import annotations

from collections.abc import Iterable

from mcpguard.wire import _abi


def remainders(sums: Iterable[bytes]) -> list[tuple[int, int]]:
    """Series and count of what no record stands for yet; aggregates that were sent in full are left out."""
    found = []
    for value in sums:
        total, reported, series, _said = _abi.MG_SUM.unpack(value)
        if total > reported:
            found.append((series, total - reported))
    return found
