"""What a call brought about, by the processes and the time of its server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from events_help import OPEN_POLICY, make_policy

from mcpguard.errors import UsageError
from mcpguard.events.effects import Call, calls
from mcpguard.events.mcp import CLIENT, Talk
from mcpguard.events.store import Store
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind, Peer
from mcpguard.model.rule import Origin

RULE = Origin("claude-code", "builtin", 3, "~/.ssh")
BEGAN = 1_760_000_000_000_000_000
AGENT, SERVER, CHILD, GRANDCHILD, STRANGER = 10, 20, 21, 22, 30


def fork(at: int, pid: int, ppid: int) -> Event:
    return Event(BEGAN + at, "s", Kind.PROCESS, "fork", Verdict.ALLOW, pid=pid, ppid=ppid)


def opened(at: int, pid: int, path: str, access: str = "read", verdict: Verdict = Verdict.ALLOW) -> Event:
    return Event(BEGAN + at, "s", Kind.FILE, "open", verdict, access=access, path=path, pid=pid)


def connected(at: int, pid: int, host: str) -> Event:
    return Event(BEGAN + at, "s", Kind.NET, "connect", Verdict.ALLOW, host=host, address="192.0.2.1", port=443, pid=pid)


def refused(path: str, access: str = "read") -> Event:
    return opened(5, SERVER, path, access, Verdict.DENY)


def asked_for(at: int, pid: int, host: str) -> Event:
    return Event(BEGAN + at, "s", Kind.DNS, "query", Verdict.ALLOW, host=host, pid=pid)


def spoken_to(at: int, pid: int, path: str) -> Event:
    return Event(BEGAN + at, "s", Kind.UNIX, "connect", Verdict.ALLOW, path=path, pid=pid)


def call(
    at: int,
    until: int | None,
    id: str,
    arguments: object,
    classes: frozenset[str] = frozenset(),
    pid: int = SERVER,
    tool: str = "read_file",
) -> list[Event]:
    talk = Talk("s", "files", "stdio", Peer(AGENT, "/usr/bin/agent"), Peer(pid, "/usr/bin/node"))
    params = {"name": tool, "arguments": arguments}
    asked = talk.request(BEGAN + at, CLIENT, "tools/call", params, id=1, call=id, classes=classes)
    return [asked] if until is None else [asked, talk.response(BEGAN + until, asked, result_bytes=3)]


def recorded(tmp_path: Path, events: list[Event], only: str | None = None) -> list[Call]:
    with Store.open(tmp_path / "events.db") as store:
        policy = make_policy(*OPEN_POLICY)
        store.start_session(policy, command=("agent",), tier="3", coverage=(), now_ns=BEGAN, session="s")
        store.add("s", [fork(0, SERVER, AGENT), fork(0, STRANGER, AGENT), *events])
        return calls(store, "s", only=only)


def paths(one: Call) -> list[str | None]:
    return [event.path or event.host for event in one.effects]


def test_effects_are_those_of_the_server_and_its_children_in_between(tmp_path: Path) -> None:
    events = [
        opened(50, SERVER, "/before"),
        *call(100, 200, "aa", {"path": "/project"}),
        opened(110, SERVER, "/project/a"),
        fork(115, CHILD, SERVER),
        fork(116, GRANDCHILD, CHILD),
        opened(120, GRANDCHILD, "/project/b"),
        opened(130, STRANGER, "/project/other"),
        opened(140, AGENT, "/project/agent"),
        connected(150, CHILD, "x.test"),
        opened(250, SERVER, "/after"),
    ]
    (one,) = recorded(tmp_path, events)
    assert paths(one) == ["/project/a", "/project/b", "x.test"]
    assert one.response is not None
    assert one.overlaps == []


def test_the_order_of_the_record_does_not_matter(tmp_path: Path) -> None:
    late = [*call(100, 200, "aa", {"path": "/project"}), opened(150, CHILD, "/project/late"), fork(110, CHILD, SERVER)]
    assert paths(recorded(tmp_path, late)[0]) == ["/project/late"]


def test_a_number_that_is_used_again_is_somebody_else(tmp_path: Path) -> None:
    events = [
        fork(1, CHILD, SERVER),
        fork(90, CHILD, STRANGER),
        *call(100, 200, "aa", {}),
        opened(110, CHILD, "/project/not-ours"),
    ]
    assert paths(recorded(tmp_path, events)[0]) == []


def test_calls_that_overlap_share_and_say_so(tmp_path: Path) -> None:
    other = call(105, 400, "cc", {"path": "/x"}, pid=STRANGER)
    events = [*call(100, 300, "aa", {"path": "/a"}), *call(200, None, "bb", {"path": "/b"}), *other]
    events += [opened(150, SERVER, "/a"), opened(250, SERVER, "/b"), opened(350, SERVER, "/b2")]
    first, second, third = recorded(tmp_path, events)
    assert paths(first) == ["/a", "/b"]
    assert paths(second) == ["/b", "/b2"]
    assert (first.overlaps, second.overlaps, third.overlaps) == (["bb"], ["aa"], [])
    assert [one.overlaps for one in recorded(tmp_path / "again", events, only="aa")] == [["bb"]]


def test_a_call_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='no call "zz"'):
        recorded(tmp_path, call(1, 2, "aa", {}), only="zz")


READS = frozenset({"read"})


@pytest.mark.parametrize(
    ("arguments", "classes", "effect", "said"),
    [
        ({"path": "a.txt"}, READS, opened(5, SERVER, "/project/a.txt"), ""),
        ({"path": "a.txt"}, READS, opened(5, SERVER, "/project/b.txt"), "does not name it"),
        ({"path": "a.txt"}, READS, opened(5, SERVER, "/project/a.txt.bak"), "does not name it"),
        ({"path": "/project"}, READS, opened(5, SERVER, "/project/deep/b.txt"), ""),
        ({"path": "/project/a/b"}, READS, opened(5, SERVER, "/project/a"), ""),
        ({"path": "./sub/../a.txt"}, READS, opened(5, SERVER, "/project/a.txt"), ""),
        ({"path": "file:///project/a.txt"}, READS, opened(5, SERVER, "/project/a.txt"), ""),
        ({"paths": ["a.txt", "b.txt"]}, READS, opened(5, SERVER, "/project/b.txt"), ""),
        ({"text": "hello"}, READS, opened(5, SERVER, "/project/b.txt"), ""),
        ({"path": "a.txt"}, READS, opened(5, SERVER, "/usr/lib/libc.so.6"), ""),
        ({"path": "a.txt"}, READS, opened(5, SERVER, "/home/u/p/node_modules/x/index.js"), ""),
        ({"path": "/p/.cache/w/a.txt"}, READS, opened(5, SERVER, "/p/.cache/w/b.txt"), "does not name it"),
        ({"path": "/home/u/a.txt"}, READS, opened(5, SERVER, "/home/u/.cache/uv/x.js"), ""),
        ({"path": "/a.txt"}, READS, opened(5, SERVER, "/b.txt"), "does not name it"),
        ({"path": "/etc/hosts"}, READS, opened(5, SERVER, "/etc/ld.so.cache"), ""),
        ({"path": "a.txt"}, READS, opened(5, SERVER, "/project/b.txt", verdict=Verdict.DENY), ""),
        ({"path": "a.txt"}, READS, replace(refused("/home/u/.ssh/id"), rule=RULE), "does not name it, refused"),
        ({"path": "a.txt"}, READS, refused("/home/u/.bashrc", "write"), "tried to change it"),
        ({"text": "hello"}, READS, opened(5, SERVER, "/tmp/x", "write"), ""),
        ({"path": "a.txt"}, READS, opened(5, SERVER, "/project/a.txt", "read+write"), "only reads changed it"),
        ({"path": "a.txt"}, frozenset(), opened(5, SERVER, "/project/a.txt", "write"), ""),
        ({"path": "a.txt"}, frozenset({"write"}), opened(5, SERVER, "/project/a.txt", "write"), ""),
        ({"path": "a.txt"}, READS, connected(5, SERVER, "evil.test"), "sent something"),
        ({"path": "a.txt"}, READS, replace(connected(5, SERVER, "evil.test"), verdict=Verdict.DENY), "tried to send"),
        (
            {"path": "a.txt"},
            READS,
            asked_for(5, SERVER, "key.evil.test"),
            "query key.evil.test: a tool that only reads sent",
        ),
        ({"path": "a.txt"}, READS, spoken_to(5, SERVER, "/run/user/1000/bus"), "sent something"),
        ({"path": "a.txt"}, READS, spoken_to(5, SERVER, "/run/systemd/userdb/io.systemd.Multiplexer"), ""),
        ({"url": "x"}, frozenset({"read", "open"}), connected(5, SERVER, "good.test"), ""),
        ({"url": "x"}, frozenset({"read", "open"}), asked_for(5, SERVER, "good.test"), ""),
    ],
)
def test_what_is_not_as_it_was_said_is_marked(
    tmp_path: Path, arguments: object, classes: frozenset[str], effect: Event, said: str
) -> None:
    (one,) = recorded(tmp_path, [*call(1, 9, "aa", arguments, classes), effect])
    assert one.effects == [one.effects[0]]
    assert [(told.effect, said in told.words) for told in one.mismatches] == [(one.effects[0], True)] * bool(said)
