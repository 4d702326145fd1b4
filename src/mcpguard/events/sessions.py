"""One guarded run as the store knows it, and whether it still runs.

Reads /proc to tell a living supervisor from a dead one; writes nothing.
"""

from __future__ import annotations

import enum
import os

from mcpguard.model.coverage import Coverage
from mcpguard.model.values import dataclass


class State(enum.StrEnum):
    RUNNING = "running"
    ENDED = "ended"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Supervisor:
    """The process that writes a session's events: a PID, its start time and the boot it belongs to, so never another
    one.

    Attributes:
        start: clock ticks since boot, field 22 of /proc/PID/stat; 0 when it could not be read.
        boot: the kernel's boot id; empty when it could not be read.
    """

    pid: int
    start: int
    boot: str

    @classmethod
    def current(cls) -> Supervisor:
        return cls(os.getpid(), start_of(os.getpid()), _boot_id())

    def alive(self) -> bool:
        return self.boot == _boot_id() and self.start == start_of(self.pid) and self.start != 0


@dataclass(frozen=True, slots=True)
class Session:
    """One guarded run.

    Attributes:
        id: sortable and readable, such as `20261123-054501-k3f9` (UTC).
        digest: of the policy.
        tier: how files were enforced, such as `landlock`.
        started_ns, ended_ns: nanoseconds since the Unix epoch; `ended_ns` is None until the run ended in order.
        exit_code: what `run` exited with; None until then.
        unsaved: events that could not be stored.
        modes: of `ask` and `audit`, those that the run was started with.
    """

    id: str
    profile: str
    digest: str
    workspace: str
    command: tuple[str, ...]
    tier: str
    coverage: tuple[Coverage, ...]
    started_ns: int
    supervisor: Supervisor
    ended_ns: int | None = None
    exit_code: int | None = None
    unsaved: int = 0
    modes: tuple[str, ...] = ()

    @property
    def state(self) -> State:
        """Running, ended, or interrupted: its supervisor died without ending it."""
        if self.ended_ns is not None:
            return State.ENDED
        return State.RUNNING if self.supervisor.alive() else State.INTERRUPTED


def start_of(pid: int) -> int:
    """Start time of a process in clock ticks since boot; 0 when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as status:
            text = status.read()
        # The second field is the name in brackets and may itself hold blanks and brackets.
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as told:
            return told.read().strip()
    except OSError:
        return ""
