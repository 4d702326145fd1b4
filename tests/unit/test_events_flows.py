"""Bytes by destination: from counts to events, to the line of the destination, and to a person."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from events_help import AGENT, SECOND, Bench, connection
from test_report import Recorded, recorded
from typer.testing import CliRunner

from mcpguard.cli.commands import build
from mcpguard.events.activity import Reached, with_bytes
from mcpguard.events.format import as_json, cells, size
from mcpguard.events.recorder import FLOWS_INTERVAL_NS, Recorder
from mcpguard.model.access import Verdict
from mcpguard.model.event import Kind
from mcpguard.session.report_page import page
from mcpguard.tui.totals import Totals
from mcpguard.wire import _abi, decode
from mcpguard.wire.records import FlowRecord

__all__ = ["recorded"]
HERE = "192.0.2.1"


def flow(sent: int, received: int, *, address: str = HERE, port: int = 443, incoming: bool = False) -> FlowRecord:
    return FlowRecord(100 * SECOND, address, port, "tcp" if address else "", incoming, sent, received)


def reached(
    op: str, host: str = "", *, protocol: str = "tcp", port: int = 443, verdict: Verdict = Verdict.ALLOW, **more: int
) -> Reached:
    return Reached(Kind.NET, op, host, HERE, port, protocol, verdict, 0 if op == "traffic" else 2, 5, **more)


def test_a_key_of_the_kernel_says_who_and_in_which_direction() -> None:
    address = bytes(10) + b"\xff\xff" + bytes((192, 0, 2, 1))
    key = _abi.MG_FLOW_KEY.pack(address, 443, 6, _abi.MG_NET_CONNECT, bytes(3))
    assert decode.flow(key, 100 * SECOND, 1, 2) == flow(1, 2)
    key = _abi.MG_FLOW_KEY.pack(address, 443, 6, _abi.MG_NET_ACCEPT, bytes(3))
    assert decode.flow(key, 100 * SECOND, 1, 2) == flow(1, 2, incoming=True)
    assert decode.flow(bytes(_abi.MG_FLOW_KEY.size), 100 * SECOND, 1, 2) == flow(1, 2, address="", port=0)


def test_counts_are_asked_for_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    waiting = [[flow(1, 2)], [flow(3, 4), flow(5, 6, address="", port=0)], [flow(7, 8, incoming=True)]]
    bench = Bench(tmp_path)

    def flows() -> list[FlowRecord]:
        return waiting.pop(0) if waiting else []

    recorder = Recorder(bench.store, bench.session, bench.policy, AGENT, bench.clock, flows=flows)
    recorder.feed([connection(HERE, Verdict.ALLOW, 1)])
    assert len(waiting) == 3
    for _ in range(2):
        bench.clock.forward(FLOWS_INTERVAL_NS / SECOND)
        recorder.tick()
    assert len(waiting) == 1
    recorder.finish()
    assert waiting == []
    found = [event for event in bench.events() if event.op == "traffic"]
    assert [(one.bytes_sent, one.bytes_received, one.address, one.count) for one in found] == [
        (1, 2, HERE, 0),
        (3, 4, HERE, 0),
        (5, 6, None, 0),
        (7, 8, HERE, 0),
    ]
    assert [one.detail for one in found] == [
        None,
        None,
        "destinations that were too many to be told apart",
        "others connected to this port of ours",
    ]
    values = as_json(found[0])
    assert (values["bytes_sent"], values["bytes_received"], values["count"]) == (1, 2, 0)
    assert "pid" not in values and cells(found[0], "/home/u").note == "1 sent  2 received"


def test_bytes_stand_on_the_line_of_their_destination() -> None:
    named, other = reached("connect", "a.example"), reached("connect", "b.example")
    refused = reached("connect", verdict=Verdict.DENY)
    traffic = reached("traffic", "b.example", bytes_sent=5, bytes_received=6)
    assert with_bytes([named, refused, other, traffic]) == [
        named,
        refused,
        other._replace(bytes_sent=5, bytes_received=6),
    ]
    unknown = traffic._replace(host="c.example")
    assert with_bytes([named, other, unknown])[0] == named._replace(bytes_sent=5, bytes_received=6)
    assert with_bytes([reached("connect", protocol="mptcp"), traffic])[0].bytes_sent == 5
    assert with_bytes([reached("connect", port=80), traffic])[1] == traffic
    assert with_bytes([named, traffic, traffic])[0].bytes_sent == 10
    assert with_bytes([reached("bind"), traffic])[1] == traffic


def test_what_is_added_up_from_portions_is_the_whole() -> None:
    totals = Totals()
    for _ in range(3):
        totals.add_reached([reached("connect"), reached("traffic", bytes_sent=5, bytes_received=6)])
    (one,) = totals.places()
    assert (one.times, one.bytes_sent, one.bytes_received) == (6, 15, 18)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (None, ""),
        (0, "0"),
        (999, "999"),
        (1024, "1K"),
        (1536, "1.5K"),
        (10_240_000, "9.77M"),
        (1 << 40, "1T"),
        (9999 << 40, "9999T"),
    ],
)
def test_sizes_are_short(number: int | None, words: str) -> None:
    assert size(number) == words


def test_the_report_has_bytes_where_they_are_known(recorded: Recorded) -> None:
    place = {"address": HERE, "port": 443, "protocol": "tcp"}
    recorded.add(Kind.NET, "connect", **place)
    recorded.add(Kind.NET, "traffic", **place, count=0, bytes_sent=2048, bytes_received=0)
    recorded.add(Kind.NET, "connect", **place | {"port": 80})
    told = json.loads(CliRunner().invoke(build(), ["report", recorded.id, "--format", "json"]).output)["destinations"]
    assert {one["port"]: (one.get("bytes_sent"), one.get("bytes_received")) for one in told} == {
        443: (2048, 0),
        80: (None, None),
    }
    assert (
        f"connect {HERE}:443  1x, 2K sent, 0 received\n" in CliRunner().invoke(build(), ["report", recorded.id]).output
    )
    assert "<td>2K</td><td>0</td>" in page(recorded.read(), "/home/u")
    assert recorded.read().summary.connections == 2
