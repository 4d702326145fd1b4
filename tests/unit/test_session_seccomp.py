"""The system-call filter: what the kernel need not run it for."""

from __future__ import annotations

import struct

from mcpguard.model.profile import SystemSwitches
from mcpguard.session.seccomp import build_filter

ALLOW = 0x7FFF0000
LOAD, RETURN, JUMP, AND = 0x20, 0x06, 0x05, 0x54
TESTS = {
    0x15: lambda a, k: a == k,
    0x25: lambda a, k: a > k,
    0x35: lambda a, k: a >= k,
    0x45: lambda a, k: bool(a & k),
}
NUMBER_AT, ARCHITECTURE_AT = 0, 4
# By their numbers on x86-64 and on others: open, read, stat and their like, which programs make all the time.
CALLS = range(600)


def verdict(program: list[tuple[int, int, int, int]], number: int, architecture: int) -> int | None:
    """What a filter says to a call; None when it asks for more than its number. The kernel follows it in the same way, once."""
    at, value = 0, 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == LOAD:
            if operand not in (NUMBER_AT, ARCHITECTURE_AT):
                return None
            value = number if operand == NUMBER_AT else architecture
        elif code == RETURN:
            return operand
        elif code == JUMP:
            at += operand
        elif code == AND:
            value &= operand
        elif code in TESTS:
            at += if_true if TESTS[code](value, operand) else if_false
        else:
            return None


def test_nearly_all_calls_are_let_through_by_their_number_alone() -> None:
    """For those the kernel keeps a bit and never runs the filter: one more question at its beginning, and every call pays."""
    raw = build_filter(SystemSwitches())
    program = [struct.unpack_from("=HBBI", raw, at) for at in range(0, len(raw), 8)]
    (native,) = {operand for code, _, _, operand in program[:2] if code == 0x15}
    found = [verdict(program, number, native) for number in CALLS]
    assert found.count(None) <= 8, "clone, ioctl, prlimit64, socket, socketpair, unshare"
    assert found.count(ALLOW) > 400
