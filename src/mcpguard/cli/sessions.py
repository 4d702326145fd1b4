"""`mcpguard sessions`: running and past sessions."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.cells import cell_len
from rich.text import Text

from mcpguard.cli import render
from mcpguard.errors import StoreError
from mcpguard.events import unrecorded
from mcpguard.events.format import printable, rfc3339, shorten
from mcpguard.events.missing import incomplete
from mcpguard.events.sessions import Session, State
from mcpguard.events.store import Store
from mcpguard.events.totals import denied_by_session
from mcpguard.tui import columns

# The id holds the year; the month and the day are the person's own, the id's are UTC.
_HEADERS = ("session", "state", "profile", "started", "denied", "exit", "workspace", "command")
_STATE = 1
_GAP = "  "
_COMMAND_ROOM = 30
_COLOURS = {State.RUNNING: "green", State.ENDED: "", State.INTERRUPTED: "yellow"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sessions")(sessions)


def sessions(
    format: Annotated[Literal["table", "json"], typer.Option("--format", help="How to print sessions.")] = "table",
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="AGE|SIZE", help="Forget what is older (30d, 12w), or the oldest beyond a size (500M, 2G)."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="With --keep: do not ask.")] = False,
) -> None:
    """List running and past sessions, newest first."""
    if keep is not None:
        _forget(keep, sure=yes)
        return
    found, denied, gaps = _read()
    if note := unrecorded.words():
        render.note(note)
    if format == "json":
        for session in found:
            values = as_json(session, denied.get(session.id, 0), complete=session.id not in gaps)
            sys.stdout.write(json.dumps(values, ensure_ascii=False) + "\n")
        return
    console = columns.output()
    shown = {session.id: f"{denied.get(session.id, 0)}{'+' if session.id in gaps else ''}" for session in found}
    for line in _lines(found, shown, str(Path.home()), columns.edge(console)):
        console.print(line, soft_wrap=True)
    if gaps:
        render.note("+  or more: the record of that session is not complete; mcpguard log SESSION --kind loss")


def _forget(keep: str, *, sure: bool) -> None:
    from mcpguard.events import retention

    kept, now_ns = retention.parse(keep), time.time_ns()
    with Store.open(create=False) as store:
        chosen = retention.excess(store, kept, now_ns)
        if not chosen:
            render.note("nothing to forget: everything is within that limit, is running, or is the latest")
            return
        dates = [datetime.fromtimestamp(one.started_ns / 1e9).strftime("%Y-%m-%d") for one in (chosen[0], chosen[-1])]
        told = f"{len(chosen)} session{'s' * (len(chosen) != 1)}, begun {dates[0]} to {dates[1]}"
        if not sure and not typer.confirm(f"Forget {told}, with all their events?", err=True):
            raise typer.Exit(1)
        before = store.size()
        gone = retention.tidy(store, kept, now_ns, budget_s=None)
        store.give_back(whole=True)
        freed = (before - store.size()) / (1 << 20)
        render.note(f"forgotten: {told}, {gone.events} rows, {freed:.1f} MiB")


def as_json(session: Session, denied: int, *, complete: bool) -> dict[str, object]:
    """One session as an object; keys without a meaning are absent, keys are only ever added."""
    values: dict[str, object | None] = {
        "id": session.id,
        "state": session.state.value,
        "profile": session.profile,
        "modes": list(session.modes),
        "workspace": session.workspace,
        "command": list(session.command),
        "tier": session.tier,
        "started": rfc3339(session.started_ns),
        "ended": None if session.ended_ns is None else rfc3339(session.ended_ns),
        "exit_code": session.exit_code,
        "pid": session.supervisor.pid,
        "policy": session.digest,
        "denied": denied,
        "unsaved": session.unsaved,
        "complete": complete,
        "coverage": [
            {"kind": c.kind, "strength": c.strength.value, "by": c.by, "gaps": list(c.gaps), "fix": c.fix}
            for c in session.coverage
        ],
    }
    return {key: value for key, value in values.items() if value is not None}


def _read() -> tuple[list[Session], dict[str, int], set[str]]:
    """Sessions, their denials, and those whose record is not complete.

    No store yet means no sessions: an empty list is the true answer.
    """
    try:
        with Store.open(create=False) as store:
            if store.note:
                render.note(f"mcpguard: {store.note}")
            found = store.sessions()
            return found, denied_by_session(store), incomplete(store, found)
    except StoreError as error:
        if error.code != "store.empty":
            raise
        return [], {}, set()


def _lines(found: list[Session], denied: dict[str, str], home: str, width: int | None) -> Iterator[Text]:
    """The table; what does not fit into `width` is cut from the command, and from nothing else."""
    rows = [_HEADERS, *(_cells(session, denied[session.id], home) for session in found)]
    shown = _shown_columns(rows, width)
    sizes = [max(cell_len(row[column]) for row in rows) for column in shown]
    for row, session in zip(rows, (None, *found), strict=True):
        line = Text(no_wrap=True)
        for column, size in zip(shown, sizes, strict=True):
            colour = _COLOURS[session.state] if session and column == _STATE else ""
            line.append(columns.pad(row[column], size) + _GAP, style=colour if session else "bold")
        line.append(columns.cut_end(row[-1], width - line.cell_len) if width else row[-1])
        line.rstrip()
        yield line


def _shown_columns(rows: Sequence[Sequence[str]], width: int | None) -> list[int]:
    """Every column but the command; the workspace only where it leaves the command enough room."""
    every = list(range(len(_HEADERS) - 1))
    needed = sum(max(cell_len(row[column]) for row in rows) + len(_GAP) for column in every)
    return every if width is None or needed + _COMMAND_ROOM <= width else every[:-1]


def _cells(session: Session, denied: str, home: str) -> tuple[str, ...]:
    return (
        session.id,
        session.state.value,
        printable(" ".join([session.profile, *(f"--{mode}" for mode in session.modes)])),
        datetime.fromtimestamp(session.started_ns // 1_000_000_000).astimezone().strftime("%m-%d %H:%M"),
        denied,
        "" if session.exit_code is None else str(session.exit_code),
        printable(shorten(session.workspace, home)),
        printable(" ".join(session.command)),
    )
