"""The question before a rule is added to a profile: what is refused, the rule, and what it changes."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Static

from mcpguard.events.format import object_of, printable, shorten
from mcpguard.model.event import Event
from mcpguard.session.amendment import Amendment


class AllowScreen(ModalScreen[bool]):
    """True: write it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Write the rule"),
        Binding("n,escape,q", "answer(False)", "Leave it refused"),
    ]

    def __init__(self, event: Event, amendment: Amendment, home: str) -> None:
        super().__init__()
        self._event = event
        self._amendment = amendment
        self._home = home

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="allow"):
            yield Static(self._question())
            yield Footer()

    def action_answer(self, write: bool) -> None:
        self.dismiss(write)

    def _question(self) -> Text:
        event, amendment = self._event, self._amendment
        text = Text()
        text.append(f"{event.verdict.value.upper()}  {event.op} {event.access or ''}  ", style="bold red")
        text.append(f"{printable(object_of(event, self._home))}  by {printable(event.comm or '?')}\n\n")
        made = "" if amendment.before is not None else " (a new profile, which extends the session's)"
        text.append(f"Allow it in {printable(shorten(str(amendment.path), self._home))}{made}?\n\n")
        for sign, style, lines in (("-", "red", amendment.removed), ("+", "green", amendment.added)):
            for line in lines:
                text.append(f"{sign} {printable(line)}\n", style=style)
        text.append("\nWhat runs now keeps its rules: the next run has this one. ", style="dim")
        text.append("An agent that was talked into something asks for things, too.", style="dim")
        return text
