"""`mcpguard mcp`: which MCP servers are declared, what they really are, and which of them may start."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from mcpguard.catalogue import approved, clients, starting
from mcpguard.catalogue.approved import Catalogue, Entry
from mcpguard.catalogue.findings import Finding
from mcpguard.catalogue.identity import MISSING, Identity, in_place_of, unknown_runner
from mcpguard.catalogue.server import Server
from mcpguard.catalogue.survey import Row, Survey, chosen, masked_words, survey
from mcpguard.cli import exit_codes, render
from mcpguard.cli.mcp_scan import findings, scan
from mcpguard.errors import HostError, UsageError
from mcpguard.events.format import printable, shorten
from mcpguard.gate import pins
from mcpguard.mcp import classes, policy
from mcpguard.profile import store
from mcpguard.session import known_servers

# The built-in profile that leaves servers reading.
_READS = "mcp-read-only"
_HELP = """See which MCP servers your agents' settings declare, what each really runs, and approve those that may start.

list shows them all, scan what is wrong with them, show all that is known of one. Nothing is started to find out.

approve remembers exactly one program with its words; when anything of it changes, it has to be approved again. So it has when
the server says something else of its tools than it did when it was first used after that."""


# Of a digest: what somebody has to say of it, so that nobody finds another state with the same beginning, and what we say.
_DIGITS = 32
_DIGEST = re.compile(rf"[0-9a-f]{{{_DIGITS},64}}")
_MOST_TOLD = 10
_SAYS_OTHER = "says something else than when it was approved, which no agent is shown"


def _declared(incomplete: str) -> list[str]:
    """Names of declared servers, for the shell."""
    servers = clients.inventory(Path.cwd(), os.environ).servers
    return sorted({server.name for server in servers if server.name.startswith(incomplete)})


def _approved(incomplete: str) -> list[str]:
    """Names in the catalogue, for the shell."""
    return sorted({entry.name for entry in approved.load().entries if entry.name.startswith(incomplete)})


def _clients(incomplete: str) -> list[str]:
    return [client for client in clients.CLIENTS if client.startswith(incomplete)]


Format = Annotated[Literal["table", "json"], typer.Option("--format", help="How to print them.")]
Name = Annotated[str, typer.Argument(help="Name of a server, as mcpguard mcp list shows it.", autocompletion=_declared)]
Client = Annotated[str, typer.Option("--client", help="Only as this client declares it.", autocompletion=_clients)]


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(help=_HELP, no_args_is_help=True)
    group.command("list")(list_)
    for command in (scan, show, approve, revoke):
        group.command(command.__name__)(command)
    app.add_typer(group, name="mcp")


def _survey() -> Survey:
    return survey(Path.cwd(), os.environ)


def list_(format: Format = "table") -> None:
    """List the MCP servers that your agents' settings declare for you and for this folder, and whether each may start.

    The settings of every known client are read: yours, the project's, the machine's, and those of plugins. A server is
    "approved", "not approved", or "changed": approved once, and not what it was.
    """
    found = _survey()
    if format == "json":
        render.as_json([_as_json(row, found.catalogue) for row in found.rows])
    else:
        home = str(Path.home())
        headers = ("server", "client", "scope", "state", "starts")
        render.table(headers, [[*_place(row, home), _state(row), row.starts] for row in found.rows])
    _notes(found)


def _place(row: Row, home: str) -> tuple[str, str, str]:
    server = row.server
    scope = f"{server.scope} {shorten(server.project, home)}" if server.project else server.scope
    return server.name, server.client, scope


def _state(row: Row) -> str:
    return row.word if row.server.enabled else f"{row.word}, disabled"


def _notes(found: Survey) -> None:
    for file in found.inventory.problems:
        render.note(f"not read: {file.path}: {file.problem}; its servers are not known")
    if not found.rows:
        render.note(f"no client declares an MCP server for you or for {found.inventory.project}")
    if undeclared := sorted({entry.name for entry in found.undeclared()}):
        render.note(f"approved and not declared here: {', '.join(undeclared)}")
    kept: dict[str, set[str]] = {}
    for row in found.rows:
        if row.identity and (profile := known_servers.kept_to(row.identity.facts())):
            kept.setdefault(profile, set()).add(row.server.name)
    for name in sorted({row.server.name for row in found.rows if _others(row, found.catalogue)}):
        render.note(f"{name} {_SAYS_OTHER}; look: mcpguard mcp show {shlex.quote(name)}")
    for profile, names in sorted(kept.items()):
        render.note(f"kept to {profile} where no rule of mcp.confine names them: {', '.join(sorted(names))}")


def _others(row: Row, catalogue: Catalogue) -> dict[str, str]:
    """What a server that is approved said otherwise, or anew, since, as `Pins.others`: no session shows it to an agent."""
    entry = catalogue.entry(row.server.name, row.identity) if row.identity else None
    return {} if entry is None else pins.other_since(entry)


def _words(others: Mapping[str, str]) -> list[str]:
    return [printable(pins.in_words(one)) for one in sorted(others)]


def _changed_to(row: Row, others: Mapping[str, str]) -> str:
    """A digest of all that differs from what was approved, as it was seen; empty where nothing does."""
    if row.identity is None or not (others or row.state.word == approved.CHANGED):
        return ""
    whole = json.dumps([row.identity.digest, sorted(others.items())]).encode()
    return hashlib.sha256(whole).hexdigest()


def _as_json(row: Row, catalogue: Catalogue) -> dict[str, object]:
    """One server as an object; keys without a meaning are absent, keys are only ever added."""
    server, known = row.server, row.identity
    others = _others(row, catalogue)
    values: dict[str, object | None] = {
        "name": server.name,
        "client": server.client,
        "scope": server.scope,
        "file": server.file,
        "project": server.project or None,
        "kind": server.kind,
        "command": masked_words(server) if server.command else None,
        "url": row.starts if server.url else None,
        "environment": sorted(server.env) or None,
        "here": row.here,
        "enabled": server.enabled,
        "state": row.state.word if known else None,
        "differences": row.state.differences or None,
        "other_definitions": _words(others) or None,
        "changed_to": _changed_to(row, others) or None,
        "digest": known.digest if known else None,
        "identity": known.facts() if known else None,
        "kept_to": known_servers.kept_to(known.facts()) if known else None,
        "notes": known.notes or None if known else None,
    }
    return {key: value for key, value in values.items() if value is not None}


def show(name: Name, client: Client = "", format: Format = "table") -> None:
    """Print all that is known of a server: where it is declared, what it really runs, and what was approved."""
    found = _survey()
    rows, entries = chosen(found, name, client), found.catalogue.named(name)
    if format == "json":
        known = [{"declared_in": one.declared_in, "digest": one.digest, "approved": one.approved} for one in entries]
        render.as_json({"name": name, "declared": [_as_json(row, found.catalogue) for row in rows], "approved": known})
        return
    told = findings(found)
    for row in rows:
        _print(row, told, _others(row, found.catalogue))
    for entry in entries:
        render.line(f"approved     {entry.approved}  {entry.digest}")
        render.line(f"  as         {entry.facts.get('command') or entry.facts.get('origin', '')}")
        render.line(f"  from       {entry.declared_in}")


def _print(row: Row, told: Sequence[Finding], others: Mapping[str, str]) -> None:
    """What would be trusted, for a person to read."""
    server, known = row.server, row.identity
    place = f"{server.project} in {server.file}" if server.project else server.file
    pairs = [("server", server.name), ("declared", f"{server.client}, {server.scope}: {place}"), ("starts", row.starts)]
    if known:
        pairs += _facts(known.facts())
        pairs += _kept_to(server.name, known)
        pairs += _classed(server, known)
        pairs.append(("digest", known.digest))
    pairs.append(("state", _state(row)))
    pairs += [("changed", text) for text in row.state.differences]
    pairs += [("changed", f"{text}: not what it said when it was approved") for text in _words(others)]
    if to := _changed_to(row, others):
        pairs.append(("changed to", to))
    pairs += [("note", text) for text in _caveats(row)]
    pairs += [
        ("finding", f"{one.rule.owasp} {one.rule.name}: {one.rule.says}: {one.detail}")
        for one in told
        if (one.server, one.file, one.client) == (server.name, server.file, server.client)
    ]
    for name, text in pairs:
        render.line(f"{name:<11}  {text}")
    render.line()


def _facts(facts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What the server is, the sum of a file beside its path."""
    for name, text in facts.items():
        if name == "command":
            continue
        if name.startswith("variable "):
            yield "variable", f"{name.removeprefix('variable ')}={text}"
            continue
        part = name.removesuffix(" sha256")
        if part == name:
            yield name, text + (f"  ({_sum(facts[f'{name} sha256'])})" if f"{name} sha256" in facts else "")
        elif part not in facts:
            yield part, _sum(text)


def _sum(text: str) -> str:
    return text if text == MISSING else f"sha256 {text[:16]}…"


def _caveats(row: Row) -> Iterator[str]:
    if row.identity is None:
        yield "it is part of its client" if row.server.kind == "built-in" else "it has neither a command nor a URL"
        return
    yield from row.identity.notes
    if (
        row.identity.package
        and row.identity.package.runner == "npx"
        and (there := row.identity.installed)
        and there.words
    ):
        folder = shlex.quote(str(Path(there.modules[0][0]).parent))
        yield (
            "its files lie where sessions may write, and what one of them left there is approved with them; "
            f"to have them anew first: rm -rf {folder} && {there.fetch}"
        )
    for text in starting.unknown(row.server, os.environ, Path.cwd()):
        yield f"{text} is put in by its client, and what it becomes is not known here"


def approve(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names of servers.", autocompletion=_declared, show_default=False)
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Every server that is not approved yet, one after the other.")
    ] = False,
    client: Client = "",
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Approve without asking what was not approved before.")
    ] = False,
    changed: Annotated[
        list[str] | None,
        typer.Option(
            "--changed",
            metavar="DIGEST",
            help="Approve again, without asking, one that changed to exactly this: `changed to` in mcpguard mcp show.",
        ),
    ] = None,
) -> None:
    """Let a server start in guarded sessions, after a look at what it really is.

    Shows the program, its words, its script with their digests, its package, and what a scan finds; then asks. What is
    approved is exactly that: when a word, the program or the script changes, the server is refused until it is approved
    again. So is a tool whose description changes. --yes is for a first approval: what changed since the last one is only
    approved on a terminal, or by the digest of the change. A remote server is approved by its origin. Exits 1 when something
    was left out.
    """
    if bool(names) == all_:
        raise _misuse("name the servers, or say --all", "there are none named" if not names else "both were given")
    seen = tuple(changed or ())
    if seen and all_:
        raise _misuse("--changed is for servers that are named", "--all was given", "mcpguard mcp approve NAME")
    for one in seen:
        if not _DIGEST.fullmatch(one):
            raise _misuse(
                f'"{one}" names no change', f"it takes {_DIGITS} to 64 digits of its digest", "mcpguard mcp show NAME"
            )
    found = _survey()
    rows = [row for name in dict.fromkeys(names or ()) for row in chosen(found, name, client)]
    if all_:
        rows = [row for row in found.rows if row.here and row.identity and client in ("", row.server.client)]
    if yes and not all_:
        _one_each(rows, client)
    told = findings(found)
    outcomes = [_approve(row, told, yes=yes, seen=seen, again=not all_) for row in rows]
    if not rows:
        render.note("no server is declared here that could be approved")
    raise typer.Exit(exit_codes.DONE if all(outcomes) else exit_codes.NEGATIVE)


def _one_each(rows: Sequence[Row], client: str) -> None:
    """A name that means several servers is never approved unseen."""
    for row in rows:
        others = [one for one in rows if one.server.name == row.server.name]
        if len({one.identity.digest for one in others if one.identity}) > 1:
            places = ", ".join(f"{one.server.client} in {one.server.file}" for one in others)
            raise UsageError(
                f'"{row.server.name}" is several servers here',
                why=f"declared by {places}",
                do="leave --yes out and look at each" if client else f"say which: --client {row.server.client}",
                code="usage.mcp-several",
            )


def _approve(row: Row, told: Sequence[Finding], *, yes: bool, seen: Sequence[str], again: bool) -> bool:
    """Whether it is approved in the end.

    Args:
        yes: without asking, where nothing of that name was approved before.
        seen: beginnings of digests of changes that are approved without asking.
        again: also one that is approved and says something else since.
    """
    catalogue, known = approved.load(), row.identity
    entry = catalogue.entry(row.server.name, known) if known else None
    others = _others(row, catalogue)
    changed_to = _changed_to(row, others)
    if entry is not None and not (others and again):
        render.line(f"{row.server.name} is approved already, as {row.server.client} declares it")
        if others:
            render.note(f"{row.server.name} {_SAYS_OTHER}; approve it by its name")
        return True
    _print(row, told, others)
    if known is not None and known.found and (runner := unknown_runner(known)):
        why = f"only {runner} knows what it would fetch and run. Instead: {in_place_of(runner, known)}"
        render.note(f"{row.server.name} cannot be approved: {why}")
        return False
    if known is None or known.origin.startswith("unreadable") or _missing(row):
        gets = known.installed.fetch if known and known.installed else ""
        notes = "; ".join(known.notes if known else ())
        why = f"its package is not installed. First: {gets}" if gets else notes or "what it would start is not there"
        render.note(f"{row.server.name} cannot be approved: {why}")
        return False
    if changed_to and (yes or seen) and not changed_to.startswith(tuple(seen)):
        render.error(_not_renewed(row, others, changed_to))
        return False
    if not (yes or (changed_to and seen)) and not _confirmed(row.server.name):
        render.note(f"{row.server.name} was not approved")
        return False
    place, environment = (entry.declared_in, entry.environment) if entry else (row.server.place, tuple(row.server.env))

    def take_over(made: Entry) -> None:
        if entry is not None:
            pins.renew(catalogue.same(row.server.name, known), made, others)

    made = approved.approve(row.server.name, place, known, environment, before=take_over)
    if others:
        render.line(f"what it says by now counts as approved: {_listed(_words(others))}")
    render.line(f"approved  {row.server.name}  {made.digest}")
    return True


def _not_renewed(row: Row, others: Mapping[str, str], changed_to: str) -> HostError:
    """A change that nobody was asked about; a script that approves at each start would take whatever comes."""
    name = shlex.quote(row.server.name)
    why = [*row.state.differences, *(f"{text}: not what it said when it was approved" for text in _words(others))]
    return HostError(
        f"{row.server.name} was not approved again: it changed since it was approved",
        why=_listed(why),
        do=f"look: mcpguard mcp show {name}; where that was you: mcpguard mcp approve {name} --changed {changed_to[:_DIGITS]}",
        code="mcp.not-renewed",
    )


def _listed(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - _MOST_TOLD} more" if len(texts) > _MOST_TOLD else ""
    return "; ".join(texts[:_MOST_TOLD]) + more


def _kept_to(name: str, known: Identity) -> list[tuple[str, str]]:
    """To what it is kept where no rule says it."""
    if known.origin:
        return []
    if (profile := known_servers.kept_to(known.facts())) is None:
        return [
            ("kept to", "what its agent has, where no rule of mcp.confine names it; once it has worked in a session"),
            ("", f"mcpguard profile learn --server {shlex.quote(name)} makes a profile for such a rule"),
        ]
    as_agent = f"mcp: {{confine: {{{policy.server_word(name)}: {policy.AS_AGENT}}}}}"
    return [
        (
            "kept to",
            f"{profile}, where no rule of mcp.confine names it, nor its words a place outside of the workspace",
        ),
        ("", f"{as_agent} in the agent's profile leaves it what its agent has"),
    ]


def _classed(server: Server, known: Identity) -> list[tuple[str, str]]:
    """What a rule can say of its tools; the shipped profiles of agents have none."""
    tools = classes.of_package(known.package.name if known.package else known.origin)
    word = policy.server_word(server.name)
    agent = server.client if store.builtin(server.client) else "AGENT"
    reads = f"extends: [{agent}, {_READS}]"
    if not tools:
        only = f"mcp: {{classes: {{read: [{word}/TOOL]}}}}"
        return [
            ("tools", "not known by class: all of them may be called unless a rule says less; in a profile"),
            ("", f"{reads} refuses all of them but those that it names as reading: {only}"),
        ]
    told = [("tools", "known by class, and all of them may be called unless a rule says less; in a profile")]
    if classes.changes(tools):
        told.append(("", f"{reads} refuses what changes anything, of every server"))
    if classes.destroys(tools):
        told.append(("", f'mcp: {{deny: ["{word}/@destructive"]}} refuses what deletes, overwrites and runs'))
    if classes.changes(tools):
        told.append(
            ("", f'mcp: {{ask: ["{word}/@write"]}} with `run --ask` asks you in `mcpguard watch` about every change')
        )
    return told if len(told) > 1 else []


def _missing(row: Row) -> bool:
    return any(code.sha256 == MISSING for code in row.identity.code) if row.identity else True


def _confirmed(name: str) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise _misuse(f'"{name}" was not approved', "there is no terminal to ask on", "mcpguard mcp approve --yes NAME")
    sys.stdout.flush()
    sys.stderr.write("may it start in guarded sessions? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def revoke(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names of servers.", autocompletion=_approved, show_default=False)
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every approved server.")] = False,
) -> None:
    """Take an approval back. The server starts in no guarded session from then on; one that runs goes on.

    Exits 1 when there was none.
    """
    if bool(names) == all_:
        raise _misuse("name the servers, or say --all", "there are none named" if not names else "both were given")
    wanted = names or sorted({entry.name for entry in approved.load().entries})
    gone = [_revoke(name) for name in dict.fromkeys(wanted)]
    raise typer.Exit(exit_codes.DONE if all(gone) else exit_codes.NEGATIVE)


def _revoke(name: str) -> tuple[Entry, ...]:
    gone = approved.revoke(name)
    for entry in gone:
        render.line(f"revoked  {name}  {entry.facts.get('command') or entry.facts.get('origin', '')}")
    if not gone:
        render.note(f'"{name}" was not approved')
    return gone


def _misuse(what: str, why: str, do: str = "mcpguard mcp list") -> UsageError:
    return UsageError(what, why=why, do=do, code="usage.mcp")
