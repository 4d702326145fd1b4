"""The last words of a run: what was allowed, what was refused and by which rule, and how to look further.

Data first (`summarise`), then plain lines (`render`); the caller writes them to stderr. Imports no screen library: it
is on the path of `run`.
"""

from __future__ import annotations

import shlex

from mcpguard.events import totals
from mcpguard.events.finding import REPEATS_OF_OPENS
from mcpguard.events.format import object_of, printable, shorten
from mcpguard.events.store import Store
from mcpguard.events.told_errors import error_of, told_errors
from mcpguard.events.totals import Group
from mcpguard.model.event import Kind
from mcpguard.model.values import dataclass
from mcpguard.session.run_later import CACHED, REPOSITORY, run_later

TOP = 5
MOST_APPROVED = 50
RULE_WIDTH = 60


@dataclass(frozen=True, slots=True)
class Summary:
    """What one session did.

    Attributes:
        opens, starts, connections: how many opens, program starts and connections were allowed.
        denied, routine: refusals worth a look, and refusals of ordinary habits.
        denials, kinds: the most frequent refusals of the first sort, and how many different ones there are.
        not_stopped, not_stopped_kinds: acts against the policy that this tier does not stop, likewise.
        audited, would_be_denied, would_be_denied_kinds: what was let through and only recorded; of it, what the policy
            would deny, likewise.
        losses: what is missing from the record -> how many.
        repositories: git repositories that the session made in the workspace.
        unasked: what else the session wrote and tools obey without being asked: see `run_later`.
        caches: those in which it changed programs that were there before.
        approved: rules that the user added while the session ran, each with how far it reaches.
        told: MCP servers that wanted a login, were refused, or ended: four lines each.
        missing: paths that a rule allows, that were not there at launch, and that this tier could not let the agent make.
    """

    session: str
    profile: str
    opens: int
    starts: int
    connections: int
    denied: int
    routine: int
    denials: tuple[Group, ...]
    kinds: int
    not_stopped: tuple[Group, ...]
    not_stopped_kinds: int
    audited: int
    losses: tuple[tuple[str, int], ...]
    missing: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()
    would_be_denied: tuple[Group, ...] = ()
    would_be_denied_kinds: int = 0
    approved: tuple[str, ...] = ()
    told: tuple[tuple[str, ...], ...] = ()


def summarise(store: Store, session: str) -> Summary:
    """Sum up what is stored of a session.

    Raises:
        StoreError: it cannot be read, or there is no such session.
    """
    denials, kinds = totals.groups(store, session, totals.DENIED, TOP)
    not_stopped, not_stopped_kinds = totals.groups(store, session, totals.NOT_STOPPED_ACTS, TOP)
    would_be_denied, would_be_denied_kinds = totals.groups(store, session, totals.WOULD_BE_DENIED, TOP)
    later = [one for one in run_later(store, session) if one.unasked and one.stopped]
    let_through = totals.total(store, session, totals.LET_THROUGH)
    return Summary(
        session=session,
        profile=store.session(session).profile,
        opens=totals.total(store, session, totals.OPENED),
        starts=totals.total(store, session, totals.STARTED),
        connections=totals.total(store, session, totals.CONNECTED),
        denied=totals.total(store, session, totals.DENIED),
        routine=totals.total(store, session, totals.DENIED_QUIETLY),
        denials=tuple(denials),
        kinds=kinds,
        not_stopped=tuple(not_stopped),
        not_stopped_kinds=not_stopped_kinds,
        audited=let_through - totals.total(store, session, totals.NOT_STOPPED_ACTS),
        losses=tuple(totals.losses(store, session)),
        missing=_missing(store, session),
        repositories=tuple(one.path for one in later if one.kind == REPOSITORY.kind),
        unasked=tuple(one.path for one in later if one.kind not in (REPOSITORY.kind, CACHED)),
        caches=tuple(one.path for one in later if one.kind == CACHED),
        would_be_denied=tuple(would_be_denied),
        would_be_denied_kinds=would_be_denied_kinds,
        approved=_approved(store, session),
        told=tuple(one.lines() for one in told_errors(store, session, TOP)),
    )


def _approved(store: Store, session: str) -> tuple[str, ...]:
    if not totals.total(store, session, totals.APPROVED):
        return ()
    from mcpguard.session.approvals import approvals  # few sessions have any

    return tuple(dict.fromkeys(f"{one.rule} ({one.how})" for one in approvals(store, session, MOST_APPROVED)))


def _missing(store: Store, session: str) -> tuple[str, ...]:
    groups, _kinds = totals.groups(store, session, totals.COULD_NOT_BE_MADE, TOP)
    return tuple(dict.fromkeys(group.example.path for group in groups if group.example.path))


def render(summary: Summary, home: str, *, warning: str | None = None) -> list[str]:
    """The lines of a summary, printable, without colour.

    Args:
        home: shown as `~`.
        warning: one more line about the record, such as `Recorder.warning`.
    """
    lines = [
        f"mcpguard: session {summary.session} (profile {printable(summary.profile)})",
        f"  allowed  {_many(summary.opens, 'open')}, {_many(summary.starts, 'program start')}, "
        f"{_many(summary.connections, 'connection')}",
        f"  denied   {summary.denied}" + (f", and {summary.routine} routine" if summary.routine else ""),
    ]
    lines += [_line(group, home) for group in summary.denials]
    lines += _more(summary.kinds - len(summary.denials))
    lines += [f"  approved {printable(text)}" for text in summary.approved]
    lines += _warnings(summary, home)
    if summary.missing:
        names = ", ".join(printable(shorten(path, home)) for path in summary.missing)
        lines.append(f"  advice   allowed, but not there at launch; make it before the next run: {names}")
    if summary.repositories:
        made = ", ".join(printable(shorten(path, home)) for path in summary.repositories[:TOP])
        lines.append(f"  advice   made by the agent; look at .git/config and .git/hooks before you use git in: {made}")
        lines += _more(len(summary.repositories) - TOP)
    if summary.unasked:
        written = ", ".join(printable(shorten(path, home)) for path in summary.unasked[:TOP])
        lines.append(
            f"  advice   written by the agent; git, editors, agents and shells obey these without being asked: {written}"
        )
        lines += _more(len(summary.unasked) - TOP)
    if summary.caches:
        changed = ", ".join(printable(shorten(path, home)) for path in summary.caches)
        lines.append(
            f"  advice   programs that were there before were changed; your tools run them later, unguarded: {changed}"
        )
    if summary.repositories or summary.unasked or summary.caches:
        lines.append(f"           what is in them now: mcpguard report {summary.session}")
    if warning:
        lines.append(f"  warning  {printable(warning)}")
    return [*lines, *_further(summary), *(line for one in summary.told for line in one)]


def _warnings(summary: Summary, home: str) -> list[str]:
    lines = []
    if summary.not_stopped:
        lines.append("  warning  against the policy and not stopped:")
        lines += [_line(group, home) for group in summary.not_stopped]
        lines += _more(summary.not_stopped_kinds - len(summary.not_stopped))
    if summary.audited:
        look = f"mcpguard log {summary.session} --verdict audit"
        lines.append(f"  audited  {summary.audited} let through that the policy would deny: {look}")
        lines += [_line(group, home) for group in summary.would_be_denied]
        lines += _more(summary.would_be_denied_kinds - len(summary.would_be_denied))
    return lines + [_loss(what, count) for what, count in summary.losses]


def _loss(what: str, count: int) -> str:
    if what == REPEATS_OF_OPENS:
        return f"  note     some counts of allowed opens are lower bounds, by {count} together; nothing else is missing"
    return f"  warning  the record is not complete: {count} {printable(what)}"


def _more(number: int) -> list[str]:
    return [f"          and {_many(number, 'other')}"] if number > 0 else []


def _further(summary: Summary) -> list[str]:
    """The commands to look further; `why` for the most frequent denial that it can answer for."""
    lines = [f"  look     mcpguard log {summary.session}" + (" --verdict deny" if summary.denied else "")]
    question = next((found for group in summary.denials if (found := _question(group))), None)
    if question:
        lines.append(f"           mcpguard why -p {shlex.quote(printable(summary.profile))} {question}")
    return lines


def _question(group: Group) -> str | None:
    event = group.example
    if event.kind is Kind.NET and event.op == "connect" and event.address:
        address = f"[{event.address}]" if ":" in event.address else event.address
        udp = "/udp" if event.protocol == "udp" else ""
        return f"connect {shlex.quote(printable(f'{event.host or address}:{event.port}{udp}'))}"
    if event.kind is Kind.DNS and event.host:
        return f"connect {shlex.quote(printable(event.host))}"
    if event.kind is Kind.UNIX and event.path:
        return f"unix {shlex.quote(printable(event.path))}"
    if event.kind in (Kind.FILE, Kind.EXEC) and event.access and event.path and "*" not in event.path:
        return f"{event.access.split('+')[0]} {shlex.quote(printable(event.path))}"
    return None


def _line(group: Group, home: str) -> str:
    event = group.example
    what = _in_short(printable(object_of(event, home))) if event.argv else printable(object_of(event, home))
    if (error := error_of(event.detail or "")) is not None:
        what = printable(error.what)
    what = what or printable((event.detail or "").partition("; under ")[0])
    count = f"{group.count}x" if group.count > 1 else ""
    line = f"  {count:>6}  {event.access or event.op:<10} {what}  by {printable(event.comm or '?')}"
    if event.rule is None:
        return f"{line}  (no rule of the profile)"
    place = f"{printable(shorten(event.rule.place, home))} " if event.rule.line else ""
    because = f" ({printable(group.because)})" if group.because else ""
    return f"{line}  {place}{printable(_rule_text(event.rule.text))}{because}"


def _rule_text(text: str) -> str:
    """A rule in short: without its exceptions, and never a whole list; `log` and `why` have all of it."""
    return _in_short(text.partition(" except ")[0])


def _in_short(text: str) -> str:
    return text if len(text) <= RULE_WIDTH else f"{text[: RULE_WIDTH - 3]}..."


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
