"""From words on a command line to the policy of this user, workspace and host; `run` and `why` both begin here.

Reads profiles, the account and symlinks, as the user; needs no privilege. The parser and the compiler are imported only when
no kept policy fits (`policy_cache`).
"""

from __future__ import annotations

import contextlib
import os
import pwd
import sys
from collections.abc import Iterator, Mapping, Sequence

import mcpguard
from mcpguard.errors import McpguardError, PolicyError, ProfileError, UsageError
from mcpguard.kernel import cgroup
from mcpguard.kernel.places import PINS
from mcpguard.model.access import Access, Effect
from mcpguard.model.paths import is_below
from mcpguard.model.policy import NetEntry, Policy, User
from mcpguard.model.profile import Profile
from mcpguard.model.rule import FileRule, Found, NetDirection, NetRule, Origin, SocketRule
from mcpguard.model.values import replace
from mcpguard.profile import places
from mcpguard.session import policy_cache
from mcpguard.session.existing import search
from mcpguard.session.git_hooks import hook_rules, hooks_folder

COMMAND_LINE = "command line"
_UNTRUSTED = "the link {0} was made while a guarded session ran, so no rule follows it; if it is yours: touch -h {1}"
PRIVILEGED_COPY = "/usr/local/lib/mcpguard"
# fmt: off
_SYSTEM_DIRECTORIES = frozenset((
    "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc", "/run", "/sbin", "/srv",
    "/sys", "/usr", "/var",
))
# fmt: on
_EVERY_IPV4 = 96
_SHARED_TEMPORARY = ("/tmp", "/var/tmp")


def load_policy(
    profile: str,
    workspace: str | None = None,
    *,
    audit: bool = False,
    read: Sequence[str] = (),
    write: Sequence[str] = (),
    net: Sequence[str] = (),
) -> Policy:
    """Load and compile a profile for the user who runs this.

    Args:
        profile: name or path.
        workspace: directory; the current one when None.
        read, write, net: more rules for this time only, as written on the command line; relative paths are relative to
            the current directory.

    Raises:
        UsageError: there is no such profile or directory, or `write` opens far more than can be meant.
        ProfileError, PolicyError: it cannot be loaded or compiled, with `file:line`.
    """
    place = workspace_directory(workspace)
    if write:
        from mcpguard.session.wide import refuse_writes

        refuse_writes([(path, typed_pattern(path)) for path in write], current_user().home, place)
    kept = _kept_name(
        profile, place, (audit, [typed_pattern(path) for path in read], [typed_pattern(path) for path in write], net)
    )
    directory = f"{places.state()}/policies"
    if kept and (found := policy_cache.load(directory, kept)):
        return found
    import shlex

    from mcpguard.events.format import printable
    from mcpguard.profile.load import load

    asked = policy_cache.Asked()
    loaded = load(profile, workspace=place)
    policy = compile_for(loaded, place, audit=audit, read=read, write=write, net=net, asked=asked)
    for link in sorted(asked.untrusted):
        sys.stderr.write(f"mcpguard: {printable(_UNTRUSTED.format(link, shlex.quote(link)))}\n")
    if kept:
        policy_cache.save(directory, kept, policy, asked)
    return policy


def _kept_name(profile: str, workspace: str, options: tuple[object, ...]) -> str | None:
    """What the policy is kept under; None where it depends on files that `policy_cache` does not watch."""
    if "/" in profile or profile.endswith((".yaml", ".yml")) or os.path.isfile(f"{workspace}/.git"):
        return None
    user = current_user()
    parts = [
        profile,
        workspace,
        options,
        repr(user),
        temporary_directory(user.home),
        own_paths(),
        own_hidden(),
        places.gate(),
    ]
    parts.append(hooks_folder(workspace, user.home))
    parts.append(_files_of_servers(workspace))
    return policy_cache.key(parts, (places.profiles(), places.builtin_profiles()))


def compile_for(
    profile: Profile,
    workspace: str,
    *,
    audit: bool = False,
    read: Sequence[str] = (),
    write: Sequence[str] = (),
    net: Sequence[str] = (),
    asked: policy_cache.Asked | None = None,
) -> Policy:
    """The same for a profile that is loaded already.

    Args:
        asked: filled with what the compiler asked the file system, and the answers.

    Raises:
        PolicyError: beginning with the place of the rule where one is at fault.
    """
    from mcpguard.policy.compile import compile_policy
    from mcpguard.session.planted import Trust
    from mcpguard.session.worktree import worktree_rules

    noted = asked or policy_cache.Asked()

    def look(path: str) -> str | None:
        noted.links[path] = policy_cache.read_link(path)
        return noted.links[path]

    user = current_user()
    trusted = Trust(user.home, noted.untrusted)

    def find(base: str, rest: str) -> Found:
        noted.found[base, rest] = search(base, rest)
        return noted.found[base, rest]

    policy = compile_policy(
        profile,
        user=user,
        workspace=workspace,
        tmp=temporary_directory(user.home),
        own_paths=own_paths(),
        own_hidden=own_hidden(),
        resolve=look,
        trusted=trusted,
        find=find,
        audit=audit,
        extra_files=[
            *_file_rules("--read", Access.READ, read),
            *_file_rules("--write", Access.WRITE, write),
            *_environment_rules(),
            *worktree_rules(profile, workspace),
            *hook_rules(workspace, user.home),
            *(_shim_rules() if profile.mcp.gate else ()),
            *(_server_rules(workspace) if profile.mcp.gate else ()),
        ],
        extra_sockets=[_gate_rule()] if profile.mcp.gate else (),
        extra_network=[_net_rule(target) for target in net],
    )
    if profile.mcp.gate and (folders := _folders_of_servers(workspace)):
        policy = replace(policy, folders=(*policy.folders, *folders))
    return _with_mcp(policy, profile)


def _with_mcp(policy: Policy, profile: Profile) -> Policy:
    """The policy with what the profile says of MCP; that is not for the kernel, so its compiler is not the same."""
    from mcpguard.model.mcp import McpRules

    if profile.mcp == McpRules():
        return policy
    import json
    from hashlib import sha256

    from mcpguard.mcp.policy import compile_rules, dump

    variables = {"home": policy.user.home, "workspace": policy.workspace, "tmp": policy.tmp}
    mcp = json.dumps(dump(compile_rules(profile.mcp, variables)), sort_keys=True)
    digest = sha256(f"{policy.digest} {mcp}".encode("utf-8", "surrogatepass")).hexdigest()
    return replace(policy, mcp=mcp, digest=digest)


def trial(profile: Profile) -> list[McpguardError]:
    """Every reason why a profile could not be compiled, whoever the user and whatever the host; empty when it can."""
    from mcpguard.policy.compile import compile_policy

    found = rule_errors(profile)
    if found:
        return found
    user = User(1000, 1000, (), "user", "/home/user")
    try:
        compile_policy(profile, user=user, workspace="/home/user/project", tmp="/tmp", resolve=lambda path: None)
    except PolicyError as bad:
        return [bad]
    return []


def rule_errors(profile: Profile) -> list[McpguardError]:
    """Every rule whose pattern or target cannot be read, each with its place; the compiler would stop at the first."""
    from mcpguard.policy.network import parse_rule
    from mcpguard.policy.patterns import expand

    variables = {"home": "/home", "workspace": "/workspace", "tmp": "/tmp"}
    found: list[McpguardError] = []
    for pattern, origin in _patterns(profile):
        try:
            expand(pattern, origin.place, variables)
        except PolicyError as bad:
            found.append(bad)
    for rule in profile.network:
        try:
            parse_rule(rule, 1)
        except PolicyError as bad:
            found.append(bad)
    found.extend(_mcp_errors(profile, variables))
    return found


def _mcp_errors(profile: Profile, variables: Mapping[str, str]) -> Iterator[McpguardError]:
    from mcpguard.mcp.policy import compile_rules
    from mcpguard.model.mcp import McpRules

    mcp = profile.mcp
    every = [*mcp.rules, *(rule for _class, rule in mcp.classes), *mcp.untrusted]
    alone = [*(McpRules(rules=(rule,)) for rule in every), *(McpRules(confined=(one,)) for one in mcp.confined)]
    alone += [McpRules(servers=(one,)) for one in mcp.servers or ()]
    for rules in alone:
        try:
            compile_rules(rules, variables)
        except ProfileError as bad:
            yield bad


def wide_writes(profile: Profile) -> list[FileRule]:
    """Rules of a profile, or of its parents, that let the whole home be changed."""
    from mcpguard.session.wide import opened

    home = current_user().home
    written = [rule for rule in profile.files if rule.effect is Effect.ALLOW and Access.WRITE in rule.access]
    return [rule for rule in written if opened(rule.pattern, rule.origin.place, home, "/workspace") == "home"]


def idle_slashes(profile: Profile) -> list[FileRule]:
    """Rules with a closing slash that would make a folder if they named one place in the home."""
    own = ("~/", "{home}/", current_user().home + "/")
    written = [rule for rule in profile.files if rule.effect is Effect.ALLOW and Access.WRITE in rule.access]
    slashed = [rule for rule in written if rule.pattern.endswith("/")]
    return [rule for rule in slashed if not (rule.may_make_folder and rule.pattern.startswith(own))]


def single_words(profile: Profile) -> list[NetRule]:
    """Rules for a name without a domain, which programs ask for with a search domain of the host behind it."""
    from mcpguard.model.policy import NameEntry
    from mcpguard.policy.network import parse_rule

    allowed = [one for one in profile.network if (one.effect, one.direction) == (Effect.ALLOW, NetDirection.CONNECT)]
    return [
        rule
        for rule in allowed
        if any(isinstance(entry, NameEntry) and "." not in entry.pattern for entry in parse_rule(rule, 0))
    ]


def idle_name_denials(profile: Profile) -> list[NetRule]:
    """Rules that deny a name beside one that opens a large part of the public network by address, its addresses among them."""
    from mcpguard.model.policy import NameEntry
    from mcpguard.policy.network import parse_rule

    rules = [one for one in profile.network if one.direction == NetDirection.CONNECT]
    opened = [entry for rule in rules if rule.effect == Effect.ALLOW for entry in parse_rule(rule, 0)]
    if not any(isinstance(entry, NetEntry) and _is_wide(entry) for entry in opened):
        return []
    denied = [rule for rule in rules if rule.effect == Effect.DENY]
    return [rule for rule in denied if any(isinstance(entry, NameEntry) for entry in parse_rule(rule, 0))]


def _is_wide(entry: NetEntry) -> bool:
    from mcpguard.policy.addresses import inner

    if entry.prefix >= _EVERY_IPV4 and not any(entry.address[:10]):
        return entry.prefix < _EVERY_IPV4 + 8
    return entry.prefix <= 3 or (entry.prefix <= 32 and not inner(entry.address))


def _patterns(profile: Profile) -> Iterator[tuple[str, Origin]]:
    for rule in profile.files:
        for pattern in (rule.pattern, *rule.exceptions):
            yield pattern, rule.origin
    for exception in profile.exceptions:
        yield exception.path, exception.origin
    for socket in profile.sockets:
        if not socket.pattern.startswith("@"):
            yield socket.pattern, socket.origin


def workspace_directory(path: str | None) -> str:
    """An absolute path of an existing directory. A final symlink is left for the compiler to refuse.

    Raises:
        UsageError: it is missing or no directory.
    """
    try:
        given = places.absolute(places.typed(path or "."))
    except FileNotFoundError:
        raise _no_workspace("the current directory", "it was removed") from None
    real = os.path.realpath(given)
    if real in _SYSTEM_DIRECTORIES:
        raise _no_workspace(given, "it belongs to the system, and an agent may write everywhere in its workspace")
    if not os.path.isdir(given):
        raise _no_workspace(given, "it is not a directory" if os.path.lexists(given) else "it does not exist")
    above, name = os.path.split(given)
    return os.path.join(os.path.realpath(above), name) if os.path.islink(given) else real


def _no_workspace(path: str, why: str) -> UsageError:
    return UsageError(
        f"the workspace {path} cannot be used",
        why=why,
        do="change to your project, or name a directory with -w DIR",
        code="usage.workspace",
    )


def current_user() -> User:
    """The account of this process. `~` is $HOME where that names a directory, as for every program that is started."""
    uid = os.getuid()
    try:
        account = pwd.getpwuid(uid)
        name, home = account.pw_name, account.pw_dir
    except KeyError:  # an account without an entry, as in containers
        name, home = str(uid), "/"
    wanted = os.environ.get("HOME", "")
    if wanted.startswith("/") and os.path.isdir(wanted):
        home = os.path.realpath(wanted)
    return User(uid, os.getgid(), tuple(sorted(os.getgroups())), name, home)


def temporary_directory(home: str) -> str:
    """`$TMPDIR` where it is a directory, else /tmp.

    Raises:
        PolicyError: `$TMPDIR` holds the home, so that `{tmp}` would open it.
    """
    wanted = os.environ.get("TMPDIR", "")
    tmp = os.path.realpath(wanted if wanted.startswith("/") and os.path.isdir(wanted) else "/tmp")
    if is_below(home, tmp) and (tmp == home or not any(is_below(tmp, shared) for shared in _SHARED_TEMPORARY)):
        raise PolicyError(
            f"the temporary directory {tmp} holds the home directory {home}",
            why="the agent may write everywhere below {tmp}",
            do="unset TMPDIR, or set it to a directory of its own",
            code="policy.tmp",
        )
    return tmp


def own_paths() -> tuple[str, ...]:
    """What the agent may never write: this program with everything it imports, its profiles and its records, and the places in
    the kernel that make it a member of its tree and hold what guards that. An agent of root's could write there.
    """
    package = os.path.dirname(os.path.realpath(mcpguard.__file__))
    above = os.path.dirname(package)
    libraries = above if os.path.basename(above) in ("site-packages", "dist-packages") else package
    environment = [sys.prefix] if sys.prefix != sys.base_prefix else []
    ours = (libraries, *environment, places.config(), places.state(), PRIVILEGED_COPY)
    tree = ("/sys/fs/cgroup", cgroup.unified_mount() or "/sys/fs/cgroup", PINS)
    return tuple(sorted({*map(os.path.realpath, (*ours, *tree)), *_linked_profiles()}))


def _linked_profiles() -> Iterator[str]:
    """Where the user's profiles really are: whoever keeps them in a project (dotfiles) lets agents work there, too."""
    with contextlib.suppress(OSError), os.scandir(places.profiles()) as entries:
        for entry in entries:
            if entry.is_symlink() and entry.name.endswith(places.SUFFIX):
                yield os.path.realpath(entry.path)


def own_hidden() -> tuple[str, ...]:
    """What the agent may not even see: where the user tells sessions what else they may do."""
    return (os.path.realpath(places.control()),)


def _environment_rules() -> list[FileRule]:
    """The virtual environment that this program runs from may be the one whose python the agent finds first."""
    if sys.prefix == sys.base_prefix:
        return []
    from mcpguard.policy.patterns import quote

    origin = Origin("mcpguard", "builtin", 0, "mcpguard's own virtual environment may be read and executed")
    place = quote(os.path.realpath(sys.prefix))
    return [FileRule(Effect.ALLOW, Access.READ | Access.EXECUTE, place, origin)]


def _shim_rules() -> list[FileRule]:
    """What the shim of an MCP server is made of, and what agents are told to start it with."""
    from mcpguard.policy.patterns import quote

    readable = {
        "mcpguard's own program may be read, for the shim of MCP servers": mcpguard.__path__[0],
        "what mcpguard tells agents of MCP servers may be read": places.gate(),
    }
    return [
        FileRule(Effect.ALLOW, Access.READ, quote(os.path.realpath(place)), Origin("mcpguard", "builtin", 0, text))
        for text, place in readable.items()
    ]


def _server_rules(workspace: str) -> list[FileRule]:
    """What approved MCP servers execute stays as it was approved, also where the session may write."""
    from mcpguard.policy.patterns import quote

    return [
        FileRule(
            *(Effect.READONLY, Access.WRITE, quote(path)),
            Origin("mcpguard", "builtin", 0, f"readonly {path}"),
            because=f"the MCP server {name} was approved with this file: mcpguard mcp revoke {name}",
        )
        for path, name in _files_of_servers(workspace)
    ]


def _files_of_servers(workspace: str) -> list[tuple[str, str]]:
    """Files that approved MCP servers execute, where a session may write at all, each with its server."""
    if not os.path.exists(places.catalogue()):
        return []
    from mcpguard.catalogue import approved
    from mcpguard.events.format import printable

    try:
        entries = approved.load().entries
    except McpguardError:  # no server starts then, and that is said there
        return []
    writable = (workspace, current_user().home, *_SHARED_TEMPORARY, os.environ.get("TMPDIR") or workspace)
    found = {
        path: printable(entry.name)
        for entry in entries
        for path in _kept(entry.facts)
        if any(is_below(path, place) for place in writable)
    }
    return sorted(found.items())


def _kept(facts: Mapping[str, str]) -> Iterator[str]:
    for name, path in facts.items():
        role = name.partition(" ")[0]
        if not path.startswith("/"):
            continue
        if role in ("program", "script", "loaded") and os.path.isfile(path):
            yield path
        if name == "modules" and os.path.isdir(path):
            yield from (path, *_above(path))


def _above(modules: str) -> Iterator[str]:
    """Where modules in the cache of npx look for others that are not beside them; of `uvx` the folder with its script and
    settings."""
    above = os.path.dirname(modules)
    further = os.path.dirname(above)
    if modules.endswith("/site-packages"):
        yield os.path.dirname(further)
    if modules.endswith("/node_modules") and os.path.basename(further) == "_npx":
        yield from (f"{folder}/node_modules" for folder in (further, os.path.dirname(further)))


def _folders_of_servers(workspace: str) -> list[str]:
    """Of these places those that are there for the time of a run, and empty: tier 3 keeps nobody from making them."""
    return sorted({above for path, _ in _files_of_servers(workspace) for above in _above(path)})


def _gate_rule() -> SocketRule:
    """The gate itself looks who asks; the sockets of other sessions turn this one away."""
    from mcpguard.policy.patterns import quote

    origin = Origin("mcpguard", "builtin", 0, "the gate of MCP servers")
    return SocketRule(Effect.ALLOW, quote(os.path.realpath(places.gate())), origin)


def _file_rules(option: str, access: Access, paths: Sequence[str]) -> list[FileRule]:
    granted = Access.READ | access
    return [
        FileRule(Effect.ALLOW, granted, typed_pattern(path), Origin(COMMAND_LINE, COMMAND_LINE, 0, f"{option} {path}"))
        for path in paths
    ]


def typed_pattern(path: str) -> str:
    """A path relative to the current directory, whatever its name; patterns of profiles pass as they are."""
    from mcpguard.policy.patterns import quote

    if path.startswith(("/", "~", "{", "**")):
        return path
    return os.path.normpath(f"{quote(os.getcwd())}/{path}") + ("/" if path.endswith("/") else "")


def _net_rule(target: str) -> NetRule:
    return NetRule(Effect.ALLOW, NetDirection.CONNECT, target, Origin(COMMAND_LINE, COMMAND_LINE, 0, f"--net {target}"))
