"""Results and errors to text or JSON on stdout and stderr. Decides nothing; diagnostics never go to stdout.

Colour follows rich: none with NO_COLOR or without a terminal. A table in a pipe is as wide as its content.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from mcpguard.errors import McpguardError, one_line

_PIPE_WIDTH = 10_000


def error(problem: McpguardError) -> None:
    """The four lines of an error, on stderr."""
    for text in problem.lines():
        note(text)


def note(text: str) -> None:
    """A line for the person, not for the next program: on stderr."""
    sys.stderr.write(f"{one_line(text)}\n")


def line(text: str = "") -> None:
    """A line of the result."""
    sys.stdout.write(f"{one_line(text)}\n")


def document(text: str) -> None:
    """A result of several lines."""
    for part in text.rstrip("\n").split("\n"):
        line(part)


def as_json(value: object) -> None:
    """One JSON document."""
    document(json.dumps(value, indent=1, ensure_ascii=True))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns for a person; an empty table prints its headers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    shown = Table(*headers, box=None, pad_edge=False)
    for column in shown.columns:
        column.overflow = "fold"
    for row in rows:
        shown.add_row(*(Text(one_line(cell)) for cell in row))
    with console.capture() as captured:
        console.print(shown)
    for printed in captured.get().splitlines():
        sys.stdout.write(f"{printed.rstrip()}\n")


def changes(removed: Sequence[str], added: Sequence[str]) -> None:
    """A difference, one line each: red `-` what is gone, green `+` what is new."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for sign, colour, texts in (("-", "red", removed), ("+", "green", added)):
        for text in texts:
            console.print(Text(f"{sign} {one_line(text)}", style=colour))
