"""Profile to policy: absolute, canonical, numbered, digested.

Pure: the file system is only seen through `resolve`. Knows nothing of backends. A rule that cannot be compiled stops
everything; there is no policy with a rule left out.

Symlinks. The kernel judges an object by its real place, so every rule with a symlink on the way gets that place too. A
symlink that lies where the agent may write is not followed for what opens (allow, exceptions): the agent could have
planted it in an earlier session to widen this one. What closes (deny, readonly) always follows.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mcpguard.errors import PolicyError
from mcpguard.model.access import Access, Effect
from mcpguard.model.paths import is_below
from mcpguard.model.policy import NameEntry, NetEntry, PathRule, Policy, SocketEntry, User
from mcpguard.model.profile import NAMESPACE_MAPS, Profile, SniMode, SystemSwitches
from mcpguard.model.rule import FileException, FileRule, Found, NetDirection, NetRule, Origin, SocketRule
from mcpguard.model.values import replace
from mcpguard.policy.automaton import Automaton
from mcpguard.policy.decide import sockets_of
from mcpguard.policy.links import Links, ReadLink, read_link
from mcpguard.policy.network import connect_table, parse_rule
from mcpguard.policy.patterns import expand, literal_path, quote, split_literal
from mcpguard.policy.places import Places

DEFAULT = Origin("default", "default", 0, "no rule allows it")
OWN_REASON = "mcpguard protects itself"
# Folders of the home that any program may expect or make (XDG base directories): made on the way to an agent's own.
STANDARD_FOLDERS = (".cache", ".config", ".local", ".local/share", ".local/state")
_Key = tuple[Any, ...]
Find = Callable[[str, str], Found]
Trusted = Callable[[str], bool]
Ids = Mapping[FileRule | NetRule | SocketRule, int]


def _always(_place: str) -> bool:
    return True


def compile_policy(
    profile: Profile,
    *,
    user: User,
    workspace: str,
    tmp: str,
    own_paths: Sequence[str] = (),
    own_hidden: Sequence[str] = (),
    resolve: ReadLink = read_link,
    trusted: Trusted = _always,
    find: Find | None = None,
    audit: bool = False,
    extra_files: Sequence[FileRule] = (),
    extra_network: Sequence[NetRule] = (),
    extra_sockets: Sequence[SocketRule] = (),
) -> Policy:
    """Compile a profile for one user and workspace.

    Args:
        profile: with its parents merged in.
        workspace, tmp: absolute directories for `{workspace}` and `{tmp}`; their symlinked parents are followed.
        own_paths: our code, profiles, logs and runtime files: never written by the agent, whatever the profile says.
        own_hidden: places of ours that it may not even see, sockets there included.
        resolve: where a symlink leads, see `links.Links`.
        trusted: whether the symlink at a place may lead a rule that opens something elsewhere, see `places.Places`.
        find: what an `existing` names, as a plain path and the rest of the pattern behind it; without it such rules hold
            for names at any time.
        audit: let through and record what merely no rule allows.
        extra_files, extra_network, extra_sockets: rules from the command line.

    Returns:
        The policy. Rule ids, tables and digest do not depend on the order of the rules.

    Raises:
        PolicyError: beginning with the place of the rule where one is at fault.
    """
    links = Links(resolve)
    variables = {
        "home": _directory("home", user.home, links),
        "workspace": _workspace(workspace, links),
        "tmp": _directory("tmp", tmp, links),
    }
    given = {*profile.files, *extra_files, *_namespace_rules(profile.system)}
    files = sorted(_written_out(given, variables, find) if find else given, key=_file_key)
    network = sorted({*profile.network, *extra_network}, key=_net_key)
    sockets = sorted({*profile.sockets, *extra_sockets}, key=_socket_key)
    sockets += [_own_socket(path) for path in sorted(set(own_hidden))]
    own = [_own_rule(path) for path in sorted(set(own_paths))] + [_own_hidden(path) for path in sorted(set(own_hidden))]
    written: list[FileRule | NetRule | SocketRule] = [*files, *network, *sockets, *own]
    ids = {rule: number for number, rule in enumerate(written, 1)}

    places = Places(links, variables, files, trusted=trusted)
    excepted = _excepted(profile.exceptions, places, variables)
    shipped = {number for rule, number in ids.items() if rule.origin.file.startswith("builtin:")}
    found = (path for rule in (*files, *own) for path in places.paths(rule, ids[rule]))
    paths = tuple(
        sorted({_leave_alone(path, excepted) if path.rule in shipped else path for path in found}, key=_path_key)
    )
    automaton = Automaton.build(paths)
    policy = Policy(
        digest="",
        profile=profile.name,
        command=profile.command,
        user=user,
        workspace=variables["workspace"],
        tmp=variables["tmp"],
        rules=(DEFAULT, *(rule.origin for rule in written)),
        reasons=("", *map(_reason, written)),
        tables=automaton.to_bytes(),
        paths=paths,
        connect=_addresses(network, ids, NetDirection.CONNECT),
        listen=_addresses(network, ids, NetDirection.LISTEN),
        names=_names(network, ids),
        sockets=tuple(sorted({e for rule in sockets for e in places.sockets(rule, ids[rule])}, key=_socket_entry_key)),
        environment_remove=tuple(sorted(set(profile.environment_remove))),
        environment_keep=tuple(sorted(set(profile.environment_keep))),
        environment_set=tuple((name, _filled_in(value, variables)) for name, value in profile.environment_set),
        system=profile.system,
        sni=profile.sni or SniMode.CHECK,
        audit=audit,
        folders=_folders(files, variables, automaton),
    )
    return replace(policy, digest=_digest(policy), socket_tables=sockets_of(policy, foreign=True).to_bytes())


def _filled_in(value: str, variables: Mapping[str, str]) -> str:
    """In one pass: a folder's name may itself look like a variable."""
    return re.sub(r"\{(workspace|tmp|home)\}", lambda found: variables[found[1]], value)


def extend_policy(
    policy: Policy,
    *,
    files: Sequence[FileRule] = (),
    network: Sequence[NetRule] = (),
    sockets: Sequence[SocketRule] = (),
    resolve: ReadLink = read_link,
    trusted: Trusted = _always,
) -> Policy:
    """A policy that is in force, with more rules.

    What holds stays as it was compiled, so nothing that changed since, a symlink or a profile, opens or closes anything. Every
    rule keeps its number and new ones come behind them: what the kernel reported by number means the same under both.

    Raises:
        PolicyError: as `compile_policy`.
    """
    links = Links(resolve)
    variables = {
        "home": _directory("home", policy.user.home, links),
        "workspace": policy.workspace,
        "tmp": policy.tmp,
    }
    given: list[FileRule | NetRule | SocketRule] = [*files, *network, *sockets]
    known = {origin: number for number, origin in enumerate(policy.rules)}
    new = [rule for rule in dict.fromkeys(given) if rule.origin not in known]
    known.update({rule.origin: number for number, rule in enumerate(new, len(policy.rules))})
    ids = {rule: known[rule.origin] for rule in given}
    places = Places(links, variables, files, policy.paths, trusted)
    paths = {*policy.paths, *(path for rule in files for path in places.paths(rule, ids[rule]))}
    entries = {*policy.sockets, *(entry for rule in sockets for entry in places.sockets(rule, ids[rule]))}
    ordered = tuple(sorted(paths, key=_path_key))
    more = replace(
        policy,
        rules=(*policy.rules, *(rule.origin for rule in new)),
        reasons=(*policy.reasons, *map(_reason, new)),
        tables=policy.tables if ordered == policy.paths else Automaton.build(ordered).to_bytes(),
        paths=ordered,
        connect=_more_addresses(policy.connect, network, ids, NetDirection.CONNECT),
        listen=_more_addresses(policy.listen, network, ids, NetDirection.LISTEN),
        names=tuple(sorted({*policy.names, *_names(network, ids)}, key=_name_entry_key)),
        sockets=tuple(sorted(entries, key=_socket_entry_key)),
        socket_tables=b"",
    )
    return replace(more, digest=_digest(more), socket_tables=sockets_of(more, foreign=True).to_bytes())


def _more_addresses(
    before: tuple[NetEntry, ...], rules: Sequence[NetRule], ids: Ids, direction: NetDirection
) -> tuple[NetEntry, ...]:
    entries = sorted({*before, *_addresses(rules, ids, direction)}, key=_net_entry_key)
    connect_table(entries)
    return tuple(entries)


def _reason(rule: FileRule | NetRule | SocketRule) -> str:
    if isinstance(rule, SocketRule) and rule.own:
        return "only what the session itself made there"
    return rule.because if isinstance(rule, FileRule) else ""


def _directory(name: str, path: str, links: Links) -> str:
    """The real place of a directory that the launcher names."""
    real = links.follow(path, lambda _: True) if path.startswith("/") and ".." not in path.split("/") else None
    if real is None:
        raise PolicyError(
            f'{{{name}}} is "{path}"',
            why="it must be an absolute path without .. and without symlinks that go round in circles",
            do="name a directory that exists",
            code=f"policy.{name}",
        )
    return real


def _workspace(path: str, links: Links) -> str:
    real = _directory("workspace", path, links)
    if real == "/":
        raise PolicyError(
            f"the workspace {path} is the whole file system",
            why="the agent may write everywhere in its workspace",
            do="start in a project directory, or name one with -w DIR",
            code="policy.workspace-root",
        )
    link = path.rstrip("/")
    if links.target(link) is not None:
        raise PolicyError(
            f"the workspace {path} is a symlink",
            why=f"it leads to {real}, and an agent could have planted it in an earlier session",
            do=f"name the place itself: -w {real}",
            code="policy.workspace-link",
        )
    return real


def _written_out(rules: Iterable[FileRule], variables: Mapping[str, str], find: Find) -> Iterator[FileRule]:
    """The same rules; one with `existing` stands there once for each place that was found.

    A repository that the agent clones needs its settings written; one that the user had may not get other settings.
    """
    known: dict[str, Found] = {}
    for rule in rules:
        if not rule.existing:
            yield rule
            continue
        pattern = expand(rule.existing, rule.origin.place, variables)
        found = known[pattern] = known.get(pattern) or find(*split_literal(pattern))
        rest = rule.pattern.removeprefix(rule.existing)
        beginnings = [quote(path) for path in (*found.directories, *found.others)]
        beginnings += [quote(path).rstrip("/") + more for path, more in found.unknown]
        yield from (replace(rule, pattern=beginning + rest, existing="") for beginning in beginnings)
        # A file `.git` names the repository, a symlink leads to it: changed, they would lead to another one.
        yield from (replace(rule, pattern=quote(path), existing=quote(path)) for path in found.others)


def _excepted(exceptions: Iterable[FileException], places: Places, variables: Mapping[str, str]) -> dict[str, str]:
    """What built-in denials leave alone: pattern -> the one path that it names, each also at its real place.

    Raises:
        PolicyError: an exception has wildcards, which would open names that nobody looked at.
    """
    found: dict[str, str] = {}
    for one in exceptions:
        if literal_path(expand(one.path, one.origin.place, variables)) is None:
            raise PolicyError(
                f'{one.origin.place}: "{one.path}" in files.except is more than one path',
                why="each path that a built-in rule denies is opened by its own name",
                do="write one path without * ? and [ ]",
                code="policy.except",
            )
        opening = FileRule(Effect.ALLOW, Access.READ, one.path, one.origin)
        found |= {path.pattern: literal_path(path.pattern) or path.pattern for path in places.paths(opening, 0)}
    return found


def _leave_alone(rule: PathRule, excepted: Mapping[str, str]) -> PathRule:
    """A denial that matches what an exception names leaves it alone; a folder above what is denied excepts nothing."""
    if rule.effect is not Effect.DENY or not excepted:
        return rule
    automaton = Automaton.build([replace(rule, effect=Effect.ALLOW, access=Access.READ, exceptions=())])
    more = [
        pattern for pattern, path in excepted.items() if Access.READ in automaton.decision(automaton.walk(path)).allowed
    ]
    return replace(rule, exceptions=tuple(sorted({*rule.exceptions, *more}))) if more else rule


def _own_rule(path: str) -> FileRule:
    origin = Origin("mcpguard", "mcpguard", 0, f"readonly {path}")
    return FileRule(Effect.READONLY, Access.WRITE, quote(path), origin, because=OWN_REASON)


def _own_hidden(path: str) -> FileRule:
    origin = Origin("mcpguard", "mcpguard", 0, f"deny {path}")
    access = Access.READ | Access.WRITE | Access.EXECUTE
    return FileRule(Effect.DENY, access, quote(path), origin, because=OWN_REASON)


def _own_socket(path: str) -> SocketRule:
    return SocketRule(Effect.DENY, quote(path), Origin("mcpguard", "mcpguard", 0, f"sockets deny {path}"))


def _namespace_rules(system: SystemSwitches) -> list[FileRule]:
    """Who may make a user namespace may say whose ids it has; the kernel lets nobody but its maker do that, and once."""
    if not system.user_namespaces:
        return []
    origin = Origin("mcpguard", "builtin", 0, "system: user_namespaces lets a program map the ids of its own")
    return [FileRule(Effect.ALLOW, Access.READ | Access.WRITE, pattern, origin) for pattern in NAMESPACE_MAPS]


def _folders(files: Iterable[FileRule], variables: Mapping[str, str], automaton: Automaton) -> tuple[str, ...]:
    """The agent's own folders: below the home, outside the workspace, and refused by no rule."""
    home, workspace = variables["home"], variables["workspace"]
    written = (expand(rule.pattern, rule.origin.place, variables) for rule in files if rule.may_make_folder)
    own = {
        folder
        for folder in map(literal_path, written)
        if folder is not None
        and home not in ("/", folder)
        and is_below(folder, home)
        and not is_below(folder, workspace)
        and Access.WRITE in automaton.decision(automaton.walk(folder)).allowed
    }
    standard = {f"{home}/{name}" for name in STANDARD_FOLDERS}
    return tuple(sorted(own | {way for way in standard if any(is_below(folder, way) for folder in own)}))


def _addresses(rules: Sequence[NetRule], ids: Ids, direction: NetDirection) -> tuple[NetEntry, ...]:
    """Address entries of one direction; checks that they fit the kernel's table."""
    parsed = {e for rule in rules if rule.direction is direction for e in parse_rule(rule, ids[rule])}
    entries = sorted((entry for entry in parsed if isinstance(entry, NetEntry)), key=_net_entry_key)
    connect_table(entries)
    return tuple(entries)


def _names(rules: Sequence[NetRule], ids: Ids) -> tuple[NameEntry, ...]:
    parsed = {e for rule in rules if rule.direction is NetDirection.CONNECT for e in parse_rule(rule, ids[rule])}
    return tuple(sorted((entry for entry in parsed if isinstance(entry, NameEntry)), key=_name_entry_key))


def _origin_key(origin: Origin) -> _Key:
    return (origin.profile, origin.file, origin.line, origin.text)


def _file_key(rule: FileRule) -> _Key:
    exceptions = tuple(sorted(rule.exceptions))
    return (rule.effect, int(rule.access), rule.pattern, exceptions, rule.because, _origin_key(rule.origin))


def _net_key(rule: NetRule) -> _Key:
    return (rule.direction, rule.effect, rule.target, _origin_key(rule.origin))


def _socket_key(rule: SocketRule) -> _Key:
    return (rule.effect, rule.own, rule.pattern, _origin_key(rule.origin))


def _path_key(path: PathRule) -> _Key:
    return (path.pattern, path.effect, int(path.access), path.exceptions, path.rule)


def _net_entry_key(entry: NetEntry) -> _Key:
    ports = (entry.port_low, entry.port_high, entry.protocols)
    return (entry.address, entry.prefix, ports, entry.effect, entry.rule)


def _name_entry_key(entry: NameEntry) -> _Key:
    return (entry.pattern, entry.port_low, entry.port_high, entry.protocols, entry.effect, entry.rule)


def _socket_entry_key(entry: SocketEntry) -> _Key:
    return (entry.pattern, entry.effect, entry.own, entry.rule)


def _digest(policy: Policy) -> str:
    """SHA-256 over what the policy does. Where a rule was written (profile, file, line) and its number do not count."""
    content = {
        "profile": policy.profile,
        "command": policy.command,
        "user": [policy.user.uid, policy.user.gid, sorted(policy.user.groups), policy.user.name, policy.user.home],
        "workspace": policy.workspace,
        "tmp": policy.tmp,
        "paths": _unique([p.effect, int(p.access), p.pattern, sorted(p.exceptions)] for p in policy.paths),
        "connect": _unique(_net_content(entry) for entry in policy.connect),
        "listen": _unique(_net_content(entry) for entry in policy.listen),
        "names": _unique([e.pattern, e.port_low, e.port_high, e.protocols, e.effect] for e in policy.names),
        "sockets": _unique([entry.pattern, entry.effect, entry.own] for entry in policy.sockets),
        "environment": [policy.environment_remove, policy.environment_keep, policy.environment_set],
        "system": asdict(policy.system),
        "sni": policy.sni,
        "audit": policy.audit,
        "folders": policy.folders,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()


def _net_content(entry: NetEntry) -> list[object]:
    return [entry.address.hex(), entry.prefix, entry.port_low, entry.port_high, entry.protocols, entry.effect]


def _unique(rows: Iterable[list[object]]) -> list[str]:
    """Rows as text, sorted, each once."""
    return sorted({json.dumps(row) for row in rows})
