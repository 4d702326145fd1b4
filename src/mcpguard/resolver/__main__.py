"""Entry of the resolver: `python -E -P .../mcpguard/resolver/__main__.py`, with lines of `session.resolver` on standard input.

It starts while the agent runs, so nothing that an agent may have written is on its path: no PYTHONPATH, no working directory.
The package's own parent is put there by hand.

The first line has the descriptors and the rules; each line after it has what is different from now on, and
is answered with a byte when it is. It ends when the input ends, so with the process that started it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__" and sys.flags.ignore_environment:
    _root = str(Path(__file__).absolute().parents[2])
    if _root not in sys.path:
        sys.path.insert(0, _root)

from mcpguard.kernel.bpf import Map
from mcpguard.model.values import replace
from mcpguard.resolver.held import Held
from mcpguard.resolver.questions import Questions
from mcpguard.resolver.rules import Rules
from mcpguard.resolver.server import Server
from mcpguard.resolver.table import Learned
from mcpguard.resolver.upstream import Servers
from mcpguard.resolver.views import View
from mcpguard.wire import lookups
from mcpguard.wire.records import LookupRecord

_SWEEP_S = 60.0
_MOST_LINE = 16 << 20


class Teller:
    """Puts questions on record, as far as somebody reads; what finds no room is counted, and told with the next."""

    def __init__(self, line: socket.socket, untold: int) -> None:
        """
        Args:
            untold: descriptor of 8 bytes where the count stands, for whoever looks when this process has ended.
        """
        self._line = line
        self._untold = untold
        self._lost = int.from_bytes(os.pread(untold, 8, 0), "little")

    def __call__(self, record: LookupRecord) -> None:
        told = replace(record, head=replace(record.head, lost_before=self._lost))
        try:
            self._line.send(lookups.encode(told), socket.MSG_DONTWAIT)
        except OSError:
            self.missed()
        else:
            if self._lost:
                self._count(0)

    def missed(self) -> None:
        """Count a question that is not answered, or not told of."""
        self._count(self._lost + 1)

    def _count(self, lost: int) -> None:
        self._lost = lost
        os.pwrite(self._untold, lost.to_bytes(8, "little"), 0)


async def _serve(first: dict[str, Any], lines: asyncio.StreamReader) -> None:
    learned = Learned(Map("mg_names", first["names_map"]))
    teller = Teller(socket.socket(fileno=first["record"]), first["untold"])
    servers = Servers(instead=first["servers"])
    line = socket.socket(fileno=first["held"]) if first["held"] >= 0 else None
    held = Held(line, lambda: (socket.gethostname().lower(), servers.search()))
    kept = {
        int(slot): View(Rules.from_json(one), Learned(Map("mg_names", one["names_map"])), one["rule"])
        for slot, one in first["kept"].items()
    }
    questions = Questions(
        Rules.from_json(first), Map("mg_questions", first["questions_map"]), learned, teller, servers, held, kept
    )
    _take(first, questions, held)
    await Server(questions, teller.missed).begin([socket.socket(fileno=fd) for fd in first["sockets"]])
    os.write(sys.stdout.fileno(), b"+")
    sweeping = asyncio.create_task(_sweep(learned, *(one.learned for one in kept.values())))
    while news := await lines.readline():
        _take(json.loads(news), questions, held)
        os.write(sys.stdout.fileno(), b"+")
    sweeping.cancel()


def _take(news: dict[str, Any], questions: Questions, held: Held) -> None:
    if "names" in news:
        questions.follow(Rules.from_json(news))
    if "left" in news:
        held.leave(news["left"])
    if "watched" in news:
        held.watch(bool(news["watched"]))


async def _sweep(*every: Learned) -> None:
    while True:
        await asyncio.sleep(_SWEEP_S)
        for learned in every:
            learned.sweep()


async def _main() -> None:
    lines = asyncio.StreamReader(limit=_MOST_LINE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    first = await lines.readline()
    if first:
        await _serve(json.loads(first), lines)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    asyncio.run(_main())
    os._exit(0)
