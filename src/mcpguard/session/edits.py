"""Taking more rules while the session runs: the thread that does it, begun when nobody waits for it any more."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mcpguard.session.control import Holds, HoldsCalls
    from mcpguard.session.live import Live

# Nobody can have seen a refusal and decided so soon; and what ends sooner never pays for this.
_BEGIN_AFTER_S = 0.3
_END_S = 2.0


class Edits:
    """Listens for `approve`, from a little after `start` until `close`."""

    def __init__(self, session: str, holds: Holds, calls: HoldsCalls | None) -> None:
        """
        Args:
            holds: holds questions for names while somebody watches.
            calls: holds calls of tools.
        """
        self._calls = calls
        self._session = session
        self._holds = holds
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None

    def start(self, live: Callable[[], Live]) -> None:
        """
        Args:
            live: makes what decides, when it is needed.
        """
        self._thread = threading.Thread(target=self._serve, args=(live,), name="mcpguard-edits", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more; the socket goes."""
        os.eventfd_write(self._stop, 1)
        if self._thread is not None:
            self._thread.join(_END_S)

    def _serve(self, live: Callable[[], Live]) -> None:
        if select.select([self._stop], (), (), _BEGIN_AFTER_S)[0]:
            return
        from mcpguard.session.control import serve

        serve(self._session, self._stop, live, self._holds, self._calls)
