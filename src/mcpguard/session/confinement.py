"""What is left to MCP servers that a profile confines: another profile's files and network, as far as their agent has them.

What `base` opens of the system is always there. The shim puts it on inside the tree, with Landlock and a system-call filter on
top of all that holds there, so it can only take away. Landlock knows places and no exceptions in them: what the server's
profile denies or keeps readonly has to hold for the agent as well, or the run does not start.
"""

from __future__ import annotations

import glob
import itertools
import json
from pathlib import Path
from typing import Any

from mcpguard.errors import HostError
from mcpguard.kernel import landlock
from mcpguard.model.access import Access, Effect
from mcpguard.model.policy import PathRule, Policy
from mcpguard.model.profile import Profile
from mcpguard.model.values import replace
from mcpguard.policy.automaton import Automaton
from mcpguard.policy.decide import automaton_of
from mcpguard.policy.patterns import split_literal
from mcpguard.profile.load import load
from mcpguard.session.policy import compile_for

# Paths that one pattern with wildcards may name; further ones stay closed.
_MOST_MATCHES = 1000
_RIGHTS = {Access.READ: landlock.READ, Access.WRITE: landlock.WRITE, Access.EXECUTE: landlock.EXECUTE}


def confined(policy: Policy) -> list[dict[str, Any]]:
    """For each rule `server`, `grants` (path and Landlock rights) and `network`: whether the agent's is left.

    Raises:
        McpguardError: a profile is not there or broken, or says what cannot be enforced for one server.
    """
    return [_confinement(policy, server, name) for server, name in json.loads(policy.mcp)["confined"]]


def _confinement(policy: Policy, server: str, name: str) -> dict[str, Any]:
    if landlock.abi() < 1:
        raise _impossible(server, name, "this kernel has no Landlock")
    own = compile_for(_with_system(load(name, workspace=policy.workspace)), policy.workspace)
    for rule in sorted(set(_restrictions(own)) - set(_restrictions(policy))):
        raise _impossible(server, name, f"it restricts {rule[2]}, and the agent's own profile does not")
    effects = {*(entry.effect for entry in own.connect), *(entry.effect for entry in own.names)}
    named = Effect.ALLOW in effects
    return {"server": server, "grants": _grants(own), "network": named}


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
    matches = glob.iglob(rule.pattern, include_hidden=True)  # noqa: PTH207 - a whole pattern, as absolute as it is
    return list(itertools.islice(matches, _MOST_MATCHES))


def _rights(automaton: Automaton, path: str) -> int:
    place = Path(path)
    if place.is_symlink() or not place.exists():
        return 0
    allowed = automaton.decision(automaton.walk(path)).allowed
    return sum(rights for access, rights in _RIGHTS.items() if access in allowed)


def _impossible(server: str, name: str, why: str) -> HostError:
    return HostError(
        f"the MCP server {server} cannot be kept to the profile {name}, so nothing was started",
        why=why,
        do=f"let {name} only name what the server may reach; what it must not touch there is denied to the agent",
        code="run.confine",
    )
