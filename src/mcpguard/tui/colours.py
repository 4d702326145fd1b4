"""Colours of verdicts; each has its word beside it, so that nothing is said by colour alone."""

from __future__ import annotations

from rich.style import Style

VERDICTS = {
    "DENY": Style(color="red", bold=True),
    "AUDIT": Style(color="yellow"),
    "ALLOW": Style(color="green"),
    "LOSS": Style(color="red", bold=True, reverse=True),
}
