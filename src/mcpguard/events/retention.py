"""How much of the record is kept: sessions that are too old, or too much for the disk, are forgotten whole, the oldest first.

A session that runs and the latest one are always kept. Runs tidy up when they end, a little at a time, so that nobody waits.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from mcpguard.errors import UsageError
from mcpguard.events.sessions import Session, State
from mcpguard.events.store import Store
from mcpguard.model.values import dataclass

SIZE_VARIABLE, AGE_VARIABLE = "MCPGUARD_KEEP_SIZE", "MCPGUARD_KEEP_AGE"
FOREVER = "all"
# Time that the end of a run may spend on it.
BUDGET_S = 0.2
_DAY_S = 86_400
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": _DAY_S, "w": 7 * _DAY_S, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_AGES, _SIZES = "smhdw", "KMG"
# So much below the limit, so that not every run has to tidy up.
_ROOM = 0.9


@dataclass(frozen=True, slots=True)
class Limits:
    """What is kept; None: whatever there is.

    Attributes:
        size: bytes that the store may take on the disk.
        age_s: seconds since a session began.
    """

    size: int | None = 1 << 30
    age_s: int | None = 90 * _DAY_S


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was forgotten. `whole` is False when there is more to do than there was time for."""

    sessions: tuple[Session, ...] = ()
    events: int = 0
    whole: bool = True


def limits(environment: Mapping[str, str]) -> Limits:
    """The user's limits, from two variables, each `all` or as `parse` reads it.

    Raises:
        UsageError: one of them cannot be understood.
    """
    size, age = environment.get(SIZE_VARIABLE), environment.get(AGE_VARIABLE)
    kept = Limits()
    if size is not None:
        kept = Limits(None if size == FOREVER else _number(size, _SIZES, SIZE_VARIABLE), kept.age_s)
    if age is not None:
        kept = Limits(kept.size, None if age == FOREVER else _number(age, _AGES, AGE_VARIABLE))
    return kept


def parse(text: str) -> Limits:
    """`30d` or `12w`: by age; `500M` or `2G`: by size; nothing else counts then.

    Raises:
        UsageError: it is neither.
    """
    number = _number(text, _AGES + _SIZES, "--keep")
    return Limits(number, None) if text[-1] in _SIZES else Limits(None, number)


def _number(text: str, units: str, where: str) -> int:
    found = re.fullmatch(rf"([1-9]\d{{0,9}})([{units}])", text)
    if found is None:
        raise UsageError(
            f'{where}: "{text}" is neither an age nor a size' if units == _AGES + _SIZES else f'{where}="{text}"',
            why=f"it is a number with one of the units {', '.join(units)}",
            do="write for instance 30d or 500M"
            if units == _AGES + _SIZES
            else f"write a number and a unit, or {FOREVER}",
            code="usage.keep",
        )
    return int(found[1]) * _UNITS[found[2]]


def excess(store: Store, kept: Limits, now_ns: int) -> list[Session]:
    """The sessions that the limits leave no room for, oldest first. By size it is an estimate, from the number of events."""
    every = store.sessions()[::-1]
    running = [one for one in every if one.state is State.RUNNING]
    candidates = [one for one in every[:-1] if one not in running]
    old = [] if kept.age_s is None else [one for one in candidates if one.started_ns < now_ns - kept.age_s * 10**9]
    if kept.size is None or (used := store.size()) <= kept.size:
        return old
    total = max(1, store.count())
    found, over = list[Session](), used - int(kept.size * _ROOM)
    for one in candidates:
        if over <= 0 and one not in old:
            break
        found.append(one)
        over -= used * store.count(one.id) // total
    return found


def tidy(store: Store, kept: Limits, now_ns: int, *, budget_s: float | None = BUDGET_S) -> Forgotten:
    """Forget what the limits leave no room for, until it is done or the time is over.

    Raises:
        StoreError: the store cannot be written.
    """
    until = None if budget_s is None else time.monotonic() + budget_s
    gone, events = list[Session](), 0
    if not _may_be_over(store, kept, now_ns):
        return Forgotten()
    for session in excess(store, kept, now_ns):
        while (removed := store.forget(session.id)) > 0:
            events += removed
            if until is not None and time.monotonic() > until:
                return Forgotten(tuple(gone), events, whole=False)
        gone.append(session)
    if gone:
        store.give_back()
    return Forgotten(tuple(gone), events)


def _may_be_over(store: Store, kept: Limits, now_ns: int) -> bool:
    """What most runs pay for it."""
    if kept.size is not None and store.size() > kept.size:
        return True
    first = store.first_ns()
    return kept.age_s is not None and first is not None and first < now_ns - kept.age_s * 10**9
