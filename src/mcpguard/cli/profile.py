"""`mcpguard profile`: list, show, edit, new, check, diff, learn, trust."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mcpguard.cli import edit as editing
from mcpguard.cli import exit_codes, render
from mcpguard.cli.learn import learn
from mcpguard.errors import McpguardError, UsageError
from mcpguard.model.profile import Profile
from mcpguard.profile import nodes, store, trust
from mcpguard.profile.effective import difference, effective
from mcpguard.profile.load import inspect, inspect_text, load, locate
from mcpguard.profile.parse import require_name
from mcpguard.session.policy import idle_name_denials, idle_slashes, single_words, trial, wide_writes

_WIDE = "it opens the whole home, also for start-up files that do not exist yet; name the folders that are needed"
_SLASH = "a closing slash makes a folder only of one fixed path in the home; here it means nothing"
_SHORT = "with a search domain (/etc/resolv.conf) programs ask for NAME.DOMAIN, which needs a rule of its own"
_BY_ADDRESS = "it is not looked up, but a rule by address opens its addresses to who knows them; deny those as well"
_EXCEPTED = "what built-in rules deny there is left to the allow rules; only in runs of this very profile"
Format = Annotated[Literal["text", "json"], typer.Option("--format", help="How to print it.")]


def complete(incomplete: str) -> list[str]:
    """Names of profiles, for the shell."""
    return [name for name in store.names() if name.startswith(incomplete)]


Name = Annotated[str, typer.Argument(help="Name or path of a profile.", autocompletion=complete)]


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(help="See, write and check profiles.", no_args_is_help=True)
    group.command("list")(list_)
    for command in (show, edit, new, check, diff, learn, trust_):
        group.command(command.__name__.rstrip("_"))(command)
    app.add_typer(group, name="profile")


def list_(format: Format = "text") -> None:
    """List the profiles: built-in ones, and your own."""
    rows = [_row(entry) for entry in store.entries()]
    if format == "json":
        render.as_json(rows)
        return
    columns = ("name", "kind", "runs", "description")
    render.table(columns, [[str(row[column]) for column in columns] for row in rows])


def _row(entry: store.Entry) -> dict[str, object]:
    profile, errors = inspect(str(entry.path)) if not entry.builtin else inspect_text(_text(entry), entry)
    return {
        "name": entry.name,
        "kind": "built-in" if entry.builtin else "own",
        "runs": profile.command[0] if profile and profile.command else "",
        "description": profile.description if profile else f"broken: {errors[0].what}",
        "file": str(entry.path),
    }


def _text(entry: store.Entry) -> str:
    return nodes.decode(nodes.read_bytes(entry.path, entry.source), entry.source)


def show(
    name: Name,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Merge the parents in, and say where each rule stands.")
    ] = False,
    format: Format = "text",
) -> None:
    """Print a profile as it is written, or with everything that it inherits."""
    if resolved or format == "json":
        _show_resolved(load(name), format)
    else:
        entry = locate(name)
        render.note(f"# {entry.path}")
        render.document(_text(entry))


def _show_resolved(profile: Profile, format: str) -> None:
    lines = effective(profile)
    if format == "json":
        rules = [
            {"rule": line.text, "because": line.because, "file": line.origin.file, "line": line.origin.line}
            for line in lines
        ]
        render.as_json({"name": profile.name, "ancestors": profile.ancestors, "rules": rules})
        return
    rows = [[line.text, line.origin.place, line.because] for line in lines]
    render.table(("rule", "written in", "because"), rows)


def edit(name: Name) -> None:
    """Open a copy in $VISUAL or $EDITOR, check it, show what changes, and install it.

    A built-in profile stays as it is: your own profile of the same name is made, which adds to it.
    A broken profile is never installed; its copy is kept.
    """
    raise typer.Exit(editing.edit(name))


def new(
    name: Annotated[str, typer.Argument(help="Name of the new profile.")],
    parent: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="PARENT", help="Profile to extend.", autocompletion=complete, show_default="dev-tools"
        ),
    ] = None,
) -> None:
    """Write a first profile of your own, to be changed with `profile edit`."""
    require_name(name)
    path = store.user_directory() / f"{name}{store.SUFFIX}"
    if path.exists():
        raise UsageError(
            f'you have a profile "{name}" already',
            why=f"it is {path}",
            do=f"mcpguard profile edit {name}",
            code="usage.profile-exists",
        )
    shipped = store.builtin(name)
    chosen = parent or (name if shipped else "dev-tools")
    locate(chosen)
    text = editing.template(name, [name, chosen] if shipped and chosen != name else [chosen])
    store.replace(path, text.encode())
    render.line(str(path))


def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Names or paths; all your own profiles when left out.", autocompletion=complete),
    ] = None,
) -> None:
    """Find every mistake, with file and line. Exits 1 when there is one.

    A rule that is sound but without effect in this version is noted, and is no mistake.
    """
    chosen = names or [str(entry.path) for entry in store.entries() if not entry.builtin]
    broken = [name for name in chosen if not _is_sound(name)]
    if not chosen:
        render.note(f"no profiles in {store.user_directory()}")
    raise typer.Exit(exit_codes.NEGATIVE if broken else exit_codes.DONE)


def _is_sound(name: str) -> bool:
    profile, found = inspect(name)
    problems: list[McpguardError] = [*found]
    if profile is not None:
        problems += trial(profile)
    for problem in problems:
        render.error(problem)
    if profile is not None and not problems:
        render.line(f"{name}: {len(profile.origins)} rules, no mistake")
        for wide in wide_writes(profile):
            render.note(f"note: {wide.origin.place}: write {wide.pattern}: {_WIDE}")
        for one in profile.exceptions:
            render.note(f"note: {one.origin.place}: except {one.path}: {_EXCEPTED}")
        for slashed in idle_slashes(profile):
            render.note(f"note: {slashed.origin.place}: write {slashed.pattern}: {_SLASH}")
        for short in single_words(profile):
            render.note(f"note: {short.origin.place}: connect {short.target}: {_SHORT}")
        for denied in idle_name_denials(profile):
            render.note(f"note: {denied.origin.place}: deny {denied.target}: {_BY_ADDRESS}")
    return not problems


def diff(old: Name, new: Name) -> None:
    """Show what one profile has and another has not, parents included. Exits 1 when they differ."""
    removed, added = difference(load(old), load(new))
    render.changes(removed, added)
    raise typer.Exit(exit_codes.NEGATIVE if removed or added else exit_codes.DONE)


def trust_(path: Annotated[Path, typer.Argument(help="A profile inside a workspace, which you have read.")]) -> None:
    """Accept a profile that a project brings, exactly as it is now. When it changes, it must be trusted again."""
    entry = locate(str(path.absolute()))
    content = nodes.read_bytes(entry.path, entry.source)
    profile, errors = inspect_text(nodes.decode(content, entry.source), entry)
    if profile is None:
        raise errors[0]
    digest = trust.trust(entry.path, content)
    render.line(f"trusted  {entry.path}  sha256 {digest}")
