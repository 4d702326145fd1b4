"""Allowing what was refused, from the screen: the question, the rule in the person's own profile, and what no key opens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from records import Recorded, until

from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.policy.compile import DEFAULT
from mcpguard.profile.load import load
from mcpguard.tui.allow import AllowScreen
from mcpguard.tui.app import WatchApp
from mcpguard.tui.stream import EventStream

Steps = Callable[[WatchApp, Any], Awaitable[None]]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: Recorded) -> Path:
    """The person's own profile of the session's name, not there yet."""
    (tmp_path / "home").mkdir()
    (tmp_path / "ws").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path / "guard"))
    recorded.store._connection.execute(
        "UPDATE sessions SET profile = 'default', workspace = ?", (str(tmp_path / "ws"),)
    )
    return tmp_path / "guard/config/profiles/default.yaml"


def denied(recorded: Recorded, path: str, rule: int) -> Event:
    return recorded.event(
        Kind.FILE, "open", access="write", path=path, verdict=Verdict.DENY, rule=rule, comm="tool", errno="EACCES"
    )


def watch(recorded: Recorded, steps: Steps) -> None:
    async def scene() -> None:
        app = recorded.app()
        async with app.run_test(size=(110, 32)) as pilot:
            await until(pilot, lambda: len(app.query_one(EventStream)) > 0)
            await steps(app, pilot)

    asyncio.run(scene())


def notes(app: WatchApp) -> str:
    return "\n".join(f"{note.title} {note.message}" for note in app._notifications)


def no_rule(recorded: Recorded, path: str) -> Event:
    return replace(denied(recorded, path, 0), rule=DEFAULT)


def test_a_asks_and_y_writes_the_rule(recorded: Recorded, own: Path, tmp_path: Path) -> None:
    recorded.add(no_rule(recorded, f"{tmp_path}/home/.cache/tool/x"))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("a")
        await until(pilot, lambda: isinstance(app.screen, AllowScreen))
        assert not own.exists()
        await pilot.press("y")
        await until(pilot, own.exists)
        made = load("default")
        assert "~/.cache/tool/" in {rule.pattern for rule in made.files}
        assert "the next run has it" in notes(app)

    watch(recorded, steps)


def test_what_is_not_confirmed_is_not_written(recorded: Recorded, own: Path, tmp_path: Path) -> None:
    recorded.add(no_rule(recorded, f"{tmp_path}/home/.cache/tool/x"))

    async def steps(app: WatchApp, pilot: Any) -> None:
        for key in ("escape", "n"):
            await pilot.press("a")
            await until(pilot, lambda: isinstance(app.screen, AllowScreen))
            await pilot.press(key)
            await until(pilot, lambda: not isinstance(app.screen, AllowScreen))
        assert not own.exists()

    watch(recorded, steps)


def test_comments_of_an_own_profile_stay(recorded: Recorded, own: Path, tmp_path: Path) -> None:
    own.parent.mkdir(parents=True)
    own.write_text("# mine\nname: default\nextends: [default]\nfiles:\n  read: [~/notes]  # old\n")
    recorded.add(no_rule(recorded, f"{tmp_path}/home/.cache/tool/x"))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("a")
        await until(pilot, lambda: isinstance(app.screen, AllowScreen))
        await pilot.press("y")
        await until(pilot, lambda: "~/.cache/tool/" in own.read_text())
        assert own.read_text().startswith("# mine\n") and "# old" in own.read_text()
        await pilot.press("a")
        await until(pilot, lambda: "nothing to add" in notes(app))

    watch(recorded, steps)


def test_a_profile_that_changed_meanwhile_is_not_overwritten(recorded: Recorded, own: Path, tmp_path: Path) -> None:
    recorded.add(no_rule(recorded, f"{tmp_path}/home/.cache/tool/x"))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("a")
        await until(pilot, lambda: isinstance(app.screen, AllowScreen))
        own.parent.mkdir(parents=True)
        own.write_text("name: default\nextends: [default]\n")
        await pilot.press("y")
        await until(pilot, lambda: "changed by somebody else" in notes(app))
        assert own.read_text() == "name: default\nextends: [default]\n"

    watch(recorded, steps)


def test_what_a_rule_refuses_on_purpose_is_opened_by_no_key(recorded: Recorded, own: Path) -> None:
    recorded.add(denied(recorded, "/ws/secret/key", 2))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("a")
        await until(pilot, lambda: "refuses it on purpose" in notes(app))
        assert "test.yaml:12" in notes(app) and not isinstance(app.screen, AllowScreen)
        assert not own.exists()

    watch(recorded, steps)


def test_what_was_allowed_needs_nothing(recorded: Recorded, own: Path) -> None:
    recorded.add(*recorded.opens(1))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("a")
        await until(pilot, lambda: "nothing to add" in notes(app))

    watch(recorded, steps)
