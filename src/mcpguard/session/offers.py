"""What a person may answer to a refusal: the rules that would have allowed it, or who refuses it on purpose.

Reads the account and whether an object is a folder, as the user; writes nothing.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mcpguard.errors import UsageError
from mcpguard.events.finding import is_unnamed
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.model.paths import is_below
from mcpguard.model.rule import Origin
from mcpguard.policy.patterns import quote
from mcpguard.profile import store
from mcpguard.profile.amend import Addition
from mcpguard.session.needs import NO_NAME, USUAL_PORT, Need, inexact
from mcpguard.session.policy import PRIVILEGED_COPY, current_user, own_paths, temporary_directory
from mcpguard.session.propose import propose
from mcpguard.session.wide import opened

_RESTRICTS = re.compile(r"(?:network |sockets )?(deny|readonly)\b")
_ACTS = {"connect": "allow", "sendmsg": "allow", "hello": "allow", "bind": "listen", "listen": "listen"}


class Refuser(enum.StrEnum):
    """Who refuses on purpose."""

    MCPGUARD = "mcpguard"
    DENY = "deny"
    READONLY = "readonly"


@dataclass(frozen=True, slots=True)
class Purpose:
    """A rule that refuses on purpose: it wins over whatever is allowed.

    Attributes:
        builtin: it stands in a profile that came with mcpguard.
    """

    who: Refuser
    rule: Origin
    builtin: bool


@dataclass(frozen=True, slots=True)
class Offer:
    """Rules that would have allowed a refused act.

    Attributes:
        once: for exactly its object.
        pattern: as a person would write them, such as the whole folder of a tool.
        folders: objects of `once` that are folders, which opens what lies below them too.
    """

    once: tuple[Addition, ...]
    pattern: tuple[Addition, ...]
    folders: tuple[str, ...] = ()


def purpose(event: Event) -> Purpose | None:
    """The rule that refused on purpose; None where merely no rule allowed it."""
    rule = event.rule
    if rule is None or rule.file == "default" or rule.confines:
        return None
    if rule.profile == "mcpguard":
        return Purpose(Refuser.MCPGUARD, rule, builtin=True)
    word = _RESTRICTS.match(rule.text)
    return Purpose(Refuser(word[1]), rule, builtin=rule.file.startswith("builtin:")) if word else None


def exception(event: Event) -> tuple[str, tuple[Addition, ...]] | None:
    """The path that a built-in `deny` rule refused, and the rules that open it in a profile of one's own; None: no profile can.

    The path is to be typed by a person, so one with characters that nobody can type or tell apart is not among them.
    """
    found, places = purpose(event), _places(event)
    if not (found and found.who is Refuser.DENY and found.builtin) or len(places) != 1 or not event.access:
        return None
    (path,) = places
    if not found.rule.text.startswith("deny "):  # of the network or of sockets
        return None
    if event.kind not in (Kind.FILE, Kind.EXEC) or not path.isascii() or _inexact(event) or _is_our_own(event):
        return None
    home = current_user().home
    written = (
        "~" + quote(path)[len(quote(home)) :] if home != "/" and is_below(path, home) and path != home else quote(path)
    )
    because = Addition("files", "except", written)
    return path, (because, *(one._replace(value=written) for one in _exact(event)))


def offer(event: Event, workspace: str) -> Offer:
    """The rules that would have allowed what an event tells of.

    Raises:
        UsageError: nothing was refused, it is refused on purpose, or no rule can allow it.
    """
    if event.verdict is Verdict.ALLOW:
        raise UsageError(
            "this was allowed", why="there is nothing to add", do="choose a denied event", code="allow.allowed"
        )
    if found := purpose(event):
        raise UsageError(
            f"{found.rule.text} refuses it on purpose",
            why=f"{found.rule.place}: a deny or readonly rule wins over whatever is added",
            do="if you must, use a profile that does not extend it; `mcpguard profile show --resolved` tells who does",
            code="allow.on-purpose",
        )
    if event.rule is not None and event.rule.confines:
        raise UsageError(
            "the MCP server is kept to less than its agent has",
            why=f"{event.rule.place} {event.rule.text}: a rule for the agent opens nothing to it",
            do="open it in the profile that the server is kept to, or write `mcp: {confine: {NAME: as-agent}}` in the agent's",
            code="allow.kept",
        )
    if event.rule is not None and event.rule.file != "default":
        raise UsageError(
            "a rule allows this already",
            why=f"{event.rule.place} {event.rule.text}; it was not there when the session began, and this tier opens what was",
            do="make it before the next run",
            code="allow.not-there",
        )
    if _is_our_own(event):
        raise UsageError(
            "this is mcpguard's own",
            why="its code, profiles, records and sockets are closed to what it guards, in every profile",
            do="leave it refused",
            code="allow.own",
        )
    variables = variables_of(workspace)
    once, pattern = suggestions(event, variables)
    wide = any(opened(one.value, "proposal", variables["home"], workspace) for one in pattern if one.section == "files")
    if not pattern or wide:
        raise UsageError(
            "no rule of a profile allows this",
            why=event.detail or f"{event.kind} {event.op} is closed to every guarded program",
            do="look at docs/profiles.md for what a profile can open",
            code="allow.no-rule",
        )
    folders = tuple(place for place in _places(event) if event.kind is Kind.FILE and Path(place).is_dir())
    return Offer(once, pattern, folders)


def variables_of(workspace: str) -> dict[str, str]:
    """What `{workspace}`, `{home}` and `{tmp}` mean for this user.

    Raises:
        PolicyError: there is no sensible temporary directory.
    """
    home = current_user().home
    return {"home": home, "workspace": workspace, "tmp": temporary_directory(home)}


def suggestions(event: Event, variables: Mapping[str, str]) -> tuple[tuple[Addition, ...], tuple[Addition, ...]]:
    """(rules for exactly the object, rules as a person would write them), not yet checked. Pure.

    Raises:
        UsageError: no rule can mean its name exactly.
    """
    if why := _inexact(event):
        raise UsageError(
            NO_NAME,
            why=why,
            do="leave it refused; if you trust the program, have it use another name",
            code="allow.inexact",
        )
    pattern = [proposal.addition()._replace(comment="") for proposal in propose(_needs(event), variables)]
    return tuple(dict.fromkeys(_exact(event))), tuple(pattern)


def _inexact(event: Event) -> str:
    """Why no rule can mean a name of this event exactly; empty: one can."""
    whys = (inexact(event.kind.value, name) for name in (event.path, event.target, event.host) if name)
    return next(filter(None, whys), "")


def _is_our_own(event: Event) -> bool:
    """No key opens what guards the session, not even for reading."""
    ours = [
        str(place.resolve()) for place in (store.config_directory(), store.state_directory(), Path(PRIVILEGED_COPY))
    ]
    if "write" in (event.access or ""):
        ours += own_paths()
    names = {name for place in _places(event) for name in (place, os.path.realpath(place))}
    return any(is_below(name, own) for name in names for own in ours)


def _places(event: Event) -> list[str]:
    if event.kind is Kind.NET:
        return []
    return [place for place in (event.path, event.target) if place and place.startswith("/")]


def _exact(event: Event) -> Iterator[Addition]:
    """Rules for the object itself; an address and not the name that led to it."""
    if event.kind is Kind.NET and event.address and event.op in _ACTS:
        host = f"[{event.address}]" if ":" in event.address else event.address
        if event.op == "hello" and event.host:
            host = event.host  # the address is open already, for another name
        protocol = f"/{event.protocol}" if event.protocol in ("tcp", "udp") else ""
        port = f":{event.port}" if event.port else ""
        yield Addition("network", _ACTS[event.op], f"{host}{port}{protocol if port else ''}")
    elif is_unnamed(event):
        yield Addition("network", "allow", f"{event.host}:{USUAL_PORT}")
    elif event.kind is Kind.UNIX and event.path:
        yield Addition("sockets", "allow", event.path if event.path.startswith("@") else quote(event.path))
    else:
        for place in _places(event):
            for word in (event.access or "").split("+"):
                yield Addition("files", word, quote(place))
                if word == "execute":
                    yield Addition("files", "read", quote(place))


def _needs(event: Event) -> list[Need]:
    programs = {event.comm or "?": event.count}
    if event.kind is Kind.NET and event.address and event.op in _ACTS:
        asked = "connect" if _ACTS[event.op] == "allow" else "listen"
        if not event.port and asked == "connect":
            return []
        where = event.host or (f"[{event.address}]" if ":" in event.address else event.address)
        udp = "/udp" if event.protocol == "udp" else ""
        return [Need("net", asked, f"{where}:{event.port or ''}{udp}", programs)]
    if is_unnamed(event):
        return [Need("net", "connect", f"{event.host}:{USUAL_PORT}", programs)]
    if event.kind is Kind.UNIX and event.path and event.op not in ("bind", "listen"):
        return [Need("unix", "connect", event.path, programs)]
    if event.kind in (Kind.FILE, Kind.EXEC) and event.access:
        return [
            Need(event.kind.value, word, place, programs)
            for place in _places(event)
            for word in event.access.split("+")
        ]
    return []
