"""What is left to MCP servers that a profile confines: another profile's files and network, as far as their agent has them.

What `base` opens of the system is always there. The shim puts files on inside the tree, with Landlock and a system-call filter
on top of all that holds there, so it can only take away. Landlock knows places and no exceptions in them: what the server's
profile denies or keeps readonly has to hold for the agent as well, or the run does not start. The network is put on outside.
"""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mcpguard.errors import HostError
from mcpguard.kernel import landlock
from mcpguard.mcp.policy import Kept
from mcpguard.model.access import Access, Effect
from mcpguard.model.plan import KeptPlan
from mcpguard.model.policy import NameEntry, NetEntry, PathRule, Policy
from mcpguard.model.profile import Profile
from mcpguard.model.values import dataclass, replace
from mcpguard.policy.automaton import Automaton
from mcpguard.policy.decide import automaton_of
from mcpguard.policy.patterns import split_literal
from mcpguard.profile.load import load
from mcpguard.session import network
from mcpguard.session.policy import compile_for

# Paths that one pattern with wildcards may name; further ones stay closed.
_MOST_MATCHES = 1000
_Entry = TypeVar("_Entry", NetEntry, NameEntry)
_RIGHTS = {Access.READ: landlock.READ, Access.WRITE: landlock.WRITE, Access.EXECUTE: landlock.EXECUTE}


@dataclass(frozen=True, slots=True)
class Confined:
    """What a rule leaves to the servers that it names, of what their agent has.

    Attributes:
        server: their name, with wildcards.
        rule: number of the rule in the session's policy.
        grants: path and Landlock rights.
        own: the policy of the profile that they are kept to; its rules for the network are numbered as in the session's policy.
    """

    server: str
    rule: int
    grants: list[tuple[str, int]]
    own: Policy

    @property
    def network(self) -> bool:
        """Whether anything of it is left."""
        own = self.own
        effects = {entry.effect for entry in (*own.connect, *own.listen)} | {entry.effect for entry in own.names}
        return Effect.ALLOW in effects

    def for_gate(self) -> dict[str, Any]:
        """Plain values, as `gate.servers` takes them."""
        return {"server": self.server, "grants": self.grants, "network": self.network, "kept": self.rule}

    def for_broker(self) -> KeptPlan:
        """What the kernel goes by."""
        tables = network.settings(self.own, network.fixed_names(self.own), peers=False)
        return KeptPlan(self.rule, {name: rows for name, rows in tables.items() if name != "unix"})


def confined(policy: Policy, rules: Iterable[Kept]) -> tuple[Policy, list[Confined]]:
    """The policy with these rules that keep servers to a profile, and what each of them leaves.

    Raises:
        McpguardError: a profile is not there or broken, or says what cannot be enforced for one server.
    """
    found: list[Confined] = []
    for kept in rules:
        policy, one = _confinement(policy, kept)
        found.append(one)
    return policy, found


def _confinement(policy: Policy, kept: Kept) -> tuple[Policy, Confined]:
    if landlock.abi() < 1:
        raise _impossible(kept, "this kernel has no Landlock")
    own = left_by(kept.profile, policy.workspace, audit=policy.audit)
    for rule in sorted(set(_restrictions(own)) - set(_restrictions(policy))):
        raise _impossible(kept, f"it restricts {rule[2]}, and the agent's own profile does not")
    number = len(policy.rules)
    extended = replace(
        policy,
        rules=(*policy.rules, kept.origin, *own.rules[1:]),
        reasons=(*policy.reasons, f"it is kept to the profile {kept.profile}", *own.reasons[1:]),
    )
    # Its rule 1 comes behind the one that keeps the server.
    moved = replace(
        own,
        connect=_moved(own.connect, number),
        listen=_moved(own.listen, number),
        names=_moved(own.names, number),
    )
    return extended, Confined(kept.server, number, _grants(own), moved)


def left_by(profile: str, workspace: str, *, audit: bool = False) -> Policy:
    """What a profile leaves to a server that is kept to it, whatever its agent has.

    Raises:
        McpguardError: the profile is not there or broken.
    """
    return compile_for(_with_system(load(profile, workspace=workspace)), workspace, audit=audit)


def _moved(entries: Sequence[_Entry], by: int) -> tuple[_Entry, ...]:
    return tuple(replace(entry, rule=entry.rule + by) for entry in entries)


def _with_system(profile: Profile) -> Profile:
    """With the programs, libraries and devices that `base` opens: whoever confines a server names what it works on."""
    system = (rule for rule in load("base").files if rule.effect is Effect.ALLOW and rule.pattern.startswith("/"))
    return replace(profile, files=tuple(dict.fromkeys((*profile.files, *system))))


def _restrictions(policy: Policy) -> list[tuple[str, int, str, tuple[str, ...]]]:
    return [
        (rule.effect.value, int(rule.access), rule.pattern, rule.exceptions)
        for rule in policy.paths
        if rule.effect is not Effect.ALLOW
    ]


def _grants(own: Policy) -> list[tuple[str, int]]:
    """Every place that a rule opens and that is there now."""
    automaton = automaton_of(own.tables)
    found = {path for rule in own.paths if rule.effect is Effect.ALLOW for path in _places(rule)}
    return [(path, rights) for path in sorted(found) if (rights := _rights(automaton, path))]


def _places(rule: PathRule) -> list[str]:
    base, rest = split_literal(rule.pattern)
    if rest in ("", "/**"):
        return [base]
    if "**" in rest:  # names at any depth are no place
        return []
    matches = glob.iglob(rule.pattern, include_hidden=True)
    return list(itertools.islice(matches, _MOST_MATCHES))


def _rights(automaton: Automaton, path: str) -> int:
    place = Path(path)
    if place.is_symlink() or not place.exists():
        return 0
    allowed = automaton.decision(automaton.walk(path)).allowed
    return sum(rights for access, rights in _RIGHTS.items() if access in allowed)


def _impossible(kept: Kept, why: str) -> HostError:
    return HostError(
        f"the MCP server {kept.server} cannot be kept to the profile {kept.profile}, so nothing was started",
        why=why,
        do=f"let {kept.profile} only name what the server may reach; what it must not touch there is denied to the agent",
        code="run.confine",
    )
