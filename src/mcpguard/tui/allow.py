"""The questions before a refusal is lifted: how far, what it writes, and who refuses on purpose. They ask; `approval` acts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, TypeVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.events import Paste
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from mcpguard.events.format import object_of, printable, shorten
from mcpguard.model.event import Event, Kind
from mcpguard.profile.amend import Addition
from mcpguard.session.amendment import Amendment
from mcpguard.session.approve import Scope
from mcpguard.session.offers import Offer, Purpose, Refuser
from mcpguard.session.questions import LEFT
from mcpguard.tui.footer import Keys

SCOPES = {
    Scope.ONCE: ("o", "allow once", "this object, until the session ends"),
    Scope.SESSION: ("s", "allow for the session", "the rule that a person would write, until the session ends"),
    Scope.PROFILE: ("w", "allow in the profile", "writes the rule into your own profile; shows the change first"),
}
LEAVE = "leave"
# When a file is open that is allowed.
AT_ONCE = "Allowed, it is open at the next attempt."
NEXT_RUN = "The files of this session are fixed: only the next run has what you allow."
_WARNING = "An agent that was talked into something asks for things, too."


def head(event: Event, home: str) -> Text:
    """What was refused to whom, on one line."""
    text = Text()
    text.append(f"{event.verdict.value.upper()}  {event.op} {event.access or ''}  ", style="bold red")
    return text.append(f"{printable(object_of(event, home))}  by {printable(event.comm or '?')}\n\n")


def rules(additions: Iterable[Addition]) -> str:
    """Rules in one line, printable: `files.read: /a, network.allow: b:1`."""
    return ", ".join(f"{one.section}.{one.key}: {printable(one.value)}" for one in additions)


Answer = TypeVar("Answer")
# Lines of a page that stay on the next one.
_OVERLAP = 2


class Asking(ModalScreen[Answer]):
    """A question. What allows something counts once all of the question was on the screen, from its first line on."""

    _seen = 0

    def is_read(self) -> bool:
        """Whether it was; else it shows what comes next."""
        body = self.query_one("#allow", VerticalScroll)
        top, height = body.scroll_offset.y, body.scrollable_content_region.height
        if top <= self._seen:
            self._seen = max(self._seen, top + height)
        if height and self._seen >= body.max_scroll_y + height:
            return True
        body.scroll_to(y=max(0, self._seen - _OVERLAP), animate=False)
        self.notify("there is more of it: the same key goes on to its end", severity="warning", timeout=3)
        return False


class ScopeScreen(Asking[Scope | None]):
    """How far is it allowed? None: leave it refused."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(key, f"answer('{scope}')", words) for scope, (key, words, _) in SCOPES.items()),
        Binding("x,n,escape,q", "answer", "Leave it refused"),
    ]

    def __init__(self, event: Event, offer: Offer, home: str, *, running: bool, files: str) -> None:
        """
        Args:
            running: the session can still take rules.
            files: when it has those about files, in words.
        """
        super().__init__()
        self._event = event
        self._offer = offer
        self._home = home
        self._takes_rules = running
        self._files = files

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="allow"):
            yield Static(head(self._event, self._home))
            yield OptionList(*self._options(), id="scopes")
            yield Static(Text("\n".join(["", *self._notes()]), style="dim"))
            yield Keys()

    def on_mount(self) -> None:
        for scopes in self.query(OptionList):
            scopes.focus(scroll_visible=False)

    def on_option_list_option_selected(self, message: OptionList.OptionSelected) -> None:
        self.action_answer(message.option_id or LEAVE)

    def action_answer(self, word: str = LEAVE) -> None:
        scope = None if word == LEAVE else Scope(word)
        if scope in (Scope.ONCE, Scope.SESSION) and not self._takes_rules:
            self.notify("the session has ended: only the profile can have it", severity="warning")
            return
        if scope is None or self.is_read():
            self.dismiss(scope)

    def _options(self) -> Iterable[Option]:
        for scope, (key, words, means) in SCOPES.items():
            over = scope is not Scope.PROFILE and not self._takes_rules
            text = Text(f"{key}  {words}", style="bold").append(f"\n   {means}", style="not bold dim")
            additions = self._offer.once if scope is Scope.ONCE else self._offer.pattern
            text.append("\n   the session has ended" if over else f"\n   {rules(additions)}", style="not bold")
            yield Option(text, id=scope.value, disabled=over)
        yield Option(Text("x  leave it refused", style="bold"), id=LEAVE)

    def _notes(self) -> Iterable[str]:
        for folder in self._offer.folders:
            yield f"{printable(shorten(folder, self._home))} is a folder: a rule for it holds for all that is in it."
        if self._takes_rules and self._event.kind in (Kind.FILE, Kind.EXEC):
            yield self._files
        yield _WARNING


class CallScreen(Asking[str | None]):
    """A call of a tool that waits, all of it. The answer is a scope or LEFT; None: not now."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("o", f"answer('{Scope.ONCE}')", "Allow this call"),
        Binding("s", f"answer('{Scope.SESSION}')", "Allow the tool for the session"),
        Binding("x", f"answer('{LEFT}')", "Refuse it"),
        Binding("escape,q", "answer", "Not now"),
    ]

    def __init__(self, event: Event, home: str) -> None:
        super().__init__()
        self._event = event
        self._home = home

    def compose(self) -> ComposeResult:
        text = head(self._event, self._home)
        text.append(f"{printable(self._event.detail or '')}\n\n").append(_WARNING, style="dim")
        with VerticalScroll(id="allow"):
            yield Static(text)
            yield Keys()

    def action_answer(self, answer: str = "") -> None:
        if answer in ("", LEFT) or self.is_read():
            self.dismiss(answer or None)


class WriteScreen(Asking[bool]):
    """What a profile would hold more. True: write it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Write the rule"),
        Binding("n,escape,q", "answer(False)", "Leave it refused"),
    ]

    def __init__(self, event: Event, amendment: Amendment, home: str, *, folder: bool = False) -> None:
        """
        Args:
            folder: what is opened is a folder.
        """
        super().__init__()
        self._event = event
        self._amendment = amendment
        self._folder = folder
        self._home = home

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="allow"):
            yield Static(self._question())
            yield Keys()

    def action_answer(self, write: bool) -> None:
        if not write or self.is_read():
            self.dismiss(write)

    def _question(self) -> Text:
        amendment = self._amendment
        text = head(self._event, self._home)
        made = "" if amendment.before is not None else " (a new profile, which extends the session's)"
        text.append(f"Allow it in {printable(shorten(str(amendment.path), self._home))}{made}?\n\n")
        for sign, style, lines in (("-", "red", amendment.removed), ("+", "green", amendment.added)):
            for line in lines:
                text.append(f"{sign} {printable(line)}\n", style=style)
        if self._folder:
            text.append("\nIt is a folder: this opens all that is in it.\n", style="bold")
        return text.append(f"\n{_WARNING}", style="dim")


class TypedPath(Input):
    """Typed, not pasted: who types a path has read it."""

    def _on_paste(self, event: Paste) -> None:
        event.prevent_default().stop()

    def action_paste(self) -> None:
        return


class PurposeScreen(ModalScreen[bool]):
    """A rule refuses on purpose: which one, where it stands, who brings it, and what a person can do.

    True: the path was typed, so the exception is to be prepared. No key alone gives that.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Leave it refused")]

    def __init__(self, event: Event, purpose: Purpose, because: str, home: str, path: str | None) -> None:
        """
        Args:
            path: what can be excepted from the rule, once it is typed.
        """
        super().__init__()
        self._event = event
        self._purpose = purpose
        self._because = because
        self._home = home
        self._path = path

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="allow"):
            yield Static(head(self._event, self._home).append_text(self._words()))
            if self._path is not None:
                yield TypedPath(placeholder="the path, to open it; escape leaves it refused", id="typed")
            yield Keys()

    def on_mount(self) -> None:
        for typed in self.query(Input):
            typed.focus()

    def on_input_submitted(self, message: Input.Submitted) -> None:
        path = self._path
        if path is not None and message.value in (path, shorten(path, self._home)):
            self.dismiss(True)
        elif message.value:
            self.notify("that is not the path; nothing was changed", severity="warning")

    def action_leave(self) -> None:
        self.dismiss(False)

    def _words(self) -> Text:
        purpose, rule = self._purpose, self._purpose.rule
        text = Text("Refused on purpose; no key opens it.\n\n", style="bold")
        text.append("rule     ", style="dim").append(f"{printable(rule.text)}\n")
        if self._because:
            text.append("because  ", style="dim").append(f"{printable(self._because)}\n")
        if purpose.who is Refuser.MCPGUARD:
            return text.append("\nmcpguard refuses this in every profile.")
        text.append("stands   ", style="dim").append(f"{printable(shorten(rule.place, self._home))}\n")
        text.append("brought  ", style="dim").append(f"by profile {printable(rule.profile)}\n\n")
        if not purpose.builtin:
            return text.append(f"To change it: mcpguard profile edit {printable(rule.profile)}")
        if self._path is not None:
            return text.append(
                "To except this one path from it, in your own profile and from the next run on, type the path:"
            )
        name = printable(rule.profile)
        text.append(
            "It came with mcpguard, and there is no exception to it. To have it otherwise, use a profile of your own "
        )
        return text.append(f"that does not extend {name}; begin with: mcpguard profile show {name}")
