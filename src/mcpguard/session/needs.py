"""What sessions asked for and no rule allowed, read from their record: the raw material of a learned profile.

Reads the event store; decides nothing. What a rule refused on purpose is kept apart: it is never proposed. Nor is what `base`
would have refused, whatever profile the session had, what runs later, and a name that no rule can mean exactly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mcpguard.events import doors
from mcpguard.events.finding import BELOW, LISTED, NOT_STOPPED, QUIET, system_rule
from mcpguard.events.store import Store
from mcpguard.model.access import Access, Verdict
from mcpguard.model.event import Event
from mcpguard.model.policy import PROTO_TCP, PROTO_UDP, Policy
from mcpguard.model.rule import Origin
from mcpguard.session.protected import base_policy, of_address, of_file, of_socket
from mcpguard.session.run_later import IN_CACHES, point_of

_ACCESS = {"read": Access.READ, "write": Access.WRITE, "execute": Access.EXECUTE}
_UNSURE = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4})|\ufffd")
NO_NAME = "no rule can mean this name exactly"

# Who was refused a name never said which port it wanted.
USUAL_PORT = 443


# `pip`, `python3 -m pip`, what `#!` makes of a script, and what pip starts itself by.
_PIP = re.compile(r"(?:.*/)?(?:pip[0-9.]*|__pip-runner__\.py)")
_PIPS_CACHE = ".cache/pip"
# Folders of the home that hold one folder for each program.
CACHES = (".cache", "Library/Caches")
SHELVES = (*CACHES, ".config", ".local/share", ".local/state", ".local/lib")
# A program makes one of these on the way to its own; they are everybody's.
_SHARED = (*SHELVES, ".local", "Library")


@dataclass(slots=True)
class Need:
    """One object and what was asked of it.

    Attributes:
        kind: `file`, `exec`, `net`, `unix`.
        access: `read`, `write`, `execute`, `connect`, `listen`.
        object: a path, `host:port`, `address:port` with `/udp` where it is, or a socket.
        programs: program -> how often.
        refused: the rule that refused it on purpose, and its reason; None: no rule allowed it.
        made: a session made this folder.
        partners: the other names of renames.
    """

    kind: str
    access: str
    object: str
    programs: dict[str, int] = field(default_factory=dict)
    refused: tuple[Origin, str] | None = None
    made: bool = False
    partners: set[str] = field(default_factory=set)

    @property
    def times(self) -> int:
        return sum(self.programs.values())


def needs(store: Store, sessions: Sequence[str], home: str = "") -> list[Need]:
    """Everything that these sessions were refused, or let do only because of `--audit`, in the order of objects.

    Args:
        home: the user's; there pip looks whose folder its cache is in.

    Raises:
        StoreError: it cannot be read, or there is no such session.
    """
    return joined(need for session in sessions for need in _of_session(store, session, home))


def of_event(event: Event) -> Iterable[Need]:
    """What an act that was let happen asked for, as if an audit had let it."""
    done = (event.kind.value, event.op, Verdict.AUDIT.value, event.access or "", event.path, event.target, event.host)
    return _of_row(*done, event.address, event.port, event.protocol, event.comm or "?", event.count, *(None,) * 5, 0)


def _of_session(store: Store, session: str, home: str) -> Iterator[Need]:
    for row in _rows(store, session):
        for need in _of_row(*row):
            if need.object in _of_pip(home) and need.access == "read" and _asked_by_pip(store, session, need.object):
                need = Need(need.kind, "write", f"{home}/{_PIPS_CACHE}", need.programs, need.refused, made=True)
            yield need


def joined(needs: Iterable[Need]) -> list[Need]:
    """Each object once, with all who asked for it."""
    found: dict[tuple[str, str, str, bool], Need] = {}
    for need in needs:
        known = found.setdefault((need.kind, need.access, need.object, need.refused is None), need)
        known.made |= need.made
        known.partners |= need.partners
        if known is not need:
            for program, times in need.programs.items():
                known.programs[program] = known.programs.get(program, 0) + times
    return sorted(found.values(), key=lambda need: (need.kind, need.object, need.access))


def _of_pip(home: str) -> tuple[str, ...]:
    """What pip opens, as root, to see whose it is: its cache, or the nearest folder that is there above it."""
    return (f"{home}/{_PIPS_CACHE}", f"{home}/.cache", home) if home else ()


def _asked_by_pip(store: Store, session: str, path: str) -> bool:
    """Whether nobody else was refused this folder, or let see it. A program's name is what it calls itself."""
    rows = store.read(
        "SELECT (SELECT x.argv FROM events x WHERE x.session = e.session AND x.kind = 'exec' AND x.pid = e.pid "
        "AND x.time_ns <= e.time_ns ORDER BY x.time_ns DESC LIMIT 1) "
        "FROM events e WHERE e.session = ? AND e.kind = 'file' AND e.path = ? AND e.verdict IN ('deny', 'audit') "
        "AND e.access = 'read'",
        (store.number(session), path),
    )
    return all(argv and any(map(_PIP.fullmatch, json.loads(argv)[:3])) for (argv,) in rows)


def _rows(store: Store, session: str) -> list[Sequence[object]]:
    return list(
        store.read(
            "SELECT e.kind, e.op, e.verdict, COALESCE(e.access, ''), e.path, e.target, e.host, e.address, e.port, e.protocol, "
            "COALESCE(e.comm, '?'), SUM(e.count), r.profile, r.file, r.line, r.text, r.because, "
            f"COALESCE(e.detail LIKE '{BELOW}%', 0) "
            "FROM events e LEFT JOIN rules r ON r.session = e.session AND r.n = e.rule "
            "WHERE e.session = ? AND e.verdict IN ('deny', 'audit') AND (e.kind IN ('file', 'exec', 'net', 'unix') "
            # A name that was refused never came to a connection; in audit it may, and that knows the port.
            "OR (e.kind = 'dns' AND (e.detail || ';' LIKE 'A;%' OR e.detail || ';' LIKE 'AAAA;%') AND (e.verdict = 'deny' "
            "OR e.host NOT IN (SELECT c.host FROM events c WHERE c.session = ? AND c.kind = 'net' AND c.host IS NOT NULL)))) "
            f"AND (e.detail IS NULL OR NOT (e.detail LIKE '{QUIET}%' OR e.detail LIKE '{LISTED}%')) "
            "GROUP BY e.kind, e.op, e.verdict, e.access, e.path, e.target, e.host, e.address, e.port, e.protocol, e.comm, "
            f"e.rule, e.detail LIKE '{NOT_STOPPED}%', e.detail LIKE '{BELOW}%'",
            (store.number(session), store.number(session)),
        )
    )


def _of_row(*row: object) -> Iterable[Need]:
    kind, op, verdict, access, path, target, host, address, port, protocol, comm, times, *rule, because, below = row
    profile, file, line, text = rule
    refused = None
    if text is not None and file != "default":
        refused = (Origin(str(profile), str(file), int(str(line)), str(text)), str(because or ""))
    elif below:
        refused = (system_rule("no move out of the reach of a rule"), BELOW)
    programs = {str(comm): int(str(times))}
    if kind == "dns":
        if host is not None:
            yield Need("net", "connect", f"{host}:{USUAL_PORT}", programs, refused)
        return
    if kind == "net":
        asked = "connect" if op in ("connect", "sendmsg", "hello") else "listen"
        if (
            op not in ("connect", "sendmsg", "hello", "bind", "listen")
            or address is None
            or (port is None and asked == "connect")
        ):
            return
        where = f"[{address}]" if ":" in str(address) else str(address)
        udp = "/udp" if protocol == "udp" else ""
        # The kernel chooses port 0's number: that needs a rule for every port.
        yield Need("net", asked, f"{host or where}:{port or ''}{udp}", programs, refused)
        return
    for place in (path, target):
        if place is None:
            continue
        if kind == "unix":
            if op in ("connect", "sendmsg"):
                yield Need("unix", "connect", str(place), programs, refused)
        elif str(place).startswith("/"):
            for word in str(access).split("+") if access else ():
                need = Need(str(kind), word, str(place), programs, refused, made=(op, verdict) == ("mkdir", "audit"))
                if op in ("rename", "exchange"):
                    need.partners = {str(one) for one in (path, target) if one not in (None, place)}
                yield need


def set_apart(found: Iterable[Need], workspace: str) -> None:
    """Mark what must never be proposed although no rule of the session refused it. Looks at the files as they are.

    Raises:
        ProfileError, PolicyError: the profile `base` cannot be loaded.
    """
    base = base_policy(workspace)
    found = list(found)
    shared = {f"{base.user.home}/{name}" for name in _SHARED}
    made = {need.object for need in found if need.made} - shared
    for need in found:
        if need.refused is None:
            need.refused = (
                _inexact(need)
                or _door(need)
                or _protected(need, base)
                or _runs_later(need, base.user.home)
                or _whole(need, made, shared)
            )


def _door(need: Need) -> tuple[Origin, str] | None:
    """Whoever answers for names there knows nothing of our rules by name."""
    where, _, port = need.object.rpartition(":")
    number, _, protocol = port.partition("/")
    word = None
    if need.kind == "unix":
        word = doors.of_socket(need.object)
    elif need.kind == "net" and need.access == "connect" and number.isdecimal():
        word = doors.of_host(where) or doors.of_port(int(number), protocol or "tcp", where.strip("[]"))
    return (system_rule("names have one way"), word) if word else None


def _whole(need: Need, made: Collection[str], shared: Collection[str]) -> tuple[Origin, str] | None:
    """A rule on a folder opens everything in it, and one on a symlink what it leads to; neither was asked for."""
    if need.kind != "file":
        return None
    for path in (need.object, *need.partners):
        if Path(path).is_symlink():
            return system_rule("a symlink is not learned"), "a rule would open what it leads to"
        if path not in made and (path in shared or Path(path).is_dir()):
            return system_rule("a folder as a whole is not learned"), "a rule would open everything in this folder"
    return None


def _protected(need: Need, base: Policy) -> tuple[Origin, str] | None:
    if need.kind in ("file", "exec"):
        return of_file(base, need.object, _ACCESS[need.access])
    if need.kind == "unix":
        return of_socket(base, need.object)
    host, _, port = need.object.rpartition(":")
    number, _, protocol = port.partition("/")
    if need.access != "connect":
        return None
    return of_address(base, host, int(number), PROTO_UDP if protocol == "udp" else PROTO_TCP)


def _runs_later(need: Need, home: str) -> tuple[Origin, str] | None:
    """Not what a cache holds: every package has such names."""
    if need.kind != "file" or need.access != "write" or IN_CACHES.search(need.object.removeprefix(home)):
        return None
    point = point_of(need.object)
    return (system_rule("what runs later is not learned"), point.why) if point and point.unasked else None


def _inexact(need: Need) -> tuple[Origin, str] | None:
    why = inexact(need.kind, need.object)
    return (system_rule(NO_NAME), why) if why else None


def inexact(kind: str, name: str) -> str:
    """Why no rule can mean this name, and nothing else, to the kernel and to who reads it; empty: one can. Pure.

    Args:
        kind: of a `Need`; `name` is its object.
    """
    if not name.isprintable():
        return "characters in it cannot be seen, or turn the text round"
    # The record writes bytes that are no UTF-8 like a name that holds a backslash: a rule would be about another file.
    if kind != "net" and _UNSURE.search(name):
        return "it is not plain text"
    if kind == "unix" and not name.startswith(("/", "@")):
        return "it depends on the folder that the program was in"
    # Neither brackets nor anything else makes these plain in a rule about an abstract socket.
    if kind == "unix" and name.startswith("@") and any(character in name for character in "*?["):
        return "a rule about an abstract socket has no way to write * ? and ["
    return ""


def unused_rules(store: Store, sessions: Sequence[str]) -> list[tuple[Origin, str]]:
    """Rules that allow something and that decided nothing in any of these sessions, by place.

    Raises:
        StoreError: it cannot be read, or there is no such session.
    """
    known: dict[Origin, int] = {}
    reasons: dict[Origin, str] = {}
    for session in sessions:
        rows = store.read(
            "SELECT r.profile, r.file, r.line, r.text, r.because, "
            "(SELECT COUNT(*) FROM events e WHERE e.session = r.session AND e.rule = r.n) FROM rules r WHERE r.session = ?",
            (store.number(session),),
        )
        for profile, file, line, text, because, uses in rows:
            origin = Origin(profile, file, line, text)
            known[origin] = known.get(origin, 0) + int(uses)
            reasons[origin] = because
    allowing = ("read ", "write ", "execute ", "network allow ", "network listen ", "sockets allow ")
    found = [origin for origin, uses in known.items() if not uses and origin.text.startswith(allowing)]
    return [(origin, reasons[origin]) for origin in sorted(found, key=lambda one: (one.file, one.line, one.text))]


def workspaces(store: Store, sessions: Sequence[str]) -> list[str]:
    """The workspaces of these sessions, each once."""
    return list(dict.fromkeys(store.session(session).workspace for session in sessions))
