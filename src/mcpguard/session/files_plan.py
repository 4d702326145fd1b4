"""Policy to tier-3 plan: which paths Landlock grants, and which places the private mount namespace changes.

Landlock can only add: what it grants on a directory holds for everything below. So the automaton is walked over the
real tree, and wherever it allows less than an ancestor was granted, a mount step takes the rest away: `ro` for writes,
`noexec` for programs, `mask` for everything. Reads the file system as the user; changes nothing.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence

from mcpguard.kernel import mounts
from mcpguard.model.access import Access, Effect
from mcpguard.model.paths import is_below
from mcpguard.model.plan import FilesPlan, Grant, MountStep
from mcpguard.model.policy import PathRule, Policy
from mcpguard.model.profile import NAMESPACE_MAPS
from mcpguard.model.values import replace
from mcpguard.model.wildcards import Wildcards
from mcpguard.policy.automaton import NOBODYS_NAME, Automaton, State
from mcpguard.policy.patterns import split_literal
from mcpguard.session.files_state import ALL, OPEN, Progress, Walk, met, remember_way, shown
from mcpguard.session.files_walk import visit


def plan_files(
    policy: Policy,
    automaton: Automaton,
    *,
    sockets: Sequence[str] = (),
    progress: Progress = lambda visited, path: None,
    wide: bool = False,
) -> FilesPlan:
    """Make the plan for this host as it is now.

    Args:
        policy: compiled; its paths are canonical where they exist.
        automaton: the policy's own.
        sockets: canonical paths of unix sockets that exist now and that the policy refuses.
        progress: called now and then with the number of names looked at and the current directory.
        wide: the kernel's hooks keep what merely no rule allows (`FilesPlan.wide`).

    Raises:
        PolicyError: the plan would need more look-ups or mounts than is sensible.
    """
    if policy.audit:
        return _plan_of_denials(policy, _scannable(policy), sockets, progress)
    walk = _new_walk(policy, automaton, _scannable(policy), sockets, progress)
    # Landlock cannot grant what belongs to processes that do not exist yet, and those that do are not the agent's.
    granting = [rule for rule in policy.paths if rule.pattern not in NAMESPACE_MAPS]
    for base, depth in _places(granting):
        _find_candidates(walk, base, depth)
    if wide:
        # Where a floating pattern is looked for costs as much as ever; elsewhere the hooks alone know it.
        made = _plan_of_denials(policy, _allowed_parts(walk), sockets, progress)
        grants = tuple(Grant(path, access) for path, access in _without_repeats(walk))
        return replace(made, grants=grants, wide=True)
    for rule in granting:
        _find_open_directory(walk, policy, rule)
    return _finish(walk, policy.paths)


def _plan_of_denials(
    policy: Policy, scannable: tuple[str, ...], sockets: Sequence[str], progress: Progress
) -> FilesPlan:
    """Everything is let through but explicit denials: one grant on `/`, and the automaton of the deny rules alone."""
    rules = [rule for rule in policy.paths if rule.effect is not Effect.ALLOW]
    rules.append(PathRule(Effect.ALLOW, ALL, "/", (), 0))
    walk = _new_walk(policy, Automaton.build(rules), scannable, sockets, progress)
    walk.grants["/"] = ALL
    for place in scannable:
        remember_way(walk, place)
    return _finish(walk, rules)


def _scannable(policy: Policy) -> tuple[str, ...]:
    return tuple(dict.fromkeys((policy.workspace, policy.user.home, policy.tmp)))


def _allowed_parts(walk: Walk) -> tuple[str, ...]:
    """Of the trees in which patterns are looked for, what is granted."""
    whole = [root for root in walk.scannable if _granted_on_the_way(walk.grants, root)]
    parts = [path for path in walk.grants if any(is_below(path, root) for root in walk.scannable)]
    return tuple(dict.fromkeys((*whole, *parts)))


def cover_at(plan: FilesPlan, path: str, access: Access) -> MountStep | None:
    """The step that keeps `access` from a path that the rules come to allow; None: no mount does."""
    found: MountStep | None = None
    for step in plan.steps:
        if not is_below(path, step.path):
            continue
        if step.op in ("mask", "hide"):
            shown = [entry.kind for entry in step.entries if is_below(path, f"{step.path}/{entry.path}")]
            kept = next((kind for kind in shown if kind.startswith("keep")), "")
            found = None if kept == "keep-rw" or (kept and Access.WRITE not in access) else step
        elif step.op == "noexec":
            found = step if Access.EXECUTE in access else found
        elif step.op in ("ro", "link"):
            found = step if Access.WRITE in access else found
        elif found is not None and found.op == "ro":
            found = None
    return found


def _new_walk(
    policy: Policy, automaton: Automaton, scannable: tuple[str, ...], sockets: Sequence[str], progress: Progress
) -> Walk:
    return Walk(automaton, scannable, {}, set(), {}, sockets, progress, beginnings(policy.paths))


def beginnings(rules: Iterable[PathRule]) -> Wildcards:
    """Every name that can stand right behind a `**`, and more.

    To the automaton `?` and `[...]` are bytes, and `[^x]` is a negation: what a shell's pattern leaves out must not be left out
    here, so anything may stand from there on.
    """
    return Wildcards(
        re.sub(r"\*?[?[].*", "*", after, count=1, flags=re.DOTALL)
        for rule in rules
        for pattern in (rule.pattern, *rule.exceptions)
        if "**/" in pattern
        for before, after in itertools.pairwise(pattern.split("/"))
        if before == "**"
    )


def _finish(walk: Walk, rules: Sequence[PathRule]) -> FilesPlan:
    for path in (*walk.grants, *walk.open_directories):
        remember_way(walk, path)
    for base, depth in _places(rule for rule in rules if rule.effect is not Effect.ALLOW):
        _find_protected(walk, base, depth)
    visit(walk)
    _mask_sockets(walk)
    _cover_borrowed_trees(walk)
    if walk.missing:
        missing = ", ".join(sorted(set(walk.missing)))
        walk.gaps.append(f"not there yet, so it cannot be made inside; make it first if it is needed: {missing}")
    for path in sorted(walk.unscanned):
        walk.gaps.append(
            f"patterns with * or ** are not looked for below {path}; names there are not hidden one by one"
        )
    for path in sorted(walk.open_directories):
        walk.gaps.append(
            f"a protected name that is created directly in {path} while the session runs is reported, not stopped"
        )
    hidden = tuple(_hidden(why, paths) for why, paths in sorted(walk.hidden.items()))
    grants = [Grant(path, access) for path, access in _without_repeats(walk)]
    return FilesPlan(
        grants=tuple(grants),
        steps=tuple(sorted(walk.steps, key=lambda step: step.path.count("/") if step.path != "/" else 0)),
        open_directories=tuple(sorted(walk.open_directories)),
        gaps=(*hidden, *walk.gaps),
        hidden=hidden,
        visited=walk.visited,
    )


def _hidden(why: str, paths: Sequence[str]) -> str:
    """One sentence about directories that are hidden for the same reason."""
    reason = f"it {why}, so names in it cannot be protected one by one"
    others = f" (and {len(paths) - 1} more like it)" if len(paths) > 1 else ""
    return f"{shown(min(paths))} is hidden{others}: {reason}"


def _mask_sockets(walk: Walk) -> None:
    """Hide the sockets themselves: the network hook sees only the string a program gave, and a symlink could stand for it."""
    hidden = {step.path for step in walk.steps if step.op in ("mask", "hide")}
    for path in walk.sockets:
        if not any(is_below(path, mask) for mask in hidden):
            walk.add(MountStep("hide", path))


def _cover_borrowed_trees(walk: Walk) -> None:
    """Hide what is bind-mounted into the home, the workspace or the temporary directory from where less is allowed.

    A rule on the outer tree would hold for it, though its real place is elsewhere: the home bound into the workspace.
    """
    mounted = mounts.table()
    for mount in mounted:
        inside = any(mount.point.startswith(root + "/") for root in walk.scannable if root != "/")
        real = mounts.real_place(mount, mounted) if inside else None
        if real is None:
            continue
        here = walk.automaton.allowed(walk.automaton.walk(mount.point))
        state = walk.automaton.walk(real)
        if here & ~walk.automaton.allowed(state) or not walk.automaton.uniform(state):
            walk.add(MountStep("mask", mount.point, os.path.isdir(mount.point)))
            walk.gaps.append(f"{mount.point} is hidden: it is {real}, mounted a second time")


def _without_repeats(walk: Walk) -> Iterable[tuple[str, Access]]:
    """Grants that an ancestor does not hold already."""
    granted: dict[str, Access] = {}
    merged = dict(walk.grants)
    for path in walk.open_directories:
        merged[path] = merged.get(path, Access.NONE) | OPEN
    for path in sorted(merged):
        above = Access.NONE if path == "/" else _granted_on_the_way(granted, os.path.dirname(path))
        if merged[path] & ~above:
            granted[path] = merged[path]
            yield path, merged[path]


def _granted_on_the_way(grants: Mapping[str, Access], path: str) -> Access:
    """What is granted on a path and on everything above it."""
    granted = grants.get("/", Access.NONE)
    while path != "/":
        granted |= grants.get(path, Access.NONE)
        path = os.path.dirname(path)
    return granted


def _places(rules: Iterable[PathRule]) -> list[tuple[str, int]]:
    """The literal beginning of each pattern and how many components follow it, the fewest first. What a `**` names is left out:
    it is found where it may be looked for.
    """
    patterns = (_split_literal(pattern) for rule in rules for pattern in (rule.pattern, *rule.exceptions))
    return sorted({(base, len(rest)) for base, rest in patterns if "**" not in rest}, key=lambda place: place[1])


def _find_candidates(walk: Walk, base: str, depth: int) -> None:
    """Grant what the automaton allows on `base`, or else on every path that exists so many levels below."""
    if not depth:
        _grant(walk, base)
    elif _may_list(walk, base):
        _grant_below(walk, base, walk.automaton.walk(base), depth, _granted_on_the_way(walk.grants, base))


def _may_list(walk: Walk, base: str) -> bool:
    return base != "/" and walk.kind(base) == stat.S_IFDIR


def _find_protected(walk: Walk, base: str, depth: int) -> None:
    """Remember the way to what a deny or readonly rule names, so that it is reached where directories are not listed."""
    if not depth:
        remember_way(walk, base)
    elif _may_list(walk, base):
        _remember_matches(walk, base, walk.automaton.walk(base), depth)


def _remember_matches(walk: Walk, directory: str, state: State, depth: int) -> None:
    here = walk.automaton.allowed(state)
    for entry, below in met(walk, directory, state):
        if walk.automaton.allowed(below) != here:
            remember_way(walk, entry.path)
        if depth > 1 and entry.is_dir(follow_symlinks=False):
            _remember_matches(walk, entry.path, below, depth - 1)


@functools.lru_cache(maxsize=1024)  # each pattern of a policy is asked for twice
def _split_literal(pattern: str) -> tuple[str, list[str]]:
    """`/a/b*/c` to (`/a`, [`b*`, `c`])."""
    base, rest = split_literal(pattern)
    return base, rest.split("/")[1:]


def _grant(walk: Walk, path: str) -> None:
    if walk.kind(path) is None:
        return
    allowed = walk.automaton.allowed(walk.automaton.walk(path))
    if allowed and _is_canonical(walk, path):
        # A policy holds the canonical form of a rule beside it, so a path through a symlink needs no grant of its own.
        walk.grants[path] = walk.grants.get(path, Access.NONE) | allowed


def _is_canonical(walk: Walk, path: str) -> bool:
    """No symlink on the way, nor at its end; of an existing path without detours."""
    known = walk.canonical.get(path)
    if known is None:
        known = path == "/" or (walk.kind(path) != stat.S_IFLNK and _is_canonical(walk, os.path.dirname(path)))
        walk.canonical[path] = known
    return known


def _grant_below(walk: Walk, directory: str, state: State, depth: int, above: Access) -> None:
    """`above`: what is granted to the directory, and so to each name in it already."""
    for entry, below in met(walk, directory, state):
        allowed = walk.automaton.allowed(below)
        if allowed & ~above and not entry.is_symlink():
            walk.grants[entry.path] = walk.grants.get(entry.path, Access.NONE) | allowed
        if depth > 1 and entry.is_dir(follow_symlinks=False):
            _grant_below(walk, entry.path, below, depth - 1, above | walk.grants.get(entry.path, Access.NONE))


def _is_closed_on_purpose(walk: Walk, directory: str) -> bool:
    """Whether a rule, not the default, keeps new names out of a directory."""
    decision = walk.automaton.decision(walk.automaton.walk(f"{directory}/{NOBODYS_NAME}"))
    return Access.WRITE not in decision.allowed and decision.write_rule != 0


def _find_open_directory(walk: Walk, policy: Policy, rule: PathRule) -> None:
    """A write rule for names that do not exist yet needs their directory, inside the home only.

    The home itself is opened only for a rule that names siblings in it (`~/.agent.json*`): a shell start-up file that does
    not exist yet could be planted there.
    """
    if rule.effect is not Effect.ALLOW or not rule.access & Access.WRITE:
        return
    home = policy.user.home
    base, rest = _split_literal(rule.pattern)
    if not rest:
        if walk.kind(base) is not None:
            return
        missing, base = base, os.path.dirname(base)
        if is_below(base, home) and (base == home or not os.path.isdir(base)):
            walk.missing.append(missing)
            return
    if rest[:1] == ["**"] or home == "/" or not is_below(base, home):
        return
    if walk.kind(base) != stat.S_IFDIR or not _is_canonical(walk, base):
        return
    if _is_closed_on_purpose(walk, base):
        # Landlock knows no names: all that does not exist there would be open with it.
        walk.missing.append(rule.pattern)
        return
    if Access.WRITE not in walk.automaton.allowed(walk.automaton.walk(base)):
        walk.open_directories.add(base)
