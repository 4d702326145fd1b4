"""What comes first: signals held back and, where no password can be asked for, the broker already started.

Imports as little as it can: everything else, and reading the command line, happens while the broker does on the other core.
"""

from __future__ import annotations

import contextlib
import os
import sys

from mcpguard.broker import client
from mcpguard.errors import HostError
from mcpguard.session.signals import SignalWatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from mcpguard.kernel.beside import Beside
    from mcpguard.session.options import RunOptions


def refuse_nesting() -> None:
    """Raises HostError inside a guarded session."""
    with open("/proc/self/cgroup", encoding="utf-8", errors="replace") as groups:
        if names_leaf(groups):
            raise HostError(
                "already inside a guarded session",
                why="a guarded process cannot start, change or end a session; that is the point of it",
                do="ask the person at the keyboard to do this from a terminal of their own",
                code="run.nested",
            )


def tell(text: str) -> None:
    """A line for the person while the session is on, when a sudo that relays the terminal keeps it raw (`free_terminal`)."""
    end = "\r\n" if sys.stderr.isatty() else "\n"
    with contextlib.suppress(OSError):
        sys.stderr.write(f"mcpguard: {text}{end}")


def names_leaf(groups: Iterable[str]) -> bool:
    """Whether the lines of a /proc/PID/cgroup name a session's leaf, wherever the tree of it begins.

    In a container it may lie below the container's group; a group namespace writes it from where it begins (`/../mcpguard/ID`).
    """
    return any(line.startswith("0::/") and "/mcpguard/" in line for line in groups)


def refuse_plain_chroot() -> None:
    """Raises HostError where the root directory is no mount point, so that no mount table tells what its file system is."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        if not any(line.split(" ", 5)[4] == "/" for line in mounts):
            raise HostError(
                "this root directory is not a mount point",
                why="it was entered by a plain chroot, and a session needs a mount namespace that begins at its root",
                do="enter it as a container (systemd-nspawn -D DIR), or before chroot: mount --bind DIR DIR",
                code="run.chroot",
            )


def _broker_program() -> client.BrokerProgram:
    """The interpreter and the folder of the package that root may run for this user.

    Raises:
        PrivilegeError: there is none.
    """
    from mcpguard.session.install import broker_location

    location = broker_location()
    return client.BrokerProgram(location.python, location.package_root)


class Start:
    """Signals, broker and resolver of one run."""

    def __init__(self) -> None:
        """As root, start the broker: it imports while the command line is read.

        Raises:
            McpguardError: nothing is running.
        """
        refuse_nesting()
        refuse_plain_chroot()
        self.watch = SignalWatch()
        self._broker: client.Broker | None = None
        self._coming: Beside | None = None
        self._options: RunOptions | None = None
        if os.geteuid() == 0:
            # What both will need, imported once; the copy is made before anything that only one of them does.
            from mcpguard.broker import protocol  # noqa: F401
            from mcpguard.kernel import cgroup, mounts  # noqa: F401
            from mcpguard.model import digests  # noqa: F401
            from mcpguard.wire import _abi  # noqa: F401

            self._broker = client.fork()
            self.watch.start(self._broker.process.pid)

    def load(self, options: RunOptions) -> None:
        """Have the broker load for these options, or let it be started for them later; to be called once."""
        from mcpguard.session.resolver import Resolver

        self._options = options
        self.resolver = Resolver()
        if self._broker is not None:
            self._tell_broker(self._broker, options)

    def _tell_broker(self, broker: client.Broker, options: RunOptions) -> None:
        broker.load(audit=options.audit, tier=options.tier, resolver=self.resolver.port)

    def ask(self) -> None:
        """Have sudo start the broker where nobody did: it may ask for a password, and what needs no broker goes on meanwhile.

        To be called once, after `load`.

        Raises:
            PrivilegeError: nothing was started.
        """
        if self._broker is None:
            from mcpguard.kernel.beside import Beside

            asked = client.start(_broker_program())
            self.watch.start(asked.process.pid)
            self._coming = Beside(lambda: self._take(asked))

    def _take(self, asked: client.Asked) -> None:
        """Once it is there, have it load at once, whatever we are at."""
        broker = asked.broker()
        if self._options is not None:
            self._tell_broker(broker, self._options)
        self._broker = broker

    def asking(self) -> bool:
        """Whether somebody may be typing a password, so that nothing else is to be written."""
        return self._broker is None

    def silent(self) -> bool:
        """Whether the broker would have to be waited for now."""
        return self._broker is None or self._broker.silent()

    def broker(self) -> client.Broker:
        """The broker, waited for; to be called after `ask`.

        Raises:
            PrivilegeError: sudo said no.
        """
        if self._coming is not None:
            self._coming.done()
        if self._broker is None:
            raise RuntimeError("no broker was asked for")
        return self._broker

    def free_terminal(self) -> None:
        """To be called before anything is said: a sudo that relays the terminal keeps it raw until it ends, and words
        come out as a staircase till then. A broker without one cleans up meanwhile.
        """
        if self._broker is not None and not isinstance(self._broker.process, client.Forked):
            self.close()

    def close(self) -> None:
        """Let the broker go; it cleans up by itself. A sudo that still asks has the terminal, and is waited for."""
        if self._coming is not None:
            self._coming.join()
        if self._broker is not None:
            self._broker.close()
            self._broker.wait()
