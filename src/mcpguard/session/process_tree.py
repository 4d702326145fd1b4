"""The process tree of a session as its events tell it: who started whom, what runs, what has ended. Pure state.

Bounded: of processes that have ended, those with denials are kept longest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mcpguard.events.finding import is_quiet
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.model.values import dataclass, field

MAX_ENDED = 2_000
# Of a process's parents; whoever is guarded can start processes of one another without end.
MAX_CHAIN = 12


@dataclass(slots=True)
class Process:
    """One process. `ended` children are counted when they are let go; cpu is in percent of one core, memory in bytes.

    `denied` counts what is worth a look, and no refusals that programs do without.
    """

    pid: int
    ppid: int
    exe: str
    argv: tuple[str, ...]
    started_ns: int
    denied: int = 0
    ended_ns: int | None = None
    folded: int = 0
    cpu: float | None = None
    memory: int | None = None
    children: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The program's name without its folder, and its arguments; what calls itself otherwise is told by both names."""
        words = self.argv or (self.exe or "?",)
        program, called = (word.rsplit("/", 1)[-1] for word in (self.exe, words[0]))
        if program in ("", "?"):
            program = called
        # python3.11 for python3, vim.basic for vim.
        own = program if program.startswith(called) else f"{program} as {called}"
        return " ".join((own, *words[1:]))


class ProcessTable:
    """Takes events in their order."""

    def __init__(self) -> None:
        self.roots: list[int] = []
        self._known: dict[int, Process] = {}
        self._ended = 0

    def __len__(self) -> int:
        return len(self._known)

    def get(self, pid: int) -> Process | None:
        return self._known.get(pid)

    def living(self) -> list[int]:
        """PIDs that have not ended."""
        return [process.pid for process in self._known.values() if process.ended_ns is None]

    def take(self, events: Iterable[Event]) -> None:
        """Learn from events of every kind."""
        for event in events:
            if event.pid is None:
                continue
            if event.kind is Kind.PROCESS and event.op == "exit":
                self._exit(event)
            elif event.verdict is Verdict.DENY:
                self._at(event).denied += 0 if is_quiet(event) else event.count
            elif event.kind is Kind.EXEC:
                process = self._at(event)
                process.exe, process.argv = event.exe or event.path or "?", event.argv or ()
            elif event.kind is Kind.PROCESS and event.op == "fork":
                self._at(event)

    def measured(self, usage: dict[int, tuple[float, int]]) -> None:
        """Note pid -> (cpu, memory)."""
        for pid, (cpu, memory) in usage.items():
            if process := self._known.get(pid):
                process.cpu, process.memory = cpu, memory

    def chain(self, pid: int | None) -> list[Process]:
        """A process and its parents, the nearest first, at most MAX_CHAIN."""
        found: dict[int, Process] = {}
        while pid is not None and pid not in found and len(found) < MAX_CHAIN and (process := self._known.get(pid)):
            found[pid] = process
            pid = process.ppid
        return list(found.values())

    def shown_children(self, process: Process) -> tuple[list[Process], int]:
        """The children worth a line (running, with denials, or with such a child), and how many others have ended."""
        found = [self._known[pid] for pid in process.children if pid in self._known]
        worth = [child for child in found if self._is_worth(child)]
        return worth, process.folded + len(found) - len(worth)

    def is_alive(self, process: Process) -> bool:
        """Whether it runs, or something that it started."""
        return any(one.ended_ns is None for one in self._with_children(process))

    def _is_worth(self, process: Process) -> bool:
        return any(one.ended_ns is None or one.denied for one in self._with_children(process))

    def _with_children(self, process: Process) -> Iterator[Process]:
        waiting = [process]
        while waiting:
            here = waiting.pop()
            yield here
            waiting += [self._known[pid] for pid in here.children if pid in self._known]

    def _at(self, event: Event) -> Process:
        pid = event.pid or 0
        process = self._known.get(pid)
        if process is not None and (process.ended_ns is None or event.op != "fork"):
            return process
        if process is not None:  # the number was used again
            self._forget(process)
        words = event.argv or ((event.exe or event.comm or "?"),)
        process = self._known[pid] = Process(pid, event.ppid or 0, event.exe or "?", words, event.time_ns)
        parent = self._parent_of(process)
        (self.roots if parent is None else parent.children).append(pid)
        # Records of one moment come in any order: what it started may be known already.
        children = [child for child in self.roots if self._known[child].ppid == pid and child != pid] if pid else []
        top = self._top_of(process).pid if children else pid
        for child in children:
            if child == top:  # who started that one had this number before
                self._known[child].ppid = 0
                continue
            self.roots.remove(child)
            process.children.append(child)
        return process

    def _parent_of(self, process: Process) -> Process | None:
        """Nobody is below itself, and 0 is the number of nobody."""
        return self._known.get(process.ppid) if process.ppid not in (0, process.pid) else None

    def _top_of(self, process: Process) -> Process:
        """The root that a process lies below."""
        while (parent := self._parent_of(process)) is not None and process.pid in parent.children:
            process = parent
        return process

    def _exit(self, event: Event) -> None:
        process = self._known.get(event.pid or 0)
        if process is None or process.ended_ns is not None:
            return
        process.ended_ns = event.time_ns
        process.cpu = process.memory = None
        self._ended += 1
        if self._ended > MAX_ENDED:
            self._forget_some()

    def _forget_some(self) -> None:
        """Let half of the ended ones go: those without denials first, and of these those that nothing is below."""
        ended = [p for p in self._known.values() if p.ended_ns is not None]
        ended.sort(key=lambda p: (p.denied > 0, bool(p.children), p.ended_ns))
        for process in ended[: MAX_ENDED // 2]:
            self._forget(process)

    def _forget(self, process: Process) -> None:
        """What it started is below its parent from now on. Without that, whatever forks and ends again and again in one line
        would be kept for ever, and walked through each time.
        """
        del self._known[process.pid]
        self._ended -= process.ended_ns is not None
        parent = self._parent_of(process)
        siblings = self.roots if parent is None else parent.children
        if process.pid in siblings:
            siblings.remove(process.pid)
        if parent is not None:
            parent.folded += 1 + process.folded
        for child in [self._known[pid] for pid in process.children if pid in self._known]:
            if process.ended_ns is not None and child.started_ns > process.ended_ns:
                self.roots.append(child.pid)  # whoever has the number next started it
            else:
                siblings.append(child.pid)
                child.ppid = process.ppid if parent is not None else 0
