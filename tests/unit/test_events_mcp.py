"""Events of kind `mcp`: made, stored, read and written out the same by whoever writes them."""

import csv
import io
import json
import sqlite3
from pathlib import Path

import pytest
from events_help import OPEN_POLICY, make_policy

from mcpguard.events import query, schema
from mcpguard.events.format import CSV_HEADER, as_json, cells, csv_row, json_line
from mcpguard.events.mcp import CLIENT, SERVER, Talk, call_id
from mcpguard.events.store import Store
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind, Peer

BEGAN_NS = 1_760_000_000_000_000_000
TALK = Talk("s", "files", "stdio", Peer(10, "/usr/bin/agent"), Peer(11, "/usr/bin/node"))
ASKED = TALK.request(
    *(BEGAN_NS, CLIENT, "tools/call"),
    {"name": "read_file", "arguments": {"path": "/a", "token": "t0p"}, "_meta": {"progressToken": 1}},
    id=3,
    call="aabbccdd00",
)


def test_a_request_tells_tool_and_arguments_and_no_secret() -> None:
    assert as_json(ASKED) == {
        "time": "2025-10-09T08:53:20.000000Z",
        "session": "s",
        "seq": 0,
        "kind": "mcp",
        "op": "request",
        "verdict": "allow",
        "pid": 10,
        "exe": "/usr/bin/agent",
        "comm": "agent",
        "count": 1,
        "mcp": {
            "server": "files",
            "transport": "stdio",
            "sender": "client",
            "call": "aabbccdd00",
            "method": "tools/call",
            "id": 3,
            "tool": "read_file",
            "arguments": {"path": "/a", "token": "***"},
            "client": {"pid": 10, "exe": "/usr/bin/agent"},
            "peer": {"pid": 11, "exe": "/usr/bin/node"},
        },
    }


def test_a_response_has_the_call_of_its_request_and_what_came_of_it() -> None:
    answer = TALK.response(BEGAN_NS + 1_500_000, ASKED, result_bytes=45)
    assert answer.op == "response" and answer.pid == 11 and answer.mcp is not None
    told = as_json(answer)["mcp"]
    assert isinstance(told, dict)
    assert {key: told[key] for key in ("sender", "call", "method", "id", "tool", "result_bytes", "duration_ns")} == {
        "sender": "server",
        "call": "aabbccdd00",
        "method": "tools/call",
        "id": 3,
        "tool": "read_file",
        "result_bytes": 45,
        "duration_ns": 1_500_000,
    }
    assert "arguments" not in told
    failed = TALK.response(BEGAN_NS, ASKED, error=(-32000, "blocked by policy"))
    assert failed.mcp is not None and (failed.mcp.error_code, failed.mcp.error) == (-32000, "blocked by policy")


def test_resources_and_plain_params_and_notifications() -> None:
    read = TALK.request(0, CLIENT, "resources/read", {"uri": "file:///a"}, id="x", call=call_id()).mcp
    assert read is not None and (read.tool, read.arguments, read.id) == ("file:///a", None, '"x"')
    told = TALK.request(0, SERVER, "notifications/progress", {"progress": 1})
    assert told.op == "notification" and told.mcp is not None and told.mcp.arguments == '{"progress":1}'
    assert told.mcp.call is None and told.pid == 11
    odd = TALK.request(0, CLIENT, "x/y", [1, 2], id=0).mcp
    assert odd is not None and (odd.method, odd.arguments, odd.tool) == ("x/y", "[1,2]", None)


def _stored(path: Path, *events: Event) -> tuple[Store, str]:
    store = Store.open(path)
    session = store.start_session(make_policy(*OPEN_POLICY), command=("a",), tier="3", coverage=(), now_ns=BEGAN_NS)
    store.add(session, events)
    return store, session


def test_the_store_gives_back_what_was_written_and_finds_it(tmp_path: Path) -> None:
    refused = TALK.request(BEGAN_NS, CLIENT, "tools/call", {"name": "kill"}, id=1, verdict=Verdict.DENY, detail="no")
    answer = TALK.response(BEGAN_NS + 5, ASKED, result_bytes=1)
    store, session = _stored(tmp_path / "events.db", ASKED, answer, refused)
    with store:
        found = list(query.events(store, session, query.Filter(kind=Kind.MCP)))
        assert [event.mcp for event in found] == [ASKED.mcp, answer.mcp, refused.mcp]
        denied = list(query.events(store, session, query.Filter(kind=Kind.MCP, verdict=Verdict.DENY)))
        assert [event.mcp for event in denied] == [refused.mcp]
        assert len(list(query.events(store, session, query.Filter(text="READ_file")))) == 2


def test_a_second_process_may_write_while_the_first_does(tmp_path: Path) -> None:
    store, session = _stored(tmp_path / "events.db", ASKED)
    with store, Store.open(tmp_path / "events.db") as other:
        other.add(session, [ASKED])
        store.add(session, [ASKED])
        assert [event.seq for event in query.events(store, session, query.Filter())] == [1, 2, 3]


def test_as_a_table_and_as_csv() -> None:
    row = cells(ASKED, "/home/u")
    assert (row.process, row.act) == ("agent[10]", "request")
    assert row.object == 'files tools/call read_file {"path":"/a","token":"***"}'
    answer = cells(TALK.response(BEGAN_NS + 1_500_000, ASKED, error=(None, "no such file")), "/home/u")
    assert answer.note == "1.5 ms  error: no such file"
    text = io.StringIO()
    csv.writer(text).writerow(csv_row(ASKED))
    (fields,) = csv.reader(io.StringIO(text.getvalue()))
    assert json.loads(dict(zip(CSV_HEADER, fields, strict=True))["mcp"])["tool"] == "read_file"


def test_a_store_of_the_version_before_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    store, session = _stored(path, Event(BEGAN_NS, "", Kind.FILE, "open", Verdict.ALLOW, path="/a"))
    store.close()
    with sqlite3.connect(path) as old:
        old.execute("ALTER TABLE events DROP COLUMN mcp")
        old.execute("ALTER TABLE sessions DROP COLUMN modes")
        for column in ("bytes_sent", "bytes_received"):
            old.execute(f"ALTER TABLE events DROP COLUMN {column}")
        old.execute("PRAGMA user_version = 1")
    with Store.open(path) as store:
        assert store.note is None
        store.add(session, [ASKED])
        assert [event.path for event in query.events(store, session, query.Filter())] == ["/a", None]
        assert store.read("PRAGMA user_version") == [(schema.VERSION,)]


def test_nothing_that_json_can_say_breaks_the_record_or_its_exports(tmp_path: Path) -> None:
    half, zero = "\ud800", "\0"
    odd = json.loads(
        '{"name": "\\ud800", "arguments": {"\\udfff": "\\ud800x", "n": NaN, "i": Infinity, "z": "\\u0000", "e": "\\u001b[31m",'
        f' "big": {"9" * 4000}' + "}}"
    )
    asked = TALK.request(BEGAN_NS, CLIENT, "tools/call", odd, id=half + zero, call=call_id())
    strange = TALK.request(BEGAN_NS, CLIENT, half + "\n" + "m" * 1000, odd, id=1, call=call_id())
    failed = TALK.response(BEGAN_NS, strange, error=(1, half + "\x1b" * 1000))
    store, session = _stored(tmp_path / "events.db", asked, strange, failed, TALK.stray(BEGAN_NS, SERVER, half))
    with store:
        found = list(query.events(store, session, query.Filter(kind=Kind.MCP)))
        assert len(found) == 4
        for event in found:
            as_text = json_line(event)
            json.loads(as_text, parse_constant=lambda word: pytest.fail(word))
            as_text.encode()
            assert all(part.isprintable() for part in cells(event, "/home/u"))
            csv_row(event)
