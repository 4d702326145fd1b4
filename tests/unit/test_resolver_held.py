"""Questions that are held for a person: which, how many, how long, and what ends it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import dns.rdatatype
import pytest

from mcpguard.resolver import held as held_module
from mcpguard.resolver.held import MOST_NAMES, Cut, Held
from mcpguard.wire.lookups import UNANSWERED

A, AAAA, HTTPS = dns.rdatatype.A, dns.rdatatype.AAAA, dns.rdatatype.HTTPS
WHO = (7, 1, "tool")
SEARCH = ("corp.example", "ns.svc.cluster.local")


@pytest.fixture
def lines() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def play(lines: tuple[socket.socket, socket.socket], scene: Callable[[Held], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        held = Held(lines[1], lambda: ("box.corp.example", SEARCH))
        held.watch(True)
        await asyncio.wait_for(scene(held), 30)

    asyncio.run(whole())


async def begun(*waiting: Awaitable[str]) -> list[asyncio.Future[str]]:
    tasks = [asyncio.ensure_future(one) for one in waiting]
    await asyncio.sleep(0)
    return tasks


def ask(held: Held, name: str, kind: dns.rdatatype.RdataType = A, *, stream: bool = True) -> Awaitable[str]:
    return held.wait(name, kind, WHO, stream=stream)


async def newest(line: socket.socket, holds: Callable[[list[Any]], bool]) -> list[Any]:
    while True:
        try:
            told = json.loads(line.recv(1 << 16))
            if holds(told):
                return list(told)
        except BlockingIOError:
            await asyncio.sleep(0.01)


def test_rules_that_come_let_all_who_ask_for_the_name_go_on(lines: tuple[socket.socket, socket.socket]) -> None:
    async def scene(held: Held) -> None:
        tasks = await begun(ask(held, "a.test"), ask(held, "a.test", AAAA), ask(held, "b.test"))
        told = await newest(lines[0], lambda one: len(one) == 2)
        assert [(one[0], one[1], one[2], one[3], one[4], one[6]) for one in told] == [
            ("a.test", "A", *WHO, 2),
            ("b.test", "A", *WHO, 1),
        ]
        held.look_again(lambda name: name == "a.test")
        assert await asyncio.gather(*tasks[:2]) == ["", ""]
        assert not tasks[2].done()
        assert len(await newest(lines[0], lambda one: len(one) == 1)) == 1
        held.watch(False)
        await tasks[2]

    play(lines, scene)


def test_a_name_that_is_left_refused_is_refused_at_once_and_not_held_again(
    lines: tuple[socket.socket, socket.socket],
) -> None:
    async def scene(held: Held) -> None:
        (task,) = await begun(ask(held, "a.test"))
        held.leave(["a.test"])
        assert (await task).startswith(UNANSWERED)
        (again,) = await begun(ask(held, "a.test"))
        assert await again == ""

    play(lines, scene)


def test_nobody_answers_and_it_is_over_once_and_for_all(
    lines: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_module, "HELD_S", 0.2)

    async def scene(held: Held) -> None:
        assert "within" in await ask(held, "a.test")
        (again,) = await begun(ask(held, "a.test"))
        assert again.done() and again.result() == ""
        (other,) = await begun(ask(held, "b.test"))
        assert not other.done()
        await other

    play(lines, scene)


def test_who_asks_by_a_datagram_is_sent_to_a_stream_and_joins_there(
    lines: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_module, "DATAGRAM_S", 0.1)

    async def scene(held: Held) -> None:
        with pytest.raises(Cut):
            await ask(held, "a.test", stream=False)
        (task,) = await begun(ask(held, "a.test"))
        assert not task.done()
        held.look_again(lambda _: True)
        assert await task == ""
        (soon,) = await begun(ask(held, "b.test", stream=False))
        held.look_again(lambda _: True)
        assert await soon == ""

    play(lines, scene)


def test_of_many_names_a_few_are_held_and_the_others_refused_at_once(
    lines: tuple[socket.socket, socket.socket],
) -> None:
    async def scene(held: Held) -> None:
        tasks = await begun(*(ask(held, f"n{number}.test") for number in range(MOST_NAMES + 20)))
        assert [task.done() for task in tasks] == [False] * MOST_NAMES + [True] * 20
        held.watch(False)
        await asyncio.gather(*tasks)

    play(lines, scene)


def test_when_nobody_watches_nothing_is_held(lines: tuple[socket.socket, socket.socket]) -> None:
    async def scene(held: Held) -> None:
        (task,) = await begun(ask(held, "a.test"))
        held.watch(False)
        assert (await task).startswith(UNANSWERED)
        (after,) = await begun(ask(held, "b.test"))
        assert after.done() and after.result() == ""
        # Whoever comes to watch was never asked.
        held.watch(True)
        (again,) = await begun(ask(held, "a.test"))
        assert not again.done()
        held.watch(False)
        await again

    play(lines, scene)


def test_a_session_that_does_not_ask_holds_nothing() -> None:
    async def scene() -> None:
        held = Held(None, lambda: ("box", ()))
        held.watch(True)
        (task,) = await begun(held.wait("a.test", A, WHO, stream=True))
        assert task.done() and task.result() == ""

    asyncio.run(scene())


@pytest.mark.parametrize(
    "name",
    ["box", "localhost", "box.corp.example", "api.example.com.corp.example", "a.b.ns.svc.cluster.local", "example"],
)
def test_what_nobody_wants_to_know_is_not_held(lines: tuple[socket.socket, socket.socket], name: str) -> None:
    async def scene(held: Held) -> None:
        (task,) = await begun(ask(held, name))
        assert task.done()
        (wanted,) = await begun(ask(held, "wiki.corp.example"))
        assert not wanted.done()
        held.watch(False)
        await wanted

    play(lines, scene)


def test_other_records_wait_for_the_address_but_ask_no_question_of_their_own(
    lines: tuple[socket.socket, socket.socket],
) -> None:
    async def scene(held: Held) -> None:
        (alone,) = await begun(ask(held, "a.test", HTTPS))
        assert alone.done()
        both = await begun(ask(held, "a.test"), ask(held, "a.test", HTTPS))
        assert not any(task.done() for task in both)
        held.watch(False)
        await asyncio.gather(*both)

    play(lines, scene)


def test_a_reader_that_is_slow_hears_the_newest_in_the_end(lines: tuple[socket.socket, socket.socket]) -> None:
    lines[1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
    filled = 0
    try:
        while True:
            lines[1].send(b"[]" * 100, socket.MSG_DONTWAIT)
            filled += 1
    except BlockingIOError:
        assert filled

    async def scene(held: Held) -> None:
        (task,) = await begun(ask(held, "a.test"))
        await asyncio.sleep(0.3)
        for _ in range(filled):
            lines[0].recv(4096)
        assert (await newest(lines[0], lambda one: len(one) == 1))[0][0] == "a.test"
        held.watch(False)
        await task

    play(lines, scene)
