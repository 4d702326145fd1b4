"""The event stream: one line an event, newest last, drawn line by line, so that its length costs nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Click, Resize
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from mcpguard.events.finding import is_quiet
from mcpguard.events.format import Cells, cells
from mcpguard.model.event import Event, Kind
from mcpguard.tui import columns
from mcpguard.tui.colours import VERDICTS

# Lines that are kept; older ones are in the record.
KEPT = 10_000
_WIDE, _NARROW = 100, 60
# Without colours a filter looks at every segment's style, so each must have one.
PLAIN = Style()


class EventStream(ScrollView, can_focus=True):
    """A window on the record. `following`: the newest line stays in sight."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "move(-20)", "Page up", show=False),
        Binding("pagedown", "move(20)", "Page down", show=False),
        Binding("home,g", "first", "First", show=False),
        Binding("end,G", "last", "Newest", show=False),
    ]

    class Chosen(Message):
        """The cursor is on another event."""

        def __init__(self, event: Event | None) -> None:
            super().__init__()
            self.event = event

    class Paused(Message):
        """Following began or ended."""

        def __init__(self, following: bool) -> None:
            super().__init__()
            self.following = following

    def __init__(self, home: str, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._home = home
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._cursor = -1
        self._following = True

    @property
    def following(self) -> bool:
        return self._following

    @property
    def chosen(self) -> Event | None:
        """The event under the cursor."""
        return self._events[self._cursor] if 0 <= self._cursor < len(self._events) else None

    def __len__(self) -> int:
        return len(self._events)

    def begin(self, events: Iterable[Event]) -> None:
        """Show these and nothing else."""
        self._events.clear()
        self._cursor = -1
        self.append(events)

    def append(self, events: Iterable[Event]) -> None:
        """Add newer ones; the oldest make room."""
        new = list(events)
        dropped = max(0, len(self._events) + len(new) - KEPT)
        self._events.extend(new)
        self.virtual_size = Size(self.size.width, len(self._events))
        if self._following:
            self._go(len(self._events) - 1)
        elif dropped:
            self._cursor = max(0, self._cursor - dropped)
            self.scroll_to(y=max(0, self.scroll_offset.y - dropped), animate=False)
        self.refresh()

    def follow(self, following: bool) -> None:
        """Keep the newest line in sight, or stay where the cursor is."""
        if following != self._following:
            self._following = following
            self.post_message(self.Paused(following))
        if following:
            self._go(len(self._events) - 1)

    def action_move(self, lines: int) -> None:
        self.follow(False)
        self._go(self._cursor + lines)

    def action_first(self) -> None:
        self.follow(False)
        self._go(0)

    def action_last(self) -> None:
        self.follow(True)

    def render_line(self, y: int) -> Strip:
        index = y + self.scroll_offset.y
        width = self.scrollable_content_region.width
        # The theme's own colours; without them the terminal's would show, in whatever theme that is.
        ground = self.rich_style
        if index >= len(self._events):
            return Strip.blank(width, ground)
        event = self._events[index]
        strip = Strip(line(event, self._home, width)).adjust_cell_length(width, PLAIN).apply_style(ground)
        return strip.apply_style(Style(reverse=True)) if index == self._cursor else strip

    def on_resize(self, event: Resize) -> None:
        self.virtual_size = Size(event.size.width, len(self._events))
        if self._following:
            self._go(len(self._events) - 1)

    def on_click(self, event: Click) -> None:
        self.follow(False)
        self._go(event.y + self.scroll_offset.y)

    def on_mouse_scroll_up(self) -> None:
        self.follow(False)

    def _go(self, index: int) -> None:
        index = min(max(index, 0), len(self._events) - 1)
        changed, self._cursor = index != self._cursor, index
        if index >= 0:
            self.scroll_to_region(Region(0, index, 1, 1), animate=False, force=True)
        self.refresh()
        if changed or self._following:
            self.post_message(self.Chosen(self.chosen))

    def shown(self, most: int) -> list[Event]:
        """The first `most` events of the window, for tests and export of what is seen."""
        return list(islice(self._events, most))


def line(event: Event, home: str, width: int) -> list[Segment]:
    """One event in `width` columns: time, verdict by word and colour, process, act, object, rule.

    Where they do not all fit, verdict, process and object.
    """
    row: Cells = cells(event, home)
    process, act = (18, 14) if width >= _WIDE else (11, 10)
    style = VERDICTS.get(row.verdict, Style())
    parts = [
        Segment(columns.pad(row.verdict, 5) + " ", style),
        Segment(columns.pad(columns.cut_end(row.process, process), process) + " ", PLAIN),
    ]
    if width >= _NARROW:
        parts.insert(0, Segment(row.time + " ", Style(dim=True)))
        parts.append(Segment(columns.pad(columns.cut_end(row.act, act), act) + " ", Style(dim=True)))
    room = max(0, width - sum(part.cell_length for part in parts))
    what = f"{event.count} lost" if event.kind is Kind.LOSS else row.object
    words = [row.rule.removeprefix("builtin:"), row.note]
    # Of what programs do without, that comes first: here there is room for little more.
    rule = " ".join(word for word in (reversed(words) if is_quiet(event) else words) if word)
    shown_rule = columns.cut_end(rule, room * 2 // 5) if width >= _NARROW else ""
    share = max(0, room - (len(shown_rule) + 1 if shown_rule else 0))
    cut = columns.cut_end if event.argv else columns.cut_start
    parts.append(Segment(columns.pad(cut(what, share), share), style if row.verdict != "ALLOW" else PLAIN))
    if shown_rule:
        parts.append(Segment(" " + shown_rule, Style(dim=True)))
    return parts
