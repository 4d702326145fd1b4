"""Rules added to a person's own profile: prepared, checked, shown as a difference, and only then written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcpguard.errors import HostError, McpguardError, ProfileError
from mcpguard.profile import store
from mcpguard.profile.amend import Addition, amend
from mcpguard.profile.effective import difference
from mcpguard.profile.load import inspect_text, load
from mcpguard.profile.parse import parse
from mcpguard.session.policy import trial


@dataclass(frozen=True, slots=True)
class Amendment:
    """A profile as it would be; `removed` and `added` are its effective rules beside what holds now."""

    path: Path
    before: bytes | None
    text: str
    removed: tuple[str, ...]
    added: tuple[str, ...]


def prepare(name: str, parent: str, additions: Sequence[Addition], *, said: str = "") -> Amendment:
    """The user's own profile with more rules; where there is none, a new one that extends `parent`.

    Args:
        said: the first lines of a new profile, each beginning with `#`.

    Raises:
        ProfileError, PolicyError: it would not be sound.
    """
    own = store.own(name)
    entry = store.Entry(name, store.user_directory() / f"{name}{store.SUFFIX}", builtin=False)
    before = own.path.read_bytes() if own else None
    begun = before.decode("utf-8") if before is not None else f"{said}name: {name}\nextends: [{parent}]\n"
    text = amend(begun, additions)
    made, errors = inspect_text(text, entry)
    problems: list[McpguardError] = [*errors, *(trial(made) if made else [])]
    if made is None or problems:
        raise problems[0]
    removed, added = difference(load(name if store.find(name) else parent), made)
    return Amendment(entry.path, before, text, tuple(removed), tuple(added))


def is_sound(addition: Addition) -> bool:
    """Whether a rule can be read at all: what it is made from was chosen by whoever was guarded."""
    try:
        return not trial(parse(amend("name: alone\n", [addition]), "alone", name="alone").profile)
    except ProfileError:
        return False


def install(amendment: Amendment) -> None:
    """Write it.

    Raises:
        HostError: the profile was changed meanwhile, or cannot be written; nothing was lost.
    """
    now = amendment.path.read_bytes() if amendment.path.exists() else None
    if now != amendment.before:
        raise HostError(
            f"{amendment.path} was changed by somebody else meanwhile",
            why="writing these rules would undo that change",
            do="try again",
            code="profile.changed-meanwhile",
        )
    # A profile may be kept elsewhere, with a link in its place: the link stays.
    store.replace(amendment.path.resolve(), amendment.text.encode("utf-8", "surrogateescape"))
