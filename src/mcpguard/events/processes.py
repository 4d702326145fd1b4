"""The processes of one session, from fork, exec and exit records.

Knows who a PID was when a record was made, and its chain of parents for display. Bounded: an ended process is kept
only as long as late records may still name it. A process that no record told about is unknown, not guessed, and but for
`running` nothing is opened.
"""

from __future__ import annotations

from collections import OrderedDict

from mcpguard.model.values import dataclass, replace
from mcpguard.wire.records import ExecRecord, ExitRecord, ForkRecord, Head

MAX_PROCESSES = 32_768
# Two rings are drained one after the other; a record can come this much later than the exit that another ring told of.
LATE_NS = 5_000_000_000
CHAIN_LIMIT = 8


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the guarded tree.

    Attributes:
        pid, ppid: what people call the PID (the kernel's tgid).
        exe: path of the program it last executed; empty when unknown.
        executed: how often it was seen to execute something.
        start_ns: CLOCK_MONOTONIC nanoseconds of its fork; 0 when unknown.
        ended_ns: the same for its exit; None while it lives.
    """

    pid: int
    ppid: int
    exe: str = ""
    argv: tuple[str, ...] = ()
    comm: str = ""
    start_ns: int = 0
    ended_ns: int | None = None
    executed: int = 0


class ProcessTable:
    """All living processes of the tree and those that ended a moment ago."""

    def __init__(self, first: Process) -> None:
        self._alive: OrderedDict[int, Process] = OrderedDict({first.pid: first})
        self._ended: OrderedDict[int, Process] = OrderedDict()

    def __len__(self) -> int:
        return len(self._alive) + len(self._ended)

    def __contains__(self, pid: int) -> bool:
        return pid in self._alive or pid in self._ended

    def get(self, pid: int) -> Process | None:
        return self._alive.get(pid) or self._ended.get(pid)

    def running(self, pid: int) -> Process | None:
        """As `get`; but of a child that is not known to have executed anything, the program that it runs by now.

        Its messages come by another ring than the record of that, and may be read first.
        """
        known = self.get(pid)
        parent = self.get(known.ppid) if known is not None else None
        if known is None or parent is None or known.ended_ns is not None or known.argv is not parent.argv:
            return known
        from mcpguard.kernel.proc import program_of  # a launch waits for what is imported, and has no messages

        found = program_of(pid)
        return (
            known if found is None or found == (known.exe, known.argv) else replace(known, exe=found[0], argv=found[1])
        )

    def forked(self, record: ForkRecord) -> Process:
        """Note a child; it runs its parent's program until it executes another."""
        parent = self.seen(record.head)
        child = Process(record.child, parent.pid, parent.exe, parent.argv, parent.comm, record.head.when_ns)
        self._put(child)
        return child

    def executed(self, record: ExecRecord) -> Process:
        """Note that a process runs another program now."""
        known = self.seen(record.head)
        comm = record.head.comm or record.exe.rsplit("/", 1)[-1][:15]
        process = replace(known, exe=record.exe, argv=record.argv, comm=comm, executed=known.executed + 1)
        self._put(process)
        return process

    def exited(self, record: ExitRecord) -> Process:
        """Note an end; the process stays known for late records."""
        process = replace(self.seen(record.head), ended_ns=record.head.when_ns)
        self._alive.pop(process.pid, None)
        self._ended[process.pid] = process
        self._forget(record.head.when_ns)
        return process

    def seen(self, head: Head) -> Process:
        """The process that a record speaks of; an unknown one is added with the little that the record tells."""
        known = self.get(head.pid)
        if known is not None and not _recycled(known, head):
            return known
        process = Process(head.pid, head.ppid, comm=head.comm, start_ns=head.when_ns)
        self._put(process)
        return process

    def chain(self, pid: int) -> tuple[Process, ...]:
        """The process and its parents inside the tree, nearest first, at most CHAIN_LIMIT."""
        chain: list[Process] = []
        while len(chain) < CHAIN_LIMIT and (process := self.get(pid)) is not None and process not in chain:
            chain.append(process)
            pid = process.ppid
        return tuple(chain)

    def _put(self, process: Process) -> None:
        self._ended.pop(process.pid, None)
        self._alive[process.pid] = process
        if len(self) > MAX_PROCESSES:
            (self._ended or self._alive).popitem(last=False)

    def _forget(self, now_ns: int) -> None:
        while self._ended:
            oldest = next(iter(self._ended.values()))
            if oldest.ended_ns is None or oldest.ended_ns + LATE_NS > now_ns:
                return
            self._ended.popitem(last=False)


def _recycled(known: Process, head: Head) -> bool:
    """An ended process cannot make records long after its end: the PID belongs to another now."""
    return known.ended_ns is not None and head.when_ns > known.ended_ns + LATE_NS
