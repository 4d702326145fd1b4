"""The record of one run: a session in the store, a pump that keeps it up to date, a summary at the end.

A store that cannot be had does not stop the run, for enforcement does not need it: it is said once, and counted.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from mcpguard.errors import HostError, StoreError, UsageError
from mcpguard.events.database import BUSY
from mcpguard.events.missing import loss
from mcpguard.events.store import Store
from mcpguard.kernel import cgroup
from mcpguard.kernel.ring import Counters, Ring
from mcpguard.model.access import Verdict
from mcpguard.model.coverage import Coverage
from mcpguard.model.event import Event, Kind
from mcpguard.model.policy import Policy
from mcpguard.session.start import tell
from mcpguard.wire import _abi
from mcpguard.wire.authors import author

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from mcpguard.events.flows import Flows
    from mcpguard.events.listener import Listener
    from mcpguard.events.pump import Decode, Pump
    from mcpguard.events.pump import Ring as RecordRing
    from mcpguard.events.recorder import Recorder
    from mcpguard.session.around_gate import AroundGate
    from mcpguard.session.resolver import Feed
    from mcpguard.wire.records import FlowRecord

    T = TypeVar("T")

# Rings whose records become events one by one, and the one of pieces of messages.
_DENIALS = "mg_denials"
_RECORDS, _MESSAGES = (_DENIALS, "mg_activity"), "mg_messages"
# Bytes of the others that most sessions never write more than.
_BEGINNING = 1 << 18
_LOOKUPS = "questions for names"
_CANARY_WAIT_S = 5.0
# Of the agent's PID in the counters: the last of them.
_AGENT_AT = _abi.MG_COUNTERS.size - 8
_GATED_AT = _AGENT_AT - 8
_FIRST_AT = _GATED_AT - 8
# How often a lock on the store is waited for, a second each: before the agent starts, and to write that it has ended.
_LOCK_ATTEMPTS = 10
_SECOND_TRY_S = 5.0
# Whoever waits for so short a run does not wait for the disk besides.
_SHORT_S = 1.0
BEHIND = "records at least that were not read or stored, because a disk or a file system did not answer at the end"
UNTOLD = "counts at least of repeated acts that the kernel still held when the broker was killed"
CUT_OFF = "gates of MCP servers that ended before all that they knew was on record, so that answers may not be told"
UNWATCHED = "processes at least that went on after the record had ended, because the broker was killed"
UNJUDGED = "time of about a second in which the agent ran and may not have been judged"
# Counted for all processes of the host: whether one was the agent's cannot be told, so it may have been.
SKIPPED = (
    "times that the kernel skipped a program on its hooks, for whatever process, so that something may have got through"
)
UNRECORDED = (
    "times that the kernel skipped a program of the record, for whatever process, so that a call may not be told"
)


class Recording:
    """One session's record, from before the agent starts until the summary is out."""

    def __init__(
        self, policy: Policy, store: Store | None, session: str, command: Sequence[str], notes: Sequence[str] = ()
    ) -> None:
        self.session = session
        self._notes = tuple(notes)
        self._policy = policy
        self._store = store
        self._command = tuple(command)
        self._rings: dict[str, Ring] = {}
        self._counters: Counters | None = None
        self._recorder: Recorder | None = None
        self._pump: Pump | None = None
        self._listener: Listener | None = None
        self._lookups: Feed | None = None
        self._names: Mapping[str, str] = {}
        # The agent's first process and since when it is there; 0: nothing is attached.
        self._first, self._first_ns = 0, 0
        self._pid_fd = -1
        self._flows_fd = -1
        self._flows: Flows | None = None
        self._silent = False
        self._leaf = ""
        self._final = False
        self._leftover = 0
        self._restored: set[str] = set()
        self._still = ""
        self._began = time.monotonic()
        # The last aggregate that began before the agent did.
        self._last_before = 0

    @staticmethod
    def begin(
        session: str,
        policy: Policy,
        command: Sequence[str],
        tier: str,
        holds: Sequence[Coverage],
        notes: Sequence[str] = (),
        modes: Sequence[str] = (),
    ) -> Recording:
        """Open the store and start the session in it; its rules are told by `follow`.

        Args:
            notes: what the summary tells besides of how the session was set up.
            modes: see `events.sessions.Session`.
        """
        now_ns = time.time_ns()
        try:
            store = _patiently(Store.open)
            if store.note:
                tell(store.note)
            _patiently(
                lambda: store.start_session(
                    policy,
                    command=command,
                    tier=tier,
                    coverage=holds,
                    now_ns=now_ns,
                    session=session,
                    modes=modes,
                    rules_later=True,
                )
            )
            return Recording(policy, store, session, command, notes)
        except StoreError as error:
            tell(f"events are not stored: {error.what} ({error.why}); the sandbox is not affected")
            from mcpguard.events import unrecorded

            unrecorded.note(session, policy.profile, error.why)
            return Recording(policy, None, session, command)

    def attach(
        self, descriptors: Mapping[str, int], facts: Mapping[str, Any], lookups: Feed, names: Mapping[str, str]
    ) -> None:
        """Map the rings, in which everything stays until `follow` reads it; the canary's refusal must already be there.

        Args:
            lookups: what the resolver tells.
            names: textual address -> name, of those that need no looking up.

        Raises:
            HostError: nothing came out of the ring of denials, so the run would not be on record.
        """
        self._lookups = lookups
        sizes = facts["rings"]
        self._rings = {
            name: Ring(descriptors[name], int(sizes[name]), beginning=0 if name == _DENIALS else _BEGINNING)
            for name in (*_RECORDS, _MESSAGES)
            if name in descriptors
        }
        self._counters = Counters(descriptors["mg_counters"], _abi.MG_COUNTERS.size)
        self._pid_fd = os.pidfd_open(int(facts["pid"]))
        self._leaf = str(facts["cgroup"])
        self._expect_canary(int(facts["canary_pid"]))
        # Not from the records: what the child does while the kernel puts the rings into their slots leaves none.
        self._last_before = _abi.MG_COUNTERS.unpack(self._counters.read())[0]
        self._names = names
        self._first, self._first_ns = int(facts["pid"]), time.monotonic_ns()
        self._flows_fd = os.dup(descriptors["mg_flows"])

    def follow(self) -> None:
        """Put on record what the rings hold and will hold. The agent may run already: what it does meanwhile waits there,
        and nobody for what is imported here. The second call does nothing.
        """
        if self._store is None or self._recorder is not None or not self._first:
            return
        from mcpguard.events.processes import Process
        from mcpguard.events.pump import Pump
        from mcpguard.events.recorder import Recorder
        from mcpguard.wire import decode
        from mcpguard.wire import lookups as told

        store, first = self._store, Process(self._first, os.getpid(), "", argv=self._command, start_ns=self._first_ns)
        try:
            _patiently(lambda: store.add_rules(self.session, self._policy))
        except StoreError as error:  # each is told with the first event that it decides
            tell(f"the rules of the session could not be stored: {error.why}")
        self._recorder = Recorder(store, self.session, self._policy, first, names=self._names, flows=self._exchanged)
        # Last, so that whatever a ring says of an address comes after the answer that gave it.
        sources: dict[str, tuple[RecordRing, Decode]] = {name: (self._rings[name], decode.record) for name in _RECORDS}
        if self._lookups is not None:
            sources[_LOOKUPS] = (self._lookups, told.decode)
        self._pump = Pump(sources, self._recorder)
        self._pump.start()
        self._listen(self._recorder, self._pump)

    def _listen(self, recorder: Recorder, pump: Pump) -> None:
        if _MESSAGES not in self._rings:
            self._notes = (
                *self._notes,
                "MCP messages are not on record: this kernel refused the program that sees them",
            )
            return
        from mcpguard.events.ends import Ends, standard_input
        from mcpguard.events.listener import Listener

        ends = Ends(self._leaf, standard_input())
        self._listener = Listener(self._rings[_MESSAGES], self.session, recorder, hurry=pump.hurry, ends=ends)
        self._listener.start()

    def skip_messages(self, ends: Sequence[tuple[int, int]], served: bool = True) -> None:
        """MCP messages on these pipes and sockets are told by somebody else; see `Listener.skip`."""
        if self._listener is not None:
            self._listener.skip(ends, served)

    def guard_messages(self, first: int, *, is_agent: bool, all_clients: bool = False) -> None:
        """From now on the kernel holds whoever reads a question of MCP that came from the tree, and ends who answers this
        process within it; what is to be shown by `show_messages` is kept for that. To be called before the agent starts.

        Args:
            first: the session's first process, which itself is never held.
            is_agent: it is an agent; else no process is one yet.
            all_clients: who reads what others ask is held as often as who reads what the agent does.
        """
        if self._listener is not None and self._counters is not None:
            self._listener.expect()
            self._counters.write(_FIRST_AT, first)
            self._counters.write(_GATED_AT, _abi.MG_GATED_FOR_ALL if all_clients else _abi.MG_GATED)
            self._counters.write(_AGENT_AT, first if is_agent else 0)

    def show_messages(self, around: AroundGate) -> None:
        """Have it see every MCP message that is put on record, and those whose server nobody knows; what it returns is, too."""
        if self._listener is not None and self._counters is not None and self._recorder is not None:
            around.agents.who = self._recorder.processes.get
            self._listener.show(around)
            around.follow(partial(self._counters.write, _AGENT_AT))

    def gate_cut_off(self) -> None:
        """A gate ended, and did not say that all it knew is on record. May be called by another thread."""
        self.tell([loss(time.time_ns(), self.session, CUT_OFF, 1)])

    def skip_port(self, port: int) -> None:
        """MCP messages to and from this port on loopback are told by somebody else."""
        if self._listener is not None:
            self._listener.skip_port(port)

    def _exchanged(self) -> list[FlowRecord]:
        """What was exchanged with whom since the last call."""
        if self._silent:
            return []
        if self._flows is None:
            from mcpguard.events.flows import Flows

            self._flows = Flows(self._flows_fd)
        return self._flows.grown()

    def _expect_canary(self, pid: int) -> None:
        """What the child and its canary did while being confined is no event of the agent: drained here, and checked.

        Its refusals come out of one ring, its end of the other: programs find the session in two ways.
        """
        deadline = time.monotonic() + _CANARY_WAIT_S
        missing = set(_RECORDS)
        while missing and time.monotonic() < deadline:
            for name in _RECORDS:
                if any(author(record) == pid for record in self._rings[name].drain()):
                    missing.discard(name)
        if missing:
            raise HostError(
                "events do not arrive, so nothing was started",
                why=f"the canary was refused and ended, but nothing of it came out of {' and '.join(sorted(missing))}",
                do="run `mcpguard doctor` and report its output",
                code="run.no-events",
            )

    def not_started(self, code: int) -> None:
        """Nothing of the agent ran: the session ends before it began, and nothing of it is missing."""
        if self._store is not None:
            with contextlib.suppress(StoreError):
                self._store.end_session(self.session, exit_code=code, now_ns=time.time_ns())

    def covered_again(self, paths: Sequence[str]) -> None:
        """Protected files that somebody outside replaced, and that stood open until their covers were put back."""
        self._restored.update(paths)

    def stands_still(self, why: str) -> None:
        """The tree was stopped, as the kernel asks our programs no more; empty: it asks them again, and the tree goes on."""
        now = time.time_ns()
        if why:
            tell(f"{why}; the agent stands still until that is undone (Ctrl-C ends it)")
            self.tell([loss(now, self.session, f"{UNJUDGED}: {why}", 1)])
        else:
            tell("the kernel asks again: the agent goes on")
            detail = f"it stood still: {self._still}"
            self.tell([Event(now, self.session, Kind.PROCESS, "thaw", Verdict.ALLOW, detail=detail)])
        self._still = why

    def adopt(self, policy: Policy, since_ns: int) -> None:
        """Tell what happens from `since_ns` (CLOCK_MONOTONIC) on by another policy, whose numbers of rules mean the same."""
        if self._recorder is not None:
            self._recorder.adopt(policy, since_ns)

    def tell(self, events: Sequence[Event]) -> None:
        """Put on record what the user's process itself did to the session."""
        if self._recorder is not None:
            self._recorder.tell(events)

    def ended(self) -> None:
        """Nothing of the session runs any more, so no more records come; `take_final` has what is missing then."""
        self._stop_pump()

    def take_final(self, message: Mapping[str, Any]) -> None:
        """News that came with the agent's end: last counts, and how many processes it left behind."""
        self._leftover = int(message.get("leftover", 0))
        self._final = True
        # By the broker's word; what it takes to look ourselves need not be loaded then.
        self._silent = message.get("exchanged") is False
        self._stop_pump()
        if self._recorder is not None:
            from mcpguard.wire.records import SumRecord

            sums = [SumRecord(int(series), int(count)) for series, count in message.get("sums", ())]
            self._recorder.add_sums(one for one in sums if one.series > self._last_before)
            self._count_last_losses(self._recorder)
            self._recorder.lost(SKIPPED, int(message.get("missed", 0)))
            self._recorder.lost(UNRECORDED, int(message.get("unrecorded", 0)))
            self._recorder.finish()

    def _count_last_losses(self, recorder: Recorder) -> None:
        """A record tells of those dropped before it; what was dropped after the last one stands in the counters only."""
        if self._counters is None:
            return
        _series, _denials, denials, _activity, activity, _busy, _messages, messages, *_rest = _abi.MG_COUNTERS.unpack(
            self._counters.read()
        )
        recorder.lost("refusals that the kernel dropped at the end: the ring of denials was full", denials)
        recorder.lost("activity that the kernel dropped at the end: its ring was full", activity)
        recorder.lost("pieces of MCP messages that the kernel dropped at the end: their ring was full", messages)
        if self._lookups is not None:
            recorder.lost("questions for names that were not answered: too many at once", self._lookups.missing())

    def wait_for_end(self) -> None:
        """Wait until the agent's first process has ended, by its descriptor. One that stands still is ended: the broker, which
        would have it go on, has ended, perhaps before it could say why it does."""
        if cgroup.is_to_stand_still(self._leaf):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pid_fd, signal.SIGKILL)
        select.select([self._pid_fd], (), ())

    def stop(self) -> None:
        """Read and store what is left; the rings are not needed any more."""
        self._stop_pump()
        if self._recorder is not None and not self._final:
            self._count_last_losses(self._recorder)
            self._recorder.lost(UNTOLD, 1)
            self._recorder.lost(UNWATCHED, _processes(self._leaf))
            self._recorder.finish()
        for fd in (self._pid_fd, self._flows_fd):
            if fd >= 0:
                os.close(fd)
        self._pid_fd = self._flows_fd = -1
        for ring in self._rings.values():
            ring.close()
        self._rings = {}

    def end(self, code: int, *, quiet: bool) -> None:
        """Close the session and write the summary to stderr."""
        if self._store is None:
            return
        store, now_ns = self._store, time.time_ns()
        unsaved = self._recorder.counters.unsaved if self._recorder else 0
        try:
            _patiently(lambda: store.end_session(self.session, exit_code=code, now_ns=now_ns, unsaved=unsaved))
        except StoreError as error:
            # Its row stays without an end: whoever reads it next is told that it is not complete.
            tell(f"the end of the session could not be stored: {error.why}")
        warning = self._recorder.warning if self._recorder else None
        if quiet and warning:
            tell(warning)
        if not quiet:
            self._summarise(self._store, warning)
        _tidy(self._store)
        # Closing writes back what was appended, and waits until it is on the disk. After a short run that is left to the next
        # one, or to whoever reads: what is written outlives this process either way.
        if time.monotonic() - self._began > _SHORT_S:
            self._store.close()

    def _stop_pump(self) -> None:
        if self._pump is None:
            return
        pump, self._pump = self._pump, None
        listener, self._listener = self._listener, None
        listened = listener is None or listener.stop()
        ended = pump.stop(lambda: tell("still writing the record ..."))
        if not ended:
            # Its thread still holds the recorder, and perhaps the connection to the store.
            self._recorder = None
            self._store = self._tell_apart(pump.behind())
            tell(
                "the record could not be finished: a disk or a file system does not answer; the last events are missing"
            )
        elif listener is not None and listened:
            listener.finish()

    def _tell_apart(self, behind: int) -> Store | None:
        """Write down what is missing by another connection; None when that hangs as well. Then the session gets no end, and
        that says it."""
        opened: list[Store] = []

        def tell() -> None:
            with contextlib.suppress(StoreError):
                store = Store.open(create=False)
                store.add(self.session, [loss(time.time_ns(), self.session, BEHIND, max(1, behind))])
                opened.append(store)

        thread = threading.Thread(target=tell, name="mcpguard-second-try", daemon=True)
        thread.start()
        thread.join(_SECOND_TRY_S)
        return opened[0] if opened else None

    def _summarise(self, store: Store, warning: str | None) -> None:
        from mcpguard.events.format import printable
        from mcpguard.session import summary  # for whoever wants one

        lines = summary.render(summary.summarise(store, self.session), self._policy.user.home, warning=warning)
        lines += [f"  note     {printable(note)}" for note in self._notes]
        if self._restored:
            names = ", ".join(sorted(self._restored))
            lines = [
                *lines,
                f"  note     replaced from outside, so open for up to a second before it was covered again: {names}",
            ]
        if self._leftover:
            lines = [*lines, f"{self._leftover} background process(es) of the session were ended with it"]
        with contextlib.suppress(OSError):
            sys.stderr.write("\n".join(lines) + "\n")


def _tidy(store: Store) -> None:
    """Keep the record within its limits; whatever that meets, the run is over and its record complete."""
    from mcpguard.events import retention

    try:
        retention.tidy(store, retention.limits(os.environ), time.time_ns())
    except UsageError as error:
        tell(f"{error.what}: {error.do}; nothing old was forgotten")
    except StoreError:
        pass  # the next run does it


def _patiently(work: Callable[[], T]) -> T:
    """Do something with the store; while another program holds it, try again for a while.

    Raises:
        StoreError: it cannot be done.
    """
    for attempt in range(_LOCK_ATTEMPTS):
        try:
            return work()
        except StoreError as error:
            if error.code != BUSY:
                raise
            if attempt == 0:
                tell("waiting for the event store, which another program holds ...")
    return work()


def _processes(leaf: str) -> int:
    """How many processes live in the leaf of a session, and below."""
    try:
        return len(cgroup.processes(leaf))
    except OSError:
        return 0
