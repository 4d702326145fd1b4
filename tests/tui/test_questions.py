"""Ask mode on the screen: what no rule covers becomes a question once, a key answers it, and the answer is remembered."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from records import CHILD, Recorded, until
from test_allow import Line, Steps, line, notes, own, words  # noqa: F401

from mcpguard.errors import UsageError
from mcpguard.events.finding import QUIET
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind, McpMessage
from mcpguard.policy.compile import DEFAULT
from mcpguard.profile.load import load
from mcpguard.session import questions
from mcpguard.session.approve import Scope
from mcpguard.tui import totals
from mcpguard.tui.allow import CallScreen, ScopeScreen, WriteScreen
from mcpguard.tui.app import WatchApp
from mcpguard.tui.questions import Questions


@pytest.fixture
def asking(own: Path, recorded: Recorded) -> Recorded:  # noqa: F811
    questions.begin(recorded.id)
    return recorded


def refused(recorded: Recorded, path: str, **fields: Any) -> Event:
    rule = fields.pop("rule", DEFAULT)
    given = {"access": "read", "verdict": Verdict.DENY, "comm": "tool", "errno": "EACCES"} | fields
    return replace(recorded.event(Kind.FILE, "open", path=path, **given), rule=rule)


def connect(recorded: Recorded, port: int, **fields: Any) -> Event:
    given = {"verdict": Verdict.DENY, "address": "192.0.2.7", "port": port, "protocol": "tcp", "comm": "tool"}
    return replace(recorded.event(Kind.NET, "connect", **(given | fields)), rule=DEFAULT)


def watch(recorded: Recorded, line: Line, steps: Steps, size: tuple[int, int] = (110, 32)) -> None:  # noqa: F811
    async def scene() -> None:
        app = recorded.app(ask=line.approve)
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: app._summed == app._last > 0)
            await pilot.press("7")
            await steps(app, pilot)

    asyncio.run(scene())


def rows(app: WatchApp) -> list[list[str]]:
    shown = app.query_one(Questions)
    return [[str(cell) for cell in shown.get_row_at(row)] for row in range(shown.row_count)]


def details(app: WatchApp) -> str:
    return str(app.query_one("#details").render())


def counts(app: WatchApp) -> str:
    return str(app.query_one("#counts").render())


def test_refusals_without_a_rule_are_questions_once_each_with_count_and_processes(
    asking: Recorded,
    line: Line,  # noqa: F811
) -> None:
    asking.story()
    asking.add(
        *(refused(asking, "/data/a", pid=CHILD, count=2) for _ in range(3)),
        connect(asking, 443),
        connect(asking, 443, host="api.example.com"),
        refused(asking, "/data/a", access="write"),
    )

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: len(rows(app)) == 4, str(rows(app)))
        assert [row[:4] for row in rows(app)] == [
            ["OPEN", "6", "read", "/data/a"],
            ["OPEN", "1", "connect", "192.0.2.7:443/tcp"],
            ["OPEN", "1", "connect", "api.example.com:443 (192.0.2.7)/tcp"],
            ["OPEN", "1", "write", "/data/a"],
        ]
        assert rows(app)[0][4] == "cat x < agent --now"
        assert "4 QUESTIONS (7)" in counts(app)

    watch(asking, line, steps)


@pytest.mark.parametrize(("key", "scope", "said"), [("o", Scope.ONCE, "allowed once"), ("s", Scope.SESSION, "allowed")])
def test_a_key_answers_and_the_answer_is_shown_and_remembered(
    key: str,
    scope: Scope,
    said: str,
    asking: Recorded,
    line: Line,  # noqa: F811
) -> None:
    asking.add(connect(asking, 443, host="api.example.com"), connect(asking, 5432))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: len(rows(app)) == 2)
        await until(pilot, lambda: "network.allow: api.example.com:443" in details(app))
        assert "o once  network.allow: 192.0.2.7:443/tcp" in details(app)
        await pilot.press(key)
        await until(pilot, lambda: rows(app)[0][0] == said)
        assert [asked[2] for asked in line.asked] == [scope] and "holds now" in notes(app)
        assert "1 QUESTION (7)" in counts(app)
        # It is not asked again, not even by a screen that is opened later, and another refusal does not open it.
        await pilot.press(key)
        await until(pilot, lambda: "this one is answered" in notes(app))
        asking.add(connect(asking, 443, host="api.example.com"))
        await until(pilot, lambda: rows(app)[0][:2] == [said, "2"])
        assert len(line.asked) == 1

    async def later(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: len(rows(app)) == 2 and rows(app)[0][0] == said)
        assert app.query_one(Questions).cursor_row == 1

    watch(asking, line, steps)
    watch(asking, line, later)


def test_what_is_left_refused_is_not_asked_again_and_asks_nobody(asking: Recorded, line: Line) -> None:  # noqa: F811
    asking.add(refused(asking, "/data/a"), refused(asking, "/data/b"))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: len(rows(app)) == 2)
        await pilot.press("x")
        await until(pilot, lambda: rows(app)[0][0] == "left refused")
        await pilot.press("n")
        chosen = app.query_one(Questions).chosen
        assert chosen is not None and chosen.event.path == "/data/b"
        assert not line.asked and "not asked again" in notes(app)

    watch(asking, line, steps)
    assert list((questions.answers(asking.id) or {}).values()) == ["refused"]


def test_w_writes_the_profile_after_y(asking: Recorded, own: Path, line: Line, tmp_path: Path) -> None:  # noqa: F811
    asking.add(refused(asking, f"{tmp_path}/home/.cache/tool/x"))
    line.later = "Landlock cannot be widened"

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: len(rows(app)) == 1)
        await pilot.press("w")
        await until(pilot, lambda: isinstance(app.screen, WriteScreen), notes(app))
        await pilot.press("n")
        assert rows(app)[0][0] == "OPEN"
        await pilot.press("w")
        await until(pilot, lambda: isinstance(app.screen, WriteScreen), notes(app))
        await pilot.press("y")
        await until(pilot, lambda: rows(app)[0][0] == "in the profile")
        await until(pilot, lambda: "why: Landlock" in notes(app))
        assert "~/.cache/tool" in {rule.pattern for rule in load("default").files}

    watch(asking, line, steps)


def test_an_answer_that_cannot_hold_now_leaves_the_question_open(asking: Recorded, line: Line) -> None:  # noqa: F811
    asking.add(refused(asking, "/data/a"))
    line.later = "Landlock cannot be widened"

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: len(rows(app)) == 1)
        await pilot.press("s")
        await until(pilot, lambda: "not allowed now" in notes(app))
        assert rows(app)[0][0] == "OPEN"

    watch(asking, line, steps)


def test_the_menu_opens_for_the_chosen_question(asking: Recorded, line: Line) -> None:  # noqa: F811
    asking.add(refused(asking, "/data/a"), *asking.opens(1))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: len(rows(app)) == 1)
        await pilot.press("a")
        await until(pilot, lambda: isinstance(app.screen, ScopeScreen))
        assert "/data/a" in words(app)

    watch(asking, line, steps)


LONG = "/data/" + "/".join(f"folder-{number:03}" for number in range(200))


def test_what_is_too_long_for_the_details_is_not_allowed_unseen(asking: Recorded, line: Line) -> None:  # noqa: F811
    asking.add(refused(asking, LONG))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: "o once" in details(app))
        await pilot.press("o")
        await until(pilot, lambda: isinstance(app.screen, ScopeScreen))
        assert not line.asked
        # The key goes on to the end, and only there it answers.
        shown = app.screen
        body = shown.query_one("#allow")
        await until(pilot, lambda: body.max_scroll_y > 0)
        await pilot.press("o")
        await pilot.pause()
        assert not line.asked and app.screen is shown and "there is more of it" in notes(app)
        for _ in range(40):
            if app.screen is shown:
                await pilot.press("o")
                await pilot.pause()
        await until(pilot, lambda: [asked[2] for asked in line.asked] == [Scope.ONCE])
        assert line.asked[0][1] == [("files", "read", LONG)]

    watch(asking, line, steps, size=(80, 24))


@pytest.mark.parametrize("key", ["o", "s", "w"])
def test_with_the_details_hidden_a_key_only_asks(key: str, asking: Recorded, line: Line) -> None:  # noqa: F811
    asking.add(refused(asking, "/data/a"))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: "o once" in details(app))
        app.action_details()
        await pilot.press(key)
        await until(pilot, lambda: isinstance(app.screen, ScopeScreen))
        await pilot.press("x")
        assert not line.asked and rows(app)[0][0] == "OPEN"

    watch(asking, line, steps)


def test_enter_on_a_question_opens_the_menu(asking: Recorded, line: Line) -> None:  # noqa: F811
    asking.add(refused(asking, "/data/a"))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: "o once" in details(app))
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ScopeScreen))

    watch(asking, line, steps)


@pytest.mark.parametrize("key", ["o", "s", "w"])
def test_that_a_folder_opens_what_is_in_it_is_said_first(
    key: str,
    asking: Recorded,
    line: Line,  # noqa: F811
    tmp_path: Path,
) -> None:
    (tmp_path / "home/notes").mkdir()
    asking.add(refused(asking, f"{tmp_path}/home/notes"))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: "o once" in details(app))
        await pilot.press(key)
        await until(pilot, lambda: isinstance(app.screen, ScopeScreen))
        assert "is a folder: a rule for it holds for all that is in it" in words(app) and not line.asked
        await pilot.press("o")
        await until(pilot, lambda: len(line.asked) == 1)

    watch(asking, line, steps)


def held_call(recorded: Recorded, arguments: str) -> Event:
    message = McpMessage("s", "stdio", "client", "c1", "tools/call", tool="write", arguments=arguments)
    given = {
        "verdict": Verdict.DENY,
        "comm": "agent",
        "detail": "held until it is answered here: it writes",
        "count": 1,
    }
    return replace(recorded.event(Kind.MCP, "request", **given), mcp=message)


@pytest.mark.parametrize(
    ("key", "answer"), [("o", "once"), ("s", "session"), ("x", "refused"), ("escape", ""), ("q", "")]
)
@pytest.mark.parametrize("long", [False, True])
def test_a_held_call_is_answered_with_all_of_it_on_the_screen(
    key: str,
    answer: str,
    long: bool,
    asking: Recorded,
    line: Line,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[str, str]] = []
    monkeypatch.setattr("mcpguard.tui.approval.decide", lambda _, call, answer: told.append((call, answer)))
    end = '"path":"/etc/passwd [/x] [bold]y"}'
    call = held_call(asking, '{"text":"' + "harmless " * (400 if long else 1) + '",' + end)

    async def steps(app: WatchApp, pilot: Any) -> None:
        with app._feed.lock:
            app._totals.set_held([call])
        await until(pilot, lambda: "o this call" in details(app) and "it writes" in details(app))
        await pilot.press("o" if long and key in ("o", "s") else "a")
        await until(pilot, lambda: isinstance(app.screen, CallScreen))
        assert not told and end in words(app)
        shown = app.screen
        body = shown.query_one("#allow")
        await until(pilot, lambda: bool(body.size.height) and (body.max_scroll_y > 0) is long)
        await pilot.press(key)
        await pilot.pause()
        if long and answer in ("once", "session"):
            assert not told and app.screen is shown
        for _ in range(60):
            if app.screen is shown:
                await pilot.press(key)
                await pilot.pause()
        await until(pilot, lambda: told == ([("c1", answer)] if answer else []))

    asking.story()
    watch(asking, line, steps, size=(80, 24))


def test_the_details_are_of_the_question_whatever_else_happens(asking: Recorded, line: Line) -> None:  # noqa: F811
    asking.add(refused(asking, "/data/a"))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: "o once" in details(app))
        asking.add(*asking.opens(3))
        await until(pilot, lambda: app._stream.chosen is not None and app._stream.chosen.path == "/ws/src/f2")
        await pilot.pause()
        assert "/data/a" in details(app) and "o once" in details(app)
        await pilot.press("1")
        await until(pilot, lambda: "/ws/src/f2" in details(app), details(app))
        await pilot.press("7")
        await until(pilot, lambda: "o once" in details(app), details(app))

    watch(asking, line, steps)


def test_rows_keep_their_places_and_the_cursor_its_question(asking: Recorded, line: Line) -> None:  # noqa: F811
    asking.add(refused(asking, "/data/a"), refused(asking, "/data/b"))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: len(rows(app)) == 2)
        await pilot.press("j")
        asking.add(*(refused(asking, f"/aaa/{number}", count=90) for number in range(30)), refused(asking, "/data/a"))
        await until(pilot, lambda: len(rows(app)) == 32)
        chosen = app.query_one(Questions).chosen
        assert chosen is not None and chosen.event.path == "/data/b"
        assert [row[3] for row in rows(app)[:2]] == ["/data/a", "/data/b"]
        await pilot.press("k", "x")
        await until(pilot, lambda: rows(app)[0][0] == "left refused")
        assert [row[3] for row in rows(app)[:3]] == ["/data/a", "/data/b", "/aaa/0"]

    watch(asking, line, steps)


def test_a_flood_pushes_no_question_away(
    asking: Recorded,
    line: Line,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(totals, "MAX_QUESTIONS", 10)
    asking.add(refused(asking, "/data/first"), *(refused(asking, f"/flood/{number}") for number in range(50)))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: len(rows(app)) == 10)
        assert rows(app)[0][3] == "/data/first"
        assert "41 more in the log" in counts(app)

    watch(asking, line, steps, size=(160, 32))


def test_what_a_rule_refuses_on_purpose_and_quiet_habits_are_no_questions(
    asking: Recorded,
    line: Line,  # noqa: F811
) -> None:
    asking.add(
        refused(asking, "/ws/secret/x", rule=asking.policy.rules[2]),
        refused(asking, "/data/x", rule=None),
        refused(asking, "/data/y", detail=f"{QUIET}: everybody looks there"),
        refused(asking, "/data/z", verdict=Verdict.AUDIT),
        *asking.opens(2),
    )

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: "No question" in str(app.query_one("#asked-none").render()))
        assert rows(app) == [] and "QUESTION" not in counts(app)
        await pilot.press("o", "s", "w", "x", "n")
        assert not line.asked

    watch(asking, line, steps)


def test_a_session_that_does_not_ask_says_so(recorded: Recorded, own: Path, line: Line) -> None:  # noqa: F811
    recorded.add(refused(recorded, "/data/a"))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: "mcpguard run --ask" in str(app.query_one("#asked-none").render()))
        assert rows(app) == [] and "QUESTION" not in counts(app)

    watch(recorded, line, steps)
    questions.remember(recorded.id, "x", "once")
    assert questions.answers(recorded.id) is None


def test_names_in_questions_cannot_steer_the_terminal_or_answer(asking: Recorded, line: Line) -> None:  # noqa: F811
    asking.add(refused(asking, "/data/\x1b[31m[bold]x\nOPEN", comm="\x1b]0;s\x07[red]"))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: len(rows(app)) == 1)
        drawn = "".join(map("".join, rows(app))) + details(app)
        assert "\x1b" not in drawn and "\x07" not in drawn and "\n" not in rows(app)[0][3]
        assert "[bold]x\\nOPEN" in rows(app)[0][3] and not line.asked
        await until(pilot, lambda: "no rule can mean this name exactly" in details(app))

    watch(asking, line, steps)


def test_two_screens_see_one_anothers_answers(asking: Recorded, line: Line) -> None:  # noqa: F811
    asking.add(refused(asking, "/data/a"))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: len(rows(app)) == 1)
        chosen = app.query_one(Questions).chosen
        assert chosen is not None
        questions.remember(asking.id, chosen.key, questions.LEFT)
        await until(pilot, lambda: rows(app)[0][0] == "left refused")

    watch(asking, line, steps)


def test_half_a_line_of_answers_is_no_answer(asking: Recorded) -> None:
    path = questions.file_of(asking.id)
    questions.remember(asking.id, "a", "once")
    with path.open("a") as file:
        file.write('["b", "on')
    assert questions.answers(asking.id) == {"a": "once"}
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700


def test_answers_of_old_sessions_go(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(questions, "_KEPT", 3)
    for number in range(5):
        questions.begin(f"2026010{number}-000000-aaaa")
    assert [questions.answers(f"2026010{number}-000000-aaaa") for number in range(5)] == [None, None, {}, {}, {}]


def test_ask_and_audit_exclude_each_other() -> None:
    from mcpguard.cli.run_words import parse

    assert parse(["--ask", "--", "true"]).ask and not parse(["--", "true"]).ask
    with pytest.raises(UsageError):
        parse(["--ask", "--audit", "--", "true"])


def test_the_key_of_a_question_is_its_object_and_what_was_asked(recorded: Recorded) -> None:
    one = questions.key_of(connect(recorded, 443))
    assert one == questions.key_of(replace(connect(recorded, 443, pid=CHILD), op="sendmsg")) is not None
    assert json.loads(one) == ["connect", "192.0.2.7", 443, "tcp"]
    assert questions.key_of(connect(recorded, 80)) != one


def held(recorded: Recorded, host: str, count: int = 1) -> Event:
    given = {"verdict": Verdict.DENY, "host": host, "comm": "tool", "count": count, "detail": "A; held"}
    return replace(recorded.event(Kind.DNS, "query", **given), rule=DEFAULT)


def test_a_held_look_up_is_a_row_that_becomes_a_refusal_or_is_over(asking: Recorded, line: Line) -> None:  # noqa: F811
    async def steps(app: WatchApp, pilot: Any) -> None:
        def hold(*events: Event) -> None:
            with app._feed.lock:
                app._totals.set_held(events)

        hold(held(asking, "a.example", 3), held(asking, "b.example"))
        await until(pilot, lambda: [row[:2] for row in rows(app)] == [["HELD", "3"], ["HELD", "1"]], str(rows(app)))
        await until(pilot, lambda: "2 HELD" in counts(app) and "2 QUESTIONS" in counts(app))
        # One is refused in the end, and stays a question; another rule let the other one go on.
        asking.add(replace(held(asking, "a.example", 3), detail="A; held, and nobody allowed it within 30 seconds"))
        await until(pilot, lambda: rows(app)[0][1] == "6")
        hold()
        await until(pilot, lambda: [row[:2] for row in rows(app)] == [["OPEN", "3"], ["over", "0"]], str(rows(app)))
        await until(pilot, lambda: "HELD" not in counts(app) and "1 QUESTION (7)" in counts(app))

    asking.story()
    watch(asking, line, steps)


def test_a_question_for_another_record_of_a_name_hides_no_question(asking: Recorded, line: Line) -> None:  # noqa: F811
    asking.add(
        replace(held(asking, "a.example"), detail="A"),
        replace(held(asking, "a.example"), detail="HTTPS"),
        *asking.opens(1),
    )

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: [row[:2] for row in rows(app)] == [["OPEN", "1"]], str(rows(app)))

    watch(asking, line, steps)
