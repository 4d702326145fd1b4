"""Where the kernel's path automaton begins: the state at the root of every file system and at every mounted part of one.

The hooks name a file from the root of its file system. What the host calls that place stands in the mount table, so each
mount point is walked here and its state kept for the kernel. Reads no file but the mount table; changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mcpguard.kernel import mounts
from mcpguard.model.paths import is_below
from mcpguard.model.plan import GuardPlan, TablePlan
from mcpguard.model.policy import Policy
from mcpguard.policy.automaton import Automaton
from mcpguard.policy.decide import automaton_of, socket_automaton
from mcpguard.policy.image import Image, image_of
from mcpguard.wire import _abi, encode

SHARED_MEMORY = "/dev/shm"
_LONGEST = 2 * _abi.MG_BRANCH_BYTES
_INDEX_BYTES = 4
# Numbers of the places between the two pieces of a long name; no file system has so many mount roots.
_FIRST_SPARE = 1 << 16


def guard_plan(policy: Policy, mounted: Sequence[mounts.Mount]) -> GuardPlan:
    """The automata of a policy, placed on this host as it is mounted now.

    Args:
        mounted: the mount table, in its order.
    """
    return GuardPlan(
        _table(automaton_of(policy.tables), policy, mounted),
        _table(socket_automaton(policy.sockets), policy, mounted),
    )


def _table(automaton: Automaton, policy: Policy, mounted: Sequence[mounts.Mount]) -> TablePlan:
    image = image_of(automaton.tables)
    trees = _trees(mounted)
    roots: list[bytes] = []
    branches: list[bytes] = []
    for device, tree in trees.items():
        _entries(automaton, image, device, tree, roots, branches)
    for device, path in (
        (_abi.MG_KINDRED_TMPFS, policy.tmp),
        (_abi.MG_KINDRED_PROC, "/proc"),
        (_abi.MG_KINDRED_DEVPTS, "/dev/pts"),
    ):
        roots.append(encode.root_key(0, device)[_INDEX_BYTES:] + _value(automaton, image, path))
    return TablePlan(
        lines=image.lines,
        head=encode.policy_head(image.guard_masks, len(image.factors), image.protect_from, image.rules, image.guards),
        roots=b"".join(roots),
        branches=b"".join(branches),
        shared_memory=_value(automaton, image, SHARED_MEMORY),
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
    covered = _covered(mounted)
    for mount in mounted:
        if mount.number in covered or not mount.root.startswith("/") or mount.root.endswith("//deleted"):
            continue
        node = trees.setdefault(mounts.device_number(mount.device), _Node())
        for name in _names(mount.root):
            node = node.below.setdefault(name, _Node())
        if mount.point not in node.points:
            node.points.append(mount.point)
    for tree in trees.values():
        _number(tree, 0)
    return trees


def _covered(mounted: Sequence[mounts.Mount]) -> set[int]:
    """Numbers of the mounts that no path leads to: something else was mounted on them, or between them and what they stand on.

    The order of the table says nothing about that: the root of a booted system is younger than the /proc that moved into it.
    """
    there = {mount.number: mount for mount in mounted}
    on: dict[int, set[str]] = {}
    for mount in mounted:
        if mount.parent != mount.number:
            on.setdefault(mount.parent, set()).add(mount.point)

    def is_cut_off(mount: mounts.Mount) -> bool:
        return any(point != mount.point and is_below(mount.point, point) for point in on.get(mount.parent, ()))

    def way(mount: mounts.Mount) -> Iterator[mounts.Mount]:
        for _ in mounted:
            yield mount
            if mount.parent not in there:
                return
            mount = there[mount.parent]

    return {
        mount.number
        for mount in mounted
        if mount.point in on.get(mount.number, ()) or any(is_cut_off(step) for step in way(mount))
    }


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
    spare = _FIRST_SPARE
    while waiting:
        node = waiting.pop()
        for name, child in node.below.items():
            waiting.append(child)
            if len(name) > _LONGEST:
                continue  # nothing below it is known, so all of it is refused
            above = node.number
            if len(name) > _abi.MG_BRANCH_BYTES:
                spare += 1
                between = encode.place((), (0, 0, 0), 0, 0, node=spare, names=0)
                branches.append(encode.branch_key(0, device, above, name)[_INDEX_BYTES:] + between)
                above, name = spare, name[_abi.MG_BRANCH_BYTES :]
            for number, value in enumerate(_values(automaton, image, child)):
                branches.append(encode.branch_key(0, device, above, name, number)[_INDEX_BYTES:] + value)


def _values(automaton: Automaton, image: Image, node: _Node) -> list[bytes]:
    """One value for each mount point that the rules tell from the others; one without a state for a directory that is only on
    the way. What has more than MG_NAMES_LIMIT of them is refused as a whole by the kernel: none of them may be left out.
    """
    if not node.points:
        return [encode.place((), (0, 0, 0), 0, 0, node=node.number, names=0)]
    states = dict.fromkeys(automaton.walk(point) for point in node.points)
    kept = list(states)[: _abi.MG_NAMES_LIMIT + 1]
    return [encode.place(*image.place(state), node=node.number, names=len(kept)) for state in kept]


def _value(automaton: Automaton, image: Image, path: str, *, node: int = 0, names: int = 1) -> bytes:
    return encode.place(*image.place(automaton.walk(path)), node=node, names=names)
