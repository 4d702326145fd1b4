"""Entry of the gate: `python -E -P .../mcpguard/gate/__main__.py`, with a line of `session.gate` on standard input.

It starts while the agent runs, so nothing that an agent may have written is on its path: no PYTHONPATH, no working directory.
The package's own parent is put there by hand. It ends when the input ends, so with the process that started it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import select
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any

if __name__ == "__main__" and sys.flags.ignore_environment:
    _root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if _root not in sys.path:
        sys.path.insert(0, _root)

from mcpguard.events.store import Store
from mcpguard.gate.held import Held
from mcpguard.gate.journal import Journal, recover
from mcpguard.gate.keeper import Keeper
from mcpguard.gate.ledger import Ledger
from mcpguard.gate.line import ALL, HEARD, PATIENCE_S
from mcpguard.gate.servers import Servers
from mcpguard.gate.serving import Gate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mcpguard.gate.web import Web

_STANDARD_OUTPUT = 1
_STANDARD_INPUT = 0
# A local process may hold connections to us; what servers need has to be there besides.
_MOST_DESCRIPTORS = 1 << 16


def _read_line() -> tuple[bytes, bytes]:
    """One line, and what came behind it; empty when there was none."""
    found = bytearray()
    while b"\n" not in found:
        more = os.read(_STANDARD_INPUT, 1 << 16)
        if not more:
            return b"", b""
        found += more
    line, _, rest = bytes(found).partition(b"\n")
    return line, rest


def _tell_ends(ends: Sequence[int], served: bool) -> None:
    """Say to the process that keeps the record which pipes and sockets it need not tell of; if nobody reads it: no matter."""
    states = [os.fstat(end) for end in ends]
    line = json.dumps([served, [[state.st_dev, state.st_ino] for state in states]]).encode() + b"\n"
    with contextlib.suppress(OSError):
        os.write(_STANDARD_OUTPUT, line)


def _tell_still(pid: int, began: str, name: str, still: bool) -> None:
    """Say which process stands still for us from now on, or goes on: when we are gone nobody else would have it go on.

    Raises:
        OSError: nobody hears that.
    """
    told: dict[str, Any] = {"stands" if still else "goes": pid, "began": began, "name": name}
    os.write(_STANDARD_OUTPUT, json.dumps(told).encode() + b"\n")


def _say(word: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(_STANDARD_OUTPUT, word + b"\n")


def _raise_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def main() -> None:
    """Serve until standard input ends."""
    _raise_limit()
    line, rest = _read_line()
    if not line:
        return
    facts: dict[str, Any] = json.loads(line)
    os.set_blocking(_STANDARD_OUTPUT, False)
    ledger = _ledger(facts["session"])
    listener = socket.socket(fileno=facts["listener"])
    held = Held(socket.socket(fileno=facts["held"]) if facts["held"] >= 0 else None)
    held.hear({"watched": facts["watched"]})
    servers = Servers(facts, ledger, held)
    webs: list[Web] = []
    handed_over: list[bool] = []
    thread = threading.Thread(target=_serve_remotes, args=(facts, servers, webs, handed_over), name="web", daemon=True)
    if facts.get("web"):
        thread.start()
    keeper = Keeper(socket.socket(fileno=facts["keeps"]) if facts["keeps"] >= 0 else None)
    heard = functools.partial(_say, HEARD)
    gate = Gate(
        *(facts["session"], facts["leaf"], listener, servers, ledger, _tell_ends, held, heard, keeper),
        tell_still=_tell_still,
    )
    handed_over.append(gate.serve(_STANDARD_INPUT, rest))
    for web in webs:
        web.end()
        thread.join(PATIENCE_S)
    if all(handed_over) and len(handed_over) == 1 + len(webs):
        _say(ALL)


def _ledger(session: str) -> Ledger:
    store = Store.open(create=False)
    recover(store)
    journal = None
    with contextlib.suppress(OSError):  # then each decision is a transaction
        journal = Journal(session)
    return Ledger(store, session, journal)


def _serve_remotes(facts: dict[str, Any], servers: Servers, webs: list[Web], handed_over: list[bool]) -> None:
    """What it needs is only loaded when somebody comes. Its own hand on the record, as each thread has one.

    Args:
        webs: gets what serves, for whoever ends it.
        handed_over: gets what `Ledger.finish` says, at the end.
    """
    listener = socket.socket(fileno=facts["web"]["listener"])
    select.select([listener], (), ())
    from mcpguard.gate.web import Web

    ledger = _ledger(facts["session"])
    web = Web(
        listener,
        facts["web"]["token"],
        servers.remote,
        lambda key, transport: servers.open_remote(key, transport, ledger),
        ledger.flush,
        lambda key, why: servers.turn_away(key, why, ledger),
    )
    webs.append(web)
    web.run()
    handed_over.append(ledger.finish(PATIENCE_S))


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    main()
    os._exit(0)
