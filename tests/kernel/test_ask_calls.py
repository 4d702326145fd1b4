"""`run --ask` holds a call that needs the user's word until it is answered in `watch`: a whole session, a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import RUN_SECONDS, Json, mcpguard_command, need_root, sandbox
from mcp_box import PROFILE, Box, tool
from puppet import watching

from mcpguard.errors import HostError
from mcpguard.events.store import Store
from mcpguard.session.approve import HeldCall, Watch, decide
from mcpguard.session.gate import SHIM

sys.path.insert(0, str(Path(__file__).parents[1] / "tui"))
from records import until

from mcpguard.tui.app import WatchApp
from mcpguard.tui.questions import Questions

pytestmark = pytest.mark.kernel

RULES = """\
  classes:
    read: ["s/look", "s/read"]
    untrusted: ["s/look"]
    write: ["s/write"]
  flow:
    untrusted: ["*/@untrusted"]
    then: ask
"""


class Agent:
    """What is said to a server in a session that asks."""

    def __init__(self, box: Box, *options: str) -> None:
        shim = [mcpguard_command()[0], "-I", "-S", "-B", SHIM]
        inner = ["sh", "-c", f'echo "$MCPGUARD_SESSION"; exec {" ".join(shim)} "$MCPGUARD_GATE" s -- "$@"', "sh"]
        world = box.inside.world
        words = ["run", "-p", "gated", "-w", str(world.project), *box.options, *options, "--"]
        self.process = subprocess.Popen(
            [*box.inside.prefix, *mcpguard_command(), *words, *inner, *box.command],
            cwd=world.project,
            env=world.environment(**box.inside.variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.session = self.process.stdout.readline().strip()
        assert self.session, self.process.communicate()[1]
        self._number = 0

    def say(self, name: str, **arguments: object) -> int:
        assert self.process.stdin
        self._number += 1
        self.process.stdin.write(tool(name, self._number, **arguments) + "\n")
        self.process.stdin.flush()
        return self._number

    def hear(self, number: int) -> Json:
        assert self.process.stdout
        answer: Json = json.loads(self.process.stdout.readline())
        assert answer["id"] == number
        return answer

    def ask(self, name: str, **arguments: object) -> Json:
        return self.hear(self.say(name, **arguments))

    def end(self) -> None:
        self.process.communicate(timeout=RUN_SECONDS)


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    need_root()
    with sandbox() as inside:
        made = Box(inside)
        inside.write_profile("gated", PROFILE + RULES)
        made.approve("s", made.command)
        monkeypatch.setenv("MCPGUARD_HOME", str(inside.world.state))
        yield made


@contextlib.contextmanager
def agent(box: Box, *options: str) -> Iterator[Agent]:
    made = Agent(box, *options)
    try:
        yield made
    finally:
        made.end()


def held(watch: Watch, holds: Callable[[list[HeldCall]], bool]) -> list[HeldCall]:
    deadline = time.monotonic() + RUN_SECONDS
    while True:
        watch.news()
        if holds(watch.calls):
            return watch.calls
        assert time.monotonic() < deadline
        time.sleep(0.02)


def asked(box: Box, session: str, call: str) -> Json:
    found = box.inside.events(session, "--kind", "mcp")
    return next(event for event in found if event["op"] == "request" and event["mcp"]["call"] == call)


def test_a_call_after_untrusted_words_waits_for_the_answer(box: Box) -> None:
    target = box.inside.world.project / "written"
    with agent(box, "--ask") as talks:
        assert "result" in talks.ask("write", path=str(target))
        target.unlink()
        talks.ask("look")  # strangers' words
        alone = talks.ask("write", path=str(target))
        assert "nobody watches" in alone["error"]["message"]
        with watching(talks.session) as watch:
            waiting = talks.say("write", path=str(target), password="canary-password")
            (call,) = held(watch, lambda found: len(found) == 1)
            assert (call.server, call.tool, call.classes, call.transport) == ("s", "write", "write", "stdio")
            assert json.loads(call.arguments) == {"path": str(target), "password": "***"}
            assert "s/look" in call.why and not target.exists()
            decide(talks.session, call.call, "once")
            assert "result" in talks.hear(waiting) and target.exists()
            held(watch, lambda found: not found)
            with pytest.raises(HostError, match="does not wait"):
                decide(talks.session, call.call, "once")
            target.unlink()
            waiting = talks.say("write", path=str(target))
            (second,) = held(watch, lambda found: len(found) == 1)
            decide(talks.session, second.call, "refused")
            assert second.call in talks.hear(waiting)["error"]["message"] and not target.exists()
    allowed, refused = asked(box, talks.session, call.call), asked(box, talks.session, second.call)
    assert allowed["verdict"] == "allow" and "allowed once in watch, by " in allowed["detail"]
    assert refused["verdict"] == "deny" and "refused in watch, by " in refused["detail"]


def test_without_ask_it_is_refused_at_once_and_says_how_it_could_be_asked(box: Box) -> None:
    with agent(box) as talks:
        talks.ask("look")
        refused = talks.ask("write", path=str(box.inside.world.project / "written"))
        assert "mcpguard run --ask" in refused["error"]["message"]


def test_the_screen_shows_what_is_asked_and_a_key_answers(box: Box) -> None:
    target = box.inside.world.project / "written"

    def row(app: WatchApp, number: int) -> list[str]:
        """Of the held calls, in their order."""
        shown = app.query_one(Questions)
        rows: list[list[Any]] = [shown.get_row_at(row) for row in range(shown.row_count)]
        found = [[str(cell) for cell in one] for one in rows]
        return [*[one for one in found if one[3].startswith("s tools/call write")], *[[""]] * 2][number]

    def details(app: WatchApp) -> str:
        return str(app.query_one("#details").render())

    async def scene(talks: Agent) -> None:
        with Store.open(create=False) as store:
            session = store.session(talks.session)
        app = WatchApp(lambda: Store.open(create=False), session)
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app._feed._watch is not None, "the screen holds calls")
            await pilot.press("7")
            for number, (key, word, result) in enumerate((("x", "left refused", "error"), ("s", "allowed", "result"))):
                path = f"{target}{number}"
                waiting = await asyncio.to_thread(talks.say, "write", path=path)
                await until(pilot, lambda number=number: row(app, number)[0] == "HELD")
                await pilot.press("n")
                await until(pilot, lambda path=path: path in details(app) and "s/look" in details(app))
                assert "every call of s/write" in details(app)
                await pilot.press(key)
                await until(pilot, lambda number=number, word=word: row(app, number)[0] == word)
                assert result in await asyncio.to_thread(talks.hear, waiting)
            assert "result" in await asyncio.to_thread(talks.ask, "write", path=str(target))

    with agent(box, "--ask") as talks:
        talks.ask("look")
        asyncio.run(scene(talks))
    assert not Path(str(target) + "0").exists() and target.exists()
