"""Bytes to records, and what is not a record is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.model.access import Access, Verdict
from mcpguard.wire import _abi, authors, decode, sums
from mcpguard.wire.records import (
    CallRecord,
    ExecRecord,
    ExitRecord,
    ForkRecord,
    NetRecord,
    OpenRecord,
    PathCallRecord,
    UnixRecord,
)

strings = st.binary(max_size=60).filter(lambda b: b"\0" not in b)


def head(kind: int, comm: bytes = b"sh", lost: int = 0) -> bytes:
    return _abi.MG_HEAD.pack(123456789, kind, lost, 10, 11, 9, 0, comm)


def text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def test_the_head_is_common_to_all() -> None:
    record = decode.record(_abi.MG_FORK.pack(head(_abi.MG_RECORD_FORK, b"a" * 15, lost=4), 12, 0))
    assert isinstance(record, ForkRecord)
    assert (record.head.when_ns, record.head.pid, record.head.tid, record.head.ppid) == (123456789, 10, 11, 9)
    assert (record.head.comm, record.head.lost_before, record.child) == ("a" * 15, 4, 12)


def test_an_exit_keeps_the_wait_status() -> None:
    record = decode.record(_abi.MG_EXIT.pack(head(_abi.MG_RECORD_EXIT), 0x100, 0))
    assert isinstance(record, ExitRecord)
    assert record.code == 0x100


@given(strings, st.lists(strings, max_size=4))
def test_an_exec_keeps_its_words(exe: bytes, words: list[bytes]) -> None:
    argv = b"".join(word + b"\0" for word in words)
    raw = _abi.MG_EXEC.pack(head(_abi.MG_RECORD_EXEC), len(exe), len(argv), 0, 0) + exe + argv
    record = decode.record(raw)
    assert isinstance(record, ExecRecord)
    assert (record.exe, record.argv) == (text(exe), tuple(map(text, words)))


def test_cut_arguments_keep_their_last_piece() -> None:
    raw = _abi.MG_EXEC.pack(head(_abi.MG_RECORD_EXEC), 1, 5, 1, 0) + b"/" + b"ab\0cd"
    record = decode.record(raw)
    assert isinstance(record, ExecRecord)
    assert (record.argv, record.argv_cut) == (("ab", "cd"), True)


@given(strings)
def test_an_open_keeps_any_path(path: bytes) -> None:
    raw = _abi.MG_OPEN.pack(head(_abi.MG_RECORD_OPEN), 5, 7, 9, 0, len(path), 3, _abi.MG_REGULAR, 1, 0) + path
    record = decode.record(raw)
    assert isinstance(record, OpenRecord)
    assert record.path == text(path)
    assert (record.access, record.kind, record.created) == (Access.READ | Access.WRITE, "file", True)
    assert (record.count, record.series) == (7, 5)


@given(strings, strings, strings, strings, strings, st.booleans(), st.booleans())
def test_a_path_call_keeps_its_strings_apart(
    base: bytes, path: bytes, base2: bytes, path2: bytes, cwd: bytes, two: bool, stands: bool
) -> None:
    given_two = (base2, path2) if two else (b"", b"")
    apart = b"" if stands else cwd
    lengths = [len(s) for s in (base, path, *given_two)]
    raw = _abi.MG_PATH_CALL.pack(
        *(head(_abi.MG_RECORD_PATH_CALL), 3, 2, 13, *lengths, _abi.MG_OP_RENAME, 2, 1, 1 + two, 0),
        *(stands, len(apart), b""),
    )
    record = decode.record(raw + b"".join((base, path, *given_two, apart)))
    assert isinstance(record, PathCallRecord)
    assert (record.base, record.path) == (text(base), text(path))
    assert (record.base2, record.path2) == ((text(base2), text(path2)) if two else (None, None))
    assert (record.op, record.result, record.follow, record.count) == ("rename", 13, True, 2)
    assert record.cwd == text(base if stands else cwd)


def test_a_call_keeps_its_arguments() -> None:
    record = decode.record(_abi.MG_CALL.pack(head(_abi.MG_RECORD_CALL), 1, 2, 3, 4, 62, 1, _abi.MG_CALL_SIGNAL, 0))
    assert record == CallRecord(record.head, "signal", 62, 3, 4, 1, 2, 1)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (b"\0" * 10 + b"\xff\xff\x7f\0\0\x01", "127.0.0.1"),
        (b"\0" * 15 + b"\x01", "::1"),
        (bytes.fromhex("20010db8000000000000000000000001"), "2001:db8::1"),
        (b"\0" * 16, "::"),
    ],
)
def test_a_destination_is_shown_as_people_write_it(address: bytes, shown: str) -> None:
    raw = _abi.MG_NET.pack(
        head(_abi.MG_RECORD_NET), 1, 1, address, 4, 443, 6, _abi.MG_NET_CONNECT, _abi.MG_DENY, _abi.MG_DETAIL_OWN, b""
    )
    record = decode.record(raw)
    assert isinstance(record, NetRecord)
    assert (record.op, record.verdict, record.address, record.port) == ("connect", Verdict.DENY, shown, 443)
    assert (record.protocol, record.rule, record.detail) == ("tcp", 4, "own")


@pytest.mark.parametrize(
    ("name", "shown"), [(b"/run/x", "/run/x"), (b"\0bus\0x", "@bus\0x"), (b"@bus", "./@bus"), (b"", "")]
)
def test_a_unix_socket_is_named(name: bytes, shown: str) -> None:
    raw = _abi.MG_UNIX.pack(
        head(_abi.MG_RECORD_UNIX), 1, 1, 2, _abi.MG_NET_SENDMSG, _abi.MG_AUDIT, 0, len(name), name, 0
    )
    record = decode.record(raw)
    assert isinstance(record, UnixRecord)
    assert (record.op, record.verdict, record.path, record.rule) == ("sendmsg", Verdict.AUDIT, shown, 2)


@given(st.binary(max_size=300))
def test_any_other_bytes_are_refused_and_nothing_else_happens(raw: bytes) -> None:
    try:
        decode.record(raw)
    except ValueError:
        return
    assert len(raw) >= _abi.MG_HEAD.size, "too short to be a record"


def test_a_string_beyond_the_end_is_refused() -> None:
    raw = _abi.MG_OPEN.pack(head(_abi.MG_RECORD_OPEN), 5, 7, 9, 0, 100, 1, _abi.MG_REGULAR, 0, 0) + b"/short"
    with pytest.raises(ValueError, match="record"):
        decode.record(raw)


def test_only_what_was_not_sent_remains() -> None:
    values = [_abi.MG_SUM.pack(10, 8, 1, 0), _abi.MG_SUM.pack(4, 4, 2, 0)]
    assert sums.remainders(values) == [(1, 2)]


_KINDS = st.sampled_from([value for name, value in vars(_abi).items() if name.startswith("MG_RECORD_")])


@given(_KINDS, st.binary(max_size=400))
def test_who_did_it_is_told_as_by_the_whole_record(kind: int, rest: bytes) -> None:
    raw = head(kind) + rest.ljust(400, b"\0")
    try:
        record = decode.record(raw)
    except ValueError:
        return
    assert authors.author(raw) == record.head.pid


@pytest.mark.parametrize("kind", sorted(decode._DECODERS))
def test_of_every_record_it_is_told_who_did_it(kind: int) -> None:
    assert authors.author(head(kind)) == 10


@pytest.mark.parametrize("raw", [b"", b"x" * 30, head(99), head(_abi.MG_RECORD_OPEN)[:-1]])
def test_who_did_it_is_not_told_of_what_is_no_record(raw: bytes) -> None:
    with pytest.raises(ValueError, match="not a record"):
        authors.author(raw)
