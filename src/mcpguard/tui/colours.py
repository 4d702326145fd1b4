"""Colours of the screen, in two themes. A verdict has its word beside it, so that nothing is said by colour alone.

Everything that is said stands out from what is behind it by 4.5 to 1 or more, as the web's accessibility guidelines ask of
text; `tests/tui` computes it, also for what is dimmed.
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.style import Style
from rich.terminal_theme import TerminalTheme
from textual.theme import Theme

VERDICTS = {
    "DENY": Style(color="red", bold=True),
    "AUDIT": Style(color="yellow"),
    "ALLOW": Style(color="green"),
    "LOSS": Style(color="red", bold=True, reverse=True),
}

DARK = Theme(
    name="mcpguard-dark",
    dark=True,
    primary="#0a5ca8",
    secondary="#004578",
    accent="#ffa62b",
    warning="#ffa62b",
    error="#ff7b72",
    success="#6cc86c",
    foreground="#e6e6e6",
    background="#121212",
    surface="#1a1a1a",
    panel="#242f38",
    variables={
        "text-muted": "#b0b0b0",
        "text-disabled": "#a0a0a0",
        "footer-key-foreground": "#ffa62b",
        "block-cursor-background": "#083a6b",
    },
)
LIGHT = Theme(
    name="mcpguard-light",
    dark=False,
    primary="#004578",
    secondary="#0a5ca8",
    accent="#8a4b00",
    warning="#8a4b00",
    error="#a81616",
    success="#1b6323",
    foreground="#141414",
    background="#f4f4f4",
    surface="#ececec",
    panel="#e2e2e2",
    variables={
        "text-muted": "#4a4a4a",
        "text-disabled": "#545454",
        "footer-key-foreground": "#004578",
        "block-cursor-background": "#003a66",
        "block-cursor-blurred-background": "#c8d6e0",
    },
)


def theme_of_terminal(environment: Mapping[str, str]) -> Theme:
    """The light theme where the terminal says that its ground is light, by the variable that many set: `TEXT;GROUND`."""
    return LIGHT if environment.get("COLORFGBG", "").rpartition(";")[2] in ("7", "15") else DARK


def _ansi(ground: str, text: str, red: str, green: str, yellow: str, blue: str, cyan: str) -> TerminalTheme:
    """What red, green and the others look like; those that nobody uses are the text's own colour."""

    def rgb(code: str) -> tuple[int, int, int]:
        return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)

    row = [rgb(code) for code in (ground, red, green, yellow, blue, text, cyan, text)]
    return TerminalTheme(rgb(ground), rgb(text), row, row)


ANSI_DARK = _ansi("#121212", "#e6e6e6", "#ff7b72", "#6cc86c", "#f0b13c", "#79b8ff", "#56d4dd")
ANSI_LIGHT = _ansi("#f4f4f4", "#141414", "#a81616", "#1b6323", "#7a4a00", "#0a4f9c", "#005a66")
