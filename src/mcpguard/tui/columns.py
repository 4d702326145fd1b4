"""Cutting and padding text by the places that it takes on a terminal. Knows nothing about what is shown."""

from __future__ import annotations

import sys
from datetime import date, datetime

from rich.cells import cell_len, set_cell_size
from rich.console import Console

_MARK = "…"


def output() -> Console:
    """A console on stdout; in a pipe, which has no edge, nothing must ask for its width."""
    return Console(file=sys.stdout, highlight=False)


def edge(console: Console) -> int | None:
    """Columns of the terminal; None in a pipe, where a cut word would be useless to the next program."""
    return console.width if console.is_terminal else None


def pad(text: str, size: int) -> str:
    """`text` filled with blanks to `size` columns; longer text stays as it is."""
    return text + " " * (size - cell_len(text))


def cut_end(text: str, size: int) -> str:
    """The beginning of `text` in at most `size` columns, marked where something is missing."""
    if cell_len(text) <= size:
        return text
    return set_cell_size(text, size - 1).rstrip() + _MARK if size > 0 else ""


def cut_start(text: str, size: int) -> str:
    """The end of `text` in at most `size` columns: of a path it tells more than the beginning."""
    if cell_len(text) <= size:
        return text
    if size <= 0:
        return ""
    kept = text[-size:]
    while cell_len(kept) > size - 1:
        kept = kept[1:]
    return _MARK + kept


def day_of(time_ns: int) -> date:
    """The local day of a time in nanoseconds since the Unix epoch."""
    return datetime.fromtimestamp(time_ns // 1_000_000_000).astimezone().date()
