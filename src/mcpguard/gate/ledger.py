"""The gate's hand on the record: what decides is written before it is acted upon, the rest soon after."""

from __future__ import annotations

import time

from mcpguard.errors import StoreError
from mcpguard.events.missing import loss
from mcpguard.events.store import Store
from mcpguard.model.event import Event

# So many wait to be written at once; of what cannot be written so many more are kept, and the oldest are counted as lost.
_MOST_NOTED = 256
_MOST_KEPT = 2048
LOST = "MCP messages that could not be stored"


class Ledger:
    """Writes events of one session, in their order."""

    def __init__(self, store: Store, session: str) -> None:
        self._store = store
        self._session = session
        self._noted: list[Event] = []
        self._lost = 0

    @property
    def behind(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._noted or self._lost)

    def write(self, event: Event) -> None:
        """Have it on record when this returns.

        Raises:
            StoreError: it is not.
        """
        self._store.add(self._session, [*self._losses(), *self._noted, event])
        self._noted.clear()
        self._lost = 0

    def note(self, event: Event) -> None:
        """Have it on record soon."""
        self._noted.append(event)
        if len(self._noted) >= _MOST_NOTED:
            self.flush()

    def flush(self) -> None:
        """Write what was noted; what cannot be written now waits."""
        if not self.behind:
            return
        try:
            self._store.add(self._session, [*self._losses(), *self._noted])
            self._noted.clear()
            self._lost = 0
        except StoreError:
            pass
        except Exception:  # something in them that nobody foresaw must not take what comes after along
            self._lost += len(self._noted)
            self._noted.clear()
        excess = len(self._noted) - _MOST_KEPT
        if excess > 0:
            del self._noted[:excess]
            self._lost += excess

    def _losses(self) -> list[Event]:
        return [loss(time.time_ns(), self._session, LOST, self._lost)] if self._lost else []
