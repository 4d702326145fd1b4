"""Rules added to a person's own profile: prepared, checked, shown as a difference, and only then written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcpguard.errors import HostError, McpguardError, ProfileError, UsageError
from mcpguard.events.format import printable
from mcpguard.model.event import Event, Kind
from mcpguard.profile import store
from mcpguard.profile.amend import Addition, amend
from mcpguard.profile.effective import difference
from mcpguard.profile.load import inspect_text, load
from mcpguard.profile.parse import parse
from mcpguard.session.needs import Need, set_apart
from mcpguard.session.policy import current_user, temporary_directory, trial
from mcpguard.session.propose import propose


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
    store.replace(amendment.path, amendment.text.encode("utf-8", "surrogateescape"))


def additions_for(event: Event, workspace: str) -> list[Addition]:
    """The rules that would have allowed what an event tells of.

    Raises:
        UsageError: nothing was refused, a rule refuses it on purpose, it must not be learned, or no rule can allow it.
    """
    if event.verdict.value == "allow":
        raise UsageError(
            "this was allowed", why="there is nothing to add", do="choose a denied event", code="allow.allowed"
        )
    if event.rule is not None and event.rule.file != "default":
        raise UsageError(
            f"{event.rule.text} refuses it on purpose",
            why=f"{event.rule.place}: a deny or readonly rule wins over whatever is added",
            do="if you must, use a profile that does not extend it; `mcpguard profile show --resolved` tells who does",
            code="allow.on-purpose",
        )
    user = current_user()
    variables = {"home": user.home, "workspace": workspace, "tmp": temporary_directory(user.home)}
    asked = _needs(event)
    set_apart(asked, workspace)
    for need in asked:
        if need.refused is not None:
            raise UsageError(
                f"no rule is made for {printable(need.object)}",
                why=need.refused[1] or need.refused[0].text,
                do="if you must, write one yourself: mcpguard profile edit",
                code="allow.not-learned",
            )
    found = propose(asked, variables)
    if not found:
        raise UsageError(
            "no rule of a profile allows this",
            why=event.detail or f"{event.kind} {event.op} is closed to every guarded program",
            do="look at docs/profiles.md for what a profile can open",
            code="allow.no-rule",
        )
    return [proposal.addition()._replace(comment="") for proposal in found]


def _needs(event: Event) -> list[Need]:
    programs = {event.comm or "?": event.count}
    if event.kind is Kind.NET and event.address and event.op in ("connect", "sendmsg", "bind", "listen"):
        asked = "connect" if event.op in ("connect", "sendmsg") else "listen"
        where = event.host or (f"[{event.address}]" if ":" in event.address else event.address)
        udp = "/udp" if event.protocol == "udp" else ""
        return [Need("net", asked, f"{where}:{event.port or ''}{udp}", programs)]
    if event.kind is Kind.UNIX and event.path:
        return [Need("unix", "connect", event.path, programs)]
    if event.kind in (Kind.FILE, Kind.EXEC) and event.access:
        places = [place for place in (event.path, event.target) if place and place.startswith("/")]
        return [Need(event.kind.value, word, place, programs) for place in places for word in event.access.split("+")]
    return []
