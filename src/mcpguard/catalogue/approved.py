"""The servers that the user approved: one file of theirs, which no guarded process can write.

Read by whoever decides whether a server may start. What is not understood approves nothing and is an error.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mcpguard.catalogue.identity import Identity
from mcpguard.catalogue.reading import UnreadableError, content, parse
from mcpguard.errors import HostError
from mcpguard.model.values import dataclass
from mcpguard.profile import store

APPROVED, NOT_APPROVED, CHANGED = "approved", "not approved", "changed"
VERSION = 1
# Seconds that a change waits for another to end.
PATIENCE = 5.0
_LIMIT = 4 << 20
_TEXTS = ("name", "declared_in", "digest", "approved")


@dataclass(frozen=True, slots=True)
class Entry:
    """One approval.

    Attributes:
        declared_in: the configuration that declared the server, as `Server.place`.
        digest: of the identity.
        facts: what that was, for a person.
        environment: names of the variables that its configuration gives it.
        approved: when, RFC 3339.
    """

    name: str
    declared_in: str
    digest: str
    facts: Mapping[str, str]
    environment: tuple[str, ...]
    approved: str


@dataclass(frozen=True, slots=True)
class State:
    """What the catalogue says of one server.

    Attributes:
        word: APPROVED, NOT_APPROVED or CHANGED.
        differences: of a changed one, a line for each: `script sha256: 12ab… -> 34cd…`.
    """

    word: str
    differences: tuple[str, ...] = ()

    @property
    def allowed(self) -> bool:
        """Whether the server may start."""
        return self.word == APPROVED


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All approvals, as they stood when the file was read."""

    entries: tuple[Entry, ...] = ()

    def named(self, name: str) -> tuple[Entry, ...]:
        """Every approval under a name; each configuration that declares it has one of its own."""
        return tuple(entry for entry in self.entries if entry.name == name)

    def same(self, name: str, identity: Identity) -> tuple[Entry, ...]:
        """Every approval of exactly this under this name, the last one first. More than one is what two made at the same
        moment, before they were kept apart."""
        found = (entry for entry in self.named(name) if entry.digest == identity.digest)
        return tuple(sorted(found, key=lambda entry: entry.approved, reverse=True))

    def entry(self, name: str, identity: Identity) -> Entry | None:
        """The last of these; None: it is not approved."""
        return next(iter(self.same(name, identity)), None)

    def state(self, name: str, identity: Identity) -> State:
        """Whether exactly this was approved under this name."""
        entries = self.named(name)
        if not entries:
            return State(NOT_APPROVED)
        digest = identity.digest
        if any(entry.digest == digest for entry in entries):
            return State(APPROVED)
        facts = identity.facts()
        return State(CHANGED, min((differences(entry.facts, facts) for entry in entries), key=len))


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[str, ...]:
    """What differs between the facts of two identities, for a person."""
    names = [*old, *(name for name in new if name not in old)]
    found = tuple(
        f"{name}: {_brief(old.get(name))} -> {_brief(new.get(name))}"
        for name in names
        if old.get(name) != new.get(name)
    )
    return found or ("a part that is not shown, such as a secret among its words",)


def _brief(value: str | None) -> str:
    if value is None:
        return "none"
    return f"{value[:12]}…" if len(value) == 64 and all(char in "0123456789abcdef" for char in value) else value


def file() -> Path:
    """Where the catalogue is."""
    return store.catalogue_file()


def load() -> Catalogue:
    """Read the catalogue; none is an empty one.

    Raises:
        HostError: `catalogue.unusable`: it is not the user's own file, or not understood.
    """
    path = file()
    try:
        raw, status = content(path, _LIMIT)
    except FileNotFoundError:
        return Catalogue()
    except UnreadableError as bad:
        raise _unusable(path, str(bad)) from None
    if path.is_symlink():
        raise _unusable(path, "it is a link, and what it leads to may be open to agents")
    if status.st_uid not in (os.geteuid(), 0) or stat.S_IMODE(status.st_mode) & 0o022:
        raise _unusable(
            path, "others may write it, so anybody could have approved what it holds", f"read it; chmod 600 {path}"
        )
    try:
        return Catalogue(tuple(_entries(raw)))
    except (UnreadableError, TypeError, KeyError, AttributeError) as bad:
        raise _unusable(path, f"it is not what mcpguard writes: {bad}") from None


def _entries(raw: bytes) -> Iterator[Entry]:
    value, repeated = parse(raw, "json")
    if repeated:
        raise UnreadableError(f"the key {repeated[0]} stands twice")
    if value.get("version") != VERSION:
        raise UnreadableError(f"its version is {value.get('version')}, and this mcpguard knows {VERSION}")
    for one in value["servers"]:
        texts = {name: one[name] for name in _TEXTS}
        facts, environment = one["facts"], one["environment"]
        if not all(isinstance(text, str) for text in (*texts.values(), *facts, *facts.values(), *environment)):
            raise UnreadableError("a value that is no text")
        yield Entry(**texts, facts=facts, environment=tuple(environment))


def approve(
    name: str,
    declared_in: str,
    identity: Identity,
    environment: Sequence[str],
    before: Callable[[Entry], object] = lambda _: None,
) -> Entry:
    """Add an approval; it takes the place of an earlier one of the same declaration, and of one of the very same server under
    this name: what it said when it was approved is known once.

    Args:
        before: what has to be done before it counts; when that fails, it does not.

    Raises:
        HostError: the catalogue cannot be read or written; it stays as it was.
    """
    # What belongs to one approval is found by it, so the next one has another.
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    entry = Entry(name, declared_in, identity.digest, identity.facts(), tuple(sorted(environment)), now)
    with _changing() as entries:
        before(entry)
        entries[:] = [
            one
            for one in entries
            if one.name != name or (one.declared_in != declared_in and one.digest != entry.digest)
        ] + [entry]
    return entry


def revoke(name: str) -> tuple[Entry, ...]:
    """Take every approval of a name back; returns them.

    Raises:
        HostError: the catalogue cannot be read or written; it stays as it was.
    """
    with _changing() as entries:
        gone = tuple(entry for entry in entries if entry.name == name)
        entries[:] = [entry for entry in entries if entry.name != name]
    return gone


@contextmanager
def _changing() -> Iterator[list[Entry]]:
    """The entries, written back when they are another list at the end; one process at a time."""
    path = file()
    with _locked(path.parent):
        before = load().entries
        entries = list(before)
        yield entries
        if tuple(entries) != before:
            made = {"version": VERSION, "servers": [_plain(entry) for entry in sorted(entries, key=_order)]}
            store.replace(path, json.dumps(made, indent=1).encode() + b"\n")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as failed:
        raise _unusable(folder, failed.strerror or str(failed)) from None
    try:
        # Whoever may read the folder can hold this lock, and must not keep the user waiting.
        until = time.monotonic() + PATIENCE
        while not _lock(descriptor):
            if time.monotonic() > until:
                raise _unusable(
                    folder, "another process has locked it", "end the other `mcpguard mcp approve` or `revoke`"
                )
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _order(entry: Entry) -> tuple[str, str]:
    return entry.name, entry.declared_in


def _plain(entry: Entry) -> dict[str, Any]:
    return {
        **{name: getattr(entry, name) for name in _TEXTS},
        "facts": dict(entry.facts),
        "environment": list(entry.environment),
    }


def _unusable(path: Path, why: str, do: str = "") -> HostError:
    return HostError(
        f"the catalogue of approved MCP servers cannot be used: {path}",
        why=why,
        do=do or "move it away and approve your servers again: mcpguard mcp list",
        code="catalogue.unusable",
    )
