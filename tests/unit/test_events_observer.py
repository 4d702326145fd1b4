"""MCP messages from pieces of streams: however they are cut, on whatever connection, each is one event, with its pair."""

from __future__ import annotations

import gzip
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.events import observer as observing
from mcpguard.events.observer import FORGOTTEN, NOT_READ, NOT_WHOLE, Observer
from mcpguard.events.processes import Process
from mcpguard.events.server_names import server_name
from mcpguard.model.event import Event
from mcpguard.wire.records import Head, MessageRecord

AGENT, SERVER_PID, OTHER, STARTED = 10, 11, 12, 13
PROCESSES = {
    AGENT: Process(AGENT, 1, "/usr/bin/agent", ("agent",)),
    SERVER_PID: Process(SERVER_PID, AGENT, "/usr/bin/node", ("node", "/x/node_modules/@mcp/files/dist/index.js")),
    OTHER: Process(OTHER, AGENT, "/usr/bin/python3.11", ("python3", "-m", "mcp_server_time")),
    STARTED: Process(STARTED, SERVER_PID, "/usr/bin/python3.11", ("python3", "-m", "mcp_server_git")),
}
PIPES = 7


class Clock:
    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        self.now_ns += 1000
        return self.now_ns


class Sender:
    """One end of a connection; `say` makes the records of what is sent, cut as told."""

    def __init__(self, clock: Clock, pid: int, own: int, far: int, **more: Any) -> None:
        self._clock = clock
        self._fields = {"input": (0, 0), "ports": (0, 0), "channel": "pipe", "output": False} | more
        self._pid, self._own, self._far = pid, own, far
        self._at = 0

    def say(
        self, data: bytes, cuts: Iterable[int] = (), *, lost: int = 0, ends_line: bool = False
    ) -> list[MessageRecord]:
        places = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
        pieces = [data[a:b] for a, b in itertools.pairwise(places)] if data else []
        records = [self._record(piece) for piece in pieces]
        if lost:
            records.append(self._record(b"", lost))
        return records

    def _record(self, data: bytes, lost: int = 0) -> MessageRecord:
        head = Head(self._clock(), self._pid, self._pid, 1, "x", 0)
        far = (PIPES, self._far) if self._far else None
        record = MessageRecord(
            *(head, self._at, (PIPES, self._own), far), data=data, lost=lost, ends_line=False, **self._fields
        )
        self._at += len(data) + lost
        return record


class World:
    """An observer, and a client and a server over two pipes (1: to the server, 2: back)."""

    def __init__(self, *, gated: bool = False) -> None:
        self.clock = Clock()
        self.observer = Observer("s", lambda ns: ns, self.clock, PROCESSES.get, gated=gated)
        self.client = self.sender(AGENT, 1, 1)
        self.server = self.sender(SERVER_PID, 2, 2, input=(PIPES, 1), output=True)
        self.events: list[Event] = []

    def sender(self, pid: int, own: int, far: int, **more: Any) -> Sender:
        return Sender(self.clock, pid, own, far, **more)

    def see(self, *records: list[MessageRecord]) -> None:
        for portion in records:
            self.events += self.observer.feed(portion)

    def end(self) -> list[Event]:
        self.events += self.observer.tick(everything=True)
        return self.events


def ask(id: Any, method: str = "tools/call", **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).encode() + b"\n"


def answer(id: Any, **result: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": id, "result": result}).encode() + b"\n"


def told(events: Iterable[Event]) -> list[tuple[Any, ...]]:
    """Op, sender, method, id, tool, server of each."""
    found = []
    for event in events:
        message = event.mcp
        assert message is not None
        found.append((event.op, message.sender, message.method, message.id, message.tool, message.server))
    return found


def calls(events: Iterable[Event]) -> dict[str, list[str]]:
    """Call -> what was told under it."""
    found: dict[str, list[str]] = {}
    for event in events:
        if event.mcp is not None and event.mcp.call is not None:
            found.setdefault(event.mcp.call, []).append(event.op)
    return found


def test_a_call_and_its_answer_are_two_events_with_both_processes() -> None:
    world = World()
    world.see(world.client.say(ask(0, name="read", arguments={"path": "/a"})), world.server.say(answer(0, content=[])))
    asked, answered = world.end()
    assert told([asked, answered]) == [
        ("request", "client", "tools/call", "0", "read", "@mcp/files"),
        ("response", "server", "tools/call", "0", "read", "@mcp/files"),
    ]
    assert asked.mcp and answered.mcp and asked.mcp.call == answered.mcp.call
    assert (asked.pid, answered.pid) == (AGENT, SERVER_PID)
    assert asked.mcp.client == answered.mcp.client and asked.mcp.peer == answered.mcp.peer
    assert asked.mcp.peer is not None and asked.mcp.peer.exe == "/usr/bin/node"
    assert answered.mcp.result_bytes == len(answer(0, content=[])) - 1 and answered.mcp.duration_ns == 1000


_MESSAGES = st.lists(
    st.tuples(st.sampled_from(["client", "server"]), st.sampled_from([0, 1, "a", "0"]), st.text(max_size=30)),
    max_size=8,
)


@settings(deadline=None)
@given(_MESSAGES, st.lists(st.integers(1, 400), max_size=60), st.booleans())
def test_any_cut_of_any_messages_gives_the_same_events(
    messages: list[tuple[str, Any, str]], cuts: list[int], byte_by_byte: bool
) -> None:
    def events(cuts: Iterable[int]) -> list[tuple[Any, ...]]:
        world = World()
        streams = {"client": b"", "server": b""}
        for side, id, text in messages:
            other = "server" if side == "client" else "client"
            streams[side] += ask(id, "x/" + text, text=text)
            streams[other] += answer(id, text=text)
        world.see(world.client.say(streams["client"], cuts), world.server.say(streams["server"], cuts))
        return sorted(told(world.end()), key=repr)

    whole = events(())
    assert events(range(10_000) if byte_by_byte else cuts) == whole
    assert len(whole) == 2 * len(messages)
    assert all(method is not None for _, _, method, *_ in whole if len({id for _, id, _ in messages}) == len(messages))


def test_both_number_from_zero_and_neither_takes_the_others_answer() -> None:
    world = World()
    world.see(
        world.client.say(ask(0, "tools/list")),
        world.server.say(ask(0, "roots/list")),
        world.client.say(answer(0, roots=[])),
        world.server.say(answer(0, tools=[])),
    )
    assert [row[:4] for row in told(world.end())] == [
        ("request", "client", "tools/list", "0"),
        ("request", "server", "roots/list", "0"),
        ("response", "client", "roots/list", "0"),
        ("response", "server", "tools/list", "0"),
    ]


def test_two_servers_with_equal_ids_are_told_apart() -> None:
    world = World()
    client, server = world.sender(AGENT, 3, 3), world.sender(OTHER, 4, 4, input=(PIPES, 3), output=True)
    world.see(
        world.client.say(ask(1, name="one")),
        client.say(ask(1, name="two")),
        server.say(answer(1)),
        world.server.say(answer(1)),
    )
    rows = told(world.end())
    assert {row[4:] for row in rows} == {("one", "@mcp/files"), ("two", "mcp_server_time")}
    assert sorted(map(sorted, calls(world.events).values())) == [["request", "response"]] * 2


def test_servers_that_moved_their_output_elsewhere_are_found_by_their_answers() -> None:
    world = World()
    hidden = world.sender(SERVER_PID, 5, 5)
    world.see(world.client.say(ask(7, name="one")), hidden.say(answer(7)))
    assert {row[5] for row in told(world.end())} == {"@mcp/files"}
    assert [len(ops) for ops in calls(world.events).values()] == [2]


def test_an_agent_that_is_a_server_itself_is_not_taken_for_its_own_client() -> None:
    world = World()
    above = world.sender(OTHER, 20, 20)  # asks the agent
    agent_out = world.sender(AGENT, 21, 21, input=(PIPES, 20), output=True)
    agent_asks = world.sender(AGENT, 1, 1, input=(PIPES, 20))
    world.see(
        above.say(ask(1, name="outer")),
        agent_asks.say(ask(1, name="inner")),
        world.server.say(answer(1, inner=True)),
        agent_out.say(answer(1, outer=True)),
    )
    by_call = {event.mcp.tool: event.mcp.server for event in world.end() if event.mcp and event.op == "response"}
    assert by_call == {"inner": "@mcp/files", "outer": "agent"}


@pytest.mark.parametrize("three", [False, True])
def test_socketpairs_for_both_directions_or_one_for_each(three: bool) -> None:
    world = World()
    client = world.sender(AGENT, 30, 31, channel="unix")
    if three:
        server = world.sender(SERVER_PID, 32, 33, channel="unix", input=(PIPES, 31), output=True)
    else:
        server = world.sender(SERVER_PID, 31, 30, channel="unix", input=(PIPES, 31), output=True)
    world.see(client.say(ask(1, name="a") + ask(2, name="b")), server.say(answer(2) + answer(1)))
    rows = told(world.end())
    assert [(row[0], row[4]) for row in rows] == [
        ("request", "a"),
        ("request", "b"),
        ("response", "b"),
        ("response", "a"),
    ]
    assert {row[5] for row in rows} == {"@mcp/files"}


def test_an_answer_that_is_seen_before_its_question() -> None:
    world = World()
    world.see(world.client.say(ask(0)), world.server.say(answer(0)))
    question = world.client.say(ask(1, name="late"))
    world.see(world.server.say(answer(1)), question)
    assert [row[:4] for row in told(world.end())][2:] == [
        ("request", "client", "tools/call", "1"),
        ("response", "server", "tools/call", "1"),
    ]


def test_an_answer_without_a_question_is_told_as_such() -> None:
    world = World()
    world.see(world.client.say(ask(0)), world.server.say(answer(0) + answer(99)))
    stray = world.end()[-1]
    assert stray.mcp is not None and (stray.mcp.method, stray.mcp.id) == (None, "99")
    assert stray.detail == "its request was not seen"


def test_pieces_out_of_their_order_and_one_that_never_comes() -> None:
    world = World()
    first, second, third = (world.client.say(ask(number, name=f"n{number}")) for number in range(3))
    world.see(first, third, second)
    world.client.say(ask(3))
    world.see(world.client.say(ask(4, name="n4")))
    assert [row[4] for row in told(world.end())] == ["n0", "n1", "n2", "n4"]
    assert world.observer.take_lost() == {NOT_WHOLE: 1}


def test_what_is_too_long_is_lost_alone() -> None:
    world = World()
    long = ask(1, text="x" * (1 << 20))
    most = ask(2, text="")
    most = ask(2, text="x" * ((1 << 20) - len(most) + 1))
    assert len(most) == (1 << 20) + 1  # with its line feed
    world.see(world.client.say(ask(0) + long + most + ask(3), range(0, 1 << 22, 8192)))
    assert [row[3] for row in told(world.end())] == ["0", "2", "3"]
    assert world.observer.take_lost() == {NOT_WHOLE: 1}


@pytest.mark.parametrize(("rest", "kept"), [(b"", ["0", "2", "3"]), (b'end of 1"}}\n', ["0", "2", "3"])])
def test_after_a_gap_the_next_message_that_is_whole_is_read(rest: bytes, kept: list[str]) -> None:
    world = World()
    world.see(world.client.say(ask(0)), world.client.say(ask(1)[:20], lost=500))
    world.see(world.client.say(rest + ask(2) + ask(3)))
    assert [row[3] for row in told(world.end())] == kept
    assert world.observer.take_lost() == {NOT_WHOLE: 1}


def test_batches_notifications_unknown_methods_and_what_cannot_be_read() -> None:
    world = World()
    batch = b"[" + ask(1, "a/b").strip() + b"," + ask(2, "c/d").strip() + b"]\n"
    world.see(
        world.client.say(batch + b'{"jsonrpc":"2.0","method":"notifications/odd"}\n{"broken": \nbanner\n' + ask(3))
    )
    assert [row[:4] for row in told(world.end())] == [
        ("request", "client", "a/b", "1"),
        ("request", "client", "c/d", "2"),
        ("notification", "client", "notifications/odd", None),
        ("request", "client", "tools/call", "3"),
    ]
    assert world.observer.take_lost() == {NOT_READ: 1}


@pytest.mark.parametrize("cut", [0, 30])
def test_answers_in_a_batch_are_told_each_with_its_question(cut: int) -> None:
    """Of two servers with the same ids, each to whom it answers."""
    world = World()
    other = world.sender(AGENT, 3, 3), world.sender(OTHER, 4, 4, input=(PIPES, 3), output=True)
    world.see(world.client.say(ask(0, name="a") + ask("0", name="b")), other[0].say(ask(0, name="c")))
    both = [{"jsonrpc": "2.0", "id": id, "result": {"text": "x" * size}} for id, size in (("0", 5), (0, 50))]
    world.see(world.server.say(json.dumps(both).encode() + b"\n", [cut]))
    world.see(other[1].say(json.dumps(both[1:]).encode() + b"\n"))
    events = world.end()
    assert told(event for event in events if event.op == "response") == [
        ("response", "server", "tools/call", '"0"', "b", "@mcp/files"),
        ("response", "server", "tools/call", "0", "a", "@mcp/files"),
        ("response", "server", "tools/call", "0", "c", "mcp_server_time"),
    ]
    assert sorted(calls(events).values()) == [["request", "response"]] * 3
    sizes = [event.mcp.result_bytes or 0 for event in events if event.op == "response" and event.mcp]
    assert sizes[1] - sizes[0] == 45 - 2 and sizes[1] == sizes[2]


def test_json_of_another_kind_is_left_alone() -> None:
    world = World()
    world.see(world.client.say(b'{"id":1,"type":"x"}\n' * 10))
    assert world.end() == [] and world.observer.take_lost() == {}


def test_errors_of_the_protocol_and_of_tools() -> None:
    world = World()
    failed = {"content": [{"type": "text", "text": "no such file"}], "isError": True}
    error = {"jsonrpc": "2.0", "id": 1, "error": {"code": -32601, "message": "Method not found"}}
    world.see(
        world.client.say(ask(0) + ask(1)), world.server.say(answer(0, **failed) + json.dumps(error).encode() + b"\n")
    )
    found = [event.mcp for event in world.end() if event.mcp and event.op == "response"]
    assert [(one.error_code, one.error) for one in found] == [(None, "no such file"), (-32601, "Method not found")]
    assert found[0].result_bytes and found[1].result_bytes is None


def test_what_a_gate_tells_is_not_told_again_even_when_it_speaks_up_later() -> None:
    world = World()
    world.see(world.client.say(ask(0, "initialize")))
    assert world.events == []
    world.observer.skip([(os.makedev(0, PIPES), 1), (os.makedev(0, PIPES), 2)])
    world.see(world.client.say(ask(1)), world.server.say(answer(0) + answer(1)))
    assert world.end() == []
    other = world.sender(AGENT, 40, 40)
    world.see(other.say(ask(0)))
    assert len(world.end()) == 1


def test_what_was_said_to_a_server_that_may_not_start_is_forgotten_and_no_more_than_that() -> None:
    world = World()
    world.see(world.client.say(ask(0, "initialize")))
    world.observer.skip([(os.makedev(0, PIPES), 1)], served=False)
    world.clock.now_ns += 2 * observing.EARLY_NS
    world.see(world.client.say(ask(1)))
    assert [row[3] for row in told(world.end())] == ["1"]


def test_what_has_no_other_direction_is_told_after_a_while() -> None:
    world = World()
    world.see(world.client.say(ask(0)))
    assert world.events == []
    world.clock.now_ns += observing.HOLD_NS
    assert [row[3] for row in told(world.observer.tick())] == ["0"]


def test_who_sends_to_an_end_is_known_from_its_first_piece_on() -> None:
    world = World()
    assert world.observer.sender_to((PIPES, 1)) is None
    world.see(world.client.say(ask(1)[:20]))
    found = world.observer.sender_to((PIPES, 1))
    assert found is not None and (found.peer.pid, found.peer.exe, found.sent) == (AGENT, "/usr/bin/agent", 20)
    assert found.unfinished and not found.asks
    world.see(world.client.say(ask(1)[20:]), world.server.say(answer(1)))
    assert (found := world.observer.sender_to((PIPES, 1))) is not None and found.sent == len(ask(1))
    assert found.asks and not found.unfinished, "it is whole, and a question of MCP"
    assert (found := world.observer.sender_to((PIPES, 2))) is not None and found.peer.pid == SERVER_PID
    assert not found.asks, "an answer"


def test_where_questions_are_sent_to_is_known_until_somebody_else_tells_of_it() -> None:
    world = World()
    world.see(world.client.say(ask(1)), world.server.say(answer(1)))
    (asked,) = world.observer.asked()
    assert (asked.end, asked.channel, asked.sender) == ((PIPES, 1), "pipe", world.observer.sender_to((PIPES, 1)))
    world.observer.skip([(os.makedev(0, PIPES), 1)])
    assert world.observer.asked() == []


NOTE = b'{"jsonrpc":"2.0","method":"notifications/message","params":{}}\n'


def as_sent_by(pid: int, records: list[MessageRecord]) -> list[MessageRecord]:
    return [replace(one, head=replace(one.head, pid=pid)) for one in records]


@pytest.mark.parametrize(
    "before", [NOTE, NOTE[:30], b'{"id": 1, "a": 2}\n' * (observing.MOST_FOREIGN + 1), b"x" * 70_000, b""]
)
def test_what_others_send_there_hides_no_question(before: bytes) -> None:
    """Not what is no message, nor what does not end, and they do not stand for who asks."""
    world = World()
    lines = before.splitlines(keepends=True)
    world.see(*(as_sent_by(OTHER, world.client.say(line)) for line in lines), world.client.say(ask(1)))
    world.see(as_sent_by(OTHER, world.client.say(NOTE)))
    (asked,) = world.observer.asked()
    assert (asked.sender.peer.pid, asked.sender.asks, asked.sender.sent) == (AGENT, True, len(ask(1)))
    last = world.observer.sender_to((PIPES, 1))
    assert last is not None and (last.peer.pid, last.asks) == (OTHER, False)
    assert [(one.peer.pid, one.asks) for one in last.others] == [(AGENT, True)]


def test_senders_are_bounded_and_who_asks_is_kept() -> None:
    world = World()
    world.see(world.client.say(ask(1)))
    for pid in range(1_000, 1_000 + 2 * observing.MOST_SENDERS):
        world.see(as_sent_by(pid, world.client.say(NOTE)))
    last = world.observer.sender_to((PIPES, 1))
    assert last is not None and len(last.others) == observing.MOST_SENDERS - 1 and last.others[-1].peer.pid == AGENT


@pytest.mark.parametrize(
    ("then", "answered"),
    [
        (NOTE, False),
        (ask(0, "initialize", protocolVersion="2025-11-25"), False),
        (b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n', True),
        (ask(1), True),
    ],
)
def test_what_a_client_says_shows_that_it_was_answered(then: bytes, answered: bool) -> None:
    world = World()
    world.see(world.client.say(ask(0, "initialize", protocolVersion="2025-11-25")), world.client.say(then))
    (asked,) = world.observer.asked()
    assert asked.sender.answered is answered


def test_a_gate_that_refuses_a_server_hides_no_question() -> None:
    """Whoever is asked could be refused as often as it wants."""
    world = World(gated=True)
    world.see(world.client.say(ask(1)))
    world.observer.skip([(os.makedev(0, PIPES), 1)], served=False)
    world.see(world.client.say(ask(2)))
    assert [one.end for one in world.observer.asked()] == [(PIPES, 1)] and world.end() == []


def test_where_there_is_a_gate_what_was_asked_waits_longer_for_its_word() -> None:
    """A shim that comes late, or that the gate looks at for long, is no reason to tell what was said to it twice."""
    world = World(gated=True)
    world.see(world.client.say(ask(0, "initialize")))
    world.clock.now_ns += observing.HOLD_NS
    assert world.observer.tick() == []
    world.observer.skip([(os.makedev(0, PIPES), 1)])
    world.clock.now_ns += observing.GATED_HOLD_NS
    assert world.end() == []
    other = world.sender(AGENT, 40, 40)
    world.see(other.say(ask(1)))
    world.clock.now_ns += observing.GATED_HOLD_NS
    assert [row[3] for row in told(world.observer.tick())] == ["1"]


def test_a_key_in_the_address_of_a_server_is_masked() -> None:
    world = World()
    client = world.sender(AGENT, 60, 0, channel="tcp", ports=(5000, 9000))
    world.see(client.say(post(ask(7, name="read"), f"/s/ghp_{'Zq8LmN3rT7' * 4}/mcp")))
    world.clock.now_ns += observing.HOLD_NS
    assert [row[5] for row in told(world.observer.tick())] == ["http://localhost:9000/s/***/mcp"]


def test_what_is_asked_of_a_server_outside_the_tree_waits_for_no_gate() -> None:
    """Its answers are not seen, and ports of a gate are known beforehand."""
    world = World(gated=True)
    client = world.sender(AGENT, 60, 0, channel="tcp", ports=(5000, 9000))
    world.see(client.say(post(ask(7, name="read").rstrip())))
    assert world.events == []
    world.clock.now_ns += observing.HOLD_NS
    assert [row[3:] for row in told(world.observer.tick())] == [("7", "read", "http://localhost:9000/mcp")]


class Known:
    """Who has which ends."""

    def __init__(self) -> None:
        self.input: tuple[int, int] | None = None
        self.standard_inputs: set[int] = set()
        self.open: dict[int, set[int] | None] = {}
        self.pids: dict[int, list[int]] = {}

    def readers(self, end: tuple[int, int]) -> list[int]:
        return self.pids.get(end[1], [OTHER] if end[1] in self.standard_inputs else [])

    def holds(self, pid: int, end: tuple[int, int]) -> bool | None:
        found = self.open.get(pid, set())
        return None if found is None else end[1] in found


def known(world: World) -> Known:
    made = Known()
    world.observer._ends = made  # type: ignore[assignment]
    return made


def test_what_a_program_prints_unasked_is_data_unless_somebody_reads_it_as_a_server_would() -> None:
    """`git cat-file --batch` prints files; `cat calls | server` asks a server."""
    lines = ask(1, name="one") + answer(1) + ask(2, "initialize")
    for reads, session_input in itertools.product((False, True), (False, True)):
        world = World()
        ends = known(world)
        ends.standard_inputs = {30} if reads else set()
        ends.input = (PIPES, 31) if session_input else None
        world.see(world.sender(OTHER, 30, 30, output=True, input=(PIPES, 31)).say(lines))
        assert bool(world.end()) is (reads or session_input)
        assert not world.observer.take_lost()


def test_a_reader_that_comes_later_is_seen() -> None:
    world = World()
    ends = known(world)
    world.see(world.sender(OTHER, 30, 30, output=True).say(ask(1)))
    ends.standard_inputs = {30}
    world.clock.now_ns += observing.HOLD_NS // 2
    world.see([])
    ends.standard_inputs = set()
    world.clock.now_ns += observing.HOLD_NS
    world.see([])
    assert len(world.events) == 1


@pytest.mark.parametrize(
    ("reads", "name", "pid"),
    [
        ([AGENT, SERVER_PID], "@mcp/files", SERVER_PID),
        ([SERVER_PID, STARTED], "mcp_server_git", STARTED),
        ([SERVER_PID, OTHER], "unknown", None),
        ([], "unknown", None),
    ],
)
def test_a_server_that_takes_longer_than_a_question_waits_is_named_by_what_it_reads(
    reads: list[int], name: str, pid: int | None
) -> None:
    """Where that is one process, or one below all the others; an answer brings a name where there was none."""
    world = World()
    known(world).pids = {1: reads}
    world.see(world.client.say(ask(0, name="read")))
    world.clock.now_ns += observing.HOLD_NS
    world.see([])
    (asked,) = world.events
    assert told([asked])[0][4:] == ("read", name)
    assert asked.mcp and (asked.mcp.peer.pid if asked.mcp.peer else None) == pid
    world.see(world.server.say(answer(0)))
    assert told(world.end())[1][0::5] == ("response", name if pid else "@mcp/files")


def test_a_server_that_speaks_first_is_no_data_once_it_is_asked() -> None:
    world = World()
    known(world)
    note = b'{"jsonrpc":"2.0","method":"notifications/message","params":{}}\n'
    world.see(world.server.say(note), world.client.say(ask(1)), world.server.say(answer(1)))
    assert [row[0] for row in told(world.end())] == ["notification", "request", "response"]


@pytest.mark.parametrize(
    ("output", "has", "pairs"),
    [
        (True, set(), False),
        (True, {1}, True),
        (True, None, False),
        (False, set(), False),
        (False, {1}, True),
        (False, None, True),
    ],
)
def test_what_looks_like_an_answer_is_one_from_who_can_have_read_the_question(
    output: bool, has: set[int] | None, pairs: bool
) -> None:
    world = World()
    ends = known(world)
    ends.open[OTHER] = has
    ends.standard_inputs = {30}
    world.see(world.client.say(ask(7, name="one")))
    world.see(world.sender(OTHER, 30, 30, output=output, input=(0, 9)).say(answer(7)))
    assert any(len(ops) == 2 for ops in calls(world.end()).values()) is pairs


def test_connections_and_what_they_hold_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing, "MOST_STREAMS", 4)
    monkeypatch.setattr(observing, "MOST_HELD", 1000)
    world = World()
    for number in range(10):
        world.see(world.sender(AGENT, 100 + number, 100 + number).say(ask(number) + ask(1)[:-1] + b" " * 400))
    world.end()
    lost = Counter(world.observer.take_lost())
    assert lost[FORGOTTEN] == 6 and lost[NOT_WHOLE] > 0


def test_what_is_held_back_is_bounded_in_all_and_told_when_it_is_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that talks to nobody has only its own record come sooner."""
    monkeypatch.setattr(observing, "MOST_HELD", 5_000)
    world = World(gated=True)
    quiet = world.sender(AGENT, 50, 50)
    world.see(quiet.say(ask("quiet")))
    for number in range(40):
        world.see(world.client.say(ask(number, text="x" * 400)))
        held = sum(len(stream.back) for stream in world.observer._streams.values())
        assert held <= 11
    assert len(world.events) >= 30 and "quiet" not in str(told(world.events))
    assert len(world.end()) == 41 and not world.observer.take_lost()


# HTTP.


def post(body: bytes, path: str = "/mcp", *extra: str, chunked: bool = False) -> bytes:
    kind = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    lines = [f"POST {path} HTTP/1.1", "Host: localhost:9000", "Content-Type: application/json", kind, *extra, "", ""]
    return "\r\n".join(lines).encode() + (chunks(body) if chunked else body)


def chunks(body: bytes) -> bytes:
    parts = [body[at : at + 40] for at in range(0, len(body), 40)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def reply(body: bytes, kind: str = "application/json", *extra: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *extra, "", ""]
    return "\r\n".join(lines).encode() + body


def stream(*events: bytes, end: bool = True) -> bytes:
    body = b"".join(events)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + (chunks(body) if end else b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in events))


def event(data: bytes, name: str = "message") -> bytes:
    return b"event: " + name.encode() + b"\r\ndata: " + data.strip() + b"\r\n\r\n"


def http(world: World, port: int = 5000, pid: int = AGENT, first: int = 200) -> tuple[Sender, Sender]:
    client = world.sender(pid, first, 0, channel="tcp", ports=(port, 9000))
    server = world.sender(SERVER_PID, first + 1, 0, channel="tcp", ports=(9000, port))
    return client, server


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 1500), max_size=40), st.booleans(), st.booleans())
def test_http_json_and_event_streams_however_they_are_cut(cuts: list[int], chunked: bool, zipped: bool) -> None:
    world = World()
    client, server = http(world)
    body = answer(2, content=[])
    json_reply = reply(gzip.compress(body), "application/json", "Content-Encoding: gzip") if zipped else reply(body)
    world.see(client.say(post(ask(1, name="a"), chunked=chunked) + post(ask(2, name="b"), chunked=chunked), cuts))
    world.see(server.say(stream(b": ping\n\n", event(ask(0, "ping")), event(answer(1))) + json_reply, cuts))
    rows = told(world.end())
    assert [row[:5] for row in rows] == [
        ("request", "client", "tools/call", "1", "a"),
        ("request", "client", "tools/call", "2", "b"),
        ("request", "server", "ping", "0", None),
        ("response", "server", "tools/call", "1", "a"),
        ("response", "server", "tools/call", "2", "b"),
    ]
    assert {row[5] for row in rows} == {"http://localhost:9000/mcp"}
    assert [one.mcp.transport for one in world.events if one.mcp] == ["http", "http", "sse", "sse", "http"]


def test_two_http_clients_with_equal_ids() -> None:
    world = World()
    (one, one_back), (two, two_back) = http(world, 5000), http(world, 5001, OTHER, 300)
    world.see(one.say(post(ask(1, name="one"))), two.say(post(ask(1, name="two"))))
    world.see(two_back.say(reply(answer(1))), one_back.say(reply(answer(1))))
    responses = [one for one in world.end() if one.op == "response"]
    assert [one.mcp.tool for one in responses if one.mcp] == ["two", "one"]
    assert [one.mcp.client and one.mcp.client.pid for one in responses if one.mcp] == [OTHER, AGENT]


def test_the_old_transport_answers_on_another_connection() -> None:
    world = World()
    listen, listened = http(world, 5000)
    world.see(listen.say(b"GET /sse HTTP/1.1\r\nHost: localhost:9000\r\nAccept: text/event-stream\r\n\r\n"))
    world.see(listened.say(stream(event(b"/messages/?session_id=abc", "endpoint"), end=False)))
    send, sent = http(world, 5001, first=300)
    world.see(send.say(post(ask(1, name="old"), "/messages/?session_id=abc")))
    world.see(sent.say(b"HTTP/1.1 202 Accepted\r\nContent-Length: 8\r\n\r\nAccepted"))
    body = event(answer(1))
    world.see(listened.say(b"%x\r\n%s\r\n" % (len(body), body)))
    assert [row[:5] for row in told(world.end())] == [
        ("request", "client", "tools/call", "1", "old"),
        ("response", "server", "tools/call", "1", "old"),
    ]
    assert [len(ops) for ops in calls(world.events).values()] == [2]


@pytest.mark.parametrize("outside", ["server", "client"])
def test_who_is_outside_of_the_session_has_no_process(outside: str) -> None:
    """What was received has the end, and the process, of who received it."""
    world = World()
    pid = AGENT if outside == "server" else SERVER_PID
    near, far = ((5000, 9000), (9000, 5000)) if outside == "server" else ((9000, 5000), (5000, 9000))
    sent = world.sender(pid, 200, 0, channel="tcp", ports=near)
    received = world.sender(pid, 200, 0, channel="tcp", ports=far, heard=True)
    client, server = (sent, received) if outside == "server" else (received, sent)
    world.see(client.say(post(ask(1, name="a")), [7]), server.say(reply(answer(1)), [9]))
    world.see(server.say(stream(event(ask(0, "ping")))), client.say(post(answer(0))))
    assert told(world.end()) == [
        (op, sender, method, id, tool, "http://localhost:9000/mcp")
        for op, sender, method, id, tool in (
            ("request", "client", "tools/call", "1", "a"),
            ("response", "server", "tools/call", "1", "a"),
            ("request", "server", "ping", "0", None),
            ("response", "client", "ping", "0", None),
        )
    ]
    assert [len(ops) for ops in calls(world.events).values()] == [2, 2]
    for one in world.events:
        assert one.mcp is not None
        here, there = (one.mcp.client, one.mcp.peer) if outside == "server" else (one.mcp.peer, one.mcp.client)
        assert there is None and here is not None and here.pid == pid
        assert one.pid == (None if one.mcp.sender == outside else pid)


def test_other_http_and_broken_http_are_left_out_until_the_next_request() -> None:
    world = World()
    client, server = http(world)
    world.see(client.say(post(ask(1)) + b"\x00\x01 garbage \r\n\r\n"), client.say(post(ask(2))))
    world.see(client.say(post(b'{"model":"m","messages":[]}', "/v1/messages")))
    world.see(server.say(reply(b"<p>", "text/html") + reply(answer(2))))
    assert [row[3] for row in told(world.end())] == ["1", "2", "2"]


@pytest.mark.parametrize(
    ("exe", "argv", "name"),
    [
        ("/usr/bin/node", ("node", "/a/node_modules/@modelcontextprotocol/server-files/dist/index.js", "/x"), None),
        ("/usr/bin/node", ("node", "/a/node_modules/.bin/mcp-server-x"), "mcp-server-x"),
        ("/usr/bin/python3.12", ("python", "-m", "mcp_server_git", "-r", "."), "mcp_server_git"),
        ("/usr/bin/python3.12", ("python", "/venv/bin/mcp-server-time"), "mcp-server-time"),
        ("/usr/bin/python3.12", ("python", "-u", "weather/server.py"), "weather"),
        ("/opt/github-mcp-server", ("/opt/github-mcp-server", "stdio"), "github-mcp-server"),
        ("/usr/bin/bash", ("bash", "-c", "x"), "bash"),
        ("", (), "unknown"),
    ],
)
def test_names_of_servers(exe: str, argv: tuple[str, ...], name: str | None) -> None:
    assert server_name(exe, argv) == (name or "@modelcontextprotocol/server-files")
