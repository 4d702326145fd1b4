"""`mcpguard watch`: the live screen. The screen library is imported only here."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mcpguard.cli import render
from mcpguard.errors import UsageError
from mcpguard.events.sessions import Session, State
from mcpguard.events.store import Store


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("watch")(watch)


def watch(
    session: Annotated[
        str | None,
        typer.Argument(
            help="Session id or its beginning; a running one, else the latest, when left out.", show_default=False
        ),
    ] = None,
) -> None:
    """Watch a session live: processes, events, files, network, programs and rules. A past session is shown from its record.

    Keys are shown at the bottom; ? explains them. Needs no privilege, and can be closed at any time.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "watch needs a terminal",
            why="it draws on the whole screen",
            do="in a pipe or a file use: mcpguard log --follow",
            code="watch.terminal",
        )
    with Store.open(create=False) as store:
        if store.note:
            render.note(f"mcpguard: {store.note}")
        chosen = _choose(store, session)
    from mcpguard.tui.app import WatchApp

    WatchApp(lambda: Store.open(create=False), chosen).run()


def _choose(store: Store, session: str | None) -> Session:
    if session is None:
        for found in store.sessions():
            if found.state is State.RUNNING:
                return found
    return store.session(session)
