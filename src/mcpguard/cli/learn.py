"""`mcpguard profile learn`: from what sessions did to rules, shown with their evidence before anything is written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from mcpguard.cli import exit_codes, render
from mcpguard.errors import UsageError
from mcpguard.events import totals
from mcpguard.events.format import shorten
from mcpguard.events.served import servers
from mcpguard.events.store import Store
from mcpguard.mcp.policy import server_word
from mcpguard.model.access import Access
from mcpguard.profile import store
from mcpguard.profile.load import load
from mcpguard.profile.parse import require_name
from mcpguard.session.amendment import Amendment, is_sound, prepare
from mcpguard.session.amendment import install as write
from mcpguard.session.confinement import left_by
from mcpguard.session.needs import Need, needs, set_apart, unused_rules, workspaces
from mcpguard.session.policy import compile_for, current_user, temporary_directory
from mcpguard.session.propose import Proposal, programs, propose
from mcpguard.session.protected import of_file
from mcpguard.session.server_needs import of_server

Row = TypeVar("Row")
# More than a person reads.
_MOST_RULES = 100
_MOST_LEFT_OUT = 20
# What every profile that a server is kept to extends.
_OF_SERVERS = "mcp-server"


def learn(
    sessions: Annotated[
        list[str] | None, typer.Argument(help="Session ids or their beginnings; the latest when left out.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Profile to write; the session's own name when left out.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option("--server", help="Learn what this MCP server needs, as a profile for `mcp.confine`."),
    ] = None,
    install: Annotated[bool, typer.Option("--install", help="Write it, after the changes were shown.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --install: do not ask.")] = False,
    tighten: Annotated[
        bool, typer.Option("--tighten", help="List the rules that these sessions never used, and nothing else.")
    ] = False,
    format: Annotated[Literal["text", "json"], typer.Option("--format", help="How to print it.")] = "text",
) -> None:
    """Propose rules for what sessions asked for and no rule allowed.

    Run a task with `mcpguard run --audit`, then learn from it. The proposal is a profile on stdout; what a rule refuses on
    purpose (keys, start-up files) is listed and left out. Read every rule: a session did what it was told, by whomever.

    With --server NAME the proposal is what one MCP server did, for it to be kept to that and no more.
    """
    with Store.open(create=False) as events:
        chosen = [events.session(one).id for one in sessions] if sessions else [events.session().id]
        profile = events.session(chosen[0]).profile
        if tighten:
            _tighten(events, chosen, format)
            return
        places = workspaces(events, chosen)
        _require_one(places)
        user = current_user()
        target = name or (profile if server is None else f"mcp-{server_word(server)}")
        require_name(target)
        parent = target if store.find(target) else profile if server is None else _OF_SERVERS
        if server is None:
            _require_profile(parent)
            found = needs(events, chosen, user.home)
            calls = sum(totals.total(events, one, totals.CALLS_REFUSED) for one in chosen)
        else:
            _require_own(target)
            _require_started(events, chosen, server)
            found, calls = of_server(events, chosen, server, left_by(parent, places[0])), 0
    variables = {"home": user.home, "workspace": places[0], "tmp": temporary_directory(user.home)}
    set_apart(found, places[0])
    # A server has what its agent's profile denies denied as well.
    held = load(profile if server is not None and store.find(profile) else parent)
    refusing = compile_for(held, places[0])
    apart = {need.object for need in found if need.refused and not of_file(refusing, need.object, Access.WRITE)}
    proposals = propose(found, variables, widen="base" in (held.name, *held.ancestors), apart=apart)
    proposals, many = _readable(proposals)
    proposals = [proposal for proposal in proposals if is_sound(proposal.addition())]
    said = f"# Learned from {', '.join(chosen)}. Read every rule before you rely on it.\n"
    amendment = prepare(target, parent, [proposal.addition() for proposal in proposals], said=said)
    if format == "json":
        render.as_json({**_json(proposals, found, amendment), "calls": calls})
    elif not install:
        render.document(amendment.text)
    _explain(proposals, [need for need in found if need.refused], user.home)
    if many:
        render.note(
            f"and {many} more rules were not proposed, for nobody would read them: mcpguard log has what was asked"
        )
    if calls:
        one = calls == 1
        render.note(
            f"{calls} {'call' if one else 'calls'} of MCP tools {'was' if one else 'were'} refused or needed your word, and "
            f"{'is' if one else 'are'} not learned: mcpguard log --kind mcp --verdict deny; rules on tools are yours to write"
        )
    if not install and format == "text":
        _difference(parent, amendment)
        if amendment.removed or amendment.added:
            render.note(
                f"nothing was written yet; the same with --install writes it to {shorten(str(amendment.path), user.home)}"
            )
    code = _install(amendment, ask=not yes, show=format == "text") if install else exit_codes.DONE
    if server is not None and code == exit_codes.DONE:
        render.note(
            f"it holds once the agent's profile names it (now {profile}): mcp: {{confine: {{{server_word(server)}: {target}}}}}"
        )
    raise typer.Exit(code)


def _require_one(places: Sequence[str]) -> None:
    if len(places) > 1:
        raise UsageError(
            "these sessions had different workspaces",
            why="a path in one is {workspace}/..., in the other it is not: " + ", ".join(places[:3]),
            do="learn from the sessions of one project at a time",
            code="learn.workspaces",
        )


def _require_profile(name: str) -> None:
    if not store.find(name):
        raise UsageError(
            f'there is no profile "{name}" to add to',
            why="the session's profile was given by its path, or is not there any more",
            do=f"copy it to {store.user_directory()}, or name one that exists: --name NAME",
            code="learn.no-profile",
        )


def _require_own(name: str) -> None:
    """A profile of one's own takes the place of a built-in one, for all that extend it; a server's name is anybody's."""
    if store.builtin(name):
        raise UsageError(
            f'"{name}" is a built-in profile',
            why="a profile of this name would take its place for every server that is kept to it",
            do="choose another one: --name NAME",
            code="learn.built-in",
        )


def _require_started(events: Store, sessions: Sequence[str], server: str) -> None:
    names = sorted({name for one in sessions for name in servers(events, one)})
    if server not in names:
        raise UsageError(
            f'no server "{server}" was started in these sessions',
            why=f"those that were: {', '.join(names)}" if names else "no local server was started by way of the gate",
            do="name a session in which the agent used it: mcpguard profile learn SESSION --server NAME",
            code="learn.no-server",
        )


def _readable(proposals: list[Proposal]) -> tuple[list[Proposal], int]:
    """As many rules of each kind as a person reads, and how many are left over."""
    kept: dict[str, list[Proposal]] = {}
    for proposal in proposals:
        kept.setdefault(proposal.key, []).append(proposal)
    short = [proposal for same in kept.values() for proposal in same[:_MOST_RULES]]
    return short, len(proposals) - len(short)


def _explain(proposals: Sequence[Proposal], refused: Sequence[Need], home: str) -> None:
    """What is proposed and what is left out, by reason: on stderr, beside the profile on stdout."""
    for reason, group in _by(proposals, lambda proposal: proposal.reason):
        render.note(f"{reason}:")
        for proposal in group:
            render.note(f"+ {proposal.key:<15} {proposal.value}  ({proposal.comment})")
    if refused:
        render.note("left out, because a rule refuses it on purpose or it must not be learned:")
    for why, alike in _by(refused, _why):
        render.note(f"  {why}:")
        for need in alike[:_MOST_LEFT_OUT]:
            place = need.refused[0] if need.refused else None
            rule = f"{shorten(place.place, home)} {place.text}" if place else ""
            render.note(f"- {need.access:<8} {shorten(need.object, home)}  {rule}  ({programs(need.programs)})")
        if len(alike) > _MOST_LEFT_OUT:
            render.note(f"  and {len(alike) - _MOST_LEFT_OUT} others")
    if not proposals:
        render.note("nothing to add: a rule allows, or refuses on purpose, everything that these sessions asked for")


def _by(rows: Iterable[Row], key: Callable[[Row], str]) -> list[tuple[str, list[Row]]]:
    """Rows with the same key together, in the order of their first."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.items())


def _why(need: Need) -> str:
    assert need.refused is not None  # noqa: S101 - only such are asked
    return need.refused[1] or need.refused[0].text


def _difference(name: str, amendment: Amendment) -> None:
    """What would change, for a person; the profile itself is on stdout."""
    render.note(f"against {name} as it is now:" if amendment.removed or amendment.added else f"{name} would not change")
    for sign, lines in (("-", amendment.removed), ("+", amendment.added)):
        for line in lines:
            render.note(f"{sign} {line}")


def _install(amendment: Amendment, *, ask: bool, show: bool) -> int:
    """Show what changes, ask, and write."""
    if show:
        render.changes(amendment.removed, amendment.added)
    if not amendment.removed and not amendment.added:
        render.note("no rule changes; nothing was written")
        return exit_codes.DONE
    if ask and not _confirmed():
        render.note("nothing was written; --yes installs without asking")
        return exit_codes.NEGATIVE
    write(amendment)
    render.note(f"installed {amendment.path}; running sessions keep their policy")
    return exit_codes.DONE


def _confirmed() -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    sys.stderr.write("install these rules? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _json(proposals: Sequence[Proposal], found: Sequence[Need], amendment: Amendment) -> dict[str, object]:
    return {
        "profile": amendment.text,
        "proposed": [
            {
                "key": one.key,
                "value": one.value,
                "reason": one.reason,
                "programs": one.evidence,
                "objects": sorted(one.objects),
            }
            for one in proposals
        ],
        "left_out": [
            {
                "access": one.access,
                "object": one.object,
                "because": _why(one),
                "programs": one.programs,
                "rule": one.refused[0].text,
                "place": one.refused[0].place,
            }
            for one in found
            if one.refused
        ],
        "added": amendment.added,
        "removed": amendment.removed,
    }


def _tighten(events: Store, sessions: Sequence[str], format: str) -> None:
    unused = unused_rules(events, sessions)
    if format == "json":
        render.as_json([{"rule": origin.text, "file": origin.file, "line": origin.line} for origin, _ in unused])
        return
    home = str(Path.home())
    shipped = [origin for origin, _ in unused if origin.file.startswith("builtin:")]
    own = [origin for origin, _ in unused if not origin.file.startswith("builtin:")]
    # Those that a person can take away stand where the list ends, above the prompt.
    render.table(
        ("never used", "written in"), [[origin.text, shorten(origin.place, home)] for origin in (*shipped, *own)]
    )
    render.note(
        f"{len(own)} rules of yours allow what none of {len(sessions)} sessions used; "
        f"{len(shipped)} of built-in profiles serve others too"
    )
