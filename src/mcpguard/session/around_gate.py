"""MCP servers that the agent starts around the gate are ended before they can answer.

Nobody judges what an agent and such a server say to each other. What is read tells it: the kernel stops whoever reads a first
question of the protocol that came from within the tree, before that process can do anything with it. Here is said how it goes
on: it is ended where an agent asks, and goes on where another program of the tree does, as the tests of a server do, for that
has the same rights as any other there; unless the profile has all programs count. Data that a program is given to read may hold
the same words: then the agent closes its end behind them, and the program is left alone. What is read in ways that the kernel's
program does not see is told by its answers: the kernel ends who answers the agent's first process, or what that launches in its
place; others are ended here.
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
from mcpguard.session.text_tools import is_text_tool

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
# How others than agents start a shim.
_COMMAND = ("mcp", "shim")
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
        asking: who asks, as far as it is known: an agent, or a program that counts as one.
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
        all_clients: rule by which what every program asks counts; None: what agents ask.
    """

    def __init__(
        self,
        session: str,
        agent: int,
        leaf: str,
        program: str | None = None,
        *,
        told: bool = True,
        all_clients: Origin | None = None,
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
        self.all_clients = all_clients
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
            # What the user has started is nobody's server; else all that it has started would be ended as its family.
            if answering.pid == self.agent:
                continue
            by_agent = self._is_agent(asking.pid, asking.exe)
            # Of another that is not known, or not any more, nobody can say who has started it.
            if not by_agent and (self.agents.who(asking.pid) is None or not self._may_serve(answering.pid, asking.pid)):
                continue
            # Who prints what it was given to read says questions, too, but no answers to them.
            if event.op == RESPONSE or not self._is_given_data(asking.pid, answering.pid, by_agent=by_agent):
                name = message.server if answering is message.peer else _name_of(answering.exe)
                ended = self._signal_all(answering.pid, None, signal.SIGKILL, asking=asking.pid)
                found += self._tell_of(ended, answering.pid, name, answering.exe, asking.pid)
                self._ended.add(answering.pid)
        return found

    def _is_given_data(self, client: int, server: int, *, by_agent: bool) -> bool:
        """Whether an agent has closed its side of what the other has as standard input; or that was judged, or soon is."""
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{server}/fd/0").stat()
            channel = "pipe" if stat.S_ISFIFO(state.st_mode) else "unix" if stat.S_ISSOCK(state.st_mode) else ""
            end = os.major(state.st_dev) << 20 | os.minor(state.st_dev), state.st_ino
            if (end, client) in self._judged or any(held.end == end for held in self._held):
                return True
            return by_agent and bool(channel) and self._ends.is_finished(client, end, channel)
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
            by_agent, since_ns = self._is_agent(asking.pid, asking.exe), before.get(one.end, now_ns)
            # Whom a program asks that is no agent may answer also when that has closed its end.
            if by_agent:
                is_over = self._ends.is_finished(asking.pid, one.end, one.channel)
            else:
                is_over = self.all_clients is None or now_ns - since_ns > _SHIM_NS + _LAUNCH_NS
            if is_over:
                self._judged.add((one.end, asking.pid))
                continue
            found = self._found_at(one, now_ns - since_ns, by_agent=by_agent)
            for pid in found:
                self._stop(pid, one.end, one.channel, now_ns)
            if not found:
                self._sought[one.end] = since_ns

    def _found_at(self, asked: Asked, age_ns: int, *, by_agent: bool) -> list[int]:
        """Who can read at this end; empty as well while one of these may start a shim or asks the gate: but where the agent was
        answered. Where somebody reads and nobody shows it for a while, who does not show what it has, or has descriptors on
        their way to it."""
        if age_ns < _LAUNCH_NS and not asked.sender.answered:
            return []
        asking = asked.sender.peer.pid
        # A program that is no agent may read there itself, or the session's first process what it prints.
        others = () if by_agent else (asking, self.agent)
        shown = self._those_at(asked.end, asking, others)
        if not shown and age_ns < _SHIM_NS and self._ends.is_read(asking, asked.end, asked.channel):
            with self._paused():
                shown = self._those_at(asked.end, asking, others)
                if not shown and age_ns > _TOLD_NS:
                    shown = self._those_who_may_be_at(asked.end, asking)
        found = [pid for pid in shown if by_agent or self._may_serve(pid, asking)]
        if asked.sender.answered:
            return found
        return [] if any(self._asks_the_gate(pid, age_ns, asking) is not False for pid in found) else found

    def _those_at(self, end: End, asking: int, others: Iterable[int] = ()) -> list[int]:
        """Who shows that it can read there, but who asks. Agents as well: a server may have the name or the program of one.

        Args:
            others: are looked at as well.
        """
        return [pid for pid in (*others, *self._living_but(asking)) if self._ends.can_read(pid, end)]

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
            asking: that agent, or who counts as one; None: any agent.
        """
        known = self.agents.who(pid)
        by_agent = known is not None and self._is_by(known.ppid, asking)
        # What others have forked goes on with what these have executed.
        if known is None or (by_agent and not known.executed):
            return None if age_ns < _LAUNCH_NS else False
        if not any(SHIM in word for word in known.argv) and _COMMAND not in itertools.pairwise(known.argv):
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
                found += self._end_held(one, one.asking or self._other_that_asks(one, sender))
            else:
                if not one.unseen:
                    # What an agent asks there was judged. Of another program's questions only this reader was.
                    agents = (by.peer for by in _each_of(sender) if self._is_agent(by.peer.pid, by.peer.exe))
                    self._judged.update((one.end, peer.pid) for peer in agents)
                going.append(one)
        self._held = waiting
        for one in going:
            self._let_go(one)
        return found

    def _with_others(self, held: _Held, sender: Sender | None) -> _Held:
        """Where an agent asks, what belongs to the process stands still as well: it may see what that has read, and answer."""
        peers = (one.peer for one in _each_of(sender) if one.peer.pid != held.pid)
        asking = next((peer.pid for peer in peers if self._is_agent(peer.pid, peer.exe)), None)
        if asking is None and sender is not None:
            other = self._other_that_asks(held, sender)
            asking = None if other is None or self.agents.who(other) is None else other
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
                told = self.all_clients is None or age_ns >= _TOLD_NS
                return False if told and (age_ns >= GIVEN_NS or not self._is_open_to_agents(held)) else None
            if age_ns < GIVEN_NS:
                return None
            return self._is_open_to_agents(held) or self._other_that_asks(held, None) is not None
        found = {self._is_waited_for(held, one, age_ns) for one in _each_of(sender)}
        return True if True in found else None if None in found else False

    def _is_waited_for(self, held: _Held, sender: Sender, age_ns: int) -> bool | None:
        """The same of one that has sent there: whoever else does says nothing of an agent that asks."""
        asking = sender.peer
        by_agent = self._is_agent(asking.pid, asking.exe)
        if asking.pid == held.pid or held.pid == self.agent or not (by_agent or self.all_clients):
            return False
        if held.unseen and not sender.asks:
            return None if age_ns < (GIVEN_NS if sender.unfinished else _TOLD_NS) else False
        if not by_agent:
            return self._is_server_of_other(held, sender, age_ns)
        if self._ends.is_finished(asking.pid, held.end, held.channel):
            return False
        # Somebody of the tree woke them, so that they could answer.
        still_ns = age_ns - max(0, held.still_ns - held.since_ns)
        if still_ns > _STOPS_NS and any(map(_was_woken, (held.pid, *(one.pid for one in held.others or ())))):
            return True
        return None if age_ns < GIVEN_NS else sender.sent < GIVEN_BYTES

    def _is_server_of_other(self, held: _Held, sender: Sender, age_ns: int) -> bool | None:
        """The same where no agent asks, and every program counts. Its questions are no data, also where it closes its end."""
        asking = sender.peer.pid
        if not self._may_serve(held.pid, asking):
            return False
        # What is recorded of either of them comes by another ring.
        reader, client = self.agents.who(held.pid), self.agents.who(asking)
        is_known = sender.asks and client is not None and reader is not None and reader.executed > 0
        return True if is_known or age_ns >= GIVEN_NS else None

    def _may_serve(self, pid: int, asking: int) -> bool:
        """Whether who reads where another asks counts as its server. Where an agent asks everybody does; else neither who has
        started the one that asks, and reads what it prints, nor a text tool that was started beside it, in a pipeline."""
        if self._is_agent(asking, None):
            return True
        if self.all_clients is None:
            return False
        above, known = self._above(asking), self.agents.who(pid)
        if pid == self.agent or pid in above:
            return False
        # What it has executed first was chosen by who has started it, and not by what it was before.
        in_pipeline = known is not None and known.executed == 1 and known.ppid in above
        return known is None or not in_pipeline or not is_text_tool(known.exe, known.argv)

    def _other_that_asks(self, held: _Held, sender: Sender | None) -> int | None:
        """Of those that are no agents, and count, the one that has sent a question there; None was seen to: who can."""
        if self.all_clients is None:
            return None
        asking = [one.peer.pid for one in _each_of(sender) if one.asks]
        if sender is None and held.channel == "pipe":
            with contextlib.suppress(OSError, ValueError):
                asking = [pid for pid in self._ends.living() if self._ends.can_write(pid, held.end)]
        return next((pid for pid in asking if pid != held.pid and self._may_serve(held.pid, pid)), None)

    def _is_open_to_agents(self, held: _Held) -> bool:
        """Whether an agent has this end open, too, where nobody was seen to send."""
        with contextlib.suppress(OSError, ValueError):
            return any(self._is_agent(pid, None) for pid in self._ends.holders(held.end) if pid != held.pid)
        return True

    def _end_held(self, held: _Held, asking: int | None) -> list[Event]:
        """It, and all that was stopped with it, also where something has ended it before."""
        found = self._signal_all(held.pid, held.end, signal.SIGKILL, held.others or (), asking)
        os.close(held.process)
        return self._tell_of(found, held.pid, _name_of(held.exe), held.exe, asking)

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
        self,
        ended: Iterable[_Member],
        server: int = 0,
        name: str = "",
        exe: str | None = None,
        asking: int | None = None,
    ) -> list[Event]:
        """Of each that was not told of yet.

        Args:
            server: of one that has this name and this program, whatever it has executed since.
            asking: who has asked it; None: an agent.
        """
        found = [one for one in ended if one.pid not in self._ended]
        self._ended.update(one.pid for one in found)
        named = {one.pid: (name, exe) if one.pid == server else (_name_of(one.exe), one.exe) for one in found}
        return [self._told(called, pid, program, asking) for pid, (called, program) in named.items()]

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
            start, seen = self._start_of(server, asking), {self.agent, asking or self.agent, *self._above_other(asking)}
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
        return not (self._is_by(self._parent_of(pid), asking) and self._asks_the_gate(pid, 0, asking) is not False)

    def _is_by(self, parent: int, asking: int | None) -> bool:
        """Whether what a process has started was started by who asks; None: by any agent. A program that is no agent may have
        others ask, and start the server itself."""
        if asking is None:
            return self._is_agent(parent, None)
        return parent == asking or parent in self._above_other(asking)

    def _above_other(self, asking: int | None) -> list[int]:
        """Who asks and who that comes from, where it is no agent, and counts; else nobody."""
        is_other = asking is not None and self.all_clients is not None and not self._is_agent(asking, None)
        return self._above(asking) if asking is not None and is_other else []

    def _above(self, pid: int) -> list[int]:
        """A process of the session, and those that it comes from."""
        found: list[int] = []
        while pid not in (0, 1, *found) and len(found) < _MOST_LOOKS:
            found.append(pid)
            pid = 0 if pid == self.agent else self._parent_of(pid)
        return found

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
        like one. Itself where none is known to. Where no agent asks, of those that are not above the one that does."""
        if above := self._above_other(asking):
            return self._started_by(lambda parent: parent in above, pid) or pid
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

    def _told(self, name: str, pid: int, exe: str | None, asking: int | None = None) -> Event:
        declared = "outside of the session: declare it where `mcpguard mcp list` finds it, approve it,"
        rule, who = RULE, "the agent"
        why, do = "nobody approved what it is", f"{declared} and start the agent again"
        if asking is not None and self.all_clients is not None and not self._is_agent(asking, None):
            known = self.agents.who(asking)
            program = known.exe if known is not None and known.exe else _exe_of(asking)
            rule, who = self.all_clients, f"{_name_of(program)}, which is no agent,"
            why = f"`clients: all` ({rule.place}) lets no program of the session do that"
            do = f"{declared} and have it started as `mcpguard mcp shim NAME -- COMMAND`; or take `clients: all` away"
        error = HostError(
            f"{who} started the MCP server {name} around the gate; it was ended",
            why=f"{why}, and nobody judges what is said to it there",
            do=do,
            code="mcp.around-gate",
        )
        return Event(
            *(time.time_ns(), self._session, Kind.PROCESS, "end", Verdict.DENY),
            pid=pid,
            exe=exe,
            comm=exe.rsplit("/", 1)[-1][:15] if exe else None,
            rule=rule,
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
