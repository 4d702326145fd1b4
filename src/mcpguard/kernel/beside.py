"""What the kernel takes its time for, in a thread, while we go on."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Beside:
    """One act that has begun. Its thread may be left alone; the process does not end before it."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._trouble: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._act()
        except BaseException as error:
            self._trouble = error

    def join(self) -> None:
        """Wait until it is over, however it went."""
        self._thread.join()

    def done(self) -> None:
        """Wait until it is done; raises what it raised."""
        self._thread.join()
        if self._trouble is not None:
            raise self._trouble
