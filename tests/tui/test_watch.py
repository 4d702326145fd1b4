"""`mcpguard watch`: every key and what is on the screen after it. States, not pixels."""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from records import AGENT, BEGAN_NS, CHILD, Recorded, objects, until
from textual.events import Key
from textual.widgets import DataTable, Input, Sparkline, Static, TabbedContent

from mcpguard.events.mcp import Talk
from mcpguard.events.missing import CUT_OFF
from mcpguard.events.sessions import Supervisor
from mcpguard.events.sockets import NO_SUCH_SOCKET
from mcpguard.model.access import Verdict
from mcpguard.model.event import Kind, Peer
from mcpguard.model.rule import Origin
from mcpguard.policy.compile import DEFAULT
from mcpguard.tui import stream
from mcpguard.tui.app import TABS, WatchApp
from mcpguard.tui.details import describe
from mcpguard.tui.help import HelpScreen
from mcpguard.tui.stream import EventStream
from mcpguard.tui.trees import FilesTree, ProcessTree

Steps = Callable[[WatchApp, Any], Awaitable[None]]


def watch(recorded: Recorded, steps: Steps, size: tuple[int, int] = (120, 32)) -> None:
    """Run the screen without a terminal, wait for the first events, and take the steps."""

    async def scene() -> None:
        app = recorded.app()
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: len(app.query_one(EventStream)) > 0, "the first events")
            await steps(app, pilot)

    asyncio.run(scene())


def text(app: WatchApp, id: str) -> str:
    return str(app.query_one(id, Static).render())


def shown(app: WatchApp) -> list[str]:
    return objects(app.query_one(EventStream).shown(1_000))


def cells(app: WatchApp, id: str) -> list[list[str]]:
    table = app.query_one(id, DataTable)
    return [[str(cell) for cell in table.get_row_at(row)] for row in range(table.row_count)]


def labels(tree: ProcessTree | FilesTree) -> list[str]:
    return [str(node.label) for node in tree._tree_nodes.values() if node is not tree.root]


def test_the_first_look_shows_the_newest_event_and_everything_about_the_session(recorded: Recorded) -> None:
    recorded.story()

    async def steps(app: WatchApp, pilot: Any) -> None:
        assert shown(app)[-1] == "exit"
        await until(pilot, lambda: "2 denied" in text(app, "#counts"), "the sums")
        status = text(app, "#status")
        assert recorded.id in status and "running" in status and "tier 3 landlock" in status
        assert "gaps: files" in text(app, "#counts") and "network" not in text(app, "#counts")
        assert isinstance(app.query_one(Sparkline), Sparkline)

    watch(recorded, steps)


def test_an_ended_session_says_so_with_its_exit_code(recorded: Recorded) -> None:
    recorded.story()
    recorded.end()

    async def steps(app: WatchApp, pilot: Any) -> None:
        assert "ended, exit 3" in text(app, "#status")

    watch(recorded, steps)


def test_new_events_come_by_themselves(recorded: Recorded) -> None:
    recorded.story()

    async def steps(app: WatchApp, pilot: Any) -> None:
        before = len(app.query_one(EventStream))
        recorded.add(*recorded.opens(2, "/ws/late"))
        await until(pilot, lambda: len(app.query_one(EventStream)) == before + 2, "two more events")
        assert shown(app)[-1] == "/ws/late/f1"

    watch(recorded, steps)


def test_space_pauses_and_goes_on(recorded: Recorded) -> None:
    recorded.add(*recorded.opens(50))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("space")
        assert not app.query_one(EventStream).following
        await until(pilot, lambda: "PAUSED" in text(app, "#counts"))
        chosen = app.query_one(EventStream).chosen
        recorded.add(*recorded.opens(5, "/ws/late"))
        await until(pilot, lambda: len(app.query_one(EventStream)) == 55)
        assert app.query_one(EventStream).chosen == chosen
        await pilot.press("space")
        assert objects([app.query_one(EventStream).chosen]) == ["/ws/late/f4"]

    watch(recorded, steps)


def test_the_cursor_moves_and_the_details_follow(recorded: Recorded) -> None:
    recorded.story()

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: bool(app._feed.processes.get(CHILD)))
        await pilot.press("home", "down", "down", "down", "down", "down", "down")
        await until(pilot, lambda: "/ws/secret/key" in text(app, "#details"))
        details = text(app, "#details")
        assert details.startswith("DENY") and "EACCES" in details
        assert "test.yaml:12  deny: /ws/secret  (because 2)" in details
        assert f"/usr/bin/cat [{CHILD}]" in details and f"agent --now [{AGENT}]" in details
        await pilot.press("enter")
        assert not app.query_one("#about").display
        await pilot.press("enter", "end")
        assert app.query_one("#about").display and app.query_one(EventStream).following

    watch(recorded, steps)


def test_d_goes_through_the_verdicts(recorded: Recorded) -> None:
    recorded.story()

    async def steps(app: WatchApp, pilot: Any) -> None:
        everything = shown(app)
        await pilot.press("d")
        await until(pilot, lambda: shown(app) == ["/ws/secret/key", "192.0.2.9"], "only denials")
        assert "filter: verdict:deny" in text(app, "#counts")
        await pilot.press("d")
        await until(pilot, lambda: shown(app) == [], "nothing was audited")
        await pilot.press("d", "d")
        await until(pilot, lambda: shown(app) == everything, "all again")

    watch(recorded, steps)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("kind:net", ["192.0.2.1", "192.0.2.9"]),
        ("host:*.example.com", ["192.0.2.1"]),
        ("path:/ws/secret", ["/ws/secret/key"]),
        ("path:key", ["/ws/secret/key"]),
        ("process:cat kind:file", ["/ws/secret/key"]),
        (f"process:{CHILD} kind:exec", ["/usr/bin/cat"]),
        ("SECRET", ["/ws/secret/key"]),
        ("verdict:allow kind:net", ["192.0.2.1"]),
    ],
)
def test_a_filter_is_typed(line: str, found: list[str], recorded: Recorded) -> None:
    recorded.story()

    async def steps(app: WatchApp, pilot: Any) -> None:
        everything = shown(app)
        await pilot.press("slash")
        app.query_one("#filter", Input).value = line
        await pilot.press("enter")
        await until(pilot, lambda: shown(app) == found, line)
        assert not app.query_one("#filter").display
        await pilot.press("escape")
        await until(pilot, lambda: shown(app) == everything, "the filter is gone")

    watch(recorded, steps)


@pytest.mark.parametrize("line", ["verdict:maybe", "kind:", "path:~bob/x", '"open'])
def test_a_wrong_filter_is_told_and_changes_nothing(line: str, recorded: Recorded) -> None:
    recorded.story()

    async def steps(app: WatchApp, pilot: Any) -> None:
        everything = shown(app)
        await pilot.press("slash")
        app.query_one("#filter", Input).value = line
        await pilot.press("enter")
        await until(pilot, lambda: any(note.severity == "error" for note in app._notifications))
        assert app.query_one("#filter").display
        assert shown(app) == everything
        await pilot.press("escape")
        assert not app.query_one("#filter").display

    watch(recorded, steps)


def test_the_processes_come_and_go_with_the_width_and_else_stay_as_they_are(recorded: Recorded) -> None:
    recorded.story()

    async def steps(app: WatchApp, pilot: Any) -> None:
        tree = app.query_one(ProcessTree)
        assert tree.display
        await pilot.resize_terminal(70, 24)
        await until(pilot, lambda: not tree.display, "narrow")
        await pilot.press("p")
        assert tree.display
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: app.size.width == 80)
        assert tree.display, "nobody took it away"
        await pilot.press("p")
        await pilot.resize_terminal(140, 40)
        await until(pilot, lambda: tree.display and bool(labels(tree)), "wide")
        await pilot.press("p")
        await pilot.resize_terminal(120, 40)
        await until(pilot, lambda: app.size.width == 120)
        assert not tree.display, "nobody asked for it"

    watch(recorded, steps)


def test_what_programs_do_without_is_told_apart_from_what_was_denied(recorded: Recorded) -> None:
    recorded.story()
    idle = recorded.event(Kind.PROCESS, "fork", pid=CHILD + 1, ppid=AGENT, comm="sh")
    asked = [
        replace(
            recorded.event(Kind.UNIX, "connect", pid=CHILD + 1, path="/run/none", verdict=Verdict.DENY, detail=detail),
            rule=DEFAULT,
        )
        for detail in (NO_SUCH_SOCKET, None)
    ]
    ended = recorded.event(Kind.PROCESS, "exit", pid=CHILD + 1, ppid=AGENT, comm="sh")
    recorded.add(idle, replace(asked[0], count=4), ended)

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: "2 denied, 4 routine" in text(app, "#counts"), text(app, "#counts"))
        await until(
            pilot, lambda: any("1 ended" in label for label in labels(app.query_one(ProcessTree))), "no line of its own"
        )
        await pilot.press("d")
        await until(pilot, lambda: shown(app)[-1:] == ["/run/none"], "it is on record as denied")
        assert "x4  quiet: there is no such socket" in "".join(
            part.text for part in stream.line(app.query_one(EventStream).shown(1_000)[-1], "/home/u", 140)
        )
        # The control: the same refusal of a socket that is there.
        recorded.add(asked[1])
        await until(pilot, lambda: "3 denied, 4 routine" in text(app, "#counts"), text(app, "#counts"))
        await until(
            pilot,
            lambda: any(
                "1 denied" in label and "ended" in label and str(CHILD + 1) in label
                for label in labels(app.query_one(ProcessTree))
            ),
        )

    watch(recorded, steps)


@pytest.mark.parametrize(
    ("said", "dark"),
    [
        (None, True),
        ("15;0", True),
        ("0;15", False),
        ("0;default;7", False),
        ("15;default;0", True),
        ("", True),
        ("7", False),
    ],
)
def test_the_first_theme_is_the_terminals(
    said: str | None, dark: bool, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded.story()
    monkeypatch.delenv("COLORFGBG", raising=False)
    if said is not None:
        monkeypatch.setenv("COLORFGBG", said)

    async def steps(app: WatchApp, pilot: Any) -> None:
        assert app.current_theme.dark is dark
        await pilot.press("t")
        assert app.current_theme.dark is not dark

    watch(recorded, steps)


def test_the_process_tree_shows_who_started_whom_and_collapses_what_ended(recorded: Recorded) -> None:
    recorded.story()
    quiet = [
        recorded.event(Kind.PROCESS, op, pid=CHILD + number, ppid=AGENT, comm="sh")
        for number in (1, 2, 3)
        for op in ("fork", "exit")
    ]
    recorded.add(*quiet)

    async def steps(app: WatchApp, pilot: Any) -> None:
        tree = app.query_one(ProcessTree)
        await until(pilot, lambda: any("3 ended" in label for label in labels(tree)), "three ended quietly")
        agent = tree.root.children[0]
        assert str(agent.label).startswith("1 denied agent --now")
        assert [child.data for child in agent.children if child.data] == [CHILD]
        assert "1 denied cat x" in str(agent.children[0].label) and "ended" in str(agent.children[0].label)
        tree.focus()
        tree.cursor_line = 1
        await pilot.press("enter")
        await until(pilot, lambda: f"process:{CHILD}" in text(app, "#counts"), "its events are shown")
        await pilot.press("p")
        assert not tree.display

    watch(recorded, steps)


def test_the_files_tab_has_a_tree_with_marks(recorded: Recorded) -> None:
    recorded.story()
    recorded.add(recorded.event(Kind.FILE, "create", access="write", path="/ws/src/new", rule=1))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: app._summed == app._last > 0)
        await pilot.press("2")
        tree = app.query_one(FilesTree)
        await until(pilot, lambda: any(label.startswith("ws/") for label in labels(tree)))
        (ws,) = [node for node in tree.root.children if str(node.label).startswith("ws/")]
        assert "1 denied below" in str(ws.label)
        ws.expand()
        await until(pilot, lambda: len(ws.children) == 2)
        assert str(ws.children[0].label) == "secret/key  denied"
        ws.children[1].expand()
        await until(pilot, lambda: "new  written" in labels(tree))
        assert "f0  read" in labels(tree)

    watch(recorded, steps)


def test_the_other_tabs(recorded: Recorded) -> None:
    recorded.story()

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: app._summed == app._last > 0)
        await pilot.press("3")
        await until(pilot, lambda: len(cells(app, "#reached")) == 2)
        denied, allowed = cells(app, "#reached")
        assert (denied[:4], denied[-1]) == (["DENY", "net connect", "192.0.2.9:80/tcp", "1"], "")
        assert (allowed[:4], allowed[-1]) == (["ALLOW", "net connect", "api.example.com:443/tcp", "1"], "192.0.2.1")
        await pilot.press("4")
        await until(pilot, lambda: len(cells(app, "#programs")) == 2)
        assert ["ALLOW", "/usr/bin/cat", "1", "cat x"] in cells(app, "#programs")
        await pilot.press("6")
        await until(pilot, lambda: len(cells(app, "#uses")) > 2)
        rules = cells(app, "#uses")
        assert {row[0] for row in rules[:2]} == {"0", "unused"} or rules[0][1] == "1"
        assert any(row[0] == "unused" for row in rules)
        for number, name in enumerate(TABS, 1):
            await pilot.press(str(number))
            assert app.query_one(TabbedContent).active == name

    watch(recorded, steps)


def test_the_tab_of_rules_tells_what_was_audited_from_what_was_denied(recorded: Recorded) -> None:
    recorded.story()
    let_through = recorded.event(Kind.FILE, "open", access="read", path="/srv/x", verdict=Verdict.AUDIT, count=5)
    recorded.add(replace(let_through, rule=DEFAULT), replace(let_through, rule=recorded.policy.rules[2]))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: app._summed == app._last > 0)
        await pilot.press("6")
        await until(pilot, lambda: len(cells(app, "#uses")) > 3)
        refused = {row[2]: row[:2] for row in cells(app, "#uses")}
        assert refused["no rule allows it"] == ["0", "5 audited"]
        assert refused["deny: /ws/secret"] == ["0", "1, 5 audited"]
        assert refused["readonly: /ws/ro"] == ["unused", ""]

    watch(recorded, steps)


def test_the_mcp_tab_tells_what_was_asked_of_which_server(recorded: Recorded) -> None:
    recorded.story()

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("5")
        await until(pilot, lambda: bool(app.query_one("#mcp-none").display))
        recorded.talk()
        await until(pilot, lambda: len(cells(app, "#spoken")) == 4)
        assert not app.query_one("#mcp-none").display
        assert [row[:-1] for row in cells(app, "#spoken")] == [
            ["web", "tools/call delete", "1", "1", "", ""],
            ["@mcp/files", "tools/call read", "2", "", "1", "3.0 ms"],
            ["@mcp/files", "tools/list", "1", "", "", ""],
            ["@mcp/files", "asks roots/list", "1", "", "", ""],
        ]

    watch(recorded, steps)


def test_a_loss_is_never_hidden(recorded: Recorded) -> None:
    recorded.add(
        *recorded.opens(1),
        recorded.event(
            Kind.LOSS, "loss", count=7, detail="records of a ring", pid=None, ppid=None, comm=None, exe=None
        ),
    )

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: "7 LOST" in text(app, "#counts"))

    watch(recorded, steps)


def test_a_record_that_was_cut_off_says_so(recorded: Recorded) -> None:
    dead = Supervisor(4_194_305, 1, Supervisor.current().boot)
    recorded.id = recorded.store.start_session(
        recorded.policy, command=("agent",), tier="3 landlock", coverage=(), now_ns=BEGAN_NS + 1, supervisor=dead
    )
    recorded.add(*recorded.opens(2))

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: "1 LOST" in text(app, "#counts"))
        assert "interrupted" in text(app, "#status")
        assert [e.detail for e in app.query_one(EventStream).shown(1_000)][-1] == CUT_OFF

    watch(recorded, steps)


def test_export_writes_what_the_filter_matches_and_copy_takes_a_line(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded.story()
    monkeypatch.chdir(tmp_path)

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("d")
        await until(pilot, lambda: len(shown(app)) == 2)
        await pilot.press("e")
        await until(pilot, lambda: bool(list(tmp_path.glob("*.jsonl"))))
        await app.workers.wait_for_complete()
        (file,) = tmp_path.glob("*.jsonl")
        assert file.stat().st_mode & 0o777 == 0o600
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert [line["verdict"] for line in lines] == ["deny", "deny"]
        await pilot.press("c")
        assert json.loads(app.clipboard)["address"] == "192.0.2.9"

    watch(recorded, steps)


def test_help_and_theme_and_quit(recorded: Recorded) -> None:
    recorded.story()

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press("question_mark")
        assert isinstance(app.screen, HelpScreen)
        await pilot.press("escape")
        assert not isinstance(app.screen, HelpScreen)
        dark = app.current_theme.dark
        await pilot.press("t")
        assert app.current_theme.dark is not dark
        await pilot.press("q")
        assert app._exit

    watch(recorded, steps)


def test_a_small_terminal_has_room_for_the_events(recorded: Recorded) -> None:
    recorded.story()

    async def steps(app: WatchApp, pilot: Any) -> None:
        assert not app.query_one(ProcessTree).display
        assert app.query_one(EventStream).size.height >= 8
        line = "".join(segment.text for segment in stream.line(app.query_one(EventStream).shown(9)[6], "/home/u", 80))
        assert "DENY" in line and " open read " in line and "/ws/secret/key" in line and len(line) == 80

    watch(recorded, steps, size=(80, 24))


def test_a_long_record_is_a_bounded_window_with_whole_sums(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcpguard.tui.feed.FIRST", 100)
    monkeypatch.setattr("mcpguard.tui.feed.MOST", 50)
    recorded.add(*recorded.opens(500))

    async def steps(app: WatchApp, pilot: Any) -> None:
        assert len(app.query_one(EventStream)) == 100
        await until(pilot, lambda: app._totals.verdicts[Verdict.ALLOW] == 500)
        recorded.add(*recorded.opens(300, "/ws/late"))
        await until(pilot, lambda: app._totals.verdicts[Verdict.ALLOW] == 800)
        await until(pilot, lambda: len(app.query_one(EventStream)) == 150)
        assert shown(app)[-1] == "/ws/late/f299"
        await until(pilot, lambda: "250 too fast to show" in text(app, "#counts"))

    watch(recorded, steps)


def test_names_cannot_steer_the_terminal(recorded: Recorded) -> None:
    recorded.add(recorded.event(Kind.FILE, "open", access="read", path="/ws/\x1b[31m\x07[bold]x", rule=1))

    async def steps(app: WatchApp, pilot: Any) -> None:
        event = app.query_one(EventStream).chosen
        assert event is not None
        drawn = "".join(segment.text for segment in stream.line(event, "/home/u", 120)) + text(app, "#details")
        assert "\x1b" not in drawn and "\x07" not in drawn and "[bold]x" in drawn

    watch(recorded, steps)


# What the screen library would take for a style, an action, or a mistake that ends the program.
BRACKETS = "[/x] [bold red]y [@click=app.quit]z[/] \x1b]0;t\x07"


def test_names_with_brackets_hide_nothing_and_end_nothing_in_any_tab(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"/ws/{BRACKETS}"
    who = {"comm": BRACKETS, "exe": name, "argv": (BRACKETS, "[/]", BRACKETS)}
    talk = Talk(recorded.id, BRACKETS, "stdio", Peer(AGENT, name), Peer(CHILD, name))
    recorded.add(
        recorded.event(Kind.EXEC, "exec", access="execute", path=name, rule=1, **who),
        recorded.event(Kind.FILE, "open", access="write", path=name, target=name, rule=1, **who),
        recorded.event(Kind.NET, "connect", host=BRACKETS, address="192.0.2.1", port=443, protocol="tcp", rule=1),
        recorded.event(Kind.UNIX, "connect", path=f"@{BRACKETS}", verdict=Verdict.DENY, rule=2, detail=BRACKETS),
        talk.request(recorded._now, "client", BRACKETS, {"name": BRACKETS}, id=1, call="a1"),
    )

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: app._summed == app._last > 0)
        for tab in TABS:
            await pilot.press(str(TABS.index(tab) + 1))
            await pilot.pause()
            app._draw()
            await until(pilot, lambda tab=tab: "[/x]" in drawn_text(app) or tab in ("rules", "questions"), tab)
            assert "\x1b" not in drawn_text(app)
        await pilot.press("1", "home", "a", "c", "e")
        await pilot.pause()
        assert app.is_running

    watch(recorded, steps, size=(200, 40))


def drawn_text(app: WatchApp) -> str:
    """What is really to be seen, line by line."""
    return "\n".join(
        "".join(segment.text for segment in strip).rstrip() for strip in app.screen._compositor.render_strips()
    )


def test_whatever_there_is_to_say_at_the_top_is_said_in_a_small_terminal_too(recorded: Recorded) -> None:
    recorded.story()
    recorded.add(recorded.event(Kind.LOSS, "loss", count=7_654_321, pid=None, ppid=None, comm=None, exe=None))
    recorded.store._connection.execute(
        "UPDATE sessions SET profile = ?, tier = '2 bpf-modify-return'", ("a-profile-with-quite-a-long-name",)
    )
    recorded.end()

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: app._summed == app._last > 0)
        app._totals.verdicts[Verdict.ALLOW] = app._totals.verdicts[Verdict.DENY] = 123_456_789
        await pilot.press("slash", *"verdict:deny", "enter", "space")
        await until(pilot, lambda: len(app.query_one(EventStream)) == 2)
        app._skipped = 7_777_777
        app._draw()
        words = (
            *(recorded.id, "ended, exit 3", "a-profile-with-quite-a-long-name", "tier 2 bpf-modify-return"),
            *("7654321 LOST", "gaps: files", "PAUSED", "123456789 denied", "7777777 too fast", "filter: verdict:deny"),
        )
        # A line may end between any two words.
        await until(pilot, lambda: all(word in " ".join(drawn_text(app).split()) for word in words), drawn_text(app))

    watch(recorded, steps, size=(80, 24))


def test_the_details_of_a_long_event_can_be_read_to_their_end(recorded: Recorded) -> None:
    path = "/ws/" + "/".join(f"folder-{number:03}" for number in range(300))
    recorded.add(recorded.event(Kind.FILE, "open", access="read", path=path, rule=1))

    async def steps(app: WatchApp, pilot: Any) -> None:
        about = app.query_one("#about")
        await until(pilot, lambda: about.max_scroll_y > 10)
        assert "folder-299" not in drawn_text(app).partition("folder-001")[2]
        about.focus()
        await pilot.press("end")
        await until(pilot, lambda: "folder-299" in drawn_text(app) and "seq 1" in drawn_text(app), drawn_text(app))

    watch(recorded, steps, size=(80, 24))


def test_processes_that_start_one_another_without_end_are_told_in_words(recorded: Recorded) -> None:
    first = 5_000_000
    recorded.add(
        *(
            recorded.event(Kind.PROCESS, "fork", pid=first + number, ppid=first + number - 1, comm="deep")
            for number in range(1_500)
        ),
        recorded.event(Kind.FILE, "open", path="/ws/x", access="read", pid=first + 1_499, ppid=first + 1_498, rule=1),
    )

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: app._summed == app._last > 0)
        await until(pilot, lambda: any(label.endswith(" below") for label in labels(app.query_one(ProcessTree))))
        assert text(app, "#details").count(" < ") < 20

    watch(recorded, steps)


def test_age_processor_and_memory_stay_in_sight_beside_a_long_command(recorded: Recorded) -> None:
    recorded.add(
        recorded.event(
            *(Kind.EXEC, "exec"),
            access="execute",
            path="/usr/bin/agent",
            argv=("agent", "--prompt", "words " * 90),
            rule=1,
        )
    )

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: app._summed == app._last > 0)
        with app._feed.lock:
            app._feed.processes.measured({AGENT: (12.0, 45 << 20)})
        app._draw()
        await until(pilot, lambda: "12% 45M" in drawn_text(app), drawn_text(app))
        assert f"{AGENT}" in drawn_text(app).partition("12% 45M")[0]

    watch(recorded, steps)


def test_what_was_on_the_screen_is_let_go(recorded: Recorded) -> None:
    """Lines that were drawn hold one another: only the collector frees them, and what it put aside it would not look at."""
    recorded.story()

    class Line:
        own: Line

    async def steps(app: WatchApp, pilot: Any) -> None:
        app._tidy()
        for _ in range(3):
            line = Line()
            line.own, seen = line, weakref.ref(line)
            app._tidy()
            assert seen() is line
            del line
            app._tidy()
            assert seen() is None

    watch(recorded, steps)


def test_what_runs_is_not_pushed_out_by_what_has_ended(recorded: Recorded) -> None:
    """A program that is refused again and again by short-lived children hides no server that was started before them."""
    server, first = CHILD + 1, CHILD + 10
    recorded.add(
        recorded.event(Kind.PROCESS, "fork", pid=server, ppid=AGENT, comm="server"),
        *(
            recorded.event(
                *(Kind.FILE, "open"),
                access="read",
                path="/ws/secret/key",
                verdict=Verdict.DENY,
                rule=2,
                pid=first + number,
                ppid=AGENT,
                comm="cat",
                exe="/usr/bin/cat",
            )
            for number in range(60)
        ),
        *(recorded.event(Kind.PROCESS, "exit", pid=first + number, ppid=AGENT) for number in range(60)),
    )

    async def steps(app: WatchApp, pilot: Any) -> None:
        tree = app.query_one(ProcessTree)
        await until(pilot, lambda: sum("ended" in label for label in labels(tree)) == 40, str(labels(tree)))
        told = labels(tree)
        assert any(f" {server} " in label for label in told), told
        assert told[-1] == "21 ended, 21 of them were refused something"

    watch(recorded, steps)


@pytest.mark.parametrize("before", ["1", "7"])
def test_what_is_typed_in_one_go_belongs_to_the_filter(
    before: str, recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a slow line keys arrive together; letters of a filter are no commands."""
    recorded.story()
    monkeypatch.chdir(tmp_path)

    async def steps(app: WatchApp, pilot: Any) -> None:
        await pilot.press(before)
        tree, theme = app.query_one(ProcessTree).display, app.theme
        for letter in "1/path:/ws/secret":
            app.post_message(Key(_NAMES.get(letter, letter), letter))
        app.post_message(Key("enter", "\r"))
        await until(pilot, lambda: shown(app) == ["/ws/secret/key"], app._line)
        assert app.query_one(EventStream).following and app._tabs.active == "events"
        assert (app.query_one(ProcessTree).display, app.theme) == (tree, theme)
        assert not list(tmp_path.glob("*.jsonl")) and app.screen is app.screen_stack[0]

    watch(recorded, steps)


_NAMES = {"/": "slash", ":": "colon"}


def test_a_filter_that_is_typed_before_the_first_screen_is_one(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded.story()
    mounted = WatchApp.on_mount

    def typed(app: WatchApp) -> None:
        for letter in "/kind:net":
            app.post_message(Key(_NAMES.get(letter, letter), letter))
        mounted(app)

    monkeypatch.setattr(WatchApp, "on_mount", typed)

    async def scene() -> None:
        app = recorded.app()
        async with app.run_test(size=(120, 32)) as pilot:
            await until(pilot, lambda: app.query_one("#filter", Input).value == "kind:net")
            await pilot.press("enter")
            await until(pilot, lambda: shown(app) == ["192.0.2.1", "192.0.2.9"], app._line)

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("tab", "row", "line", "found"),
    [
        ("3", "192.0.2.9:80/tcp", "verdict:deny kind:net host:192.0.2.9", ["192.0.2.9"]),
        ("3", "api.example.com:443/tcp", "verdict:allow kind:net host:api.example.com", ["192.0.2.1"]),
        ("4", "/usr/bin/cat", "verdict:allow kind:exec path:/usr/bin/cat", ["/usr/bin/cat"]),
        ("6", "deny: /ws/secret", "'deny: /ws/secret'", ["/ws/secret/key"]),
    ],
)
def test_enter_on_a_row_shows_its_events(tab: str, row: str, line: str, found: list[str], recorded: Recorded) -> None:
    recorded.story()

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: app._summed == app._last > 0)
        await pilot.press(tab)
        table = app.focused
        assert isinstance(table, DataTable)
        rows = lambda: [[*map(str, table.get_row_at(n))] for n in range(table.row_count)]  # noqa: E731
        await until(pilot, lambda: any(row in one for one in rows()), f"{row}: {rows()}")
        while row not in rows()[table.cursor_row]:
            await pilot.press("down")
        await pilot.press("enter")
        await until(pilot, lambda: shown(app) == found, f"{app._line}: {shown(app)}")
        assert app._line == line and app._tabs.active == "events" and app.focused is app._stream

    watch(recorded, steps)


@pytest.mark.parametrize("name", ["key", "k [y] *", "'k' \\xff", "path:x"])
def test_enter_on_a_file_shows_what_happened_to_it_alone(name: str, recorded: Recorded) -> None:
    recorded.add(
        *(
            recorded.event(Kind.FILE, "open", access="read", path=f"/ws/{one}", rule=1)
            for one in ("other", name, "k y z")
        )
    )

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: app._summed == app._last > 0)
        await pilot.press("2")
        tree = app.query_one(FilesTree)
        await until(pilot, lambda: len(tree.root.children) > 0)
        await pilot.press("down", "enter")
        await until(pilot, lambda: len(tree.root.children[0].children) == 3)
        while tree.cursor_node is None or tree.cursor_node.data is None or tree.cursor_node.data.first != name:
            await pilot.press("down")
        await pilot.press("enter")
        await until(pilot, lambda: shown(app) == [f"/ws/{name}"], f"{app._line}: {shown(app)}")

    watch(recorded, steps)


def test_the_keys_of_a_tab_move_through_its_rows(recorded: Recorded) -> None:
    recorded.story()
    recorded.talk()

    async def steps(app: WatchApp, pilot: Any) -> None:
        await until(pilot, lambda: app._summed == app._last > 0)
        for number, id in ((3, "#reached"), (4, "#programs"), (5, "#spoken"), (6, "#uses")):
            await pilot.press(str(number))
            table = app.query_one(id, DataTable)
            await until(pilot, lambda table=table: table.row_count > 1, id)
            await pilot.press("down")
            await until(pilot, lambda table=table: table.cursor_row == 1, id)
        await pilot.press("2")
        tree = app.query_one(FilesTree)
        await until(pilot, lambda: len(tree.root.children) > 0)
        await pilot.press("home", "down", "enter")
        await until(pilot, lambda: any(node.is_expanded for node in tree.root.children))
        assert app._stream.following

    watch(recorded, steps)


@pytest.mark.parametrize(
    ("rule", "verdict", "words"),
    [
        (DEFAULT, Verdict.DENY, "rule     no rule allows it (default deny)"),
        (DEFAULT, Verdict.AUDIT, "rule     no rule allows it"),
        (
            Origin("default", "/p/default.yaml", 3, "deny /a"),
            Verdict.DENY,
            "rule     /p/default.yaml:3  deny /a  profile default",
        ),
    ],
)
def test_where_no_rule_decided_no_profile_is_named(
    rule: Origin, verdict: Verdict, words: str, recorded: Recorded
) -> None:
    event = replace(recorded.event(Kind.FILE, "open", path="/a", access="read", verdict=verdict), rule=rule)
    assert describe(event, [], "", "/home/u").plain.splitlines()[0] == words
