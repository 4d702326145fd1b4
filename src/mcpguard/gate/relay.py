"""Two streams between a client and a server, line by line, each line judged before a byte of it goes on.

Knows descriptors and order; what a line means is asked of a `Talk`. Never waits: whoever does not read holds up only whoever
writes to it, as a pipe would.

    client's output -> inlet 0 -> judged -> outlet 0 -> server's input
    server's output -> inlet 1 -> judged -> outlet 1 -> client's input
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
from collections.abc import Callable, Iterable
from typing import Protocol

from mcpguard.mcp.framing import Lines, TooLong

CLIENT, SERVER = 0, 1
READ_BYTES = 1 << 16
# What a slow reader may leave lying before its writer is held up.
MOST_WAITING = 1 << 20
_IN, _OUT, _GONE = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR


Later = Callable[[bytes | None, bytes | None], None]


class Judges(Protocol):
    """What a conversation says to each line."""

    def take(self, side: int, line: bytes, later: Later) -> tuple[bytes | None, bytes | None]:
        """What goes on to the other side, and what goes back to whoever sent it; for what is decided later neither."""
        ...

    def end(self) -> None:
        """The connection has ended; nothing is decided any more."""
        ...

    def broken(self, side: int, why: str) -> None:
        """The connection ends, for what comes from there cannot be judged."""
        ...


class Inlet:
    """An end to read from: a pipe whose description is ours alone, or a socket."""

    def __init__(self, descriptor: int, *, is_socket: bool) -> None:
        self.descriptor = descriptor
        self._socket = socket.socket(fileno=descriptor) if is_socket else None

    def read(self) -> bytes | None:
        """Bytes; empty: it has ended; None: nothing is there now."""
        try:
            if self._socket is not None:
                # Whoever holds the other end could switch the description back to waiting.
                return self._socket.recv(READ_BYTES, socket.MSG_DONTWAIT)
            return os.read(self.descriptor, READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RD)
            self._socket.close()
        else:
            os.close(self.descriptor)


class Outlet:
    """An end to write to, with what found no room yet."""

    def __init__(self, descriptor: int, *, is_socket: bool) -> None:
        self.descriptor = descriptor
        self.waiting = bytearray()
        self.ending = False
        self._socket = socket.socket(fileno=descriptor) if is_socket else None

    def put(self, data: bytes) -> bool:
        """Write, or keep for later; False: nobody reads any more."""
        if self.waiting:
            self.waiting += data
            return True
        try:
            written = self._write(data)
        except OSError:
            return False
        if written < len(data):
            self.waiting += memoryview(data)[written:]
        return True

    def drain(self) -> bool:
        """Write what waits, as far as there is room; False: nobody reads any more."""
        try:
            while self.waiting:
                written = self._write(self.waiting)
                if not written:
                    return True
                del self.waiting[:written]
        except OSError:
            return False
        return True

    def _write(self, data: bytes | bytearray) -> int:
        try:
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            return os.write(self.descriptor, data)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            self._socket.close()
        else:
            os.close(self.descriptor)


class Relay:
    """One client and one server."""

    def __init__(
        self,
        poll: select.epoll,
        judges: Judges,
        inlets: tuple[Inlet, Inlet],
        outlets: tuple[Outlet, Outlet],
        limit: int,
        ended: Callable[[Relay], None],
    ) -> None:
        """
        Args:
            limit: bytes of the longest line.
            ended: called once when both directions have ended.
        """
        self._poll = poll
        self._judges = judges
        self._inlets: list[Inlet | None] = list(inlets)
        self._outlets: list[Outlet | None] = list(outlets)
        self._lines = (Lines(limit), Lines(limit))
        self._reading = [False, False]
        self._masks = [-1, -1]
        self._ended = ended
        self._over = False
        self._most_answers = 2 * MOST_WAITING + READ_BYTES + limit

    def descriptors(self) -> Iterable[tuple[int, tuple[Relay, bool, int]]]:
        """What to watch: descriptor, and what to give back to `ready`."""
        for side in (CLIENT, SERVER):
            inlet, outlet = self._inlets[side], self._outlets[side]
            if inlet is not None:
                yield inlet.descriptor, (self, True, side)
            if outlet is not None:
                yield outlet.descriptor, (self, False, side)

    def begin(self) -> None:
        """Forward from now on."""
        for side in (CLIENT, SERVER):
            self._adjust(side)

    def ready(self, is_inlet: bool, side: int, events: int) -> None:
        """What epoll found."""
        if self._over:
            return
        if is_inlet:
            self._read(side)
        else:
            self._write(side, events)
        self._settle()

    def end(self) -> None:
        """Close everything now."""
        if self._over:
            return
        for side in (CLIENT, SERVER):
            self._close_inlet(side)
            self._close_outlet(side)
        self._close()

    def _settle(self) -> None:
        for each in (CLIENT, SERVER):
            self._adjust(each)
        if not any(self._inlets) and not any(self._outlets):
            self._close()

    def _close(self) -> None:
        self._over = True
        self._judges.end()
        self._ended(self)

    def _say_later(self, side: int, onward: bytes | None, back: bytes | None) -> None:
        """What was decided on a line that came from `side` a while ago."""
        if self._over:
            return
        try:
            self._pass(side, onward, back)
            self._settle()
        except OSError:
            self.end()

    def _read(self, side: int) -> None:
        inlet = self._inlets[side]
        if inlet is None or (data := inlet.read()) is None:
            return
        if not data:
            # A line that never ended is no message.
            self._close_inlet(side)
            self._finish(side)
            return
        try:
            for line in self._lines[side].feed(data):
                self._pass(side, *self._judges.take(side, line, functools.partial(self._say_later, side)))
        except TooLong as error:
            self._judges.broken(side, str(error))
            self.end()
        except Exception as error:  # of one connection; the others go on
            self._judges.broken(side, f"{type(error).__name__}: {error}")
            self.end()

    def _pass(self, side: int, onward: bytes | None, back: bytes | None) -> None:
        # An outlet has the number of the side whose words it carries.
        for of, data in ((side, onward), (1 - side, back)):
            outlet = self._outlets[of]
            if data is not None and outlet is not None and not outlet.put(data + b"\n"):
                self._lose(of)

    def _write(self, side: int, events: int) -> None:
        outlet = self._outlets[side]
        if outlet is None:
            return
        if events & _GONE or not outlet.drain():
            self._lose(side)
        elif outlet.ending and not outlet.waiting:
            self._close_outlet(side)

    def _lose(self, side: int) -> None:
        """Nobody reads what comes from `side`: it learns of that as it would of a broken pipe."""
        self._close_outlet(side)
        self._close_inlet(side)

    def _finish(self, side: int) -> None:
        """`side` has said its last word; the other one hears of it when it has read the rest."""
        outlet = self._outlets[side]
        if outlet is None:
            return
        outlet.ending = True
        if not outlet.waiting:
            self._close_outlet(side)

    def _close_inlet(self, side: int) -> None:
        if (inlet := self._inlets[side]) is not None:
            if self._reading[side]:
                self._poll.unregister(inlet.descriptor)
                self._reading[side] = False
            inlet.close()
            self._inlets[side] = None

    def _close_outlet(self, side: int) -> None:
        if (outlet := self._outlets[side]) is not None:
            if self._masks[side] >= 0:
                self._poll.unregister(outlet.descriptor)
                self._masks[side] = -1
            outlet.close()
            self._outlets[side] = None

    def _waiting(self, side: int) -> int:
        outlet = self._outlets[side]
        return 0 if outlet is None else len(outlet.waiting)

    def _adjust(self, side: int) -> None:
        """Watch what may go on: a writer whose words nobody takes is not read.

        Nor one that does not take our answers. Words of the other side lie there as well, but never so many: were both held
        up by one reader, a client and a server that are in the middle of a long message could wait for one another.
        """
        inlet, outlet = self._inlets[side], self._outlets[side]
        if inlet is not None:
            held_up = self._waiting(side) > MOST_WAITING or self._waiting(1 - side) > self._most_answers
            if self._reading[side] == held_up:
                if held_up:
                    self._poll.unregister(inlet.descriptor)
                else:
                    self._poll.register(inlet.descriptor, _IN)
                self._reading[side] = not held_up
        if outlet is not None:
            mask = _OUT if outlet.waiting else 0
            if self._masks[side] != mask:
                if self._masks[side] < 0:
                    self._poll.register(outlet.descriptor, mask)
                else:
                    self._poll.modify(outlet.descriptor, mask)
                self._masks[side] = mask
