"""What the kernel takes its time for, in a thread, while we go on."""

from __future__ import annotations

import _thread
from collections.abc import Callable


class Beside:
    """One act that has begun; to be waited for before the process ends.

    A launch begins some twenty, and a `threading.Thread` costs four times what the bare one does: it waits until it runs.
    """

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._trouble: BaseException | None = None
        self._over = _thread.allocate_lock()
        self._over.acquire()
        _thread.start_new_thread(self._run, ())

    def _run(self) -> None:
        try:
            self._act()
        except BaseException as error:
            self._trouble = error
        finally:
            self._over.release()

    def join(self) -> None:
        """Wait until it is over, however it went."""
        with self._over:
            return

    def done(self) -> None:
        """Wait until it is done; raises what it raised."""
        self.join()
        if self._trouble is not None:
            raise self._trouble
