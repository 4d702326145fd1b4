"""The sockets of the resolver: datagrams and streams in, answers out, within bounds."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import cast

from mcpguard.resolver.questions import Asker, Questions, Sender

_MOST_WAITING = 1024
_MOST_STREAMS = 64
_IDLE_S = 10.0
_LENGTH_BYTES = 2
# Each datagram says anew who sends it. Several of one socket may wait at once, so what was said is not forgotten at the first;
# the odd number keeps clear of programs that ask again and again.
_REMEMBERED_S = 3.7


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, serve: Callable[[bytes, Sender, asyncio.DatagramTransport], None]) -> None:
        self._serve = serve
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # in older Pythons it only looks like one

    def datagram_received(self, data: bytes, addr: Sender) -> None:
        if self._transport is not None:
            self._serve(data, addr, self._transport)


class Server:
    """Serves the questions that come to sockets which somebody else has bound."""

    def __init__(self, questions: Questions, missed: Callable[[], None]) -> None:
        """
        Args:
            missed: counts a question that gets no answer and is not on record.
        """
        self._questions = questions
        self._missed = missed
        self._waiting: set[asyncio.Task[None]] = set()
        self._streams = 0
        self._forgetting: dict[Sender, asyncio.TimerHandle] = {}

    async def begin(self, sockets: Sequence[socket.socket]) -> None:
        """Serve these from now on, in the running loop."""
        loop = asyncio.get_running_loop()
        for one in sockets:
            one.setblocking(False)
            if one.type == socket.SOCK_DGRAM:
                await loop.create_datagram_endpoint(lambda: _Datagrams(self._datagram), sock=one)
            else:
                await asyncio.start_server(self._stream, sock=one)

    def _datagram(self, data: bytes, sender: Sender, transport: asyncio.DatagramTransport) -> None:
        asker = self._questions.who(sender, socket.IPPROTO_UDP)
        self._forget_later(sender)
        if asker is None or len(self._waiting) >= _MOST_WAITING:
            self._missed()
            return
        task = asyncio.get_running_loop().create_task(self._answer(data, sender, transport, asker))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    def _forget_later(self, sender: Sender) -> None:
        """Somebody else may come to have this port."""
        before = self._forgetting.pop(sender, None)
        if before is not None:
            before.cancel()
        self._forgetting[sender] = asyncio.get_running_loop().call_later(_REMEMBERED_S, self._forget, sender)

    def _forget(self, sender: Sender) -> None:
        del self._forgetting[sender]
        self._questions.forget(sender)

    async def _answer(self, data: bytes, sender: Sender, transport: asyncio.DatagramTransport, asker: Asker) -> None:
        reply = await self._questions.reply(data, asker, stream=False)
        if reply is not None:
            transport.sendto(reply, sender)

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asker = self._questions.who(writer.get_extra_info("peername"), socket.IPPROTO_TCP)
        if asker is None or self._streams >= _MOST_STREAMS:
            self._missed()
            writer.close()
            return
        self._streams += 1
        try:
            with contextlib.suppress(OSError, EOFError, asyncio.TimeoutError):
                while True:
                    length = await asyncio.wait_for(reader.readexactly(_LENGTH_BYTES), _IDLE_S)
                    data = await asyncio.wait_for(reader.readexactly(int.from_bytes(length, "big")), _IDLE_S)
                    reply = await self._questions.reply(data, asker, stream=True)
                    if reply is None:
                        break
                    writer.write(len(reply).to_bytes(_LENGTH_BYTES, "big") + reply)
                    await asyncio.wait_for(writer.drain(), _IDLE_S)
        finally:
            self._streams -= 1
            writer.close()
