"""For tests of the way to remote servers: it, the SDK's servers behind it, and servers that the tests drive themselves."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from aiohttp import web
from events_help import OPEN_POLICY, make_policy

from mcpguard.events import query
from mcpguard.events.mcp import Talk
from mcpguard.events.store import Store
from mcpguard.gate.conversation import Conversation
from mcpguard.gate.held import Held
from mcpguard.gate.ledger import Ledger
from mcpguard.gate.remote import Remote
from mcpguard.gate.web import Web
from mcpguard.mcp.judge import Judge, Taint
from mcpguard.mcp.policy import compile_rules
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind, McpMessage
from mcpguard.profile.parse import parse

TOKEN = "t0ken"
VARIABLES = {"home": "/home/u", "workspace": "/project", "tmp": "/tmp"}


def listener() -> socket.socket:
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    made.listen(64)
    return made


class Way:
    """The way to one server; `url` is what an agent is told."""

    _begun: ClassVar[list[Way]] = []

    def __init__(self, tmp_path: Path, upstream: str, rules: str, *, old: bool = False, **remote: Any) -> None:
        self._path = tmp_path / "events.db"
        with Store.open(self._path) as store:
            policy = make_policy(*OPEN_POLICY)
            store.start_session(policy, command=("agent",), tier="3", coverage=(), now_ns=1, session="s")
        self._rules = compile_rules(parse(f"name: x\nmcp: {rules}\n", "x", name="x").profile.mcp, VARIABLES)
        self._taint = Taint({})
        self._pins: dict[str, str] = {}
        self.told, self._line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.held = Held(self._line)
        self._ledger: Ledger | None = None
        socket_ = listener()
        self.url = f"http://127.0.0.1:{socket_.getsockname()[1]}/far"
        self._web = Web(
            socket_, TOKEN, {"far": Remote(upstream, old=old, **remote)}.get, self._open, self._flush, self._turn_away
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._begun.append(self)

    @classmethod
    def end_all(cls) -> None:
        """Else each would go on writing what it noted, five times a second."""
        while cls._begun:
            one = cls._begun.pop()
            one._web.end()
            one._thread.join(60)
            assert not one._thread.is_alive()
            one.told.close()
            one._line.close()

    def _run(self) -> None:
        with Store.open(self._path) as store:
            self._ledger = Ledger(store, "s")
            self._web.run()

    def _flush(self) -> None:
        if self._ledger is not None:
            self._ledger.flush()

    def _turn_away(self, name: str, why: str) -> None:
        assert self._ledger is not None
        message = McpMessage(name, "http", "client")
        self._ledger.note(Event(time.time_ns(), "s", Kind.MCP, "refuse", Verdict.DENY, detail=why, mcp=message))

    def wait_for(self, op: str, count: int = 1) -> list[Event]:
        """So many events, once they are on record."""
        until = time.monotonic() + 60
        while len(found := [one for one in self.events() if one.op == op]) < count:
            assert time.monotonic() < until, found
            time.sleep(0.02)
        return found

    def _open(self, name: str, transport: str) -> Conversation:
        assert self._ledger is not None
        judge = Judge(self._rules, name, {}, self._pins, self._taint, lambda path: path)
        hold, drop = self.held.hold_in_loop, self.held.drop
        return Conversation(judge, Talk("s", name, transport), self._ledger, hold=hold, drop=drop)

    def events(self) -> list[Event]:
        """What is on record; what was only noted is there soon."""
        with Store.open(self._path) as store:
            return list(query.events(store, "s", query.Filter(kind=Kind.MCP)))


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextmanager
def upstream(handler: Handler) -> Iterator[str]:
    """A server that answers as the test says; its address."""
    socket_ = listener()
    ready, loop, over = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.SockSite(runner, socket_).start()
        ready.set()
        await over.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield f"http://127.0.0.1:{socket_.getsockname()[1]}/mcp"
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(20)


def message(method: str, id: int | None = 1, **params: Any) -> dict[str, Any]:
    made = {"jsonrpc": "2.0", "method": method, "params": params}
    return made if id is None else {**made, "id": id}


def result(id: int, value: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": id, "result": value})
