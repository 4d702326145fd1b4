"""Symlinks that a guarded session may have left behind: no rule that opens something is led elsewhere by one.

In tier 3 a session can make names that no rule allows beside those that one does; they are told and not stopped. A symlink made
so, where a rule of a later session names a folder, would open what it leads to. The kernel keeps for each symlink when it was
made or renamed, and nobody but root can set that back.
"""

from __future__ import annotations

import datetime
import os

from mcpguard.errors import StoreError
from mcpguard.events import unrecorded
from mcpguard.events.sessions import State
from mcpguard.events.store import Store
from mcpguard.model.paths import is_below

# The kernel's clock for files goes in steps, and may be a little behind.
_SLACK_NS = 1_000_000_000
# How long a session may have gone on whose end nobody saw.
_UNSEEN_NS = 24 * 3600 * 1_000_000_000
_FOR_EVER_NS = 1 << 63
_BEGIN = "%Y%m%d-%H%M%S"
_BEGIN_LETTERS = 15


class Trust:
    """Whether a rule may follow the symlink at a place: outside the home always, there if no session can have made it."""

    def __init__(self, home: str, refused: set[str]) -> None:
        """
        Args:
            refused: filled with the symlinks that it said no to.
        """
        self._home = home
        self._refused = refused
        self._sessions: Sessions | None = None

    def __call__(self, place: str) -> bool:
        if not is_below(place, self._home):
            return True
        self._sessions = self._sessions or Sessions()
        if not self._sessions.may_have_made(place):
            return True
        self._refused.add(place)
        return False


class Sessions:
    """When guarded sessions of this user were running."""

    def __init__(self) -> None:
        """Reads the store. Where it cannot be read, one may always have been running."""
        try:
            self._times = [*_recorded(), *_unrecorded()]
        except (StoreError, ValueError):
            self._times = [(0, _FOR_EVER_NS)]

    def may_have_made(self, symlink: str) -> bool:
        """Whether a symlink was made or renamed while any of them was running; what cannot be looked at was."""
        try:
            made_ns = os.lstat(symlink).st_ctime_ns
        except OSError:
            return True
        return any(begin - _SLACK_NS <= made_ns <= end + _SLACK_NS for begin, end in self._times)


def _recorded() -> list[tuple[int, int]]:
    try:
        with Store.open(create=False) as store:
            sessions = store.sessions()
    except StoreError as none:
        if none.code == "store.empty":
            return []
        raise
    unseen = {State.RUNNING: _FOR_EVER_NS}
    return [
        (
            one.started_ns,
            one.ended_ns if one.ended_ns is not None else unseen.get(one.state, one.started_ns + _UNSEEN_NS),
        )
        for one in sessions
    ]


def _unrecorded() -> list[tuple[int, int]]:
    begun = [
        datetime.datetime.strptime(one.session[:_BEGIN_LETTERS], _BEGIN).replace(tzinfo=datetime.UTC)
        for one in unrecorded.since()
    ]
    return [(int(when.timestamp()) * 10**9, int(when.timestamp()) * 10**9 + _UNSEEN_NS) for when in begun]
