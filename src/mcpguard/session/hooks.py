"""The kernel's hooks of one session (tiers 1 and 2): their plan, kept true while file systems come and go.

The kernel names a file from the root of its file system, so it must be told what is mounted where. The mount table says
when it changes; then a new plan takes the place of the old one in one step.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Iterator

from mcpguard.broker.client import Broker
from mcpguard.kernel import mounts
from mcpguard.model.plan import GuardPlan
from mcpguard.model.policy import Policy
from mcpguard.session.coverage import Offer
from mcpguard.session.places import guard_plan

_TABLE = "/proc/self/mountinfo"


class Hooks:
    """Plan of the hooks, and the thread that renews it."""

    def __init__(self, policy: Policy, offer: Offer, broker: Broker) -> None:
        self._policy = policy
        self._terminals = offer.terminals
        self._broker = broker
        # Held from making a plan until it is sent, so that an older one never comes last.
        self._planning = threading.Lock()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        # Opened before the table is read, so that no change in between is missed.
        self._changes = os.open(_TABLE, os.O_RDONLY | os.O_CLOEXEC)
        self._thread: threading.Thread | None = None
        self.plan = self._made()

    def start(self) -> None:
        """Keep the plan true from now on."""
        self._thread = threading.Thread(target=self._watch, name="mcpguard-mounts", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the watch."""
        if self._thread is not None:
            os.eventfd_write(self._stop, 1)
            self._thread.join()
            self._thread = None
        os.close(self._stop)
        os.close(self._changes)

    @contextlib.contextmanager
    def adopting(self, policy: Policy) -> Iterator[GuardPlan]:
        """Plan for another policy: gives the plan, for the caller to have it used; if that raises, all is as before."""
        with self._planning:
            before = self._policy, self.plan
            self._policy = policy
            try:
                self.plan = self._made()
                yield self.plan
            except BaseException:
                self._policy, self.plan = before
                raise

    def _made(self) -> GuardPlan:
        return guard_plan(self._policy, mounts.table(), self._terminals)

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._changes, select.POLLPRI)
        poll.register(self._stop, select.POLLIN)
        while not any(fd == self._stop for fd, _events in poll.poll()):
            with self._planning:
                plan = self._made()
                if plan != self.plan:
                    self.plan = plan
                    with contextlib.suppress(OSError):  # the broker is gone: what it wrote last holds
                        self._broker.send_update(plan=plan)
