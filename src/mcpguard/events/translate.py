"""Records to events, one by one: who, what, which verdict, which rule.

Keeps the process table; stores, counts and sums up nothing (`recorder` does).
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Mapping

from mcpguard.events import doors
from mcpguard.events.attribute import Attributor
from mcpguard.events.calls import judge_call
from mcpguard.events.finding import Finding
from mcpguard.events.habits import KEPT_CANARY_REFUSED, OwnNames, of_sockets
from mcpguard.events.hosts import Hosts
from mcpguard.events.judge import Judge
from mcpguard.events.processes import Process, ProcessTable
from mcpguard.events.sockets import SocketJudge
from mcpguard.kernel import cgroup
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.model.plan import KEPT_CANARY
from mcpguard.model.policy import Policy
from mcpguard.model.rule import Origin
from mcpguard.model.values import replace
from mcpguard.policy.decide import automaton_of
from mcpguard.wire.lookups import UNANSWERED
from mcpguard.wire.records import (
    CallRecord,
    ExecRecord,
    ExitRecord,
    FileRecord,
    FlowRecord,
    ForkRecord,
    Head,
    LookupRecord,
    NetRecord,
    OpenRecord,
    PathCallRecord,
    Record,
    UnixRecord,
)

# Of one answer, in the words of its event.
_SHOWN_ADDRESSES = 8


class Translator:
    """Turns the records of one session into events.

    Attributes:
        processes: who was who.
    """

    def __init__(
        self,
        session: str,
        policy: Policy,
        first: Process,
        names: Mapping[str, str],
        epoch_ns: Callable[[int], int],
        began_ns: int,
    ) -> None:
        """
        Args:
            names: address -> host name, of those that need no looking up.
            epoch_ns: CLOCK_MONOTONIC nanoseconds to nanoseconds since the Unix epoch.
            began_ns: when the session began, in nanoseconds since the Unix epoch.
        """
        self.processes = ProcessTable(first)
        self._session = session
        self._policy = policy
        self._hosts = Hosts(names)
        self._keeps = any(rule.confines for rule in policy.rules)
        # Of servers that are kept, by PID: the rule that refused their canary before they began.
        self._kept: dict[int, Origin] = {}
        self._own_names = OwnNames.of_this_host()
        self._epoch_ns = epoch_ns
        # Of a batch, the clocks are looked at once.
        self._since_epoch_ns = epoch_ns(0)
        self._judge = Judge(automaton_of(policy.tables), policy.paths)
        self._attributor = Attributor(policy, self._judge, self.processes)
        self._sockets = SocketJudge(policy, self._judge, began_ns)
        self._coming: deque[tuple[int, Policy]] = deque()
        self._unsure: tuple[Event | None, tuple[str, ...]] = (None, ())

    def adopt(self, policy: Policy, since_ns: int) -> None:
        """Judge what happens from a moment on by another policy. May be called by another thread.

        Args:
            policy: the rules of the one before have the same numbers in it.
            since_ns: CLOCK_MONOTONIC, before the kernel went by it.
        """
        self._coming.append((since_ns, policy))

    def begin_batch(self) -> None:
        """What comes now was made later than all before."""
        self._attributor.look_again()
        self._since_epoch_ns = self._epoch_ns(0)

    def event(self, record: Record) -> Event | None:
        """The event of a record; None: the kernel refused by ordinary permissions or for an ordinary reason."""
        while self._coming and record.head.when_ns >= self._coming[0][0]:
            self._follow(self._coming.popleft()[1])
        match record:
            case ForkRecord():
                return self._fork(record)
            case ExecRecord():
                return self._exec(record)
            case ExitRecord():
                return self._exit(record)
            case OpenRecord():
                opened = self._attributor.opened(record)
                return self._event(record.head, opened, count=record.count) if opened else None
            case PathCallRecord(op="connect" | "send"):
                return self._refusable(record, self._sockets.unreached(record))
            case PathCallRecord():
                return self._refusable(record, self._attributor.path_call(record))
            case CallRecord():
                user, system = self._policy.user, self._policy.system
                finding = judge_call(record, self.processes, user.uid, system, keeps=self._keeps)
                return self._refusable(record, finding)
            case NetRecord():
                return self._net(record)
            case LookupRecord():
                return self._lookup(record)
            case UnixRecord():
                return self._unix(record)
            case FileRecord():
                return self._event(record.head, self._attributor.refused_by_hook(record), count=record.count)

    def _follow(self, policy: Policy) -> None:
        self._policy = policy
        self._judge = Judge(automaton_of(policy.tables), policy.paths)
        self._attributor.follow(policy, self._judge)
        self._sockets.follow(policy, self._judge)

    def _fork(self, record: ForkRecord) -> Event:
        return self._process(record.head, self.processes.forked(record), "fork")

    def _exec(self, record: ExecRecord) -> Event:
        self.processes.executed(record)
        event = replace(self._event(record.head, self._attributor.executed(record.exe)), argv=record.argv)
        return replace(event, detail=event.detail or "more arguments than are kept") if record.argv_cut else event

    def _exit(self, record: ExitRecord) -> Event:
        process = self.processes.exited(record)
        self._kept.pop(process.pid, None)
        number = record.code & 0x7F
        return self._process(
            record.head, process, "exit", f"signal {number}" if number else f"status {record.code >> 8 & 0xFF}"
        )

    def _process(self, head: Head, process: Process, op: str, detail: str | None = None) -> Event:
        """An event about a process itself; after a fork that is the child, while `head` is the parent's."""
        event = self._event(head, Finding(Kind.PROCESS, op, Verdict.ALLOW, detail=detail))
        return replace(event, pid=process.pid, ppid=process.ppid, comm=process.comm or None, exe=process.exe or None)

    def _net(self, record: NetRecord) -> Event:
        rule = self._rule(record.rule, record.verdict)
        detail = record.detail or (f"{record.protocol} socket" if record.op == "socket" and record.protocol else None)
        if record.verdict is Verdict.DENY and record.rule == 0:
            detail = (
                doors.of_port(record.port, record.protocol, record.address)
                or of_sockets(record.op, record.protocol, record.port, known=self._hosts.of(record.address) is not None)
                or detail
            )
        at = record.address, record.port
        if record.verdict is Verdict.DENY and at == KEPT_CANARY and rule and rule.text.startswith("mcp confine "):
            detail = KEPT_CANARY_REFUSED
            self._kept[record.head.pid] = rule
        finding = Finding(Kind.NET, record.op, record.verdict, rule=rule, detail=detail)
        return replace(
            self._event(record.head, finding),
            host=record.host or self._hosts.of(record.address, record.rule),
            address=record.address or None,
            port=record.port or None,
            protocol=record.protocol or None,
            count=record.count,
        )

    def traffic(self, record: FlowRecord) -> Event:
        """Bytes that were exchanged; no act of its own, so its count is 0."""
        words = "others connected to this port of ours" if record.incoming else None
        return Event(
            time_ns=self._epoch_ns(record.when_ns),
            session=self._session,
            kind=Kind.NET,
            op="traffic",
            verdict=Verdict.ALLOW,
            host=None if record.incoming else self._hosts.of(record.address),
            address=record.address or None,
            port=record.port or None,
            protocol=record.protocol or None,
            count=0,
            detail=words if record.address else "destinations that were too many to be told apart",
            bytes_sent=record.sent,
            bytes_received=record.received,
        )

    def _lookup(self, record: LookupRecord) -> Event:
        """A question for a name. What it says of addresses counts from here on: whoever uses them asked before."""
        self._hosts.add(record)
        rule = None if record.rule == 0 and record.verdict is Verdict.ALLOW else self._policy.rules[record.rule]
        words = [record.asked or "?", *record.addresses[:_SHOWN_ADDRESSES]]
        mark = "; " if record.detail.startswith(UNANSWERED) else ": "
        detail = " ".join(words) + (f"{mark}{record.detail}" if record.detail else "")
        if record.verdict is Verdict.DENY and record.rule == 0 and record.host:
            door = doors.of_host(record.host)
            detail = self._own_names.asking(self._policy, record.host, record.asked) or detail
            detail = f"{detail}; {door}" if door else detail
        finding = Finding(Kind.DNS, "query", record.verdict, rule=rule, detail=detail)
        return replace(self._event(record.head, finding), host=record.host or None)

    def _unix(self, record: UnixRecord) -> Event:
        return self._event(record.head, self._sockets.finding(record), count=record.count)

    def _refusable(self, record: PathCallRecord | CallRecord, finding: Finding | None) -> Event | None:
        if finding is None:
            return None
        event = self._event(record.head, finding, record.result, record.count)
        if finding.unsure:
            self._unsure = event, finding.unsure
        return event

    def waits(self, event: Event) -> bool:
        """Whether the event that was made last is one only if `settled` tells it."""
        unsure, way = self._unsure
        moves = self._attributor.moves
        return event is unsure and moves is not None and moves.hold(event, way)

    def settled(self, *, everything: bool = False) -> list[Event]:
        """Refusals that are events after all; call it once an interval, and for `everything` at the end."""
        moves = self._attributor.moves
        return moves.take(everything=everything) if moves is not None else []

    def _rule(self, number: int, verdict: Verdict) -> Origin | None:
        """The kernel's rule; number 0 of something allowed (a listener of the tree itself) stands for no rule."""
        return None if number == 0 and verdict is Verdict.ALLOW else self._policy.rules[number]

    def _event(self, head: Head, finding: Finding, error: int = 0, count: int = 1) -> Event:
        process = self.processes.seen(head)
        return Event(
            time_ns=self._since_epoch_ns + head.when_ns,
            session=self._session,
            kind=finding.kind,
            op=finding.op,
            verdict=finding.verdict,
            access=finding.access,
            path=finding.path,
            target=finding.target,
            pid=head.pid,
            ppid=process.ppid or head.ppid or None,
            exe=process.exe or None,
            comm=head.comm or process.comm or None,
            rule=finding.rule or (self._kept_by(head.pid) if finding.verdict is Verdict.DENY else None),
            count=count,
            errno=errno.errorcode.get(error, str(error)) if error else None,
            detail=finding.detail if finding.verdict is Verdict.ALLOW else self._with_chain(finding.detail, head.pid),
        )

    def _kept_by(self, pid: int) -> Origin | None:
        """The rule that leaves a server less than its agent has, where nothing else explains a refusal. Whoever has ended lived
        where its nearest parent lives that has not, unless it is known to have been kept itself."""
        if not self._keeps:
            return None
        for one in self.processes.chain(pid):
            if cgroup.place_of(one.pid):
                number = cgroup.kept_by(one.pid)
                return None if number is None or number >= len(self._policy.rules) else self._policy.rules[number]
            if one.pid in self._kept:
                return self._kept[one.pid]
        return None

    def _with_chain(self, detail: str | None, pid: int) -> str | None:
        """Who started it, nearest first: what a person asks about a refusal."""
        chain = self.processes.chain(pid)[1:]
        under = " < ".join(f"{process.comm or '?'}[{process.pid}]" for process in chain)
        return "; ".join(part for part in (detail, under and f"under {under}") if part) or None
