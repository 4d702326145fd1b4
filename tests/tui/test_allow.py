"""Answering a refusal from the screen: once, for the session, in the profile; and what no key opens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from records import Recorded, until
from textual.events import Paste
from textual.widgets import Input, OptionList

from mcpguard.errors import HostError
from mcpguard.events.finding import NOT_THERE, system_rule
from mcpguard.model.access import Verdict
from mcpguard.model.coverage import Coverage, Strength
from mcpguard.model.event import Event, Kind
from mcpguard.model.rule import Origin
from mcpguard.policy.compile import DEFAULT
from mcpguard.profile.amend import Addition
from mcpguard.profile.load import load
from mcpguard.session.approve import Outcome, Scope
from mcpguard.session.coverage import HOOKS, HOOKS_ALONE
from mcpguard.tui.allow import PurposeScreen, ScopeScreen, WriteScreen
from mcpguard.tui.app import WatchApp
from mcpguard.tui.stream import EventStream

Steps = Callable[[WatchApp, Any], Awaitable[None]]


class Line:
    """The session's end of the line: notes what it was asked, and answers as it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[tuple[str, str, str]], Scope]] = []
        self.later = ""
        self.problem: Exception | None = None
        self.hold: threading.Event | None = None

    def approve(self, session: str, additions: Sequence[Addition], scope: Scope) -> Outcome:
        rules = tuple(f"{one.section}.{one.key}: {one.value}" for one in additions)
        self.asked.append((session, [(one.section, one.key, one.value) for one in additions], scope))
        if self.hold is not None:
            self.hold.wait(30)
        if self.problem is not None:
            raise self.problem
        return Outcome((), rules, self.later) if self.later else Outcome(rules, (), "")


@pytest.fixture
def line() -> Line:
    return Line()


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


def denied(recorded: Recorded, path: str, rule: Origin | None = DEFAULT, **fields: Any) -> Event:
    given = {"access": "write", "verdict": Verdict.DENY, "comm": "tool", "errno": "EACCES"} | fields
    return replace(recorded.event(Kind.FILE, "open", path=path, **given), rule=rule)


def watch(recorded: Recorded, line: Line, steps: Steps, size: tuple[int, int] = (110, 32)) -> None:
    async def scene() -> None:
        app = recorded.app(ask=line.approve)
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: len(app.query_one(EventStream)) > 0)
            await steps(app, pilot)

    asyncio.run(scene())


def notes(app: WatchApp) -> str:
    return "\n".join(f"{note.title} {note.message}" for note in app._notifications)


def words(app: WatchApp) -> str:
    """What the screen on top says."""
    texts = [str(widget.render()) for widget in app.screen.query("Static")]
    options = [str(option.prompt) for found in app.screen.query(OptionList) for option in found.options]
    return "\n".join([*texts, *options])


async def opened(app: WatchApp, pilot: Any, kind: type[Any]) -> None:
    await until(pilot, lambda: isinstance(app.screen, kind) and "by " in words(app), f"{kind.__name__}: {notes(app)}")


async def menu(app: WatchApp, pilot: Any) -> None:
    await pilot.press("a")
    await opened(app, pilot, ScopeScreen)


async def writing(app: WatchApp, pilot: Any) -> None:
    """By way of the menu to the change of the profile."""
    await menu(app, pilot)
    await pilot.press("w")
    await opened(app, pilot, WriteScreen)


def cache_file(tmp_path: Path) -> str:
    return f"{tmp_path}/home/.cache/tool/x-1"


@pytest.mark.parametrize(
    ("key", "scope", "value"), [("o", Scope.ONCE, "the object"), ("s", Scope.SESSION, "~/.cache/tool/")]
)
def test_once_and_for_the_session_ask_the_session_and_write_nothing(
    key: str, scope: Scope, value: str, recorded: Recorded, own: Path, line: Line, tmp_path: Path
) -> None:
    recorded.add(denied(recorded, cache_file(tmp_path)))
    wanted = value if value.startswith("~") else cache_file(tmp_path)

    async def steps(app: WatchApp, pilot: Any) -> None:
        await menu(app, pilot)
        assert wanted in words(app)
        await pilot.press(key)
        await until(pilot, lambda: f"holds now: files.write: {wanted}" in notes(app))
        assert line.asked == [(recorded.id, [("files", "write", wanted)], scope)]
        assert not own.exists()

    watch(recorded, line, steps)


def test_the_profile_is_written_after_y_and_the_session_takes_the_rule(
    recorded: Recorded, own: Path, line: Line, tmp_path: Path
) -> None:
    recorded.add(denied(recorded, cache_file(tmp_path)))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await writing(app, pilot)
        assert "+ file write ~/.cache/tool/" in words(app) and not own.exists() and not line.asked
        await pilot.press("y")
        await until(pilot, lambda: "the next run has it, too" in notes(app))
        assert "~/.cache/tool/" in {rule.pattern for rule in load("default").files}
        assert line.asked == [(recorded.id, [("files", "write", "~/.cache/tool/")], Scope.PROFILE)]
        assert "holds now" in notes(app)

    watch(recorded, line, steps)


@pytest.mark.parametrize(
    ("tier", "by", "modes", "said"),
    [
        ("1 bpf-lsm", HOOKS[1], (), "open at the next attempt"),
        ("2 bpf-modify-return", HOOKS_ALONE, (), "open at the next attempt"),
        ("2 bpf-modify-return", HOOKS[2], ("ask",), "only the next run has what you allow"),
        ("3 landlock", "Landlock", (), "only the next run has what you allow"),
    ],
)
def test_the_menu_says_when_a_file_is_open_in_this_session(
    recorded: Recorded, own: Path, line: Line, tmp_path: Path, tier: str, by: str, modes: tuple[str, ...], said: str
) -> None:
    recorded.holds(tier, Coverage("files", Strength.FULL, by), modes=modes)
    recorded.add(denied(recorded, cache_file(tmp_path)))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await menu(app, pilot)
        shown = " ".join(words(app).split())
        assert said in shown
        assert ("next attempt" in shown) != ("next run" in shown)

    watch(recorded, line, steps)


def test_a_destination_waits_for_no_run(recorded: Recorded, own: Path, line: Line) -> None:
    recorded.add(
        replace(recorded.event(Kind.NET, "connect", verdict=Verdict.DENY, address="192.0.2.7", port=443), rule=DEFAULT)
    )

    async def steps(app: WatchApp, pilot: Any) -> None:
        await menu(app, pilot)
        assert "192.0.2.7" in words(app) and "next run" not in words(app) and "next attempt" not in words(app)

    watch(recorded, line, steps)


def test_what_this_tier_cannot_change_now_the_next_run_has_and_the_screen_says_why(
    recorded: Recorded, own: Path, line: Line, tmp_path: Path
) -> None:
    recorded.add(denied(recorded, cache_file(tmp_path)))
    line.later = "Landlock cannot be widened"

    async def steps(app: WatchApp, pilot: Any) -> None:
        await menu(app, pilot)
        await pilot.press("s")
        await until(pilot, lambda: "not allowed now" in notes(app))
        assert "cannot be had in this session" in notes(app) and "why: Landlock cannot be widened" in notes(app)
        assert "holds now" not in notes(app)
        await writing(app, pilot)
        await pilot.press("y")
        await until(pilot, lambda: "the next run has it: files.write: ~/.cache/tool/" in notes(app))
        assert own.exists() and "holds now" not in notes(app)

    watch(recorded, line, steps)


def test_a_session_that_does_not_answer_changes_nothing_and_the_profile_still_can(
    recorded: Recorded, own: Path, line: Line, tmp_path: Path
) -> None:
    recorded.add(denied(recorded, cache_file(tmp_path)))
    line.problem = HostError("session x does not take rules now", why="it hung up", do="use the profile", code="live.x")

    async def steps(app: WatchApp, pilot: Any) -> None:
        await menu(app, pilot)
        await pilot.press("o")
        await until(pilot, lambda: "does not take rules now" in notes(app))
        await writing(app, pilot)
        await pilot.press("y")
        await until(pilot, lambda: "it hung up" in notes(app) and "the next run has it" in notes(app))
        assert own.exists()

    watch(recorded, line, steps)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failure_that_nobody_foresaw_leaves_the_next_answer_possible(
    recorded: Recorded, own: Path, line: Line, tmp_path: Path
) -> None:
    recorded.add(denied(recorded, cache_file(tmp_path)))

    async def steps(app: WatchApp, pilot: Any) -> None:
        line.problem = ValueError("nobody thought of it")
        await menu(app, pilot)
        await pilot.press("o")
        await until(pilot, lambda: "mcpguard itself is at fault" in notes(app))
        line.problem = None
        await menu(app, pilot)
        await pilot.press("o")
        await until(pilot, lambda: "holds now" in notes(app))

    watch(recorded, line, steps)


def test_the_screen_stays_awake_while_the_session_thinks(
    recorded: Recorded, own: Path, line: Line, tmp_path: Path
) -> None:
    recorded.add(denied(recorded, cache_file(tmp_path)))
    line.hold = threading.Event()

    async def steps(app: WatchApp, pilot: Any) -> None:
        await menu(app, pilot)
        await pilot.press("o")
        await until(pilot, lambda: bool(line.asked))
        await pilot.press("3")
        assert app.query_one("#tabs").active == "network"  # type: ignore[attr-defined]
        await pilot.press("1", "a")
        await until(pilot, lambda: "still being carried out" in notes(app))
        assert line.hold is not None
        line.hold.set()
        await until(pilot, lambda: "holds now" in notes(app))

    watch(recorded, line, steps)


@pytest.mark.parametrize("key", ["escape", "n", "x", "q"])
def test_what_is_left_refused_asks_nobody(key: str, recorded: Recorded, own: Path, line: Line, tmp_path: Path) -> None:
    recorded.add(denied(recorded, cache_file(tmp_path)))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await menu(app, pilot)
        await pilot.press(key)
        await until(pilot, lambda: not isinstance(app.screen, ScopeScreen))
        await writing(app, pilot)
        await pilot.press(key if key != "x" else "n")
        await until(pilot, lambda: not isinstance(app.screen, WriteScreen))
        assert not own.exists() and not line.asked

    watch(recorded, line, steps)


def test_the_menu_is_also_chosen_by_arrows_and_by_the_mouse(
    recorded: Recorded, own: Path, line: Line, tmp_path: Path
) -> None:
    recorded.add(denied(recorded, cache_file(tmp_path)))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await menu(app, pilot)
        await pilot.press("down", "enter")
        await until(pilot, lambda: [asked[2] for asked in line.asked] == [Scope.SESSION])
        await until(pilot, lambda: "holds now" in notes(app))
        await menu(app, pilot)
        await pilot.click("#scopes", offset=(4, 1))
        await until(pilot, lambda: [asked[2] for asked in line.asked] == [Scope.SESSION, Scope.ONCE])

    watch(recorded, line, steps, size=(80, 24))


def test_a_session_that_ended_only_leaves_the_profile(
    recorded: Recorded, own: Path, line: Line, tmp_path: Path
) -> None:
    recorded.add(denied(recorded, cache_file(tmp_path)))
    recorded.end()

    async def steps(app: WatchApp, pilot: Any) -> None:
        await menu(app, pilot)
        await pilot.press("o", "s")
        await until(pilot, lambda: "only the profile can have it" in notes(app))
        assert isinstance(app.screen, ScopeScreen)
        await pilot.press("w")
        await opened(app, pilot, WriteScreen)
        await pilot.press("y")
        await until(pilot, lambda: "the session has ended" in notes(app) and own.exists())
        await menu(app, pilot)
        await pilot.press("w")
        await until(pilot, lambda: "nothing to add" in notes(app))
        assert not line.asked

    watch(recorded, line, steps)


def test_comments_of_an_own_profile_stay(recorded: Recorded, own: Path, line: Line, tmp_path: Path) -> None:
    own.parent.mkdir(parents=True)
    own.write_text("# mine\nname: default\nextends: [default]\nfiles:\n  read: [~/notes]  # old\n")
    recorded.add(denied(recorded, cache_file(tmp_path)))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await writing(app, pilot)
        await pilot.press("y")
        await until(pilot, lambda: "~/.cache/tool/" in own.read_text())
        assert own.read_text().startswith("# mine\n") and "# old" in own.read_text()
        # The profile has it already: the session is still asked to take it.
        await until(pilot, lambda: len(line.asked) == 1 and "holds now" in notes(app))
        await menu(app, pilot)
        await pilot.press("w")
        await until(pilot, lambda: "in your profile already" in notes(app))
        assert len(line.asked) == 2

    watch(recorded, line, steps)


def test_a_profile_that_changed_meanwhile_is_not_overwritten(
    recorded: Recorded, own: Path, line: Line, tmp_path: Path
) -> None:
    recorded.add(denied(recorded, cache_file(tmp_path)))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await writing(app, pilot)
        own.parent.mkdir(parents=True)
        own.write_text("name: default\nextends: [default]\n")
        await pilot.press("y")
        await until(pilot, lambda: "changed by somebody else" in notes(app))
        assert own.read_text() == "name: default\nextends: [default]\n" and not line.asked

    watch(recorded, line, steps)


def test_a_rule_of_ones_own_that_refuses_is_named_with_its_place(recorded: Recorded, own: Path, line: Line) -> None:
    recorded.add(denied(recorded, "/ws/secret/key", recorded.policy.rules[2]))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: bool(app._totals.uses))
        await pilot.press("a")
        await opened(app, pilot, PurposeScreen)
        assert "test.yaml:12" in words(app) and "because 2" in words(app)
        assert "mcpguard profile edit" in words(app)
        await pilot.press("escape")
        assert not own.exists() and not line.asked

    watch(recorded, line, steps)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (system_rule("no look into processes outside"), "mcpguard refuses this in every profile"),
        (Origin("mcpguard", "mcpguard", 0, "readonly /x"), "mcpguard refuses this in every profile"),
        (Origin("base", "builtin:base.yaml", 77, "readonly ~/.bashrc"), "builtin:base.yaml:77"),
        (Origin("base", "builtin:base.yaml", 9, "network deny 169.254.169.254"), "does not extend base"),
    ],
)
def test_what_is_refused_on_purpose_is_opened_by_no_key(
    rule: Origin, said: str, recorded: Recorded, own: Path, line: Line
) -> None:
    recorded.add(denied(recorded, "/ws/x", rule))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("a")
        await opened(app, pilot, PurposeScreen)
        assert said in words(app)
        await pilot.press("o", "s", "w", "y", "escape")
        await until(pilot, lambda: not isinstance(app.screen, PurposeScreen))
        assert not own.exists() and not line.asked

    watch(recorded, line, steps)


@pytest.mark.parametrize("place", ["config/profiles/default.yaml", "state/events.db", "state/control/x"])
@pytest.mark.parametrize("access", ["read", "write"])
def test_what_is_mcpguards_own_is_opened_by_no_key(
    place: str, access: str, recorded: Recorded, own: Path, line: Line, tmp_path: Path
) -> None:
    recorded.add(denied(recorded, f"{tmp_path}/guard/{place}", access=access))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("a")
        await until(pilot, lambda: "mcpguard's own" in notes(app))
        await pilot.press("o", "s", "w", "y")
        assert not own.exists() and not line.asked

    watch(recorded, line, steps)


def test_a_link_to_what_is_mcpguards_own_is_its_own(recorded: Recorded, own: Path, line: Line, tmp_path: Path) -> None:
    (tmp_path / "guard/state").mkdir(parents=True)
    (tmp_path / "ws/innocent").symlink_to(tmp_path / "guard/state")
    recorded.add(denied(recorded, f"{tmp_path}/ws/innocent/events.db", access="read"))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("a")
        await until(pilot, lambda: "mcpguard's own" in notes(app))

    watch(recorded, line, steps)


def test_what_was_allowed_needs_nothing(recorded: Recorded, own: Path, line: Line) -> None:
    recorded.add(*recorded.opens(1))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("a")
        await until(pilot, lambda: "nothing to add" in notes(app))

    watch(recorded, line, steps)


def test_what_a_rule_allows_but_was_not_there_is_not_called_refused_on_purpose(
    recorded: Recorded, own: Path, line: Line
) -> None:
    recorded.add(denied(recorded, "/ws/new", recorded.policy.rules[1], detail=NOT_THERE))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("a")
        await until(pilot, lambda: "a rule allows this already" in notes(app))

    watch(recorded, line, steps)


def test_a_folder_is_said_to_be_one(recorded: Recorded, own: Path, line: Line, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    recorded.add(denied(recorded, f"{tmp_path}/data", access="read"))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await menu(app, pilot)
        assert "is a folder: a rule for it holds for all that is in it" in words(app)

    watch(recorded, line, steps)


def test_a_refused_connection_is_allowed_by_address_once_and_by_name_for_the_session(
    recorded: Recorded, own: Path, line: Line
) -> None:
    event = recorded.event(
        Kind.NET, "connect", verdict=Verdict.DENY, host="api.example.com", address="192.0.2.7", port=443, protocol="tcp"
    )
    recorded.add(replace(event, rule=DEFAULT))

    async def steps(app: WatchApp, pilot: Any) -> None:
        for key, times in (("o", 1), ("s", 2)):
            await menu(app, pilot)
            await pilot.press(key)
            await until(pilot, lambda times=times: len(line.asked) == times and not app._approval._busy)
        assert [asked[1] for asked in line.asked] == [
            [("network", "allow", "192.0.2.7:443/tcp")],
            [("network", "allow", "api.example.com:443")],
        ]

    watch(recorded, line, steps)


def test_names_in_the_menu_cannot_steer_the_terminal(recorded: Recorded, own: Path, line: Line, tmp_path: Path) -> None:
    recorded.add(denied(recorded, f"{tmp_path}/home/.cache/tool/[31m[bold]x allow once", comm="\x1b[2J[red]"))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await menu(app, pilot)
        assert "\x1b" not in words(app) and "[bold]x allow once" in words(app)
        await pilot.press("o")
        await until(pilot, lambda: "holds now" in notes(app))
        assert "\x1b" not in notes(app)

    watch(recorded, line, steps)


@pytest.mark.parametrize("key", ["o", "s", "w"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Kind.FILE, "{home}/.cache/tool/\x1b[31m[bold]x\nallow once"),
        (Kind.FILE, "{home}/notes\u202egnp.exe"),
        (Kind.UNIX, "@a*"),
        (Kind.UNIX, "@/*"),
        (Kind.UNIX, "@a[b]"),
        (Kind.UNIX, "@a\nb: c"),
        (Kind.UNIX, "relative.sock"),
    ],
)
def test_a_name_that_no_rule_can_mean_exactly_is_opened_by_no_key(
    kind: Kind, name: str, key: str, recorded: Recorded, own: Path, line: Line, tmp_path: Path
) -> None:
    event = denied(recorded, name.replace("{home}", f"{tmp_path}/home"))
    recorded.add(event if kind is Kind.FILE else replace(event, kind=kind, op="connect", access=None))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("a")
        await until(pilot, lambda: "no rule can mean this name exactly" in notes(app))
        assert all(one.isprintable() for one in notes(app).splitlines())
        await pilot.press(key)
        await pilot.pause()
        assert line.asked == [] and not own.exists()

    watch(recorded, line, steps)


# A built-in denial: the path is typed.

NPMRC = Origin("base", "builtin:base.yaml", 284, "deny ~/.npmrc")


def credential(recorded: Recorded, tmp_path: Path, rule: Origin = NPMRC, **fields: Any) -> str:
    path = f"{tmp_path}/home/.npmrc"
    recorded.add(denied(recorded, path, rule, **({"access": "read"} | fields)))
    return path


def test_a_built_in_denial_asks_for_the_path_to_be_typed_and_the_next_run_has_it(
    recorded: Recorded, own: Path, line: Line, tmp_path: Path
) -> None:
    path = credential(recorded, tmp_path)

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("a")
        await opened(app, pilot, PurposeScreen)
        assert "builtin:base.yaml:284" in words(app) and "by profile base" in words(app)
        await pilot.press(*path, "enter")
        await opened(app, pilot, WriteScreen)
        assert "+ file except ~/.npmrc" in words(app) and "+ file read ~/.npmrc" in words(app)
        assert not own.exists()
        await pilot.press("y")
        await until(pilot, lambda: "what runs now stays refused" in notes(app) and own.exists())
        assert [one.path for one in load("default").exceptions] == ["~/.npmrc"]
        assert not line.asked and app._line == ""

    watch(recorded, line, steps)


@pytest.mark.parametrize("typed", ["", "y", "o", "~", "/", ".npmrc", "PATH ", "PATH/", "path"])
def test_nothing_but_the_path_itself_will_do(
    typed: str, recorded: Recorded, own: Path, line: Line, tmp_path: Path
) -> None:
    path = credential(recorded, tmp_path)
    wrong = {"PATH ": f"{path} ", "PATH/": f"{path}/", "path": path.upper()}.get(typed, typed)

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("a")
        await opened(app, pilot, PurposeScreen)
        await pilot.press(*wrong, "enter")
        await pilot.pause(0.2)
        assert isinstance(app.screen, PurposeScreen)
        # What is typed here is no filter of the stream behind it, and it can be mended.
        assert app.screen.query_one(Input).display and app.screen.query_one(Input).has_focus
        assert app._line == ""
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, PurposeScreen))
        assert not own.exists() and not line.asked

    watch(recorded, line, steps)


def test_a_pasted_path_is_not_typed(recorded: Recorded, own: Path, line: Line, tmp_path: Path) -> None:
    path = credential(recorded, tmp_path)

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("a")
        await opened(app, pilot, PurposeScreen)
        app.post_message(Paste(path))
        app.copy_to_clipboard(path)
        await pilot.press("ctrl+v")
        await pilot.pause(0.2)
        assert app.screen.query_one(Input).value == ""
        await pilot.press("enter", "escape")
        assert not own.exists()

    watch(recorded, line, steps)


@pytest.mark.parametrize(
    "fields",
    [
        {"rule": Origin("base", "builtin:base.yaml", 77, "readonly ~/.npmrc"), "access": "write"},
        {"rule": Origin("default", "/x/default.yaml", 7, "deny ~/.npmrc")},
        {"rule": Origin("mcpguard", "mcpguard", 0, "readonly ~/.npmrc")},
        {"target": "/ws/other"},
    ],
    ids=["readonly", "own", "mcpguard", "two paths"],
)
def test_only_a_built_in_denial_of_one_path_can_be_typed_open(
    fields: dict[str, Any], recorded: Recorded, own: Path, line: Line, tmp_path: Path
) -> None:
    path = credential(recorded, tmp_path, **fields)

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("a")
        await opened(app, pilot, PurposeScreen)
        assert not app.screen.query(Input)
        await pilot.press(*path, "enter", "y", "escape")
        assert not own.exists() and not line.asked

    watch(recorded, line, steps)


@pytest.mark.parametrize("name", ["state/events.db", "config/profiles/default.yaml"])
def test_typing_opens_nothing_of_mcpguards_own(
    name: str, recorded: Recorded, own: Path, line: Line, tmp_path: Path
) -> None:
    recorded.add(denied(recorded, f"{tmp_path}/guard/{name}", NPMRC, access="read"))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("a")
        await opened(app, pilot, PurposeScreen)
        assert not app.screen.query(Input)

    watch(recorded, line, steps)


def test_a_name_that_looks_like_another_cannot_be_typed_open(
    recorded: Recorded, own: Path, line: Line, tmp_path: Path
) -> None:
    recorded.add(denied(recorded, f"{tmp_path}/home/.npmr\u0441", NPMRC, access="read"))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("a")
        await opened(app, pilot, PurposeScreen)
        assert not app.screen.query(Input)

    watch(recorded, line, steps)
