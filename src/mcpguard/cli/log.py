"""`mcpguard log`: events of a session as a table, JSON lines or CSV."""

from __future__ import annotations

import csv
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from mcpguard.cli import render
from mcpguard.events import query
from mcpguard.events.format import CSV_HEADER, Cells, cells, csv_row, json_line
from mcpguard.events.store import Store
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind

_COLOURS = {"DENY": "bold red", "AUDIT": "yellow", "ALLOW": "green", "LOSS": "bold magenta"}
# Widths of time, verdict, process and act; the object takes what a line leaves, in a pipe as much as it needs.
_WIDTHS = (8, 7, 18, 14)
_OBJECT_MIN = 40


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
        chosen = store.session(session).id
        found = query.follow(store, chosen, wanted, time.sleep) if follow else query.events(store, chosen, wanted)
        try:
            _write(found, format, home)
        except KeyboardInterrupt:
            # Ctrl-C is how a person ends --follow.
            pass
        except BrokenPipeError:
            # `log | head`: whoever read has enough. Python would complain once more when it closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write(events: Iterable[Event], format: str, home: str) -> None:
    if format == "csv":
        _write_csv(events)
        return
    for line in map(json_line, events) if format == "json" else _table(events, home):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _write_csv(events: Iterable[Event]) -> None:
    writer = csv.writer(sys.stdout)
    writer.writerow(CSV_HEADER)
    for event in events:
        writer.writerow(csv_row(event))
        sys.stdout.flush()


def _table(events: Iterable[Event], home: str) -> Iterator[str]:
    """Lines as they come: a following table cannot wait for its widest cell."""
    console = Console(file=sys.stdout, highlight=False)
    width = max(_OBJECT_MIN, console.width - sum(_WIDTHS) - 40) if console.is_terminal else _OBJECT_MIN
    for event in events:
        with console.capture() as capture:
            console.print(_line(cells(event, home), width, cut=console.is_terminal), soft_wrap=True, end="")
        yield capture.get()


def _line(row: Cells, width: int, *, cut: bool) -> Text:
    line = Text(no_wrap=True)
    columns = zip((row.time, row.verdict, row.process, row.act, row.object), (*_WIDTHS, width), strict=True)
    for text, size in columns:
        if cut and len(text) > size:
            # The end of a path tells more than its beginning.
            text = "…" + text[len(text) - size + 1 :] if text is row.object else text[: size - 1] + "…"
        line.append(text.ljust(size) + "  ", style=_COLOURS[row.verdict] if text is row.verdict else "")
    line.append(row.rule, style="cyan")
    line.append(f"  {row.note}" if row.note else "", style="dim")
    line.rstrip()
    return line
