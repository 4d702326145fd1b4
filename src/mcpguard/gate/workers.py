"""What takes its time, done beside a loop: by a few threads, in the order in which it came."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    T = TypeVar("T")


class Workers:
    """Threads that are started when there is work for them.

    Attributes:
        done: an eventfd that can be read when `hand_over` has something to do.
    """

    def __init__(self, most: int) -> None:
        self.done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._most = most
        self._threads = 0
        self._busy = 0  # works that were begun or wait; the loop's alone
        self._waiting: SimpleQueue[tuple[Callable[[], Any], Callable[[Any], None]] | None] = SimpleQueue()
        self._over: deque[Callable[[], None]] = deque()

    def do(self, work: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        """Have `work` done in a thread, and `then` called by `hand_over` with what it returned or raised.

        Raises:
            OSError: there is no room for a thread, and none that could do it later.
        """
        if self._busy >= self._threads < self._most:
            try:
                threading.Thread(target=self._run, name="worker", daemon=True).start()
                self._threads += 1
            except RuntimeError as error:
                if not self._threads:
                    raise OSError(str(error)) from None
        self._busy += 1
        self._waiting.put((work, then))

    def say(self, then: Callable[[], None]) -> None:
        """Have something called by `hand_over`; in any thread."""
        self._over.append(then)
        os.eventfd_write(self.done, 1)

    def hand_over(self) -> None:
        """Call what waits for works that are done; in the thread of the loop."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.done)
        while self._over:
            self._over.popleft()()

    def end(self) -> None:
        """No thread begins anything more; what one is at is not waited for."""
        for _ in range(self._threads):
            self._waiting.put(None)

    def _run(self) -> None:
        while (one := self._waiting.get()) is not None:
            work, then = one
            try:
                answer = work()
            except Exception as failed:
                answer = failed
            self.say(functools.partial(self._done, then, answer))

    def _done(self, then: Callable[[Any], None], answer: Any) -> None:
        self._busy -= 1
        then(answer)
