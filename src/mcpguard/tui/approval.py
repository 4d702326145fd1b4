"""From a refusal to an answer: asks how far, writes the profile, has the session take the rules, and says what holds now.

What takes time runs in a thread of its own, so the screen never waits; every call in it is bounded.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from textual.app import App

from mcpguard.errors import McpguardError
from mcpguard.events.finding import is_unnamed
from mcpguard.events.format import printable, shorten
from mcpguard.events.sessions import Session, State
from mcpguard.model.event import Event, McpMessage
from mcpguard.profile.amend import Addition
from mcpguard.session.amendment import Amendment, install, prepare
from mcpguard.session.approve import Outcome, Scope, decide, leave
from mcpguard.session.coverage import files_at_once
from mcpguard.session.offers import Offer, Purpose, exception, offer, purpose
from mcpguard.session.questions import LEFT
from mcpguard.tui.allow import AT_ONCE, NEXT_RUN, CallScreen, PurposeScreen, ScopeScreen, WriteScreen

Approve = Callable[[str, Sequence[Addition], Scope], Outcome]
# How long a note stays: it says what holds from now on.
_READ_S = 20
_SAID = "# Rules that were allowed in `mcpguard watch`, session {} first.\n"


class Approval:
    """One answer at a time."""

    def __init__(
        self,
        app: App[Any],
        session: Callable[[], Session],
        approve: Approve,
        home: str,
        answered: Callable[[Event, str], None],
    ) -> None:
        """
        Args:
            session: as it is known now.
            answered: notes an answer; called in the thread that carries it out.
        """
        self._app = app
        self._session = session
        self._approve = approve
        self._home = home
        self._answered = answered
        self._busy = False

    def ask(self, event: Event, because: str) -> None:
        """Ask how far a refused act is to be allowed, or tell who refuses it on purpose.

        Args:
            because: the reason of the rule that refused.
        """
        if (found := purpose(event)) is not None:
            self._on_purpose(event, found, because)
            return

        self._do(lambda: offer(event, self._session().workspace), lambda made: self._ask_scope(event, made))

    def _ask_scope(self, event: Event, made: Offer) -> None:
        def chosen(scope: Scope | None) -> None:
            if scope is not None:
                self.answer(event, scope)

        session = self._session()
        files = AT_ONCE if files_at_once(session.tier, session.coverage) else NEXT_RUN
        running = session.state is State.RUNNING
        self._app.push_screen(ScopeScreen(event, made, self._home, running=running, files=files), chosen)

    def ask_call(self, event: Event) -> None:
        """Ask about a call that is held, with all of it on the screen."""

        def chosen(answer: str | None) -> None:
            if answer is not None:
                self.settle(event, answer)

        self._app.push_screen(CallScreen(event, self._home), chosen)

    def _on_purpose(self, event: Event, found: Purpose, because: str) -> None:
        excepted = exception(event)
        screen = PurposeScreen(event, found, because, self._home, excepted[0] if excepted else None)
        session = self._session()

        def typed(was_typed: bool | None) -> None:
            if excepted and was_typed:
                path, additions = excepted
                said = _SAID.format(session.id)
                self._do(
                    lambda: prepare(session.profile, session.profile, additions, said=said),
                    lambda made: confirm(path, made),
                )

        def confirm(path: str, amendment: Amendment) -> None:
            if not amendment.added:
                self._tell("nothing to add", "your profile excepts it already; the next run has it")
                return
            self._app.push_screen(
                WriteScreen(event, amendment, self._home, folder=Path(path).is_dir()),
                lambda write: written(amendment, write),
            )

        def written(amendment: Amendment, write: bool | None) -> None:
            if write:
                # Never now: what this session does cannot lead to what it was kept from.
                done = f"written to {shorten(str(amendment.path), self._home)}\nwhat runs now stays refused"
                self._do(lambda: install(amendment), lambda _: self._tell("the next run has it", done))

        self._app.push_screen(screen, typed)

    def answer(self, event: Event, scope: Scope) -> None:
        """Allow it this far; for the profile the change is shown first."""
        session = self._session()
        if scope is Scope.PROFILE:
            self._do(lambda: self._prepared(event, session), lambda made: self._confirm(event, *made))
            return
        if session.state is not State.RUNNING:
            self._tell("the session has ended", "only the profile can have it", severity="warning")
            return

        def work() -> Outcome:
            made = offer(event, session.workspace)
            outcome = self._approve(session.id, made.once if scope is Scope.ONCE else made.pattern, scope)
            if outcome.now:
                self._answered(event, scope)
            return outcome

        self._do(work, lambda outcome: self._told(event, scope, outcome))

    def settle(self, event: Event, answer: str) -> None:
        """The answer to a question: a scope, or that it stays refused."""
        if event.mcp is not None:
            self._settle_call(event, event.mcp, answer)
            return
        if answer == LEFT:

            def work() -> None:
                self._answered(event, LEFT)
                if is_unnamed(event) and event.host:
                    leave(self._session().id, event.host)

            self._do(
                work,
                lambda _: self._tell("left refused", "it is not asked again in this session"),
            )
        else:
            self._do(
                lambda: offer(event, self._session().workspace), lambda made: self._weigh(event, Scope(answer), made)
            )

    def _weigh(self, event: Event, scope: Scope, made: Offer) -> None:
        """That a rule for a folder opens what is in it stands in the menu only."""
        if made.folders:
            self._ask_scope(event, made)
        else:
            self.answer(event, scope)

    def _settle_call(self, event: Event, message: McpMessage, answer: str) -> None:
        if answer == Scope.PROFILE:
            text = "a call that needs your word is allowed once (o) or for this session (s)"
            self._tell("not in the profile", text, severity="warning")
            return

        def work() -> None:
            decide(self._session().id, message.call or "", answer)
            self._answered(event, answer)

        tool = f"{message.server}/{message.tool}"
        said = {
            LEFT: ("left refused", "the agent is told so; the very same call is not asked again"),
            Scope.ONCE: ("allowed", f"this call of {tool} goes on"),
            Scope.SESSION: ("allowed", f"every call of {tool} goes on in this session, where the rules allow it"),
        }[answer]
        self._do(work, lambda _: self._tell(*said))

    def _prepared(self, event: Event, session: Session) -> tuple[Amendment, tuple[Addition, ...]]:
        made = offer(event, session.workspace)
        return prepare(session.profile, session.profile, made.pattern, said=_SAID.format(session.id)), made.pattern

    def _confirm(self, event: Event, amendment: Amendment, additions: tuple[Addition, ...]) -> None:
        if not amendment.added:
            if self._session().state is State.RUNNING:
                self._in_profile(event, None, additions)
            else:
                self._tell("nothing to add", "your profile has this rule already; the next run has it")
            return

        def written(write: bool | None) -> None:
            if write:
                self._in_profile(event, amendment, additions)

        self._app.push_screen(WriteScreen(event, amendment, self._home), written)

    def _in_profile(self, event: Event, amendment: Amendment | None, additions: tuple[Addition, ...]) -> None:
        """Write the profile, then have the session take the rules; it has them in the next run, whatever this one says."""
        session = self._session()
        place = "in your profile already"
        if amendment is not None:
            place = f"written to {shorten(str(amendment.path), self._home)}"

        def work() -> Outcome:
            if amendment is not None:
                install(amendment)
            self._answered(event, Scope.PROFILE)
            rules = tuple(f"{one.section}.{one.key}: {one.value}" for one in additions)
            if session.state is not State.RUNNING:
                return Outcome((), rules, "the session has ended")
            try:
                return self._approve(session.id, additions, Scope.PROFILE)
            except McpguardError as problem:
                return Outcome((), rules, f"{problem.what}: {problem.why}")

        self._do(work, lambda outcome: self._told(event, Scope.PROFILE, outcome, place))

    def _told(self, event: Event, scope: Scope, outcome: Outcome, place: str = "") -> None:
        """What holds now, what the next run has, and why."""
        now, later = (", ".join(map(printable, rules)) for rules in (outcome.now, outcome.later))
        lines = [printable(place)] if place else []
        if now:
            lines.append(f"holds now: {now}")
        if later and scope is Scope.PROFILE:
            lines.append(f"the next run has it: {later}")
        elif later:
            lines.append(f"cannot be had in this session: {later}; w writes it for the next run")
        elif place and now:
            lines.append("the next run has it, too")
        if outcome.why:
            lines.append(f"why: {printable(outcome.why)}")
        title = (
            "allowed" if now and not later else "the next run has it" if scope is Scope.PROFILE else "not allowed now"
        )
        self._tell(title, "\n".join(lines), severity="information" if now else "warning")

    def _do(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """`work` in a thread, `then` with its result on the screen; what goes wrong is told."""
        if self._busy:
            self._tell("not yet", "the answer before this one is still being carried out", severity="warning")
            return
        self._busy = True

        def finished(result: Any, problem: McpguardError | None) -> None:
            self._busy = False
            if problem is None:
                then(result)
            else:
                self._tell(problem.what, printable(f"{problem.why}; {problem.do}"), severity="warning")

        def run() -> None:
            result = None
            # Of a failure that nobody foresaw; the answer after it must still be possible.
            problem: McpguardError | None = _failed("mcpguard itself is at fault")
            try:
                result = work()
                problem = None
            except McpguardError as error:
                problem = error
            except OSError as error:
                problem = _failed(str(error))
            finally:
                with contextlib.suppress(RuntimeError):  # the screen is closed
                    self._app.call_from_thread(finished, result, problem)

        threading.Thread(target=run, name="approval", daemon=True).start()

    def _tell(self, title: str, text: str, severity: Any = "information") -> None:
        self._app.notify(
            printable_lines(text), title=printable(title), severity=severity, timeout=_READ_S, markup=False
        )


def _failed(why: str) -> McpguardError:
    return McpguardError("not done", why=why, do="look at the log of the session, and try again", code="allow.failed")


def printable_lines(text: str) -> str:
    """Printable, line by line."""
    return "\n".join(map(printable, text.splitlines()))
