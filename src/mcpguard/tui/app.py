"""`mcpguard watch`: one session on the screen, live or from the record. Reads through `feed`, decides nothing."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.actions import SkipAction
from textual.app import App, ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.events import Resize
from textual.filter import LineFilter, NoColor
from textual.notifications import SeverityLevel
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import DataTable, Input, Sparkline, Static, TabbedContent, TabPane

from mcpguard.errors import McpguardError
from mcpguard.events.format import json_line, printable, shorten
from mcpguard.events.sessions import Session, State
from mcpguard.events.store import Store
from mcpguard.model.access import Verdict
from mcpguard.model.coverage import Strength
from mcpguard.model.event import Event
from mcpguard.session.approve import approve
from mcpguard.session.offers import suggestions, variables_of
from mcpguard.session.questions import LEFT, key_of, remember
from mcpguard.tui import columns, filters
from mcpguard.tui.allow import rules
from mcpguard.tui.approval import Approval, Approve
from mcpguard.tui.colours import ANSI_DARK, ANSI_LIGHT, DARK, LIGHT, theme_of_terminal
from mcpguard.tui.details import describe, what_happened
from mcpguard.tui.export import export
from mcpguard.tui.feed import Feed, Portion
from mcpguard.tui.footer import Keys
from mcpguard.tui.help import HelpScreen
from mcpguard.tui.questions import NONE, NOT_ASKING, Questions
from mcpguard.tui.stream import EventStream
from mcpguard.tui.tables import Table, fill_programs, fill_reached, fill_rules, fill_spoken
from mcpguard.tui.trees import FilesTree, ProcessTree

TABS = ("events", "files", "network", "executions", "mcp", "rules", "questions")
_VERDICTS = (None, Verdict.DENY, Verdict.AUDIT, Verdict.ALLOW)
_NARROW = 100
DRAW_EVERY_S = 1.0
# Python's own 5 ms, several times for each key, would be felt while the feed is busy.
_SWITCH_S = 0.0005
# Objects, of which a thousand take Python's collector half a millisecond.
_LOOKED_THROUGH = 50_000
_PUT_ASIDE = 100
_FILTER_SHOWN = 200
# Of the details of a question: what watch.tcss gives them, and where it can.
_ASKED_LINES = 8
_LOW = 20
# Here the list needs the lines of the details, until enter asks for them, and of most keys.
_VERY_LOW = 16


class WatchApp(App[None]):
    """The screen."""

    TITLE = "mcpguard"
    CSS_PATH = "watch.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (_NARROW, "-wide")]  # noqa: RUF012 - as the library declares it
    VERTICAL_BREAKPOINTS = [(0, "-low"), (_VERY_LOW, "-high")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("space", "follow", "Pause"),
        Binding("d", "denied", "Verdict"),
        # At once: what is typed behind it belongs to the filter, however fast it comes.
        Binding("slash", "filter", "Filter", key_display="/", priority=True),
        Binding("escape", "clear", "Clear", show=False),
        Binding("enter", "details", "Details", key_display="enter"),
        Binding("a", "allow", "Allow"),
        Binding("p", "processes", "Processes"),
        Binding("c", "copy", "Copy"),
        Binding("e", "export", "Export"),
        Binding("t", "theme", "Theme"),
        # One place at the bottom stands for all of them.
        Binding("1", "tab('events')", "Tabs", key_display=f"1-{len(TABS)}"),
        *(Binding(str(n), f"tab('{name}')", name.title(), show=False) for n, name in enumerate(TABS[1:], 2)),
    ]

    def __init__(
        self, open_store: Callable[[], Store], session: Session, home: str | None = None, ask: Approve = approve
    ) -> None:
        """
        Args:
            ask: has a session take more rules.
        """
        super().__init__()
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self.theme = theme_of_terminal(os.environ).name
        self.ansi_theme_dark, self.ansi_theme_light = ANSI_DARK, ANSI_LIGHT
        self._home = home or str(Path.home())
        self._open_store = open_store
        self._session = session
        self._feed = Feed(open_store, session.id, self._delivered)
        self._totals = self._feed.totals
        self._summed = self._last = self._skipped = self._put_aside = 0
        # The question whose details are on the screen, when they show whole what its keys would allow.
        self._told: Event | None = None
        self._line = ""
        self._wide: bool | None = None
        self._approval = Approval(self, lambda: self._session, ask, self._home, self._answered)

    def get_line_filters(self) -> Sequence[LineFilter]:
        """With NO_COLOR none at all, where the library would send greys; watch.tcss marks what only a colour told."""
        return [NoColor()] if self.no_color else super().get_line_filters()

    def compose(self) -> ComposeResult:
        # Held here and not looked up: while the screen closes, some are gone from it before others.
        self._status, self._count_line = Static(id="status"), Static(id="counts")
        self._rate = Sparkline(id="rate", summary_function=max)
        self._processes = ProcessTree(id="processes")
        self._tabs = TabbedContent(initial="events", id="tabs")
        self._stream = EventStream(self._home, id="stream")
        self._files = FilesTree(id="touched")
        self._reached = Table("reached", "verdict", "act", "destination", "count", "sent", "recvd", "last", "address")
        self._programs = Table("programs", "verdict", "program", "count", "last command")
        self._spoken = Table("spoken", "server", "asked", "count", "denied", "failed", "mean", "last")
        self._silent = Static("No MCP event is on record for this session.", id="mcp-none")
        self._uses = Table("uses", "allowed", "denied", "rule", "place", "because")
        self._questions = Questions(self._home, id="asked")
        self._no_questions = Static(NOT_ASKING, id="asked-none")
        self._inside: dict[str, Widget] = {
            "events": self._stream,
            "files": self._files,
            "network": self._reached,
            "executions": self._programs,
            "mcp": self._spoken,
            "rules": self._uses,
            "questions": self._questions,
        }
        self._details = Static(id="details")
        self._about = VerticalScroll(self._details, id="about")
        self._input = Input(placeholder=filters.HELP, id="filter")
        with Horizontal(id="top"):
            yield self._status
            yield self._rate
        yield self._count_line
        with Horizontal(id="middle"):
            yield self._processes
            with Vertical(id="right"), self._tabs:
                with TabPane("Events", id="events"):
                    yield self._stream
                with TabPane("Files", id="files"):
                    yield self._files
                with TabPane("Network", id="network"):
                    yield self._reached
                with TabPane("Executions", id="executions"):
                    yield self._programs
                with TabPane("MCP", id="mcp"):
                    yield self._silent
                    yield self._spoken
                with TabPane("Rules", id="rules"):
                    yield self._uses
                with TabPane("Questions", id="questions"):
                    yield self._no_questions
                    yield self._questions
        yield self._about
        yield self._input
        yield Keys()

    def on_mount(self) -> None:
        sys.setswitchinterval(_SWITCH_S)
        self._input.display = False
        self.set_focus(self._stream)
        self._fit(self.size.width)
        self._draw_status()
        self._feed.start()
        self.set_interval(DRAW_EVERY_S, self._draw)

    def on_resize(self, event: Resize) -> None:
        if self._wide is not None:  # else there is nothing on the screen yet
            self._fit(event.size.width)

    def _fit(self, width: int) -> None:
        """Where it became wide or narrow, the processes come or go; else they stay as the person has them."""
        wide = width >= _NARROW
        if wide is not self._wide:
            self._wide = self._processes.display = wide
            self._draw_processes()

    def on_unmount(self) -> None:
        self._feed.close()

    # What the feed found.

    def _delivered(self, portion: Portion) -> None:
        """Called in the feed's thread; waits until the screen has taken it, so that nothing piles up."""
        try:
            self.call_from_thread(self._take, portion)
        except RuntimeError:  # the screen is closed
            return

    def _take(self, portion: Portion) -> None:
        if portion.error is not None:
            self._say(f"{portion.error.what}: {portion.error.why}", severity="error", timeout=30)
            return
        self._summed, self._last = portion.summed, portion.last
        stream = self._stream
        if portion.fresh:
            self._skipped = 0
            stream.begin(portion.events)
        elif portion.events or portion.skipped:
            self._skipped += portion.skipped
            stream.append(portion.events)
        if portion.session is not None:
            self._session = portion.session
            self._draw()
        elif portion.fresh:
            self._draw()

    # Drawing.

    def _draw(self) -> None:
        self._totals.tick(int(time.monotonic()), self._last)
        self._rate.data = list(self._totals.rates)
        self._draw_status()
        self._draw_processes()
        self._draw_tab()
        # Not at once, as a key would wait for both.
        self.set_timer(DRAW_EVERY_S / 2, self._tidy)

    def _tidy(self) -> None:
        """Let go what nobody needs any more.

        To look through all that stays would stop the screen for a fifth of a second, so that is put aside once it is much.
        Seldom, for lines on the screen hold one another, and those that are put aside with the rest are kept for nothing.
        """
        gc.collect()
        if len(gc.get_objects(2)) > _LOOKED_THROUGH:
            gc.freeze()
            self._put_aside += 1
            if self._put_aside % _PUT_ASIDE == 0:
                gc.unfreeze()

    def _draw_processes(self) -> None:
        tree = self._processes
        if tree.display:
            with self._feed.lock:
                tree.show(self._feed.processes)

    def _draw_tab(self) -> None:
        active = self._tabs.active
        with self._feed.lock:
            self._fill_tab(active)

    def _fill_tab(self, active: str) -> None:
        if active == "files":
            self._files.show(self._totals.paths)
        elif active == "network":
            fill_reached(self._reached, self._totals.places())
        elif active == "executions":
            fill_programs(self._programs, self._totals.programs.values(), self._home)
        elif active == "mcp":
            self._silent.display = not self._totals.spoken
            self._spoken.display = bool(self._totals.spoken)
            fill_spoken(self._spoken, self._totals.spoken.values())
        elif active == "rules":
            fill_rules(self._uses, self._totals.uses, self._home)
        elif active == "questions":
            self._draw_questions()

    def _draw_questions(self) -> None:
        asks = self._totals.answers is not None
        self._no_questions.update(NONE if asks else NOT_ASKING)
        self._no_questions.display = not (asks and self._totals.questions)
        self._questions.display = asks and bool(self._totals.questions)
        if asks:
            self._questions.show(self._totals, self._feed.processes)

    def _draw_status(self) -> None:
        session = self._session
        state = session.state
        ending = f", exit {session.exit_code}" if session.exit_code is not None else ""
        modes = "".join(f" --{mode}" for mode in session.modes)
        status = Text()
        status.append(f" {session.id} ", style="bold")
        status.append(f"{state}{ending}", style="green" if state is State.RUNNING else "yellow")
        status.append(f"  profile {printable(session.profile)}{modes}  tier {session.tier}")
        self._status.update(status)
        with self._feed.lock:
            counts = self._counts()
        self._count_line.update(counts)

    def _counts(self) -> Text:
        verdicts = self._totals.verdicts
        text = Text()
        text.append(f" {self._totals.rates[-1]}/s", style="dim")
        if lost := self._totals.lost + self._totals.unwritten:
            text.append(f"  {lost} LOST", style="bold red reverse")
        text.append(f"  {verdicts[Verdict.ALLOW]} allowed", style="green")
        text.append(f"  {verdicts[Verdict.DENY]} denied", style="bold red" if verdicts[Verdict.DENY] else "dim")
        if self._totals.routine:
            text.append(f", {self._totals.routine} routine", style="dim")
        questions = self._totals.open_questions()
        if held := sum(bool(question.held) for question in questions):
            text.append(f"  {held} HELD", style="bold yellow reverse")
        if waiting := len(questions):
            text.append(f"  {waiting} QUESTION{'S' if waiting > 1 else ''} (7)", style="bold yellow")
            if more := self._totals.questions_left_out:
                text.append(f", {more} more in the log", style="yellow")
        if verdicts[Verdict.AUDIT]:
            text.append(f"  {verdicts[Verdict.AUDIT]} audited", style="yellow")
        if self._summed < self._last:
            text.append(f"  summing up {self._summed} of {self._last}", style="yellow")
        if self._skipped:
            text.append(f"  {self._skipped} too fast to show, all in the log", style="yellow")
        gaps = [held.kind for held in self._session.coverage if held.strength is not Strength.FULL]
        text.append(f"  gaps: {', '.join(gaps)}" if gaps else "  no gaps", style="yellow" if gaps else "green")
        if not self._stream.following:
            text.append("  PAUSED", style="bold yellow")
        if self._line:
            text.append(f"  filter: {columns.cut_end(printable(self._line), _FILTER_SHOWN)}", style="cyan")
        return text

    def _draw_details(self, event: Event | None, keys: str = "") -> Text:
        """Everything about an event, and beside what it was what keys do about it. Returns these two."""
        first = what_happened(event, self._home)
        if keys:
            first.append(keys + "\n")
        if self._about.display:
            with self._feed.lock:
                because = self._because(event)
                chain = self._feed.processes.chain(event.pid if event else None)
            self._details.update(first + describe(event, chain, because, self._home))
            self._about.scroll_home(animate=False)
        return first

    def _draw_chosen(self) -> None:
        """The details of what the keys act on; of a question, what each key would add before it is pressed."""
        self._told = None
        asking = self._tabs.active == "questions"
        self._about.set_class(asking, "asking")
        asked = self._questions.chosen if asking else None
        if asked is None:
            self._draw_details(self._stream.chosen)
            return
        event = asked.event
        try:
            keys = self._keys_of(event)
        except McpguardError as problem:
            self._draw_details(event, printable(f"{problem.what}: {problem.why}"))
            return
        first = self._draw_details(event, keys)
        lines = len(first.wrap(self.console, max(1, self._about.scrollable_content_region.width)))
        if self._about.display and lines <= _ASKED_LINES and self.size.height >= _LOW:
            self._told = event

    def _keys_of(self, event: Event) -> str:
        """What the keys would do about a question. Raises McpguardError: nothing."""
        if event.mcp is not None:
            tool = printable(f"{event.mcp.server}/{event.mcp.tool}")
            return (
                f"{printable(event.detail or '')}\no this call   s every call of {tool} in this session   x refuse it"
            )
        once, pattern = suggestions(event, variables_of(self._session.workspace))
        return f"o once  {rules(once)}   s, w  {rules(pattern)}"

    # What a person does.

    def on_questions_chosen(self) -> None:
        self._draw_chosen()

    def on_questions_answered(self, message: Questions.Answered) -> None:
        """Nothing is allowed but what was on the screen, whole, when the key was pressed; else it is asked in the menu."""
        told = self._told
        if message.answer == LEFT:
            self._approval.settle(message.question.event, LEFT)
        elif told is None or key_of(told) != message.question.key:
            self._ask(message.question.event)
        else:
            self._approval.settle(told, message.answer)

    def on_data_table_row_selected(self, message: DataTable.RowSelected) -> None:
        if message.data_table is self._questions:
            self.action_allow()
        elif isinstance(message.data_table, Table):
            self._show_events(message.data_table.lines[message.cursor_row])

    def on_event_stream_chosen(self) -> None:
        self._draw_chosen()

    def on_event_stream_paused(self, message: EventStream.Paused) -> None:
        self._draw_status()

    def on_tabbed_content_tab_activated(self) -> None:
        self._draw_tab()
        self._draw_chosen()

    def on_tree_node_selected(self, message: ProcessTree.NodeSelected[int]) -> None:
        """A process in the tree: its events; a file: what happened to it."""
        if message.node.tree is self._processes and message.node.data:
            self._filter(f"process:{message.node.data}")

    def on_files_tree_chosen(self, message: FilesTree.Chosen) -> None:
        self._show_events(filters.exactly(path=message.path))

    def _show_events(self, line: str) -> None:
        """What a row of another tab was made of: there each has its rule, and `a` allows what was refused."""
        if self._filter(line):
            self.action_tab("events")

    def on_input_submitted(self, message: Input.Submitted) -> None:
        # A path that is typed in a question is no filter.
        if message.input is self._input and self._filter(message.value):
            message.input.display = False
            self.set_focus(self._stream)

    def action_follow(self) -> None:
        """Pause or go on."""
        stream = self._stream
        stream.follow(not stream.following)

    def action_denied(self) -> None:
        """Only the next verdict: all, denied, audited, allowed."""
        words = [word for word in self._line.split() if not word.startswith("verdict:")]
        current = next((word.partition(":")[2] for word in self._line.split() if word.startswith("verdict:")), None)
        names = [verdict.value if verdict else None for verdict in _VERDICTS]
        following = names[(names.index(current) + 1) % len(names)] if current in names else None
        self._filter(" ".join([*words, *([f"verdict:{following}"] if following else [])]))

    def action_filter(self) -> None:
        """Type a filter."""
        if len(self.screen_stack) > 1 or isinstance(self.focused, Input):
            raise SkipAction  # there it is a letter
        line = self._input
        line.value = self._line
        line.display = True
        self.set_focus(line)

    def action_clear(self) -> None:
        """Close the filter line, or take the filter away."""
        line = self._input
        if line.display:
            line.display = False
            self.set_focus(self._stream)
        elif self._line:
            self._filter("")

    def action_details(self) -> None:
        """Show or hide the details of the chosen event."""
        self._about.display = not self._about.display
        self._draw_chosen()

    def action_processes(self) -> None:
        """Show or hide the process tree."""
        tree = self._processes
        tree.display = not tree.display
        self._draw_processes()

    def action_tab(self, name: str) -> None:
        """Another tab, whose rows the keys move through."""
        self._tabs.active = name
        if name == "questions":
            self._draw_tab()
        if not self._input.display:
            self.set_focus(self._inside[name])

    @property
    def _chosen(self) -> Event | None:
        """What the details tell of and the keys act on."""
        asked = self._questions.chosen if self._tabs.active == "questions" else None
        return asked.event if asked else self._stream.chosen

    def action_copy(self) -> None:
        """The chosen event as a line of JSON into the clipboard."""
        if event := self._chosen:
            self.copy_to_clipboard(json_line(event))
            self._say("the event is in the clipboard, as JSON")

    def action_allow(self) -> None:
        """What was refused: once, for the session, or in the person's own profile, after a question."""
        if event := self._chosen:
            self._ask(event)

    def _ask(self, event: Event) -> None:
        if self._tabs.active == "questions" and event.mcp is not None:
            self._approval.ask_call(event)
            return
        with self._feed.lock:
            because = self._because(event)
        self._approval.ask(event, because)

    def _because(self, event: Event | None) -> str:
        return next((u.because for u in self._totals.uses.values() if event and u.origin == event.rule), "")

    def _answered(self, event: Event, answer: str) -> None:
        """In the thread of the answer: so that it is not asked again."""
        if (key := key_of(event)) is not None:
            remember(self._session.id, key, answer)
            with self._feed.lock:
                if self._totals.answers is not None:
                    self._totals.answers[key] = answer

    def action_export(self) -> None:
        """What the filter matches, as JSON lines, into a file in the current folder."""
        wanted = filters.parse(self._line, self._home)
        session = self._session.id

        def work() -> None:
            try:
                path, count = export(self._open_store, session, wanted, Path.cwd())
            except (OSError, McpguardError) as error:
                self.call_from_thread(self._say, f"not exported: {error}", severity="error")
            else:
                self.call_from_thread(self._say, f"{count} events in {shorten(str(path), self._home)}")

        self.run_worker(work, thread=True, exclusive=True, group="export")

    def action_theme(self) -> None:
        """Light or dark."""
        self.theme = (LIGHT if self.current_theme.dark else DARK).name

    def action_help(self) -> None:
        """The keys and the filter's words."""
        self.push_screen(HelpScreen())

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        yield from super().get_system_commands(screen)
        yield SystemCommand("Pause or follow", "Hold the event stream, or go on", self.action_follow)
        yield SystemCommand("Next verdict", "Only denied, audited or allowed events, or all", self.action_denied)
        yield SystemCommand("Filter", "Only some events", self.action_filter)
        yield SystemCommand("Details", "Show or hide everything about the chosen event", self.action_details)
        yield SystemCommand("Processes", "Show or hide the process tree", self.action_processes)
        yield SystemCommand("Copy", "The chosen event as JSON", self.action_copy)
        yield SystemCommand("Allow what was refused", "Once, for the session, or in your profile", self.action_allow)
        yield SystemCommand("Export", "Write the filtered events to a file", self.action_export)
        for name in TABS:
            yield SystemCommand(f"Show {name}", f"The {name} tab", lambda name=name: self.action_tab(name))

    def _say(self, text: str, *, title: str = "", severity: SeverityLevel = "information", timeout: float = 10) -> None:
        """A note; names in it are anybody's."""
        self.notify(printable(text), title=printable(title), severity=severity, timeout=timeout, markup=False)

    def _filter(self, line: str) -> bool:
        try:
            wanted = filters.parse(line, self._home)
        except McpguardError as error:
            self._say(f"{error.why}; {error.do}", title=error.what, severity="error")
            return False
        self._line = line.strip()
        self._feed.ask(wanted)
        self._draw_status()
        return True
