"""TLS hellos and HTTP heads as bytes, and an oracle of the tests' own for what the kernel is to make of them.

The oracle reads a whole stream at once, by recursive descent; the kernel reads it piece by piece as a state machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

HANDSHAKE, ALERT, CHANGE, DATA, HEARTBEAT = 22, 21, 20, 23, 24
IDLE = 32
LONGEST_EARLY = 1 << 20
LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
KEY_SHARE, PADDING, ECH, ALPN, EARLY = 51, 21, 0xFE0D, 16, 42


def u16(number: int) -> bytes:
    return number.to_bytes(2, "big")


def block(data: bytes, width: int) -> bytes:
    """Data with its length before it."""
    return len(data).to_bytes(width, "big") + data


def server_name(*names: bytes, kind: int = 0) -> tuple[int, bytes]:
    """The extension."""
    return 0, block(b"".join(bytes([kind]) + block(name, 2) for name in names), 2)


def hello(extensions: Sequence[tuple[int, bytes]] | None, session: bytes = bytes(32)) -> bytes:
    """A handshake message; None: without the field for extensions, as old clients send it."""
    body = b"\x03\x03" + bytes(32) + block(session, 1) + block(b"\x13\x01\x13\x02", 2) + block(b"\0", 1)
    if extensions is not None:
        body += block(b"".join(u16(kind) + block(data, 2) for kind, data in extensions), 2)
    return b"\x01" + block(body, 3)


def named(*names: bytes, size: int = 0) -> bytes:
    """A hello for these names, with an extension of so many bytes before them."""
    return hello([(KEY_SHARE, bytes(size)), *([server_name(*names)] if names else [])])


def records(message: bytes, sizes: Sequence[int] = (), kind: int = HANDSHAKE, version: bytes = b"\x03\x01") -> bytes:
    """A message in records of these sizes, the rest in one."""
    made, at = b"", 0
    for size in sizes:
        made += bytes([kind]) + version + block(message[at : at + size], 2)
        at += size
    rest = message[at:]
    return made + (bytes([kind]) + version + block(rest, 2) if rest or not sizes else b"")


def request(host: bytes | None, target: bytes = b"/", method: bytes = b"GET") -> bytes:
    """An HTTP head."""
    line = method + b" " + target + b" HTTP/1.1\r\n"
    return line + b"Accept: */*\r\n" + (b"Host: " + host + b"\r\n" if host is not None else b"") + b"\r\n"


class _More(Exception):
    """The stream ends before it says what is asked."""


class _Odd(Exception):
    """It is no hello that a server would take."""


class _Refused(Exception):
    """Nothing more may leave."""


class _Over(Exception):
    """The rest is not looked at."""


def refused(stream: bytes, allowed: Callable[[str], bool], *, without: bool) -> bool:
    """Whether the oracle refuses a stream that begins like TLS.

    Args:
        allowed: whether a name may be reached.
        without: whether a hello without a name may pass.
    """
    try:
        _Reader(stream, allowed, without).read()
    except _Refused:
        return True
    except (_More, _Over):
        return False
    return False


class _Reader:
    def __init__(self, stream: bytes, allowed: Callable[[str], bool], without: bool) -> None:
        self._handshake = self._bytes(stream)
        self._allowed = allowed
        self._without = without
        self._sure = False
        self._major = 0
        self._hellos = 0
        self._early = 0

    def read(self) -> None:
        while True:
            try:
                self._hello()
            except _Odd:
                if self._hellos:
                    raise _Over from None
                if self._sure or not self._without:
                    raise _Refused from None
                raise _Over from None
            self._hellos += 1

    def _bytes(self, stream: bytes) -> Iterator[int]:
        """The bytes of handshake records, one after the other."""
        idle = 0
        while stream:
            passed_over = stream[0] == DATA and self._hellos > 0 and self._early > 0
            known = CHANGE <= stream[0] <= (HANDSHAKE if self._hellos else HEARTBEAT)
            if not known and not passed_over:
                raise _Odd
            if len(stream) < 5:
                raise _More
            self._major = stream[1]
            kind, length = stream[0], int.from_bytes(stream[3:5], "big")
            if passed_over:
                if length + 5 > self._early:
                    raise _Over
                self._early -= length + 5
            else:
                idle += kind != HANDSHAKE or not length
                if idle > IDLE:
                    raise _Refused
            if kind == HANDSHAKE:
                yield from stream[5 : 5 + length]
            if len(stream) < 5 + length:
                raise _More
            stream = stream[5 + length :]
        raise _More

    def _take(self, count: int) -> bytes:
        taken = bytearray()
        while len(taken) < count:
            taken.append(self._next())
        return bytes(taken)

    def _next(self) -> int:
        return next(self._handshake)

    def _number(self, width: int) -> int:
        return int.from_bytes(self._take(width), "big")

    def _hello(self) -> None:
        if self._number(1) != 1:
            raise _Odd
        body = _Body(self, self._number(3))
        if self._major == 3 and body.left >= 34:
            self._sure = True
        if body.left > 1 << 18:
            raise _Odd
        body.skip(34)
        body.skip(body.number(1))
        body.skip(body.number(2))
        body.skip(body.number(1))
        names = 0
        if body.left:
            if body.number(2) != body.left:
                raise _Odd
            while body.left:
                names += self._extension(body)
        if not names and not self._without:
            raise _Refused

    def _extension(self, body: _Body) -> int:
        kind, length = body.number(2), body.number(2)
        if length > body.left:
            raise _Odd
        if kind == EARLY:
            self._early = LONGEST_EARLY
        if kind:
            body.skip(length)
            return 0
        left = body.number(2)
        if not left or left + 2 != length:
            raise _Odd
        names = 0
        while left:
            name_kind, size = body.number(1), body.number(2)
            left -= 3 + size
            if not size or left < 0:
                raise _Odd
            if name_kind:
                body.skip(size)
            else:
                names += self._judge(body.take(size))
        return names

    def _judge(self, raw: bytes) -> int:
        name = raw.decode("latin-1")
        if _is_ipv6(name):
            return 0
        if not set(name) <= LETTERS or name.startswith(".") or ".." in name:
            raise _Refused
        if set(name) <= set("0123456789."):
            return 0
        if not self._allowed("".join(c.lower() if c.isascii() else c for c in name)):
            raise _Refused
        return 1


def _is_ipv6(name: str) -> bool:
    """Something like an address: what stands before the first colon could be one's first group."""
    return re.fullmatch(r"[0-9a-fA-F]{0,4}:[0-9a-fA-F:.]*", name) is not None and ".." not in name and len(name) <= 254


class _Body:
    """What is left of one hello."""

    def __init__(self, reader: _Reader, left: int) -> None:
        self._reader = reader
        self.left = left

    def take(self, count: int) -> bytes:
        taken = bytearray()
        for _ in range(count):
            if not self.left:
                raise _Odd
            taken.append(self._reader._next())
            self.left -= 1
        return bytes(taken)

    def skip(self, count: int) -> None:
        if count > self.left:
            raise _Odd
        self.take(count)

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")
