"""The event contract, byte for byte, and a terminal that guarded programs cannot write to."""

from __future__ import annotations

import json

import pytest
from events_help import START_EPOCH_NS

from mcpguard.events.format import CSV_HEADER, as_json, cells, csv_row, json_line, printable, shorten
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.model.rule import Origin

RULE = Origin("claude-code", "/home/u/.config/mcpguard/profiles/claude-code.yaml", 22, "~/.ssh")
DENIED = Event(
    time_ns=START_EPOCH_NS + 123_456_789,
    session="20261118-110640-k3f9",
    kind=Kind.FILE,
    op="open",
    verdict=Verdict.DENY,
    seq=7,
    access="read",
    path="/home/u/.ssh/id_ed25519",
    pid=4121,
    ppid=4098,
    exe="/usr/bin/cat",
    comm="cat",
    rule=RULE,
    errno="EACCES",
    detail="under claude[4098]",
)
CONNECTED = Event(
    time_ns=START_EPOCH_NS,
    session="20261118-110640-k3f9",
    kind=Kind.NET,
    op="connect",
    verdict=Verdict.ALLOW,
    seq=8,
    host="api.example",
    address="2001:db8::1",
    port=443,
    protocol="tcp",
    pid=4098,
    count=3,
)
STARTED = Event(
    time_ns=START_EPOCH_NS,
    session="20261118-110640-k3f9",
    kind=Kind.EXEC,
    op="exec",
    verdict=Verdict.ALLOW,
    seq=9,
    access="execute",
    path="/usr/bin/git",
    pid=4122,
    argv=("git", "commit", "-m", "größer"),
)


def test_a_denial_is_this_line() -> None:
    assert json_line(DENIED) == (
        '{"time":"2026-11-18T11:06:40.123456Z","session":"20261118-110640-k3f9","seq":7,"kind":"file","op":"open",'
        '"verdict":"deny","access":"read","path":"/home/u/.ssh/id_ed25519","pid":4121,"ppid":4098,"exe":"/usr/bin/cat",'
        '"comm":"cat","rule":{"profile":"claude-code","file":"/home/u/.config/mcpguard/profiles/claude-code.yaml",'
        '"line":22,"text":"~/.ssh"},"count":1,"errno":"EACCES","detail":"under claude[4098]"}'
    )


def test_a_connection_is_this_line() -> None:
    assert json_line(CONNECTED) == (
        '{"time":"2026-11-18T11:06:40.000000Z","session":"20261118-110640-k3f9","seq":8,"kind":"net","op":"connect",'
        '"verdict":"allow","host":"api.example","address":"2001:db8::1","port":443,"protocol":"tcp","pid":4098,"count":3}'
    )


def test_a_program_start_is_this_line() -> None:
    assert json_line(STARTED) == (
        '{"time":"2026-11-18T11:06:40.000000Z","session":"20261118-110640-k3f9","seq":9,"kind":"exec","op":"exec",'
        '"verdict":"allow","access":"execute","path":"/usr/bin/git","pid":4122,"argv":["git","commit","-m","größer"],'
        '"count":1}'
    )


def test_names_that_are_no_text_give_valid_json() -> None:
    event = Event(1, "s", Kind.FILE, "open", Verdict.ALLOW, path="/a\udcff\n", argv=("\udc80",))
    assert json.loads(json_line(event).encode())["path"] == "/a\\xff\n"
    assert "\n" not in json_line(event)


def test_a_csv_row_has_a_value_for_every_column() -> None:
    row = dict(zip(CSV_HEADER, csv_row(DENIED), strict=True))
    assert row["rule_line"] == "22"
    assert row["rule_text"] == "~/.ssh"
    assert row["host"] == ""
    assert dict(zip(CSV_HEADER, csv_row(STARTED), strict=True))["argv"] == '["git", "commit", "-m", "größer"]'


def test_csv_and_json_name_the_same_things() -> None:
    assert set(as_json(DENIED)) - {"rule"} <= set(CSV_HEADER)


def test_a_table_shows_home_as_a_tilde_and_the_rule_by_file_and_line() -> None:
    row = cells(DENIED, "/home/u")
    assert (row.verdict, row.process, row.act, row.object) == ("DENY", "cat[4121]", "open read", "~/.ssh/id_ed25519")
    assert row.rule == "claude-code.yaml:22"
    assert row.note == "EACCES  under claude[4098]"


def test_a_table_shows_a_destination_by_name_and_address() -> None:
    assert cells(CONNECTED, "/home/u").object == "api.example:443 ([2001:db8::1])/tcp"
    assert cells(CONNECTED, "/home/u").note == "x3"


def test_a_table_shows_a_program_with_its_arguments() -> None:
    assert cells(STARTED, "/home/u").object == "/usr/bin/git commit -m größer"


def test_a_loss_says_loss_and_not_allow() -> None:
    loss = Event(1, "s", Kind.LOSS, "lost", Verdict.ALLOW, count=5, detail="records")
    assert cells(loss, "/").verdict == "LOSS"


@pytest.mark.parametrize("attack", ["\x1b[2J", "\x9b31m", "\r", "\n", "\x07", "\u202e", "\u2028", "\udc9b", "\x00"])
def test_names_cannot_steer_the_terminal(attack: str) -> None:
    event = Event(
        1,
        "s",
        Kind.EXEC,
        "exec",
        Verdict.DENY,
        path=f"/a{attack}",
        comm=attack,
        pid=1,
        argv=("x", attack),
        detail=attack,
    )
    assert all(cell.isprintable() for cell in cells(event, "/home/u"))
    assert printable(attack).isprintable()


def test_only_the_home_itself_and_what_is_below_becomes_a_tilde() -> None:
    assert shorten("/home/u", "/home/u") == "~"
    assert shorten("/home/user2/x", "/home/u") == "/home/user2/x"
    assert shorten("/etc", "/") == "/etc"
