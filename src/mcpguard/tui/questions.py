"""The tab of questions: what no rule covers, once each, answered by a key. No row moves away under a key.

HELD: a program waits for the answer. OPEN: it was refused, and an answer holds for the next attempt.
"""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import DataTable

from mcpguard.events.format import object_of, printable
from mcpguard.session.process_tree import ProcessTable
from mcpguard.session.questions import LEFT
from mcpguard.tui import columns
from mcpguard.tui.tables import Row, change, text
from mcpguard.tui.totals import Question, Totals

NOT_ASKING = """\
This session does not ask: it was not started with mcpguard run --ask.
a on a refused event allows it all the same.
"""
NONE = "No question: nothing was refused that no rule covers."
_WORDS = {"once": "allowed once", "session": "allowed", "profile": "in the profile", LEFT: "left refused"}


class Questions(DataTable[Text]):
    """One row a question, in the order in which they came."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("o", "answer('once')", "Once"),
        Binding("s", "answer('session')", "Session"),
        Binding("w", "answer('profile')", "Profile"),
        Binding("x", f"answer('{LEFT}')", "Refuse"),
        Binding("n", "next", "Next"),
        Binding("j", "cursor_down", "Down", show=False),
        Binding("k", "cursor_up", "Up", show=False),
    ]

    class Answered(Message):
        """`answer` is a scope or `refused`."""

        def __init__(self, question: Question, answer: str) -> None:
            super().__init__()
            self.question = question
            self.answer = answer

    class Chosen(Message):
        """The cursor is on another question."""

        def __init__(self, question: Question | None) -> None:
            super().__init__()
            self.question = question

    def __init__(self, home: str, *, id: str | None = None) -> None:
        super().__init__(id=id, cursor_type="row", zebra_stripes=True)
        self._at_home = home
        self._shown: dict[str, Question] = {}
        self._answers: dict[str, str] = {}
        self._cells: dict[str, Row] = {}
        for name in ("answer", "count", "access", "object", "process"):
            self.add_column(name, key=name)

    @property
    def chosen(self) -> Question | None:
        """The question under the cursor."""
        keys = list(self._shown)
        return self._shown[keys[self.cursor_row]] if 0 <= self.cursor_row < len(keys) else None

    def show(self, totals: Totals, processes: ProcessTable) -> None:
        """Draw what is new and what changed; a row never moves."""
        self._answers = dict(totals.answers or {})
        first = not self._shown
        for key, question in totals.questions.items():
            cells = self._row(question, processes)
            if key not in self._shown:
                self.add_row(*map(text, cells), key=key)
            else:
                change(self, key, self._cells[key], cells)
            self._shown[key], self._cells[key] = question, cells
        if first and self._shown:
            self._go_on(0)

    def action_answer(self, answer: str) -> None:
        question = self.chosen
        if question is None:
            return
        if question.key in self._answers:
            self.notify("this one is answered; n goes to the next open one", severity="warning", markup=False)
            return
        self.post_message(self.Answered(question, answer))

    def action_next(self) -> None:
        """The next question without an answer, from the cursor on and round."""
        self._go_on(self.cursor_row + 1)

    def _go_on(self, row: int) -> None:
        keys = list(self._shown)
        order = [*keys[row:], *keys[:row]]
        following = next((key for key in order if self._is_open(key)), None)
        if following is not None:
            self.move_cursor(row=keys.index(following), animate=False)

    def _is_open(self, key: str) -> bool:
        question = self._shown[key]
        return key not in self._answers and bool(question.count or question.held)

    def on_data_table_row_highlighted(self) -> None:
        self.post_message(self.Chosen(self.chosen))

    def _row(self, question: Question, processes: ProcessTable) -> Row:
        event = question.event
        answer = self._answers.get(question.key)
        if answer is not None:
            word = _WORDS.get(answer, answer), "dim"
        elif question.held:
            word = "HELD", "bold reverse"
        else:
            word = ("OPEN", "bold") if question.count else ("over", "dim")
        chain = [columns.cut_end(printable(one.name), 24) for one in processes.chain(event.pid)] or [
            printable(event.comm or "?")
        ]
        # The end of a path tells most; of a call its server and tool, which come first.
        cut = columns.cut_start if event.mcp is None else columns.cut_end
        what = cut(printable(object_of(event, self._at_home)), 60)
        return (
            word,
            (str(question.count + question.held), ""),
            (event.access or event.op, ""),
            (what, ""),
            (" < ".join(chain), ""),
        )
