"""Compiled policies, kept in the user's state directory: reading and compiling a profile is most of what a launch computes.

A kept policy is used only when everything it was made from is unchanged: this program, every profile file, the account, the
workspace, the command line, each symlink that the compiler asked about, and what it found for rules with `existing`. What
depends on more is not kept. No guarded process can write the directory; a file that cannot be read or does not fit is as good
as none.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Sequence

import mcpguard
from mcpguard.model import plain_json as json
from mcpguard.model.access import PATH_EFFECTS, Access, Effect
from mcpguard.model.digests import blake2b
from mcpguard.model.policy import NameEntry, NetEntry, PathRule, Policy, SocketEntry, User
from mcpguard.model.profile import SniMode, SystemSwitches
from mcpguard.model.rule import Found, Origin
from mcpguard.model.values import dataclass, field
from mcpguard.session.existing import search

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FORMAT = 6
# One file each; the oldest go.
KEPT = 32
# Looked up for each of hundreds of rules.
_EFFECTS = {effect.value: effect for effect in PATH_EFFECTS}
_ACCESSES = [Access(bits) for bits in range(8)]


@dataclass(slots=True)
class Asked:
    """What a compiler asked the file system.

    Attributes:
        links: path -> where a symlink there leads; None where there is none.
        found: (base, rest) -> what was found, see `existing.search`.
        untrusted: symlinks that were not followed, because a guarded session may have made them.
    """

    links: dict[str, str | None] = field(default_factory=dict)
    found: dict[tuple[str, str], Found] = field(default_factory=dict)
    untrusted: set[str] = field(default_factory=set)


def key(parts: Sequence[object], directories: Sequence[str]) -> str:
    """Names everything that a policy is made from.

    Args:
        parts: plain values: profile, account, workspace, command line.
        directories: where profiles are; every YAML file there counts, by size, inode and time of change.
    """
    code = os.path.dirname(mcpguard.__file__)
    files = [path for directory in (*directories, f"{code}/policy", f"{code}/profile") for path in _files(directory)]
    text = json.dumps([FORMAT, mcpguard.__version__, parts, files], default=str)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _files(directory: str) -> list[tuple[str, int, int, int]]:
    found = []
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith((".yaml", ".py")):
                state = entry.stat()
                found.append((entry.path, state.st_size, state.st_ino, state.st_mtime_ns))
    return sorted(found)


def load(directory: str, name: str) -> Policy | None:
    """The policy kept under `name`, if the compiler would be told the same by the file system."""
    try:
        with open(f"{directory}/{name}.json", "rb") as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():
                return None
            kept = json.loads(file.read())
        if any(read_link(link) != target for link, target in kept["links"].items()):
            return None
        if any(search(base, rest) != _found(answer) for base, rest, answer in kept["found"]):
            return None
        return _policy(kept["policy"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _found(kept: list[Any]) -> Found:
    directories, others, unknown = kept
    return Found(tuple(directories), tuple(others), tuple((path, rest) for path, rest in unknown))


def save(directory: str, name: str, policy: Policy, asked: Asked) -> None:
    """Keep a policy. A failure is none: the next launch compiles again, as it must where a symlink was not trusted."""
    if asked.untrusted:
        return
    made = f"{directory}/.{name}.{os.getpid()}"
    with contextlib.suppress(OSError):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        found = [
            [*question, [answer.directories, answer.others, answer.unknown]] for question, answer in asked.found.items()
        ]
        kept = {"links": asked.links, "found": found, "policy": _plain(policy)}
        with open(made, "w", encoding="utf-8") as file:
            file.write(json.dumps(kept, separators=(",", ":")))
        os.replace(made, f"{directory}/{name}.json")
        _drop_oldest(directory)


def _drop_oldest(directory: str) -> None:
    with os.scandir(directory) as entries:
        kept = [(entry.stat().st_mtime_ns, entry.path) for entry in entries if entry.name.endswith(".json")]
    for _when, path in sorted(kept)[:-KEPT]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def read_link(path: str) -> str | None:
    """As `policy.links.read_link`, without importing the compiler."""
    try:
        return os.readlink(path)
    except OSError:
        return None


def _plain(policy: Policy) -> dict[str, Any]:
    user = policy.user
    return {
        "digest": policy.digest,
        "profile": policy.profile,
        "command": policy.command,
        "user": [user.uid, user.gid, user.groups, user.name, user.home],
        "workspace": policy.workspace,
        "tmp": policy.tmp,
        "rules": [[rule.profile, rule.file, rule.line, rule.text] for rule in policy.rules],
        "reasons": policy.reasons,
        "tables": base64.b64encode(policy.tables).decode(),
        "socket_tables": base64.b64encode(policy.socket_tables).decode(),
        "paths": [[p.effect, int(p.access), p.pattern, p.exceptions, p.rule] for p in policy.paths],
        "connect": [_plain_address(entry) for entry in policy.connect],
        "listen": [_plain_address(entry) for entry in policy.listen],
        "names": [
            [name.pattern, name.port_low, name.port_high, name.protocols, name.effect, name.rule]
            for name in policy.names
        ],
        "sockets": [[entry.pattern, entry.effect, entry.rule, entry.own] for entry in policy.sockets],
        "remove": policy.environment_remove,
        "keep": policy.environment_keep,
        "set": policy.environment_set,
        "system": [getattr(policy.system, switch) for switch in SystemSwitches.__slots__],
        "sni": policy.sni,
        "audit": policy.audit,
        "folders": policy.folders,
        "mcp": policy.mcp,
    }


def _plain_address(entry: NetEntry) -> list[Any]:
    ports = [entry.port_low, entry.port_high, entry.protocols]
    return [entry.address.hex(), entry.prefix, *ports, entry.effect, entry.rule]


def _policy(kept: dict[str, Any]) -> Policy:
    uid, gid, groups, name, home = kept["user"]
    return Policy(
        digest=kept["digest"],
        profile=kept["profile"],
        command=tuple(kept["command"]),
        user=User(uid, gid, tuple(groups), name, home),
        workspace=kept["workspace"],
        tmp=kept["tmp"],
        rules=tuple(Origin(*rule) for rule in kept["rules"]),
        reasons=tuple(kept["reasons"]),
        tables=base64.b64decode(kept["tables"]),
        paths=tuple(
            PathRule(_EFFECTS[effect], _ACCESSES[access], pattern, tuple(exceptions), rule)
            for effect, access, pattern, exceptions, rule in kept["paths"]
        ),
        connect=tuple(_address(entry) for entry in kept["connect"]),
        listen=tuple(_address(entry) for entry in kept["listen"]),
        names=tuple(
            NameEntry(pattern, low, high, protocols, Effect(effect), rule)
            for pattern, low, high, protocols, effect, rule in kept["names"]
        ),
        sockets=tuple(
            SocketEntry(pattern, Effect(effect), rule, own) for pattern, effect, rule, own in kept["sockets"]
        ),
        environment_remove=tuple(kept["remove"]),
        environment_keep=tuple(kept["keep"]),
        environment_set=tuple((name, value) for name, value in kept["set"]),
        system=SystemSwitches(*kept["system"]),
        sni=SniMode(kept["sni"]),
        audit=kept["audit"],
        folders=tuple(kept["folders"]),
        socket_tables=base64.b64decode(kept["socket_tables"]),
        mcp=kept["mcp"],
    )


def _address(entry: list[Any]) -> NetEntry:
    address, prefix, low, high, protocols, effect, rule = entry
    return NetEntry(bytes.fromhex(address), prefix, low, high, protocols, Effect(effect), rule)
