"""Every key of the screen has a test that presses it, and every command of the palette does what its key does."""

from __future__ import annotations

import asyncio
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from records import Recorded, until
from textual.binding import Binding
from textual.widgets import TabbedContent

from mcpguard.tui.allow import CallScreen, PurposeScreen, ScopeScreen, WriteScreen
from mcpguard.tui.app import TABS, WatchApp
from mcpguard.tui.help import TEXT, HelpScreen
from mcpguard.tui.questions import Questions
from mcpguard.tui.stream import EventStream
from mcpguard.tui.tables import Table
from mcpguard.tui.trees import FilesTree

OURS = (
    WatchApp,
    EventStream,
    Table,
    FilesTree,
    Questions,
    ScopeScreen,
    CallScreen,
    WriteScreen,
    PurposeScreen,
    HelpScreen,
)
PRESSED = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
NAMES = {"slash": "/", "question_mark": "?"}


def keys(owner: Any) -> list[str]:
    """The keys that a class binds, one by one."""
    made = [found for found in vars(owner)["BINDINGS"] if isinstance(found, Binding)]
    return [key for binding in made for key in binding.key.split(",")]


@pytest.mark.parametrize(("owner", "key"), [(owner, key) for owner in OURS for key in keys(owner)])
def test_every_key_is_pressed_by_a_test(owner: type[Any], key: str) -> None:
    assert re.search(rf'"{re.escape(key)}"', PRESSED), f"no test presses {key} of {owner.__name__}"


@pytest.mark.parametrize(("owner", "key"), [(owner, key) for owner in OURS for key in keys(owner)])
def test_every_key_has_an_action(owner: type[Any], key: str) -> None:
    (binding,) = [found for found in vars(owner)["BINDINGS"] if key in found.key.split(",")]
    name = binding.action.partition("(")[0]
    assert inspect.isroutine(getattr(owner, f"action_{name}"))


@pytest.mark.parametrize("key", [key for key in keys(WatchApp) if not key.isdigit()])
def test_every_key_of_the_screen_is_in_the_help(key: str) -> None:
    assert f"[b]{NAMES.get(key, key)}[/b]" in TEXT or key == "question_mark"


@pytest.mark.parametrize("name", TABS)
def test_every_tab_is_in_the_help_and_in_the_palette(name: str) -> None:
    assert f"{TABS.index(name) + 1} {'MCP' if name == 'mcp' else name.title()}" in TEXT


def watch(recorded: Recorded, steps: Any, size: tuple[int, int] = (110, 32)) -> None:
    async def scene() -> None:
        app = recorded.app()
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: app._summed == app._last > 0)
            await steps(app, pilot)

    asyncio.run(scene())


def test_the_commands_of_the_palette_do_what_the_keys_do(recorded: Recorded) -> None:
    recorded.story()

    async def steps(app: WatchApp, pilot: Any) -> None:
        commands = {command.title: command.callback for command in app.get_system_commands(app.screen)}
        for name in TABS:
            commands[f"Show {name}"]()
            assert app.query_one(TabbedContent).active == name
        commands["Pause or follow"]()
        assert not app.query_one(EventStream).following
        commands["Filter"]()
        assert app.query_one("#filter").display
        commands["Next verdict"]()
        assert app._line == "verdict:deny"
        for command, id in (("Details", "#about"), ("Processes", "#processes")):
            before = app.query_one(id).display
            commands[command]()
            assert app.query_one(id).display is not before
        assert {"Allow what was refused", "Export", "Copy"} <= set(commands)

    watch(recorded, steps)


def test_moving_in_the_stream(recorded: Recorded) -> None:
    recorded.add(*recorded.opens(60))

    async def steps(app: WatchApp, pilot: Any) -> None:
        stream = app.query_one(EventStream)
        where = []
        for key in ("g", "j", "down", "k", "up", "pagedown", "pageup", "G", "home", "end"):
            await pilot.press(key)
            where.append(stream._cursor)
        assert where == [0, 1, 2, 1, 0, 20, 0, 59, 0, 59]
        assert stream.following

    watch(recorded, steps)


def test_rows_and_tabs_are_chosen_by_the_mouse(recorded: Recorded) -> None:
    recorded.story()

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.click("#stream", offset=(10, 3))
        stream = app.query_one(EventStream)
        assert stream.chosen is not None and stream.chosen.path == "/ws/src/f0" and not stream.following
        for name in ("network", "questions", "events"):
            await pilot.click(f"#--content-tab-{name}")
            await until(pilot, lambda name=name: app.query_one(TabbedContent).active == name, name)

    watch(recorded, steps, size=(80, 24))


@pytest.mark.parametrize("key", ["escape", "q", "question_mark", "enter", "space"])
def test_any_of_its_keys_closes_the_help(key: str, recorded: Recorded) -> None:
    recorded.story()

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("question_mark")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen))
        await pilot.press(key)
        await until(pilot, lambda: not isinstance(app.screen, HelpScreen))

    watch(recorded, steps)
