"""One line, one message, and only one way to understand it."""

from __future__ import annotations

import json
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.mcp.framing import Lines, TooLong
from mcpguard.mcp.messages import Kind, Message, NotCanonical, read, write
from mcpguard.mcp.pairs import Pairs

CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read","arguments":{"path":"/a"}}}'
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)


def test_a_request_is_read_and_forwarded_as_it_came() -> None:
    message = read(CALL)
    assert (message.kind, message.id, message.method) == (Kind.REQUEST, 1, "tools/call")
    assert message.params == {"name": "read", "arguments": {"path": "/a"}}
    assert message.raw == CALL


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b'{"jsonrpc":"2.0","method":"notifications/initialized"}', Kind.NOTIFICATION),
        (b'{"jsonrpc":"2.0","id":"x","result":{}}', Kind.RESPONSE),
        (b'{"jsonrpc":"2.0","id":0,"result":null}', Kind.RESPONSE),
        (b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"?"}}', Kind.RESPONSE),
        (b' {"id" : 5, "jsonrpc" : "2.0", "method":"x/y", "params":{"b":[1,2.5,"\\u00e9"]}} ', Kind.REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"method":"a","extra":[]}', Kind.REQUEST),
    ],
)
def test_what_the_protocol_has_is_understood(line: bytes, kind: Kind) -> None:
    assert read(line).kind is kind
    assert read(line).raw == line


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[" + CALL + b"]", "batch"),
        (b"[]", "batch"),
        (b'"text"', "not an object"),
        (b"{", "not JSON"),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"}{}', "not JSON"),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}', "twice"),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","\\u006dethod":"tools/call"}', "twice"),
        (b'{"jsonrpc":"2.0","id":1,"method":"a","params":{"arguments":{"x":1,"x":2}}}', "twice"),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","Name":"b"}}', "some readers"),
        ('{"jsonrpc":"2.0","id":1,"method":"a","paramſ":{}}'.encode(), "some readers"),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","METHOD":"tools/call"}', "some readers"),
        (b'{"jsonrpc":"2.0","id":1,"method":"a\xff"}', "UTF-8"),
        (b'{"jsonrpc":"2.0","id":1,"method":"a\xed\xa0\x80"}', "UTF-8"),
        (b'{"jsonrpc":"2.0","id":1,"method":"a","params":{"x":"\\ud800"}}', "surrogate"),
        (b'{"jsonrpc":"2.0","id":1,"method":"a","params":{"\\ud800":1}}', "surrogate"),
        (b"\xef\xbb\xbf" + CALL, "byte order"),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":\r' + CALL + b"\r}}", "carriage return"),
        (CALL + b"\r", "carriage return"),
        (b'{"jsonrpc":"2.0","id":1,"method":"a","params":{"x":NaN}}', "NaN"),
        (b'{"jsonrpc":"2.0","id":1,"method":"a","params":{"x":1e999}}', "too large"),
        (b'{"jsonrpc":"2.0","id":1,"method":"a","params":{"x":' + b"[" * 200 + b"]" * 200 + b"}}", "nested"),
        (b'{"jsonrpc":"2.0","id":1,"method":"a","params":{"x":' + b"9" * 5000 + b"}}", "beyond"),
        (b'{"jsonrpc":"1.0","id":1,"method":"a"}', "2.0"),
        (b'{"id":1,"method":"a"}', "2.0"),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"a"}', "an id"),
        (b'{"jsonrpc":"2.0","id":true,"method":"a"}', "an id"),
        (b'{"jsonrpc":"2.0","id":null,"method":"a"}', "an id"),
        (b'{"jsonrpc":"2.0","id":99999999999999999999,"method":"a"}', "an id"),
        (b'{"jsonrpc":"2.0","id":1,"method":""}', "no name"),
        (b'{"jsonrpc":"2.0","id":1,"method":5}', "no name"),
        (b'{"jsonrpc":"2.0","id":1,"method":"a","params":[1]}', "no object"),
        (b'{"jsonrpc":"2.0","id":1,"method":"a","result":{}}', "in one"),
        (b'{"jsonrpc":"2.0","id":1,"result":{},"error":{}}', "neither"),
        (b'{"jsonrpc":"2.0","id":1}', "neither"),
        (b'{"jsonrpc":"2.0","id":1,"result":{"Tools":[]}}', "some readers"),
        (b'{"jsonrpc":"2.0","id":1,"result":{"Instructions":"x"}}', "some readers"),
        (b'{"jsonrpc":"2.0","id":1,"result":{"ResultType":"input_required","InputRequests":{}}}', "some readers"),
        (b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"Code":-32042,"message":"x"}}', "some readers"),
        (b'{"jsonrpc":"2.0","id":1,"error":{"code":-32042,"message":"x","Data":{}}}', "some readers"),
        (b'{"jsonrpc":"2.0","result":{}}', "to nothing"),
        (b'{"jsonrpc":"2.0","id":1,"error":"x"}', "no object"),
    ],
)
def test_what_could_be_understood_in_two_ways_is_refused(line: bytes, reason: str) -> None:
    with pytest.raises(NotCanonical, match=reason):
        read(line)


def test_a_refused_request_can_be_answered() -> None:
    with pytest.raises(NotCanonical) as refused:
        read(b'{"jsonrpc":"2.0","id":"q","method":"a","params":[]}')
    assert (refused.value.id, refused.value.answers) == ("q", False)


@pytest.mark.parametrize(
    ("line", "id", "answers"),
    [
        (b'{"jsonrpc":"2.0","id":1,"result":{},"error":null}', 1, True),
        (b'{"jsonrpc":"2.0","id":1,"result":{"x":NaN}}', 1, True),
        (b'{"jsonrpc":"2.0","id":1,"result":{"x":1e999}}', 1, True),
        (b'{"jsonrpc":"2.0","id":1,"method":"a","params":{"x":NaN}}', 1, False),
        (b'{"jsonrpc":"2.0","id":1,"method":"a","result":{}}', 1, False),
        (b'{"jsonrpc":"2.0","id":1,"id":2,"result":NaN}', None, False),
        (b'{"jsonrpc":"2.0","id":1,"result":NaN,"result":{}}', None, False),
    ],
)
def test_who_waits_for_what_was_refused_is_known_where_it_is_plain(line: bytes, id: int | None, answers: bool) -> None:
    with pytest.raises(NotCanonical) as refused:
        read(line)
    assert (refused.value.id, refused.value.answers) == (id, answers)


def test_params_that_are_null_are_none() -> None:
    line = b'{"jsonrpc":"2.0","method":"notifications/initialized","params":null}'
    message = read(line)
    assert (message.kind, message.params, message.raw) == (Kind.NOTIFICATION, {}, line)


def test_characters_that_end_lines_for_some_readers_are_forwarded_as_escapes() -> None:
    line = '{"jsonrpc":"2.0","id":1,"method":"a","params":{"x":"1\u20282\u20293\u00854"}}'.encode()
    message = read(line)
    assert json.loads(message.raw) == json.loads(line)
    assert not any(char in message.raw.decode() for char in "\u2028\u2029\u0085")


def test_wide_listings_are_not_taken_for_deep_ones() -> None:
    listing = {
        "jsonrpc": "2.0",
        "id": 1,
        "result": {"tools": [{"name": f"[{{{n}", "x": {"y": []}} for n in range(500)]},
    }
    assert read(json.dumps(listing).encode()).result["tools"][499]["x"] == {"y": []}


@pytest.mark.parametrize("piece", [b'\\"', b'"\\', b'""', b"][", b"{}", b'[{"', b"\\"])
def test_four_million_bytes_are_refused_however_they_are_chosen(piece: bytes) -> None:
    """A pattern that looked for the end of a string from each of its quotes took hours; the suite's limit is minutes."""
    with pytest.raises(NotCanonical):
        read(b"[" * 40 + b'"' + piece * ((4 << 20) // len(piece)))


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), VALUES, max_size=5))
def test_what_we_write_is_read_as_it_was(arguments: dict[str, object]) -> None:
    line = write({"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": {"name": "x", "arguments": arguments}})
    assert read(line).params["arguments"] == arguments


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_else_than_be_refused(line: bytes) -> None:
    with pytest.raises(NotCanonical):
        read(b"{" + line)


@given(st.lists(st.binary(max_size=50).map(lambda line: line.replace(b"\n", b"")), max_size=8), st.data())
def test_lines_are_the_same_however_their_bytes_arrive(sent: list[bytes], data: st.DataObject) -> None:
    stream, lines, got = b"".join(line + b"\n" for line in sent), Lines(64), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        got += lines.feed(stream[:size])
        stream = stream[size:]
    assert got == [line for line in sent if line]
    assert lines.pending == 0


@pytest.mark.parametrize("chunks", [[b"12345678\n"], [b"1234", b"5678"], [b"ok\n", b"123456789"], [b"ok\n12345678\n"]])
def test_a_line_beyond_the_limit_ends_the_stream(chunks: list[bytes]) -> None:
    lines = Lines(7)
    with pytest.raises(TooLong):
        for chunk in chunks:
            lines.feed(chunk)


def test_a_line_at_the_limit_passes() -> None:
    assert Lines(7).feed(b"1234567\n") == [b"1234567"]


def test_an_id_is_answered_once_and_its_type_counts() -> None:
    pairs = Pairs(2)
    assert pairs.ask(read(b'{"jsonrpc":"2.0","id":1,"method":"a"}'), 0.5)
    assert pairs.ask(read(b'{"jsonrpc":"2.0","id":"1","method":"b"}'), 0.6)
    assert not pairs.ask(read(b'{"jsonrpc":"2.0","id":2,"method":"c"}'), 0.7), "no room"
    answer = read(b'{"jsonrpc":"2.0","id":"1","result":{}}')
    waiting = pairs.answer(answer)
    assert waiting and (waiting.method, waiting.since) == ("b", 0.6)
    assert pairs.answer(answer) is None
    assert not pairs.ask(read(b'{"jsonrpc":"2.0","id":1,"method":"again"}'), 0.8), "its id waits already"


def test_what_waits_for_its_answer_takes_little_room_however_long_it_was() -> None:
    class Params(dict[str, object]):
        pass

    params, pairs = Params(name="x"), Pairs(2)
    gone = weakref.ref(params)
    assert pairs.ask(Message(Kind.REQUEST, b"", 1, "tools/call", params), 0.0)
    del params
    assert gone() is None and len(pairs) == 1


def test_after_a_line_that_was_too_long_nothing_is_a_line() -> None:
    lines = Lines(4)
    for data in (b"abcde", b"", b"\n", b"a\n"):
        with pytest.raises(TooLong):
            lines.feed(data)
    assert lines.pending == 0
