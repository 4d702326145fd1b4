"""The tables of the tabs. A table is made anew when it changed; the cursor stays on its row."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widgets import DataTable

from mcpguard.events.activity import Reached, Spoken, Started
from mcpguard.events.format import clock, printable, shorten, size
from mcpguard.model.access import Verdict
from mcpguard.model.event import Kind
from mcpguard.policy.compile import DEFAULT
from mcpguard.tui.colours import VERDICTS
from mcpguard.tui.filters import exactly
from mcpguard.tui.totals import Use

MAX_ROWS = 500
# New rows in one go: a few hundred at once take a tenth of a second.
_NEW_ROWS = 100
# Words and their style. Most rows stay as they were, and are compared as that; `_text` makes what a table shows of them.
Cell = tuple[str, Style | str]
Row = tuple[Cell, ...]


class Table(DataTable[Text]):
    """A table whose rows stand for events.

    Attributes:
        drawn: what each row shows.
        lines: of each row the filter line that finds its events.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select_cursor", "Events", key_display="enter")]

    def __init__(self, id: str, *names: str) -> None:
        super().__init__(id=id, cursor_type="row", zebra_stripes=True)
        self.drawn: list[Row] = []
        self.lines: list[str] = []
        for name in names:
            self.add_column(name, key=name)


def fill_reached(shown: Table, found: Iterable[Reached]) -> None:
    """Destinations, own addresses and sockets."""
    _fill(shown, ((_cells(*_reached(one)), _reached_line(one)) for one in found))


def _reached_line(one: Reached) -> str:
    named = {"text": one.address} if one.kind == Kind.UNIX else {"host": one.host or one.address}
    return exactly(verdict=one.verdict.value, kind=one.kind, **named)


def _reached(one: Reached) -> Iterable[Cell | str]:
    port = f":{one.port}" if one.port else ""
    name = f"{one.host}{port}" if one.host else f"{one.address}{port}"
    protocol = f"/{one.protocol}" if one.protocol else ""
    return (
        _verdict(one.verdict),
        f"{one.kind} {one.op}",
        printable(f"{name}{protocol}"),
        str(one.times) if one.times else "",
        size(one.bytes_sent),
        size(one.bytes_received),
        clock(one.last_ns),
        printable(one.address if one.host else ""),  # what a narrow screen can do without
    )


def fill_programs(shown: Table, found: Iterable[Started], home: str) -> None:
    """Programs, the most often started ones first."""
    ordered = sorted(found, key=lambda one: (one.verdict is Verdict.ALLOW, -one.times))
    _fill(
        shown,
        (
            (
                _cells(
                    _verdict(one.verdict),
                    printable(shorten(one.path, home)),
                    str(one.times),
                    printable(" ".join(one.argv)[:200]),
                ),
                exactly(verdict=one.verdict.value, kind=Kind.EXEC.value, path=one.path),
            )
            for one in ordered
        ),
    )


def fill_spoken(shown: Table, found: Iterable[Spoken]) -> None:
    """What was asked of MCP servers: refused first, then tools, then the rest of the protocol, each the most frequent first."""
    ordered = sorted(found, key=lambda one: (not one.denied, not one.tool, -one.times))
    _fill(shown, ((_cells(*_spoken(one)), exactly(one.tool or one.method, kind=Kind.MCP.value)) for one in ordered))


def _spoken(one: Spoken) -> Iterable[Cell | str]:
    method = one.method if one.sender == "client" else f"asks {one.method}"
    return (
        printable(one.server),
        printable(f"{method} {one.tool}".rstrip()),
        str(one.times),
        (str(one.denied) if one.denied else "", VERDICTS["DENY"]),
        str(one.failed) if one.failed else "",
        f"{one.took_ns / one.answered / 1e6:.1f} ms" if one.answered else "",
        clock(one.last_ns),
    )


def fill_rules(shown: Table, uses: dict[int, Use], home: str) -> None:
    """Rules, those that refused first, unused ones last and marked."""
    ordered = sorted(
        uses.values(), key=lambda use: (-use.denied, -use.audited, -use.allowed, use.origin.file, use.origin.line)
    )
    _fill(shown, ((_rule(use, home), exactly(use.origin.text)) for use in ordered))


def _rule(use: Use, home: str) -> Row:
    unused = not (use.allowed or use.denied or use.audited)
    refused = [str(use.denied)] if use.denied else []
    # As if it were denied, but let through.
    refused += [f"{use.audited} audited"] if use.audited else []
    style = "dim" if unused else ""
    # It stands in no file, and there is a profile of its name.
    place = shorten(use.origin.place, home)
    if use.origin == DEFAULT:
        place = "default deny"
    return (
        ("unused" if unused else str(use.allowed), style),
        (", ".join(refused), VERDICTS["DENY" if use.denied else "AUDIT"]),
        (printable(use.origin.text)[:120], style),
        (printable(place), style),
        (printable(use.because), style),
    )


def _cells(*cells: Cell | str) -> Row:
    return tuple((cell, "") if isinstance(cell, str) else cell for cell in cells)


def text(cell: Cell) -> Text:
    """Never a plain string: of that a table takes what stands in brackets for markup."""
    words, style = cell
    return Text(words, style=style)


def _fill(shown: Table, rows: Iterable[tuple[Row, str]]) -> None:
    """
    Args:
        rows: what each shows, and the filter line of its events.
    """
    found = list(islice(rows, MAX_ROWS))
    taken, shown.lines = [cells for cells, _ in found], [line for _, line in found]
    before = shown.drawn
    row = shown.cursor_row
    if len(taken) < len(before):
        shown.clear()
        before = []
    taken = taken[: len(before) + _NEW_ROWS]
    for number, cells in enumerate(taken):
        if number < len(before):
            change(shown, str(number), before[number], cells)
        else:
            shown.add_row(*map(text, cells), key=str(number))
    if taken and not before:
        shown.move_cursor(row=min(row, len(taken) - 1), animate=False)
    if len(taken) > len(before):
        # Columns are measured when nothing else is to be done; a heading drawn before that would stay as narrow as it was.
        shown.call_after_refresh(shown.notify_style_update)
    shown.drawn = taken


def change(shown: DataTable[Text], key: str, before: Row, cells: Row) -> None:
    """Put what is new into a row."""
    for column, old, new in zip(shown.columns.values(), before, cells, strict=True):
        if new != old:
            shows = text(new)
            # A column that could become narrower is measured anew for every cell: half a second, for a table of 500.
            shown.update_cell(key, column.key, shows, update_width=shows.cell_len > column.content_width)


def _verdict(verdict: Verdict) -> Cell:
    word = verdict.value.upper()
    return word, VERDICTS[word]
