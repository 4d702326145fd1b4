"""`mcpguard sessions`: running and past sessions."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mcpguard.cli import render
from mcpguard.errors import StoreError
from mcpguard.events.format import printable, rfc3339, shorten
from mcpguard.events.sessions import Session, State
from mcpguard.events.store import Store
from mcpguard.events.totals import denied_by_session

_PIPE_WIDTH = 500
_COLOURS = {State.RUNNING: "green", State.ENDED: "", State.INTERRUPTED: "yellow"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sessions")(sessions)


def sessions(
    format: Annotated[Literal["table", "json"], typer.Option("--format", help="How to print sessions.")] = "table",
) -> None:
    """List running and past sessions, newest first."""
    found, denied = _read()
    if format == "json":
        for session in found:
            sys.stdout.write(json.dumps(as_json(session, denied.get(session.id, 0)), ensure_ascii=False) + "\n")
        return
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        # A pipe has no edge: a cut session id would be useless to the next program.
        console.width = _PIPE_WIDTH
    console.print(_table(found, denied, str(Path.home())))


def as_json(session: Session, denied: int) -> dict[str, object]:
    """One session as an object; keys without a meaning are absent, keys are only ever added."""
    values: dict[str, object | None] = {
        "id": session.id,
        "state": session.state.value,
        "profile": session.profile,
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
        "coverage": [
            {"kind": c.kind, "strength": c.strength.value, "by": c.by, "gaps": list(c.gaps), "fix": c.fix}
            for c in session.coverage
        ],
    }
    return {key: value for key, value in values.items() if value is not None}


def _read() -> tuple[list[Session], dict[str, int]]:
    """No store yet means no sessions: an empty list is the true answer."""
    try:
        with Store.open(create=False) as store:
            if store.note:
                render.note(f"mcpguard: {store.note}")
            return store.sessions(), denied_by_session(store)
    except StoreError as error:
        if error.code != "store.empty":
            raise
        return [], {}


def _table(found: list[Session], denied: dict[str, int], home: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("session", "state", "profile", "started", "denied", "exit"):
        table.add_column(name, no_wrap=True)
    for name in ("workspace", "command"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for session in found:
        started = datetime.fromtimestamp(session.started_ns // 1_000_000_000).astimezone()
        table.add_row(
            session.id,
            Text(session.state.value, style=_COLOURS[session.state]),
            Text(printable(session.profile)),
            started.strftime("%Y-%m-%d %H:%M"),
            str(denied.get(session.id, 0)),
            "" if session.exit_code is None else str(session.exit_code),
            Text(printable(shorten(session.workspace, home))),
            Text(printable(" ".join(session.command))),
        )
    return table
