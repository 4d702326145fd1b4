"""What the screen looks like, in two sizes and both themes: its text against files in `screens`, its colours by contrast.

`MCPGUARD_SCREENS=write` writes the files anew; look at the difference before it is committed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from records import BEGAN_NS, CHILD, Recorded, until
from rich.color import Color
from rich.segment import Segment
from rich.terminal_theme import TerminalTheme
from textual.geometry import Region
from textual.strip import Strip
from textual.theme import Theme

from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.model.rule import Origin
from mcpguard.policy.compile import DEFAULT
from mcpguard.session import questions
from mcpguard.tui.allow import CallScreen, PurposeScreen, ScopeScreen, WriteScreen
from mcpguard.tui.app import TABS, WatchApp
from mcpguard.tui.colours import ANSI_DARK, ANSI_LIGHT, DARK, LIGHT
from mcpguard.tui.footer import Keys
from mcpguard.tui.help import HelpScreen
from mcpguard.tui.questions import Questions
from mcpguard.tui.stream import EventStream
from mcpguard.tui.totals import Totals

SCREENS = Path(__file__).parent / "screens"
SIZES = ((80, 24), (120, 40))
THEMES = (DARK.name, LIGHT.name)
# What the web's accessibility guidelines ask of text, also of what is dimmed on purpose.
READABLE = 4.5
Show = Callable[[WatchApp, Any], Awaitable[None]]


@pytest.fixture
def fixed(recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    """A record with fixed names and times, of a session that asks."""
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path / "guard"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.setattr("mcpguard.tui.trees.time.time_ns", lambda: BEGAN_NS + 90_000_000_000)
    monkeypatch.setattr(Totals, "tick", lambda *_: None)
    recorded.store._connection.execute("UPDATE sessions SET id = '20251009-085320-snap', profile = 'default'")
    recorded.id = "20251009-085320-snap"
    questions.begin(recorded.id)
    recorded.story()
    loss = {"count": 7, "detail": "records of a ring", "pid": None, "ppid": None, "comm": None, "exe": None}
    recorded.add(
        recorded.event(Kind.LOSS, "loss", **loss),
        _denied(recorded, "/srv/keys/.npmrc", Origin("base", "builtin:base.yaml", 284, "deny **/.npmrc")),
        *(_denied(recorded, "/srv/data/a", DEFAULT) for _ in range(3)),
        replace(
            recorded.event(
                Kind.NET, "connect", verdict=Verdict.DENY, host="api.example.com", address="192.0.2.7", port=443
            ),
            rule=DEFAULT,
        ),
        _denied(recorded, "/srv/data/\x1b[31mred", DEFAULT),
    )
    recorded.add(
        recorded.event(
            *(Kind.NET, "traffic"),
            host="api.example.com",
            address="192.0.2.1",
            port=443,
            protocol="tcp",
            count=0,
            bytes_sent=2100,
            bytes_received=5_500_000,
            **dict.fromkeys(("pid", "ppid", "comm", "exe")),
        )
    )
    recorded.talk()
    yield recorded
    monkeypatch.undo()
    time.tzset()


def _denied(recorded: Recorded, path: str, rule: Origin) -> Event:
    fields = {"access": "read", "verdict": Verdict.DENY, "errno": "EACCES", "pid": CHILD, "comm": "cat"}
    return replace(recorded.event(Kind.FILE, "open", path=path, **fields), rule=rule)


async def _choose(app: WatchApp, pilot: Any, path: str) -> None:
    stream = app.query_one(EventStream)
    await pilot.press("home")
    for _ in range(len(stream)):
        if stream.chosen is not None and stream.chosen.path == path:
            return
        await pilot.press("down")
    pytest.fail(f"{path} is not there")


async def denial(app: WatchApp, pilot: Any) -> None:
    await _choose(app, pilot, "/ws/secret/key")


async def menu(app: WatchApp, pilot: Any) -> None:
    await _choose(app, pilot, "/srv/data/a")
    await pilot.press("a")
    await until(pilot, lambda: isinstance(app.screen, ScopeScreen))


async def chosen(app: WatchApp, pilot: Any) -> None:
    await menu(app, pilot)
    await pilot.press("down")


async def typed(app: WatchApp, pilot: Any) -> None:
    await _choose(app, pilot, "/srv/keys/.npmrc")
    await pilot.press("a")
    await until(pilot, lambda: isinstance(app.screen, PurposeScreen))


async def asked(app: WatchApp, pilot: Any) -> None:
    await asked_for(app, pilot, 3)


async def asked_for(app: WatchApp, pilot: Any, rows: int) -> None:
    await pilot.press("7")
    await until(pilot, lambda: app.query_one(Questions).row_count == rows)


async def files(app: WatchApp, pilot: Any) -> None:
    await pilot.press("2")


async def folder(app: WatchApp, pilot: Any) -> None:
    await files(app, pilot)
    await pilot.press("down")


async def written(app: WatchApp, pilot: Any) -> None:
    await menu(app, pilot)
    await pilot.press("w")
    await until(pilot, lambda: isinstance(app.screen, WriteScreen))


async def programs(app: WatchApp, pilot: Any) -> None:
    await pilot.press("4")


async def spoken(app: WatchApp, pilot: Any) -> None:
    await pilot.press("5")


async def call(app: WatchApp, pilot: Any) -> None:
    """Of a tool, which waits for its answer."""
    with app._feed.lock:
        (asked,) = [event for event in app._stream.shown(99) if event.mcp is not None and event.mcp.tool == "delete"]
        app._totals.set_held([asked])
    await asked_for(app, pilot, 4)
    app._draw_status()  # it is drawn from time to time, and not behind what is asked
    await until(pilot, lambda: "1 HELD" in texts([list(strip) for strip in app.screen._compositor.render_strips()]))
    await pilot.press("n", "n", "n", "a")
    await until(pilot, lambda: isinstance(app.screen, CallScreen))


async def keys(app: WatchApp, pilot: Any) -> None:
    await pilot.press("question_mark")
    await until(pilot, lambda: isinstance(app.screen, HelpScreen))


async def network(app: WatchApp, pilot: Any) -> None:
    await pilot.press("3")


async def rules_used(app: WatchApp, pilot: Any) -> None:
    await pilot.press("6")


SHOWS = {
    "denial": denial,
    "menu": menu,
    "typed": typed,
    "questions": asked,
    "files": files,
    "network": network,
    "executions": programs,
    "mcp": spoken,
    "write": written,
    "call": call,
    "rules": rules_used,
    "help": keys,
}

# What lies behind a question is dimmed: there only the question's own text counts.
OVER_ANOTHER = {"help": "#help"} | dict.fromkeys(("menu", "typed", "write", "call"), "#allow")
Lines = list[list[Segment]]


def keys_are_placed(app: WatchApp, over_another: bool) -> bool:
    """Whether each key that the screen takes now has its place at the bottom; they are drawn after the screen itself."""
    bound = list(app.screen.active_bindings.values())
    shown = {one.binding.action for one in bound if one.binding.show}
    if not over_another:
        shown |= {"help", "command_palette", "app.command_palette"} & {one.binding.action for one in bound}
    keys = app.screen.query_one(Keys)
    regions = {key.action: key.region for key in keys.query("FooterKey")}
    inside = all(region and region in keys.region for region in regions.values())
    return inside and shown <= set(regions) and len(set(regions.values())) == len(regions)


def drawn(recorded: Recorded, show: Show, size: tuple[int, int], part: str = "") -> dict[str, tuple[Lines, Lines]]:
    """In each theme the screen once it does not change any more, and of it what is inside the widget `part`."""
    found: list[Lines] = []
    last: dict[str, tuple[Lines, Lines]] = {}

    async def scene() -> None:
        app = recorded.app(os.environ["HOME"])
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: app._summed == app._last > 0)
            app._draw()
            await show(app, pilot)

            def still() -> bool:
                found.append([list(strip) for strip in app.screen._compositor.render_strips()])
                same = len(found) > 3 and texts(found[-1]) == texts(found[-4])
                return same and (part == "#help" or keys_are_placed(app, bool(part)))

            for theme in THEMES:
                app.theme = theme
                found.clear()
                await until(pilot, still)
                last[theme] = found[-1], (_inside(found[-1], app.screen.query_one(part).region) if part else found[-1])

    asyncio.run(scene())
    return last


def _inside(lines: Lines, region: Region) -> Lines:
    return [list(Strip(lines[y]).crop(region.x, region.right)) for y in range(region.y, region.bottom)]


def texts(lines: Lines) -> str:
    return "\n".join("".join(segment.text for segment in line).rstrip() for line in lines) + "\n"


@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("name", SHOWS)
def test_the_screen_looks_as_it_did(name: str, size: tuple[int, int], fixed: Recorded) -> None:
    themes = drawn(fixed, SHOWS[name], size, OVER_ANOTHER.get(name, ""))
    kept = SCREENS / f"{name}-{size[0]}x{size[1]}.txt"
    if os.environ.get("MCPGUARD_SCREENS") == "write":
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(texts(themes[THEMES[0]][0]))
    for theme, (lines, told) in themes.items():
        assert texts(lines) == kept.read_text(), theme
        assert faint(told) == [], theme


@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("name", [name for name in SHOWS if name != "help"])
def test_every_key_has_its_place_at_the_bottom(name: str, size: tuple[int, int], fixed: Recorded) -> None:
    async def scene() -> None:
        app = fixed.app(os.environ["HOME"])
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: app._summed == app._last > 0)
            app._draw()
            await SHOWS[name](app, pilot)
            await until(pilot, lambda: keys_are_placed(app, name in OVER_ANOTHER))
            assert app.screen.query_one(Keys).region in app.screen.region

    asyncio.run(scene())


def test_a_tiny_terminal_shows_the_list_under_a_short_header(fixed: Recorded) -> None:
    async def scene() -> None:
        app = fixed.app(os.environ["HOME"])
        async with app.run_test(size=(40, 10)) as pilot:
            await until(pilot, lambda: app._summed == app._last > 0)
            app._draw()
            await denial(app, pilot)

            def sees(*words: str) -> bool:
                strips = app.screen._compositor.render_strips()
                return all(word in texts([list(strip) for strip in strips]) for word in words)

            header = (fixed.id, "default", "tier 3 landlock", "7 LOST", "gaps: files", "? Help")
            await until(pilot, lambda: sees(*header, "DENY  cat[400000…", "/ws/secret/key"), "the list")
            assert app._stream.size.height >= 4
            await pilot.press("enter")
            await until(pilot, lambda: sees(*header, "file open read"), "the details")
            await pilot.press("enter", "6")
            await until(pilot, lambda: sees(*header, "no rule allows it"), "another tab")
            # The control: where there is room, everything is back.
            await pilot.resize_terminal(120, 40)
            await until(pilot, lambda: sees(*header, "^p palette", "default deny", "because 2"))

    asyncio.run(scene())


@pytest.mark.parametrize("tab", TABS)
def test_words_stand_out_under_the_cursor_too(tab: str, fixed: Recorded) -> None:
    async def scene() -> None:
        app = fixed.app()
        async with app.run_test(size=SIZES[1]) as pilot:
            await until(pilot, lambda: app._summed == app._last > 0)
            app._draw()
            for theme in THEMES:
                app.theme = theme
                await pilot.press(str(TABS.index(tab) + 1))
                for focus in ("tab", *(["down"] * 8), "tab"):
                    await pilot.press(focus)
                    await pilot.pause()
                    strips = app.screen._compositor.render_strips()
                    assert faint([list(strip) for strip in strips]) == [], (theme, focus)

    asyncio.run(scene())


# Of each screen without colours a word where you are; of an option, and of the place where one types, the beginning.
MARKED: dict[str, tuple[Show, str]] = {
    "denial": (denial, "/ws/secret/key"),
    "menu": (chosen, "s  allow for the session"),
    "typed": (typed, "t"),
    "questions": (asked, "/srv/data/a"),
    "files": (folder, "srv/"),
    "network": (network, "192.0.2.9:80/tcp"),
    "executions": (programs, "agent --now"),
    "mcp": (spoken, "tools/call delete"),
    "rules": (rules_used, "no rule allows it"),
}


@pytest.mark.parametrize("name", MARKED)
def test_without_colours_there_are_none_and_where_you_are_is_marked(
    name: str, fixed: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    show, word = MARKED[name]
    part = OVER_ANOTHER.get(name, "")
    coloured, whole = drawn(fixed, show, (120, 40), part)[DARK.name]
    assert len(colours(coloured)) > 3
    monkeypatch.setenv("NO_COLOR", "1")
    for theme, (lines, inside) in drawn(fixed, show, (120, 40), part).items():
        assert colours(lines) == set(), f"in {theme}"
        assert texts(inside) == texts(whole), "the words are the same"
        styles = [(segment.text.strip(), segment.style) for line in inside for segment in line if segment.style]
        assert word in [text for text, style in styles if style.reverse or style.underline], f"in {theme}"


def colours(lines: Lines) -> set[str]:
    """Those of the texts and grounds, but for the terminal's own."""
    styles = [segment.style for line in lines for segment in line if segment.style is not None]
    found = [color for style in styles for color in (style.color, style.bgcolor) if color is not None]
    return {color.name for color in found if not color.is_default}


@pytest.mark.parametrize("theme, ansi", [(DARK, ANSI_DARK), (LIGHT, ANSI_LIGHT)], ids=THEMES)
def test_each_colour_of_a_theme_stands_out_from_each_ground(theme: Theme, ansi: TerminalTheme) -> None:
    made = theme.to_color_system().generate()
    for ground in ("background", "surface", "panel"):
        behind = Color.parse(made[ground])
        for name in ("red", "green", "yellow", "blue", "cyan", "white", "default"):
            shown = Color.from_triplet(Color.parse(name).get_truecolor(ansi))
            assert _contrast(shown, behind) >= READABLE, (name, ground)
        for name in (
            "foreground",
            "text-muted",
            "text-disabled",
            "footer-key-foreground",
            "error",
            "success",
            "warning",
        ):
            assert _contrast(Color.parse(made[name]), behind) >= READABLE, (name, ground)


def faint(lines: Lines) -> list[str]:
    """Words that stand out too little from what is behind them."""
    found = []
    for line in lines:
        for text, style, _control in line:
            if not any(character.isalnum() for character in text) or style is None:
                continue
            if style.color is None or style.bgcolor is None or _contrast(style.color, style.bgcolor) < READABLE:
                found.append(f"{text.strip()!r} {style}")
    return found


def _contrast(one: Color, other: Color) -> float:
    """As the web's accessibility guidelines define it: 1 to 21."""
    dark, light = sorted(map(_luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: Color) -> float:
    parts = [part / 255 for part in color.get_truecolor()]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_word_in_the_colour_of_its_ground_is_noticed() -> None:
    from rich.style import Style

    assert faint([[Segment("gone", Style.parse("#222222 on #202020"))]])
    assert not faint([[Segment("there", Style.parse("#eeeeee on #202020"))]])


def test_no_screen_holds_what_belongs_to_one_machine() -> None:
    kept = sorted(SCREENS.glob("*.txt"))
    assert {path.stem.rpartition("-")[0] for path in kept} == set(SHOWS)
    for path in kept:
        text = path.read_text()
        assert "/tmp" not in text and "/root" not in text and "\x1b" not in text
