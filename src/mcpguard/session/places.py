"""Where the kernel's path automaton begins: the state at the root of every file system and at every mounted part of one.

The hooks name a file from the root of its file system. What the host calls that place stands in the mount table, so each
mount point is walked here and its state kept for the kernel. Reads no file but the mount table; changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mcpguard.kernel import mounts, terminals
from mcpguard.model.plan import OWN_PLACES, GuardPlan, TablePlan
from mcpguard.model.policy import Policy
from mcpguard.model.values import dataclass, field
from mcpguard.policy.automaton import Automaton
from mcpguard.policy.decide import automaton_of, sockets_of
from mcpguard.policy.image import Image, image_of
from mcpguard.wire import _abi, encode

_INDEX_BYTES = 4
# Numbers of the places between the pieces of a long name; no file system has so many mount roots.
_FIRST_SPARE = 1 << 16


def guard_plan(
    policy: Policy, mounted: Sequence[mounts.Mount], own_terminals: Iterable[tuple[str, int]] = ()
) -> GuardPlan:
    """The automata of a policy, placed on this host as it is mounted now.

    The hooks know who made a socket, so they need no rule for the session's own.

    Args:
        mounted: the mount table.
        own_terminals: file system and number of those that the session was started on.
    """
    mounted = placed(mounted, own_terminals)
    return GuardPlan(
        table_plan(automaton_of(policy.tables), policy.tmp, mounted),
        table_plan(sockets_of(policy, foreign=True), policy.tmp, mounted),
    )


def placed(mounted: Sequence[mounts.Mount], own_terminals: Iterable[tuple[str, int]]) -> list[mounts.Mount]:
    """What the policy has places for: no devpts of the host's, as the session has one of its own, but the own terminals."""
    own = [mounts.Mount(device, f"/{index}", f"{terminals.FOLDER}/{index}", False) for device, index in own_terminals]
    return [*(mount for mount in mounts.visible(mounted) if mount.kind != terminals.FILE_SYSTEM), *own]


def table_plan(automaton: Automaton, tmp: str, mounted: Sequence[mounts.Mount]) -> TablePlan:
    """One automaton, placed on a host with these mounts.

    Args:
        tmp: the temporary directory, like which a tmpfs of the tree's own is judged.
    """
    image = image_of(automaton.tables)
    trees = _trees(mounted)
    roots: list[bytes] = []
    branches: list[bytes] = []
    for device, tree in trees.items():
        _entries(automaton, image, device, tree, roots, branches)
    for device, path in (
        (_abi.MG_KINDRED_TMPFS, tmp),
        (_abi.MG_KINDRED_PROC, "/proc"),
        (_abi.MG_KINDRED_DEVPTS, terminals.FOLDER),
    ):
        roots.append(encode.root_key(0, device)[_INDEX_BYTES:] + _value(automaton, image, path))
    return TablePlan(
        lines=image.lines,
        head=encode.policy_head(
            image.guard_masks, len(image.factors), image.protect_from, image.rules, image.guards, image.telling
        ),
        roots=b"".join(roots),
        branches=b"".join(branches),
        **{field: _value(automaton, image, point) for point, field in OWN_PLACES.items()},
    )


@dataclass(slots=True)
class _Node:
    """One directory of a file system on the way to a mount root.

    Attributes:
        points: where it is mounted; empty: it is only on the way.
        number: of its tree; set when it has children.
    """

    points: list[str] = field(default_factory=list)
    below: dict[bytes, _Node] = field(default_factory=dict)
    number: int = 0


def _trees(mounted: Sequence[mounts.Mount]) -> dict[int, _Node]:
    """For each device, the tree of its mount roots. What cannot be reached by its path any more is left out."""
    trees: dict[int, _Node] = {}
    for mount in mounts.visible(mounted):
        if not mount.root.startswith("/") or mount.root.endswith("//deleted"):
            continue
        node = trees.setdefault(mounts.device_number(mount.device), _Node())
        for name in _names(mount.root):
            node = node.below.setdefault(name, _Node())
        if mount.point not in node.points:
            node.points.append(mount.point)
    for tree in trees.values():
        _prune(tree, frozenset())
        _number(tree, 0)
    return trees


def _prune(node: _Node, known: frozenset[str]) -> None:
    """Leave out what is mounted where it is anyway, by a mount of a directory above: it has no second name."""
    node.points = [point for point in node.points if point not in known]
    for name, child in list(node.below.items()):
        last = name.decode("utf-8", "surrogateescape")
        _prune(child, frozenset(f"{point.rstrip('/')}/{last}" for point in known.union(node.points)))
        if not child.points and not child.below:
            del node.below[name]


def _names(root: str) -> list[bytes]:
    return [name.encode("utf-8", "surrogateescape") for name in root.split("/") if name]


def _number(node: _Node, taken: int) -> int:
    if node.below:
        taken += 1
        node.number = taken
        for child in node.below.values():
            taken = _number(child, taken)
    return taken


def _entries(
    automaton: Automaton, image: Image, device: int, tree: _Node, roots: list[bytes], branches: list[bytes]
) -> None:
    for number, value in enumerate(_values(automaton, image, tree)):
        roots.append(encode.root_key(0, device, number)[_INDEX_BYTES:] + value)
    waiting = [tree]
    between: dict[bytes, int] = {}
    while waiting:
        node = waiting.pop()
        for name, child in node.below.items():
            waiting.append(child)
            above = node.number
            while len(name) > _abi.MG_BRANCH_BYTES:
                key = encode.branch_key(0, device, above, name)[_INDEX_BYTES:]
                above, name = between.setdefault(key, _FIRST_SPARE + len(between)), name[_abi.MG_BRANCH_BYTES :]
            for number, value in enumerate(_values(automaton, image, child)):
                branches.append(encode.branch_key(0, device, above, name, number)[_INDEX_BYTES:] + value)
    for key, number in between.items():
        branches.append(key + encode.place(node=number, names=0))


def _values(automaton: Automaton, image: Image, node: _Node) -> list[bytes]:
    """One value for each mount point that the rules tell from the others; one without a state for a directory that is only
    on the way. More than MG_NAMES_LIMIT: the kernel refuses what is there, so one above it says as much as all."""
    if not node.points:
        return [encode.place(node=node.number, names=0)]
    states = list(dict.fromkeys(automaton.walk(point) for point in node.points))[: _abi.MG_NAMES_LIMIT + 1]
    return [encode.place(*image.place(state), node=node.number, names=len(states)) for state in states]


def _value(automaton: Automaton, image: Image, path: str) -> bytes:
    return encode.place(*image.place(automaton.walk(path)))
