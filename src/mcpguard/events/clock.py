"""The two clocks that events need; a stand-in replaces this class in tests."""

from __future__ import annotations

import time


class Clock:
    """Nanoseconds now, on the wall and since boot."""

    def epoch_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC)

    def epoch_of(self, when_ns: int) -> int:
        """A record's CLOCK_MONOTONIC time as nanoseconds since the Unix epoch.

        Reckoned from now: after a suspend or a clock change, new records are right at once.
        """
        return self.epoch_ns() - (self.monotonic_ns() - when_ns)
