"""From a name or path to one profile with its parents merged in.

Merging is a union: order never matters and nothing that a parent denies can be taken back by a child. Only `command` is
chosen: the profile's own, else the only one among its parents. A switch is on when any profile turns it on. `files.except`
counts only in the profile that is run, so that no parent opens anything unseen.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from itertools import chain
from pathlib import Path
from typing import TypeVar

from mcpguard.errors import ProfileError, UsageError
from mcpguard.model.mcp import AfterTaint, McpRules
from mcpguard.model.profile import Profile, SniMode, SystemSwitches
from mcpguard.model.values import dataclass, field, replace
from mcpguard.profile import nodes, store, trust
from mcpguard.profile.draft import Parent, Raw
from mcpguard.profile.parse import examine, valid_name

T = TypeVar("T", bound=Hashable)


def load(name_or_path: str, *, workspace: str | None = None) -> Profile:
    """Read a profile and everything it extends.

    Args:
        name_or_path: the name of a profile, or a path (it holds a `/` or ends with `.yaml`).
        workspace: where the agent works; a file inside it is only read when it is trusted.

    Raises:
        UsageError: no profile has this name.
        ProfileError: the first mistake, with `file:line`.
    """
    profile, errors = inspect(name_or_path, workspace=workspace)
    if errors or profile is None:
        raise errors[0]
    return profile


def inspect(name_or_path: str, *, workspace: str | None = None) -> tuple[Profile | None, list[ProfileError]]:
    """As `load`, with every mistake in the file and in its parents; no profile when there is one.

    Raises:
        UsageError: no profile has this name.
    """
    loading = _Loading(Path(workspace) if workspace else None)
    entry = locate(name_or_path)
    loading.read(entry)
    if loading.errors:
        return None, loading.errors
    return _join(loading, entry)


def inspect_text(document: str, entry: store.Entry) -> tuple[Profile | None, list[ProfileError]]:
    """As `inspect`, for a text that is to become the file of `entry`."""
    loading = _Loading(None)
    loading.read(entry, document.encode("utf-8", "surrogateescape"))
    if loading.errors:
        return None, loading.errors
    return _join(loading, entry)


def locate(name_or_path: str) -> store.Entry:
    """The file that a name or path means.

    Raises:
        UsageError: there is none.
    """
    if is_path(name_or_path):
        path = store.typed_path(name_or_path).absolute()
        return store.Entry(path.stem, path, builtin=False)
    found = store.find(name_or_path) if valid_name(name_or_path) else None
    if found is None:
        raise UsageError(
            f'there is no profile "{name_or_path}"',
            why=f"it is neither built in nor in {store.user_directory()}",
            do=nodes.near(name_or_path, store.names()) or "`mcpguard profile list` shows the names",
            code="usage.unknown-profile",
        )
    return found


def is_path(name_or_path: str) -> bool:
    """Whether an argument is a path and not a name."""
    return "/" in name_or_path or name_or_path.endswith((store.SUFFIX, ".yml"))


@dataclass(slots=True)
class _Loading:
    """Files read so far, by their path: a diamond is read once."""

    workspace: Path | None
    raws: dict[Path, Raw] = field(default_factory=dict)
    parents: dict[Path, list[store.Entry]] = field(default_factory=dict)
    errors: list[ProfileError] = field(default_factory=list)
    chain: list[store.Entry] = field(default_factory=list)

    def read(self, entry: store.Entry, content: bytes | None = None) -> None:
        """Read one file and then its parents."""
        self.chain.append(entry)
        try:
            raw = self._parse(entry, content)
        except ProfileError as bad:
            self.errors.append(bad)
        else:
            self.raws[entry.path] = raw
            self.parents[entry.path] = []
            for parent in raw.parents:
                self._follow(entry, parent)
            self._must_extend_shipped(entry, raw)
        self.chain.pop()

    def _parse(self, entry: store.Entry, content: bytes | None) -> Raw:
        if content is None:
            content = nodes.read_bytes(entry.path, entry.source)
        if not entry.builtin:
            trust.require(entry.path, content, self.workspace)
        raw, errors = examine(nodes.decode(content, entry.source), entry.source, name=entry.name)
        self.errors += errors
        listed = entry.builtin or entry.path.parent == store.user_directory()
        if listed and raw.profile.name != entry.name and not errors:
            raise nodes.error(
                entry.source,
                0,
                f'is named "{raw.profile.name}" inside',
                why="a profile is found by the name of its file",
                do=f"rename the file to {raw.profile.name}{store.SUFFIX}, or write name: {entry.name}",
                code="name-mismatch",
            )
        if raw.profile.exceptions and (entry.builtin or entry.path.parent != store.user_directory()):
            found = raw.profile.exceptions[0].origin
            raise nodes.error(
                entry.source,
                found.line,
                "files.except is only for profiles of your own",
                why="it opens what mcpguard keeps closed, and whoever wrote a project could have written this file",
                do=f"read it, and write what you mean into a profile in {store.user_directory()}",
                code="except-not-own",
            )
        return raw

    def _follow(self, entry: store.Entry, parent: Parent) -> None:
        found = parent_of(entry, parent.name)
        if found is None:
            self.errors.append(_unknown_parent(entry, parent))
            return
        self.parents[entry.path].append(found)
        places = [above.path for above in self.chain]
        if found.path in places:
            circle = [*(above.name for above in self.chain[places.index(found.path) :]), found.name]
            self.errors.append(
                nodes.error(
                    entry.source,
                    parent.line,
                    f'"{parent.name}" extends this profile',
                    why="they go round in a circle: " + " -> ".join(circle),
                    do="remove one of these names from its `extends`",
                    code="cycle",
                )
            )
        elif found.path not in self.raws:
            self.read(found)

    def _must_extend_shipped(self, entry: store.Entry, raw: Raw) -> None:
        """A file that takes a built-in's name without its rules would quietly drop what everybody relies on."""
        listed = entry.path.parent == store.user_directory()
        if listed and not entry.builtin and store.builtin(entry.name) and entry.name not in raw.profile.extends:
            self.errors.append(
                nodes.error(
                    entry.source,
                    0,
                    f'takes the name of the built-in profile "{entry.name}" without extending it',
                    why="its rules, also the denials, would silently be gone",
                    do=f"write `extends: [{entry.name}]` to add to it, or give the file another name",
                    code="shadows-builtin",
                )
            )


def parent_of(entry: store.Entry, name: str) -> store.Entry | None:
    """The profile that a name under `extends` means; a file's own name means the built-in profile below it."""
    if name == entry.name and not entry.builtin and store.builtin(name):
        return store.builtin(name)
    return store.find(name)


def _unknown_parent(entry: store.Entry, parent: Parent) -> ProfileError:
    return nodes.error(
        entry.source,
        parent.line,
        f'unknown profile "{parent.name}" in extends',
        why=f"it is neither built in nor in {store.user_directory()}",
        do=nodes.near(parent.name, store.names()) or "`mcpguard profile list` shows the names",
        code="unknown-parent",
    )


def _join(loading: _Loading, entry: store.Entry) -> tuple[Profile | None, list[ProfileError]]:
    """The union of everything that was read. Files are taken in the order of their names, not of `extends`."""
    own = loading.raws[entry.path].profile
    try:
        command = _command(loading, entry)
        settings = _settings(loading, entry)
    except ProfileError as conflict:
        return None, [conflict]
    every = sorted((raw.profile for raw in loading.raws.values()), key=lambda found: (found.name, found.source))
    joined = replace(
        own,
        command=command,
        files=_union(found.files for found in every),
        network=_union(found.network for found in every),
        sockets=_union(found.sockets for found in every),
        environment_remove=_sorted(found.environment_remove for found in every),
        environment_keep=_sorted(found.environment_keep for found in every),
        environment_set=tuple(sorted(settings.items())),
        system=SystemSwitches(
            user_namespaces=any(found.system.user_namespaces for found in every),
            io_uring=any(found.system.io_uring for found in every),
            memory_programs=any(found.system.memory_programs for found in every),
            debuggers=any(found.system.debuggers for found in every),
        ),
        sni=_strictest(found.sni for found in every),
        mcp=_join_mcp([found.mcp for found in every]),
        ancestors=_sorted(found.ancestors for found in every),
        origins=_union(found.origins for found in every),
    )
    return joined, []


def _join_mcp(every: list[McpRules]) -> McpRules:
    """Of two words on the same matter the stricter counts."""
    said = {one.after_taint for one in every}
    gates = {one.gate for one in every}
    strictest = (AfterTaint.REFUSE, AfterTaint.ASK, AfterTaint.ALLOW)
    then = next((word for word in strictest if word in said), None)
    named = [one.servers for one in every if one.servers is not None]
    places = sorted((one.flow for one in every if one.flow and one.after_taint is then), key=lambda one: one.place)
    of_all = sorted((one.all_clients for one in every if one.all_clients), key=lambda one: one.place)
    return McpRules(
        _union(one.rules for one in every),
        _union(one.classes for one in every),
        _union(one.untrusted for one in every),
        then,
        next((word for word in (True, False) if word in gates), None),
        _union(one.confined for one in every),
        places[0] if places else None,
        _union(named) if named else None,
        of_all[0] if of_all else None,
    )


def _command(loading: _Loading, entry: store.Entry) -> tuple[str, ...]:
    raw = loading.raws[entry.path]
    if raw.profile.command:
        return raw.profile.command
    commands = {_command(loading, parent): parent for parent in loading.parents[entry.path]}
    commands.pop((), None)
    if len(commands) > 1:
        named = " and ".join(sorted(parent.name for parent in commands.values()))
        raise nodes.error(
            entry.source,
            raw.parents[0].line,
            f"{named} bring different commands",
            why="the order of `extends` never matters, so none of them wins",
            do="write the `command` that this profile runs",
            code="command-conflict",
        )
    return next(iter(commands), ())


def _strictest(modes: Iterable[SniMode | None]) -> SniMode | None:
    written = set(modes)
    return next((mode for mode in reversed(SniMode) if mode in written), None)


def _settings(loading: _Loading, entry: store.Entry) -> dict[str, str]:
    """Variables that are set: the profile's own value, else that of its parents, who may not differ."""
    raw = loading.raws[entry.path]
    found: dict[str, str] = {}
    brought: dict[str, str] = {}
    for parent in loading.parents[entry.path]:
        for name, value in _settings(loading, parent).items():
            if found.setdefault(name, value) != value and name not in dict(raw.profile.environment_set):
                raise nodes.error(
                    entry.source,
                    raw.parents[0].line,
                    f"{brought[name]} and {parent.name} set {name} to different values",
                    why="the order of `extends` never matters, so none of them wins",
                    do=f"write under `environment` what this profile means: set: {{{name}: ...}}",
                    code="set-conflict",
                )
            brought.setdefault(name, parent.name)
    return found | dict(raw.profile.environment_set)


def _union(groups: Iterable[tuple[T, ...]]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(groups)))


def _sorted(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(sorted(set(chain.from_iterable(groups))))
