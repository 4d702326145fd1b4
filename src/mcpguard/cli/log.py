"""`mcpguard log`: events of a session as a table, JSON lines or CSV."""

from __future__ import annotations

import csv
import os
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from mcpguard.cli import render
from mcpguard.events import query, unrecorded
from mcpguard.events.format import CSV_HEADER, Cells, cells, csv_row, json_line, printable
from mcpguard.events.missing import incomplete
from mcpguard.events.store import Store
from mcpguard.events.told_errors import error_of, told_errors
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.tui import columns

_COLOURS = {"DENY": "bold red", "AUDIT": "yellow", "ALLOW": "green", "LOSS": "bold magenta"}
# Columns in front of the object; object and rule share what a line leaves, in a pipe they take what they need.
_PIPE_SIZES = {"time": 19, "verdict": 5, "process": 18, "act": 14}
_SIZES = {"time": 8, "verdict": 5, "process": 18, "act": 14}
_NARROW_SIZES = {"time": 8, "verdict": 5, "process": 12, "act": 10}
_WIDE = 120
_OBJECT_MIN = 40
_MOST_TOLD = 20
_GAP = "  "


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("log")(log)


def log(
    session: Annotated[
        str | None, typer.Argument(help="Session id or its beginning; the latest when left out.", show_default=False)
    ] = None,
    verdict: Annotated[Verdict | None, typer.Option(help="Only this verdict.")] = None,
    kind: Annotated[Kind | None, typer.Option(help="Only this kind of event.")] = None,
    path: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only events about these paths; patterns as in a profile.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only events about these hosts or addresses.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only events since then: 30m, 1h, 2d or an RFC 3339 time.")
    ] = None,
    call: Annotated[
        str | None, typer.Option(metavar="ID", help="Only this MCP call, and what the server did while it lasted.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on showing events until the session ends.")
    ] = False,
    format: Annotated[Literal["table", "json", "csv"], typer.Option("--format", help="How to print events.")] = "table",
) -> None:
    """Show what a session did, and which rule decided.

    Exits 0, also when nothing matches; 1 when there is no such session.
    """
    home = str(Path.home())
    wanted = query.Filter(
        verdict=verdict,
        kind=kind,
        path=None if path is None else query.path_filter(path, home),
        host=host,
        since_ns=None if since is None else query.since(since, time.time_ns()),
    )
    with Store.open(create=False) as store:
        if store.note:
            render.note(f"mcpguard: {store.note}")
        told = store.session(session)
        chosen = told.id
        if session is None and (note := unrecorded.words(chosen)):
            render.note(note)
        if call is not None:
            _write_call(store, chosen, call, format, home)
            return
        found = query.follow(store, chosen, wanted, time.sleep) if follow else query.events(store, chosen, wanted)
        hidden = wanted != query.Filter() and wanted.kind is not Kind.LOSS
        if hidden and incomplete(store, [told]):
            render.note(f"the record of session {chosen} is not complete: mcpguard log {chosen} --kind loss")
        try:
            if not _write(found, format, home) and format == "table" and not follow:
                render.note(f"no event of session {chosen} matches")
            if format == "table" and not follow and wanted.kind in (None, Kind.MCP):
                # Longer than a line of the table.
                for error in told_errors(store, chosen, _MOST_TOLD):
                    render.error(error)
        except KeyboardInterrupt:
            # Ctrl-C is how a person ends --follow.
            pass
        except BrokenPipeError:
            # `log | head`: whoever read has enough. Python would complain once more when it closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_call(store: Store, session: str, call: str, format: str, home: str) -> None:
    """A call, its effects, its response; and below, what is not as it was said."""
    from mcpguard.events.effects import calls

    (told,) = calls(store, session, only=call)
    events = [told.request, *told.effects, *([told.response] if told.response else [])]
    if format == "json":
        mismatches = {id(one.effect): {"mismatch": one.words} for one in told.mismatches}
        for event in events:
            sys.stdout.write(json_line(event, **mismatches.get(id(event), {})) + "\n")
    else:
        _write(events, format, home)
    if format == "table" and told.response and (error := error_of(told.response.detail or "")):
        render.error(error)
    for words in dict.fromkeys(one.words for one in told.mismatches):
        render.note(f"mismatch: {printable(words)}")
    if told.overlaps:
        render.note(f"what is told here may belong to {', '.join(told.overlaps)}, which overlapped with this call")


def _write(events: Iterable[Event], format: str, home: str) -> bool:
    """Whether there was a line to write; the header of CSV is always one."""
    if format == "csv":
        _write_csv(events)
        return True
    written = False
    for line in map(json_line, events) if format == "json" else _table(events, home):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        written = True
    return written


def _write_csv(events: Iterable[Event]) -> None:
    writer = csv.writer(sys.stdout)
    writer.writerow(CSV_HEADER)
    for event in events:
        writer.writerow(csv_row(event))
        sys.stdout.flush()


def _table(events: Iterable[Event], home: str) -> Iterator[str]:
    """Lines as they come: a following table cannot wait for its widest cell. One line for each event, whatever it
    holds; on a terminal the day has a line of its own where it is not today's or changes."""
    console = columns.output()
    width = columns.edge(console)
    day = date.today()
    for event in events:
        row = _with_loss(cells(event, home), event)
        if width is None:
            yield _rendered(console, _line(row._replace(time=f"{columns.day_of(event.time_ns)} {row.time}"), None))
            continue
        if columns.day_of(event.time_ns) != day:
            day = columns.day_of(event.time_ns)
            yield _rendered(console, Text(f"{day:%Y-%m-%d}", style="bold"))
        yield _rendered(console, _line(row, width, program=bool(event.argv)))


def _rendered(console: Console, line: Text) -> str:
    with console.capture() as capture:
        console.print(line, soft_wrap=True, end="")
    return capture.get()


def _with_loss(row: Cells, event: Event) -> Cells:
    """What was lost is a number, also when it is one."""
    if event.kind is not Kind.LOSS:
        return row
    return row._replace(object=f"{event.count} lost", note=printable(event.detail or ""))


def _line(row: Cells, width: int | None, *, program: bool = False) -> Text:
    """One event; `width`: where the line ends, None: nowhere. `program`: the object is a program and its arguments."""
    line = Text(no_wrap=True)
    for name, size in _sizes(width).items():
        text = getattr(row, name)
        if width is not None:
            text = columns.cut_end(text, size)
        line.append(columns.pad(text, size) + _GAP, style=_COLOURS[row.verdict] if name == "verdict" else "")
    rule, shown = Text(row.rule, style="cyan"), row.object
    if row.note:
        rule.append(f"  {row.note}" if row.rule else row.note, style="dim")
    if width is None:
        shown = columns.pad(shown, _OBJECT_MIN)
    else:
        shown, room = _object_and_room(shown, rule.cell_len, width - line.cell_len, program=program)
        rule.truncate(max(0, room), overflow="ellipsis")
    line.append(shown + _GAP)
    line.append_text(rule)
    line.rstrip()
    return line


def _sizes(width: int | None) -> dict[str, int]:
    if width is None:
        return _PIPE_SIZES
    return _SIZES if width >= _WIDE else _NARROW_SIZES


def _object_and_room(text: str, rule: int, room: int, *, program: bool) -> tuple[str, int]:
    """The object as it is shown, and the columns that are left for the rule.

    The two share `room`; the object takes more than its share only from what the rule does not need.
    """
    share = room * 3 // 5
    size = max(share, room - len(_GAP) - rule)
    # A program is known by how its line begins, a path by how it ends.
    shown = columns.cut_end(text, size) if program else columns.cut_start(text, size)
    shown = columns.pad(shown, min(share, size))
    return shown, room - len(_GAP) - cell_len(shown)
