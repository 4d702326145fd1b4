"""MCP servers that the agent starts around the gate are ended before they can answer.

Nobody judges what an agent and such a server say to each other. What is read tells it: the kernel stops whoever reads a first
question of the protocol that came from within the tree, before that process can do anything with it. Here is said how it goes
on: it is ended where an agent asks, and goes on where another program of the tree does, as the tests of a server do, for that
has the same rights as any other there. Data that a program is given to read may hold the same words: then the agent closes its
end behind them, and the program is left alone. What is read in ways that the kernel's program does not see is told by its
answers: the kernel ends who answers the agent's first process, or what that launches in its place; others are ended here.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from mcpguard.errors import HostError
from mcpguard.events.ends import End, Ends
from mcpguard.events.mcp import CLIENT, RESPONSE, asks
from mcpguard.events.told_errors import detail_of
from mcpguard.kernel import cgroup, proc
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind, McpMessage
from mcpguard.model.rule import Origin
from mcpguard.session.agent_programs import Agents
from mcpguard.session.gate import SHIM, SHIM_WORDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mcpguard.events.observer import Asked, Sender
    from mcpguard.wire.records import MessageRecord

RULE = Origin("mcpguard", "builtin", 0, "mcp gate: servers start by way of the gate")
_MOST_LOOKS = 100
# For so long an agent may take to close its end behind what it gives a program to read, as a host may be busy; who waits for an
# answer does not close it. Who sends that much at once does not wait for one.
GIVEN_NS = 1_000_000_000
GIVEN_BYTES = 1 << 15
# So soon a process that was stopped stands still, also on a busy host.
_STOPS_NS = 100_000_000
# What was sent may be told after what was read of it.
_TOLD_NS = 100_000_000
# For so long a shim waits for the gate, and whoever starts one takes to do that.
_SHIM_NS, _LAUNCH_NS = 35_000_000_000, 5_000_000_000
# For so long whoever has an end is looked for more often.
_SOUGHT_NS = 2 * _LAUNCH_NS
# What a question says of itself where the rest of its line was not seen.
_INITIALIZE = re.compile(rb'"method"\s*:\s*"initialize"')
_DATED = re.compile(rb'"protocolVersion"\s*:\s*"\d{4}-\d\d-\d\d"')
# For so long after the start it is looked what a launcher launches, and how often: before that asks its first server.
FOLLOWED_S = 10.0
_FOLLOW_S = 0.01


@dataclass(frozen=True, slots=True)
class _Member:
    """A process of a server's; `began` tells it from another one of the same number.

    Attributes:
        began: clock ticks since the boot, as /proc has it.
    """

    pid: int
    began: str
    exe: str | None


@dataclass(frozen=True, slots=True)
class _Held:
    """A process that has read what may be a question.

    Attributes:
        process: descriptor of it.
        end: where it read.
        since_ns: CLOCK_MONOTONIC.
        unseen: only who sent it can tell what it has read.
        sought: it was not seen to read, and has the end where an agent asks.
        asking: that agent, as far as it is known.
        others: what belongs to it, and stands still with it; None: an agent was not seen to ask yet. There may be thousands, so
            no descriptors of them are kept.
        still_ns: CLOCK_MONOTONIC, since when they do.
    """

    pid: int
    process: int
    exe: str | None
    end: End
    channel: str
    since_ns: int
    unseen: bool
    sought: bool = False
    asking: int | None = None
    others: tuple[_Member, ...] | None = None
    still_ns: int = 0


class AroundGate:
    """Of one session.

    Attributes:
        agent: PID of its first process.
        told: that is an agent, which was told of the gate.
        agents: which other processes are.
    """

    def __init__(
        self,
        session: str,
        agent: int,
        leaf: str,
        program: str | None = None,
        *,
        told: bool = True,
        paused: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """
        Args:
            leaf: path of the session's cgroup leaf.
            program: what the agent was started as.
            paused: nobody there does anything meanwhile.
        """
        self._session = session
        self.agent = agent
        self.told = told
        self.agents = Agents(program)
        self._ends = Ends(leaf)
        self._leaf = leaf
        self._paused = paused
        self._ended: set[int] = set()
        self._held: list[_Held] = []
        # Where an agent asks: since when nobody is found there, those that were judged, each with who asked, and all of them.
        self._sought: dict[End, int] = {}
        self._judged: set[tuple[End, int]] = set()
        self._asked: set[End] = set()

    def look(self, events: Iterable[Event]) -> list[Event]:
        """End the servers that messages are from or for; what is to be told of it."""
        found = []
        for event in events:
            message = event.mcp
            if message is None or message.transport != "stdio" or not _is_mcp(message):
                continue
            # Who asked, and not who is taken for the client: an agent may begin with what only servers ask.
            is_client = (message.sender == CLIENT) is (event.op != RESPONSE)
            asking, answering = (message.client, message.peer) if is_client else (message.peer, message.client)
            if asking is None or answering is None or answering.pid in self._ended:
                continue
            if not self._is_agent(asking.pid, asking.exe):
                continue
            # Who prints what it was given to read says questions, too, but no answers to them.
            if event.op == RESPONSE or not self._is_given_data(asking.pid, answering.pid):
                name = message.server if answering is message.peer else _name_of(answering.exe)
                ended = self._signal_all(answering.pid, None, signal.SIGKILL, asking=asking.pid)
                found += self._tell_of(ended, answering.pid, name, answering.exe)
                self._ended.add(answering.pid)
        return found

    def _is_given_data(self, client: int, server: int) -> bool:
        """Whether the one has closed its side of what the other has as standard input; or that was judged, or soon is."""
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{server}/fd/0").stat()
            channel = "pipe" if stat.S_ISFIFO(state.st_mode) else "unix" if stat.S_ISSOCK(state.st_mode) else ""
            end = os.major(state.st_dev) << 20 | os.minor(state.st_dev), state.st_ino
            if (end, client) in self._judged or any(held.end == end for held in self._held):
                return True
            return bool(channel) and self._ends.is_finished(client, end, channel)
        return False

    def ended(self, pid: int, exe: str | None, input: tuple[int, int]) -> list[Event]:
        """The kernel has ended a server as soon as it answered. Say so, and end what belongs to it."""
        if pid in self._ended:
            return []
        self._ended.add(pid)
        return [self._told(_name_of(exe), pid, exe), *self._tell_of(self._signal_all(pid, input, signal.SIGKILL))]

    @property
    def holds(self) -> bool:
        """Whether a process waits to be judged, or is looked for."""
        return bool(self._held) or any(time.monotonic_ns() - since < _SOUGHT_NS for since in self._sought.values())

    def hold(self, record: MessageRecord, exe: str | None) -> list[Event]:
        """The kernel has stopped who read this."""
        pid = record.head.pid
        with contextlib.suppress(OSError):
            process = os.pidfd_open(pid)
            exe = exe or _exe_of(pid)
            held = _Held(pid, process, exe, record.own, record.channel, record.head.when_ns, record.unseen)
            if record.unseen or _is_question(record.data):
                self._held.append(held)
            else:
                self._let_go(held)
        return []

    def seek(self, asked: Iterable[Asked]) -> None:
        """Stop who has an end where an agent asks, though it was not seen to read there: it may count what comes, and answer.

        What is on its way through the gate is waited for; whom the gate serves is not among those that are asked.
        """
        before, self._sought = self._sought, {}
        places, now_ns = list(asked), time.monotonic_ns()
        self._asked = {one.end for one in places}
        self._judged.intersection_update((one.end, one.sender.peer.pid) for one in places)
        for one in places:
            asking = one.sender.peer
            if (one.end, asking.pid) in self._judged or any(held.end == one.end for held in self._held):
                continue
            if not self._is_agent(asking.pid, asking.exe) or self._ends.is_finished(asking.pid, one.end, one.channel):
                self._judged.add((one.end, asking.pid))
                continue
            since_ns = before.get(one.end, now_ns)
            found = self._found_at(one, now_ns - since_ns)
            for pid in found:
                self._stop(pid, one.end, one.channel, now_ns)
            if not found:
                self._sought[one.end] = since_ns

    def _found_at(self, asked: Asked, age_ns: int) -> list[int]:
        """Who can read at this end; empty as well while one of these may start a shim or asks the gate: but where the agent was
        answered. Where somebody reads and nobody shows it for a while, who does not show what it has, or has descriptors on
        their way to it."""
        if age_ns < _LAUNCH_NS and not asked.sender.answered:
            return []
        asking = asked.sender.peer.pid
        found = self._those_at(asked.end, asking)
        if not found and age_ns < _SHIM_NS and self._ends.is_read(asking, asked.end, asked.channel):
            with self._paused():
                found = self._those_at(asked.end, asking)
                if not found and age_ns > _TOLD_NS:
                    found = self._those_who_may_be_at(asked.end, asking)
        if asked.sender.answered:
            return found
        return [] if any(self._asks_the_gate(pid, age_ns, asking) is not False for pid in found) else found

    def _those_at(self, end: End, asking: int) -> list[int]:
        """Agents as well: a server may have the name or the program of one."""
        return [pid for pid in self._living_but(asking) if self._ends.can_read(pid, end)]

    def _those_who_may_be_at(self, end: End, asking: int) -> list[int]:
        """Where they do not show it; other agents than the asking one's own are not among them."""
        living = self._living_but(asking)
        found = [pid for pid in living if self._ends.can_read(pid, end) is None or self._ends.carries(pid)]
        return [pid for pid in found if self._comes_from(pid, asking) or not self._is_agent(pid, None)]

    def _living_but(self, asking: int) -> list[int]:
        with contextlib.suppress(OSError, ValueError):
            return [pid for pid in self._ends.living() if pid not in (self.agent, asking) and not proc.has_ended(pid)]
        return []

    def _stop(self, pid: int, end: End, channel: str, now_ns: int) -> None:
        with contextlib.suppress(OSError):
            process = os.pidfd_open(pid)
            if self._signal(pid, signal.SIGSTOP) is None:
                os.close(process)
            else:
                self._held.append(_Held(pid, process, _exe_of(pid), end, channel, now_ns, unseen=False, sought=True))

    def _asks_the_gate(self, pid: int, age_ns: int, asking: int | None = None) -> bool | None:
        """Whether a process is about to ask the gate: then it becomes an approved server, or ends. What was executed tells, as
        it was then; what a process shows of itself it can change. Of what an agent has executed right away the words are the
        agent's; whatever else says that it starts a shim has a moment for that. None: it is not told yet what it has executed.

        Args:
            age_ns: for how long an agent waits for it.
            asking: that agent; None: any.
        """
        known = self.agents.who(pid)
        by_agent = known is not None and (self._is_agent(known.ppid, None) if asking is None else known.ppid == asking)
        # What others have forked goes on with what these have executed.
        if known is None or (by_agent and not known.executed):
            return None if age_ns < _LAUNCH_NS else False
        if not any(SHIM in word for word in known.argv):
            return False
        is_shim = known.argv[: len(SHIM_WORDS)] == SHIM_WORDS and known.executed == 1
        return age_ns < (_SHIM_NS if is_shim and by_agent else _LAUNCH_NS)

    def judge(self, sender_to: Callable[[End], Sender | None], *, last: bool = False) -> list[Event]:
        """Have those that are held go on, or end them, as soon as it is known which.

        Args:
            sender_to: who was seen to send to an end.
            last: it is not asked again.
        """
        now_ns = time.monotonic_ns()
        found, waiting, going = [], [], []
        for one in self._held:
            sender = sender_to(one.end)
            is_server = self._is_server(one, sender, GIVEN_NS if last else now_ns - one.since_ns)
            if is_server is None:
                waiting.append(self._with_others(one, sender))
            elif is_server:
                found += self._end_held(one)
            else:
                if not one.unseen:
                    self._judged.update((one.end, by.peer.pid) for by in _each_of(sender))
                going.append(one)
        self._held = waiting
        for one in going:
            self._let_go(one)
        return found

    def _with_others(self, held: _Held, sender: Sender | None) -> _Held:
        """Where an agent asks, what belongs to the process stands still as well: it may see what that has read, and answer."""
        peers = (one.peer for one in _each_of(sender) if one.peer.pid != held.pid)
        asking = next((peer.pid for peer in peers if self._is_agent(peer.pid, peer.exe)), None)
        if held.others is not None or asking is None:
            return held
        stopped = self._signal_all(held.pid, held.end, signal.SIGSTOP, asking=asking)
        others = tuple(one for one in stopped if one.pid != held.pid)
        return replace(held, asking=asking, others=others, still_ns=time.monotonic_ns())

    def _is_server(self, held: _Held, sender: Sender | None, age_ns: int) -> bool | None:
        """Whether an agent waits for what this process says to its question; None: that cannot be said yet."""
        # A shim that says why a server does not start has not read what it is asked.
        may_be_shim = held.unseen and not any(one.answered for one in _each_of(sender))
        asks_the_gate = may_be_shim and self._asks_the_gate(held.pid, age_ns)
        if asks_the_gate is not False:
            return False if asks_the_gate else None
        if held.sought and (sender is None or held.end not in self._asked):
            return False
        if sender is None:
            # A call that sends may end after another process has read what it sent.
            if held.unseen:
                return None if age_ns < GIVEN_NS and self._is_open_to_agents(held) else False
            return None if age_ns < GIVEN_NS else self._is_open_to_agents(held)
        found = {self._is_waited_for(held, one, age_ns) for one in _each_of(sender)}
        return True if True in found else None if None in found else False

    def _is_waited_for(self, held: _Held, sender: Sender, age_ns: int) -> bool | None:
        """The same of one that has sent there: whoever else does says nothing of an agent that asks."""
        asking = sender.peer
        if asking.pid == held.pid or held.pid == self.agent or not self._is_agent(asking.pid, asking.exe):
            return False
        if held.unseen and not sender.asks:
            return None if age_ns < (GIVEN_NS if sender.unfinished else _TOLD_NS) else False
        if self._ends.is_finished(asking.pid, held.end, held.channel):
            return False
        # Somebody of the tree woke them, so that they could answer.
        still_ns = age_ns - max(0, held.still_ns - held.since_ns)
        if still_ns > _STOPS_NS and any(map(_was_woken, (held.pid, *(one.pid for one in held.others or ())))):
            return True
        return None if age_ns < GIVEN_NS else sender.sent < GIVEN_BYTES

    def _is_open_to_agents(self, held: _Held) -> bool:
        """Whether an agent has this end open, too, where nobody was seen to send."""
        with contextlib.suppress(OSError, ValueError):
            return any(self._is_agent(pid, None) for pid in self._ends.holders(held.end) if pid != held.pid)
        return True

    def _end_held(self, held: _Held) -> list[Event]:
        """It, and all that was stopped with it, also where something has ended it before."""
        found = self._signal_all(held.pid, held.end, signal.SIGKILL, held.others or (), held.asking)
        os.close(held.process)
        return self._tell_of(found, held.pid, _name_of(held.exe), held.exe)

    def _let_go(self, held: _Held) -> None:
        by_themselves = {one.pid for one in self._held}
        with contextlib.suppress(OSError):
            if held.pid not in by_themselves and self._is_ours(held.pid):
                signal.pidfd_send_signal(held.process, signal.SIGCONT)
        os.close(held.process)
        for other in held.others or ():
            if other.pid not in by_themselves:
                self._signal(other.pid, signal.SIGCONT, other.began)

    def _tell_of(
        self, ended: Iterable[_Member], server: int = 0, name: str = "", exe: str | None = None
    ) -> list[Event]:
        """Of each that was not told of yet.

        Args:
            server: of one that has this name and this program, whatever it has executed since.
        """
        found = [one for one in ended if one.pid not in self._ended]
        self._ended.update(one.pid for one in found)
        return [
            self._told(name, server, exe) if one.pid == server else self._told(_name_of(one.exe), one.pid, one.exe)
            for one in found
        ]

    def _signal_all(
        self,
        server: int,
        end: End | None,
        what: signal.Signals,
        known: Iterable[_Member] = (),
        asking: int | None = None,
    ) -> list[_Member]:
        """Signal a server and all that belongs to it: what an agent started with it, and what has open where it read. A server
        may be many processes, of which one sees what another reads.

        Nobody there starts another one meanwhile, or each would be gone when its turn comes. Those that it comes from or that
        come from it are known at once, and so are first. It looks again until there is no other, for who did not stand still.
        """
        with self._paused():
            start, seen = self._start_of(server, asking), {self.agent, asking or self.agent}
            found = self._signal_each(lambda pid: self._comes_from(pid, start), what, seen, server)
            if end is not None:
                found += self._signal_each(lambda pid: self._is_at(pid, end, asking), what, seen)
            again = (self._signal(one.pid, what, one.began) for one in known if one.pid not in seen)
            found += [one for one in again if one is not None]
        return found

    def _signal_each(
        self, belongs: Callable[[int], bool], what: signal.Signals, seen: set[int], first: int | None = None
    ) -> list[_Member]:
        found = []
        others = {} if first is None else {first: _began(first)}
        for _ in range(_MOST_LOOKS):
            with contextlib.suppress(OSError, ValueError):
                others |= {pid: _began(pid) for pid in self._ends.living() if pid not in seen and belongs(pid)}
            if not others:
                break
            seen.update(others)
            # All are known before the first one has ended: whom it has started would be somebody else's then.
            for pid, began in others.items():
                if (member := self._signal(pid, what, began)) is not None:
                    found.append(member)
            others = {}
        return found

    def _is_at(self, pid: int, end: End, asking: int | None) -> bool:
        if not self._ends.can_read(pid, end):
            return False
        # What an agent starts next may have it, too, until it asks the gate; a server can make itself look like that.
        parent = self._parent_of(pid)
        by_agent = self._is_agent(parent, None) if asking is None else parent == asking
        return not (by_agent and self._asks_the_gate(pid, 0, asking) is not False)

    def _comes_from(self, pid: int, start: int) -> bool:
        for _ in range(_MOST_LOOKS):
            if pid == start:
                return True
            if pid in (0, 1, self.agent):
                break
            pid = self._parent_of(pid)
        return False

    def _start_of(self, pid: int, asking: int | None) -> int:
        """Of those that a process comes from the one that the agent that asks has started, else any agent: a server may look
        like one. Itself where none is known to."""
        found = None if asking is None else self._started_by(lambda parent: parent == asking, pid)
        found = found or self._started_by(lambda parent: parent == self.agent or self._is_agent(parent, None), pid)
        return found or pid

    def _started_by(self, starts: Callable[[int], bool], pid: int) -> int | None:
        for _ in range(_MOST_LOOKS):
            parent = self._parent_of(pid)
            if starts(parent):
                return pid
            if parent in (0, 1):
                break
            pid = parent
        return None

    def _parent_of(self, pid: int) -> int:
        """As the record has it: who has left its parent has another one now."""
        known = self.agents.who(pid)
        return known.ppid if known is not None else proc.parent_of(pid)

    def follow(self, mark: Callable[[int], None]) -> None:
        """Have it told, in a thread, which process takes the place of a first one that only launches the agent.

        It is looked for while sessions begin, when nobody has said anything to the agent yet, and has what the first one has as
        standard input and output. Later ones are agents as well, but not the one that the kernel knows.
        """
        threading.Thread(target=self._follow, args=(mark,), name="mcpguard-agent", daemon=True).start()

    def _follow(self, mark: Callable[[int], None]) -> None:
        current, until = self.agent, time.monotonic() + FOLLOWED_S
        while time.monotonic() < until and not self.agents.is_by_itself(current):
            found = self._launched_by(current)
            if found is None:
                time.sleep(_FOLLOW_S)
            else:
                current = found
                mark(found)

    def _launched_by(self, launcher: int) -> int | None:
        """An agent that it has started in its place. What it merely forked may become any program, and an agent's server."""
        with contextlib.suppress(OSError):
            for pid in cgroup.processes(self._leaf):
                begun = proc.parent_of(pid) == launcher and proc.has_executed(pid)
                if begun and _has_the_same(launcher, pid, 0, 1) and self.agents.has(pid):
                    return pid
        return None

    def _is_agent(self, pid: int, exe: str | None) -> bool:
        """The first process, any that runs an agent's program, or a child of the first that runs the same again, as some
        agents do."""
        if (pid == self.agent and self.told) or self.agents.has(pid, exe):
            return True
        with contextlib.suppress(OSError):
            same = Path(f"/proc/{pid}/exe").readlink() == Path(f"/proc/{self.agent}/exe").readlink()
            return self.told and same and proc.parent_of(pid) == self.agent and self._is_again(pid)
        return False

    def _is_again(self, pid: int) -> bool:
        """The same script or module, too: of two programs of one interpreter the other is no agent."""
        mine, its = (_programs(Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0")) for one in (self.agent, pid))
        return not mine or bool(mine & its)

    def _signal(self, pid: int, what: signal.Signals, began: str | None = None) -> _Member | None:
        """Only a process of this session, and surely the one that was looked at."""
        try:
            process = os.pidfd_open(pid)
        except OSError:
            return None
        with contextlib.suppress(OSError):
            member = _Member(pid, _began(pid), _exe_of(pid))
            if self._is_ours(pid) and began in (None, member.began) and not proc.has_ended(pid):
                signal.pidfd_send_signal(process, what)
                os.close(process)
                return member
        os.close(process)
        return None

    def _is_ours(self, pid: int) -> bool:
        """Raises OSError where there is no such process."""
        return cgroup.is_in(cgroup.in_tree(cgroup.place_of(pid)), cgroup.in_tree(self._leaf))

    def _told(self, name: str, pid: int, exe: str | None) -> Event:
        error = HostError(
            f"the agent started the MCP server {name} around the gate; it was ended",
            why="nobody approved what it is, and nobody judges what is said to it there",
            do="outside of the session: declare it where `mcpguard mcp list` finds it, approve it, and start the agent again",
            code="mcp.around-gate",
        )
        return Event(
            *(time.time_ns(), self._session, Kind.PROCESS, "end", Verdict.DENY),
            pid=pid,
            exe=exe,
            comm=exe.rsplit("/", 1)[-1][:15] if exe else None,
            rule=RULE,
            detail=detail_of(error),
        )


def _began(pid: int) -> str:
    """Empty: there is no such process."""
    return "".join(proc.stat_of(pid)[proc.START : proc.START + 1])


def _was_woken(pid: int) -> bool:
    """Whether a process that was stopped goes on; one that waits for the kernel (`D`) cannot stop yet."""
    return proc.stat_of(pid)[proc.STATE :][:1] in (["R"], ["S"])


def _has_the_same(one: int, other: int, *numbers: int) -> bool:
    """Whether two processes have the same open under these numbers, as far as they show it."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        try:
            return all(Path(f"/proc/{one}/fd/{number}").samefile(f"/proc/{other}/fd/{number}") for number in numbers)
        except PermissionError:
            return True
    return False


def _programs(words: Sequence[bytes]) -> set[bytes]:
    """What a command line may have an interpreter run: words that are paths, and what follows `-m`."""
    paths = {word for word in words[1:] if b"/" in word and not word.startswith(b"-")}
    return paths | {word for before, word in itertools.pairwise(words) if before == b"-m"}


def _exe_of(pid: int) -> str | None:
    with contextlib.suppress(OSError):
        return str(Path(f"/proc/{pid}/exe").readlink())
    return None


def _name_of(exe: str | None) -> str:
    return exe.rsplit("/", 1)[-1] if exe else "unknown"


def _is_mcp(message: McpMessage) -> bool:
    params = {}
    with contextlib.suppress(ValueError):
        params = json.loads(message.arguments or "{}")
    return asks(message.method, params)


def _each_of(sender: Sender | None) -> tuple[Sender, ...]:
    return () if sender is None else (sender, *sender.others)


def _is_question(text: bytes) -> bool:
    """Whether a question of MCP is among what was read; of what was not seen whole the kernel's word for it counts."""
    unsure = not text
    for line in filter(None, text.split(b"\n")):
        try:
            messages = _each(json.loads(line))
        except (ValueError, RecursionError):
            unsure |= not _INITIALIZE.search(line) or bool(_DATED.search(line))
            continue
        if any(isinstance(one, dict) and asks(one.get("method"), one.get("params")) for one in messages):
            return True
    return unsure


def _each(message: object) -> list[object]:
    return message if isinstance(message, list) else [message]
