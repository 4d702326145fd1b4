"""Server-sent events, cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.mcp.event_stream import Events, EventTooLong, StreamEvent, encode

TEXT = st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), max_size=8)
DATA = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=20)
EVENTS = st.builds(
    StreamEvent,
    TEXT.map(str.strip),
    st.lists(DATA, min_size=1, max_size=3).map(lambda lines: "\n".join(lines).encode()).filter(bool),
    st.none() | TEXT.map(str.strip),
    st.just("") | st.integers(0, 9999).map(str),
)


@given(st.lists(EVENTS, max_size=5), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.data())
def test_events_are_the_same_however_their_bytes_arrive(
    sent: list[StreamEvent], end: bytes, data: st.DataObject
) -> None:
    stream, events, got = b"".join(map(encode, sent)).replace(b"\n", end), Events(1 << 12), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        got += events.feed(stream[:size])
        stream = stream[size:]
    assert got == sent


@pytest.mark.parametrize(
    ("stream", "found"),
    [
        (b"data: a\n\n", [StreamEvent("", b"a")]),
        (b": ping\n\ndata:a\ndata: b\n\n", [StreamEvent("", b"a\nb")]),
        (b"event: endpoint\ndata: /m?x=1\n\n", [StreamEvent("endpoint", b"/m?x=1")]),
        (b"id: 7\nretry: 5\nretry: x\ndata\n\n", [StreamEvent("", b"", "7", "5")]),
        (b"data: never ended", []),
        (b"unknown: x\n\n", []),
    ],
)
def test_fields_mean_what_the_standard_says(stream: bytes, found: list[StreamEvent]) -> None:
    assert Events(100).feed(stream) == found


@pytest.mark.parametrize("stream", [b"data: " + b"x" * 100, b"data: xxxx\n" * 20, b"id: " + b"x" * 100 + b"\n"])
def test_an_event_beyond_the_limit_ends_the_stream(stream: bytes) -> None:
    with pytest.raises(EventTooLong):
        Events(100).feed(stream)


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_no_field_holds_what_ends_a_line_for_some_readers(end: str) -> None:
    stream = f"id: 1{end}data: evil\nevent: x{end}data: evil\ndata: good\n\n".encode()
    (event,) = Events(100).feed(stream)
    assert event == StreamEvent("", b"good")
    assert all(b"evil" not in encode(one) for one in Events(100).feed(stream))


def test_an_event_without_data_gets_none() -> None:
    assert encode(StreamEvent("", b"", "5")) == b"id: 5\n\n"


def test_a_line_end_in_three_pieces_is_two_lines() -> None:
    events = Events(100)
    assert [event for byte in (b"data: 1", b"\r", b"\n", b"\n") for event in events.feed(byte)] == [
        StreamEvent("", b"1")
    ]


def test_a_long_event_in_small_pieces_is_read_once() -> None:
    """Every byte is looked at once, not with each piece that comes after it."""
    pieces = [b"data: "] + [b"x" * 1000] * 4000 + [b"\n\n"]
    calls = []
    events = Events(1 << 23)
    looked = events._line
    events._line = lambda line: (calls.append(len(line)), looked(line))[1]  # type: ignore[method-assign]
    found = [event for piece in pieces for event in events.feed(piece)]
    assert [len(event.data) for event in found] == [4_000_000]
    assert calls == [4_000_006, 0]
    assert len(events._rest) == 0
