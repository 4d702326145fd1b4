"""The gate's hand on the record: what decides is written before it is acted upon, the rest soon after."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from mcpguard.errors import StoreError
from mcpguard.events.database import BUSY
from mcpguard.events.missing import loss
from mcpguard.events.store import Store
from mcpguard.gate.journal import LOST, Journal
from mcpguard.model.event import Event

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# How long what only tells of something may wait: one transaction for many.
SOON_S = 0.2
# So many wait to be written at once; of what cannot be written so many more are kept, and the oldest are counted as lost.
_MOST_NOTED = 256
_MOST_KEPT = 2048
# Of the messages that events are still to be made of.
_MOST_BYTES = 4 << 20


class Ledger:
    """Writes events of one session, in their order."""

    def __init__(self, store: Store, session: str, journal: Journal | None = None) -> None:
        """
        Args:
            journal: where decisions are on record until the store has them; None: each is a transaction of its own.
        """
        self._journal = journal
        # Decisions may be among what was lost: whoever recovers the journal finds which.
        self._keeps = False
        self._failed = ""  # the code of the store's last error
        self._store = store
        self._session = session
        # What is to be written, and whether it is in the journal as well.
        self._noted: list[tuple[Event | Callable[[], Event], bool]] = []
        self._bytes = 0
        self._since = 0.0
        self._lost = 0

    @property
    def behind(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._noted or self._lost)

    def write(self, decision: Callable[[], Mapping[str, Any]], event: Callable[[], Event], size: int) -> None:
        """Have a decision on record when this returns.

        Args:
            decision: makes what the journal keeps of it.
            event: makes all that the store keeps.
            size: bytes of what it is made of.

        Raises:
            StoreError: it is not.
        """
        if self._journal is not None and not self._failed:
            try:
                self._journal.write(decision())
            except OSError:
                pass
            else:
                self._note(event, size, journaled=True)
                return
        self._store.add(self._session, [*self._losses(), *self._made(), event()])
        self._clear()

    def note(self, event: Event | Callable[[], Event], size: int = 0) -> None:
        """Have it on record soon.

        Args:
            event: or what makes it, for nobody waits for that.
            size: bytes of what it is made of.
        """
        self._note(event, size, journaled=False)

    def _note(self, event: Event | Callable[[], Event], size: int, *, journaled: bool) -> None:
        self._since = self._since if self.behind else time.monotonic()
        self._noted.append((event, journaled))
        self._bytes += size
        if len(self._noted) >= _MOST_NOTED or self._bytes >= _MOST_BYTES:
            self.flush()

    def flush_due(self) -> None:
        """Write what was noted, if it has waited long enough."""
        if self.behind and time.monotonic() - self._since >= SOON_S:
            self.flush()

    def flush(self) -> None:
        """Write what was noted; what cannot be written now waits."""
        if not self.behind:
            return
        try:
            self._store.add(self._session, [*self._losses(), *self._made()])
            self._clear()
        except StoreError as error:
            self._failed = error.code
        except Exception:  # something in them that nobody foresaw must not take what comes after along
            lost = self._lost + len(self._noted)
            self._keeps = True
            self._clear()
            self._lost = lost
        excess = len(self._noted) - _MOST_KEPT
        if excess > 0:
            del self._noted[:excess]
            self._lost += excess
            self._keeps = True

    def finish(self, patience_s: float) -> bool:
        """Write what was noted, as the last act: while another holds the store it is tried again, for so many seconds. What it
        does not take then is counted in the journal, for whoever recovers that.

        Returns:
            False: something is neither on record nor counted.
        """
        until = time.monotonic() + patience_s
        self.flush()
        while self._failed == BUSY and time.monotonic() < until:
            self.flush()
        left = self._lost + sum(not journaled for _one, journaled in self._noted)
        if left and self._journal is not None:
            try:
                self._journal.count(left)
            except OSError:
                return False
        return not left or self._journal is not None

    def _made(self) -> list[Event]:
        made = [one if isinstance(one, Event) else one() for one, _journaled in self._noted]
        self._noted[:] = [(one, journaled) for one, (_, journaled) in zip(made, self._noted, strict=True)]
        self._bytes = 0
        return made

    def _clear(self) -> None:
        self._noted.clear()
        self._bytes = self._lost = 0
        self._failed = ""
        if self._journal is not None and not self._keeps:
            self._journal.clear()

    def _losses(self) -> list[Event]:
        return [loss(time.time_ns(), self._session, LOST, self._lost)] if self._lost else []
