"""What comes first: signals held back and, where no password can be asked for, the broker already loading.

Imports as little as it can: everything else is imported while the broker loads on the other core.
"""

from __future__ import annotations

import os
import sys

import mcpguard
from mcpguard.broker import client
from mcpguard.errors import HostError
from mcpguard.session.options import RunOptions
from mcpguard.session.signals import SignalWatch


def refuse_nesting() -> None:
    """Raises HostError inside a guarded session."""
    with open("/proc/self/cgroup", encoding="utf-8", errors="replace") as groups:
        if any(line.startswith("0::/mcpguard/") for line in groups):
            raise HostError(
                "already inside a guarded session",
                why="a guarded process cannot start, change or end a session; that is the point of it",
                do="ask the person at the keyboard to do this from a terminal of their own",
                code="run.nested",
            )


def _broker_place() -> tuple[str, str]:
    """The interpreter and the folder of the package that the broker is started with; root's are those that run already.

    Raises:
        PrivilegeError: there is none that root may run for this user.
    """
    if os.geteuid() == 0:
        return sys.executable, os.path.realpath(f"{mcpguard.__path__[0]}/..")
    from mcpguard.session.install import broker_location

    location = broker_location()
    return location.python, location.package_root


class Start:
    """Signals and broker of one run."""

    def __init__(self, options: RunOptions) -> None:
        """Raises McpguardError: nothing is running."""
        refuse_nesting()
        self._audit = options.audit
        self._tier = options.tier
        self.watch = SignalWatch()
        self._broker: client.Broker | None = None
        if os.geteuid() == 0:
            self.broker()

    def broker(self) -> client.Broker:
        """The broker, started now if it was not; sudo may ask for a password."""
        if self._broker is None:
            program = client.BrokerProgram(*_broker_place())
            self._broker = client.start(program, audit=self._audit, tier=self._tier)
            self.watch.start(self._broker.process.pid)
        return self._broker

    def close(self) -> None:
        """Let the broker go; it cleans up by itself."""
        if self._broker is not None:
            self._broker.close()
            self._broker.wait()
