"""Sparse rows in one array of cells: every edge of every state has a cell, which says whose it is. Pure."""

from __future__ import annotations

from array import array

from mcpguard.policy.tables import NOBODY

# Rows are fitted among this many of the last cells. Holes further back are left to states with one edge; looking at all
# cells made packing take the square of their number.
PACKING_WINDOW = 8_192
Packed = tuple["array[int]", "array[int]", "array[int]"]


def pack_rows(states: int, single: list[tuple[int, int, int]], fans: list[tuple[int, list[tuple[int, int]]]]) -> Packed:
    """Lay the edges of all states over one another in one array of cells.

    Args:
        states: how many.
        single: (state, byte, target) of states with one edge.
        fans: (state, [(byte, target), ...]) of states with more.

    Returns:
        base per state; owner and target per cell. 256 cells follow the last base.
    """
    base = array("I", bytes(4 * states))
    owner: dict[int, int] = {}
    target: dict[int, int] = {}
    used, low = 0, 0
    for state, edges in sorted(fans, key=lambda fan: -len(fan[1])):
        blocked = 0
        for byte, _ in edges:
            blocked |= used >> byte
        row = (~blocked & (blocked + 1)).bit_length() - 1
        base[state] = low + row
        for byte, following in edges:
            used |= 1 << (row + byte)
            owner[low + row + byte] = state
            target[low + row + byte] = following
        surplus = used.bit_length() - PACKING_WINDOW
        if surplus > PACKING_WINDOW:
            used >>= surplus
            low += surplus
    cell = 255
    for state, byte, following in single:
        while cell in owner:
            cell += 1
        base[state] = cell - byte
        owner[cell] = state
        target[cell] = following
        cell += 1
    size = max(base) + 256
    owners = array("I", [NOBODY]) * size
    targets = array("I", bytes(4 * size))
    for index, state in owner.items():
        owners[index] = state
        targets[index] = target[index]
    return base, owners, targets
