"""What the kernel's aggregates stand for: the rest of a count comes at the end with its number alone.

Bounded. Allowed opens, of which a big build makes more than fit, never push out a refusal.
"""

from __future__ import annotations

from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind


class SeriesMemory:
    """Series number -> its event; None for a refusal that plain permissions explain.

    Attributes:
        forgot_only_opens: True when something had to be let go, and it was allowed opens alone.
    """

    def __init__(self, limit: int) -> None:
        """
        Args:
            limit: how many allowed opens are kept, and how many of all other series.
        """
        self._limit = limit
        self._opens: dict[int, Event | None] = {}
        self._others: dict[int, Event | None] = {}
        self._forgot: set[bool] = set()

    def __contains__(self, series: int) -> bool:
        return series in self._opens or series in self._others

    def get(self, series: int) -> Event | None:
        return self._opens.get(series) or self._others.get(series)

    def note(self, series: int, event: Event | None) -> None:
        """Remember a series, as the one that was used last."""
        is_open = event is not None and event.kind is Kind.FILE and event.verdict is Verdict.ALLOW
        kept = self._opens if is_open else self._others
        kept.pop(series, None)
        kept[series] = event
        if len(kept) > self._limit:
            del kept[next(iter(kept))]
            self._forgot.add(is_open)

    @property
    def forgot_only_opens(self) -> bool:
        return self._forgot == {True}
