"""The addresses that names have opened, in the kernel's map of the session, which this process alone writes."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Sequence

from mcpguard.errors import KernelError, McpguardError
from mcpguard.kernel.bpf import Map
from mcpguard.policy.network import mapped
from mcpguard.resolver.rules import Opening
from mcpguard.wire import _abi
from mcpguard.wire.encode import LearnedRule, learned

# Programs look a name up and connect a while later; and the kernel's clock is not the answer's.
SHORTEST_S = 60
GRACE_S = 30
# Nobody is told to keep an answer for longer: what a program still holds is still open.
LONGEST_S = 3600
# Addresses that give way at once where there is no room.
_AT_ONCE = 256
_SECOND_NS = 1_000_000_000


class NoRoom(Exception):
    """An address could not be opened, so its name must not be answered."""


class Learned:
    """What is in the map. A resolver that was started anew does not know what an earlier one has put there, and adds to it."""

    def __init__(self, names: Map) -> None:
        self._map = names
        self._rules: dict[bytes, list[LearnedRule]] = {}

    def open(self, addresses: Iterable[str], openings: Sequence[Opening], ttl_s: float) -> None:
        """Let the tree reach these addresses from now on, for as long as the answer holds and a while longer.

        Raises:
            NoRoom: not all of it is in the map.
        """
        now_ns = time.monotonic_ns()
        until_ns = now_ns + int((max(ttl_s, SHORTEST_S) + GRACE_S) * _SECOND_NS)
        keys = [mapped(address) for address in addresses]
        for key in keys:
            self._add(key, openings, now_ns, until_ns, keys)

    def _add(
        self, key: bytes, openings: Sequence[Opening], now_ns: int, until_ns: int, together: Sequence[bytes]
    ) -> None:
        held = self._held(key)
        # One for each range of ports; the newest rule that opens it stands for all.
        rules = {(rule.low, rule.high, rule.protocols): rule for rule in held if rule.expires_ns > now_ns}
        for opening in openings:
            ports = (opening.low, opening.high, opening.protocols)
            before = rules.get(ports)
            expires_ns = max(until_ns, before.expires_ns) if before else until_ns
            rules[ports] = LearnedRule(expires_ns, opening.rule, *ports)
        wanted = list(rules.values())
        if len(wanted) > _abi.MG_LEARNED_LIMIT:
            raise NoRoom(f"more than {_abi.MG_LEARNED_LIMIT} different ranges of ports at one address")
        try:
            self._write(key, wanted, together)
        except McpguardError as error:
            raise NoRoom(error.why) from error

    def _write(self, key: bytes, rules: list[LearnedRule], together: Sequence[bytes]) -> None:
        try:
            self._map.set(key, learned(rules))
        except KernelError as error:
            if error.errno != errno.E2BIG:
                raise
            self._make_room(together)
            self._map.set(key, learned(rules))
        self._rules[key] = rules

    def _make_room(self, together: Sequence[bytes]) -> None:
        """Take out what is too old; and of what the rule with the most addresses has opened, that which is too old soonest.

        So a wildcard whose server makes up addresses without end stands in its own way and in nobody else's.

        Args:
            together: addresses of the answer that is to be told; these stay.
        """
        self.sweep()
        of_rule: dict[tuple[int, ...], list[tuple[int, bytes]]] = {}
        for key in {*self._map.keys(16)} - {*together}:
            rules = self._held(key)
            by = tuple(sorted({rule.rule for rule in rules}))
            of_rule.setdefault(by, []).append((max((rule.expires_ns for rule in rules), default=0), key))
        most = max(of_rule.values(), key=lambda held: len(held), default=[])
        for _, key in sorted(most)[:_AT_ONCE]:
            self._take_out(key)

    def _held(self, key: bytes) -> list[LearnedRule]:
        return self._rules.get(key) or self._found(key)

    def _take_out(self, key: bytes) -> None:
        self._map.delete(key)
        self._rules.pop(key, None)

    def _found(self, key: bytes) -> list[LearnedRule]:
        value = self._map.get(key, _abi.MG_LEARNED.size)
        if value is None:
            return []
        count, _, packed = _abi.MG_LEARNED.unpack(value)
        each = list(_abi.MG_LEARNED_RULE.iter_unpack(packed))[:count]
        return [LearnedRule(*rule[:5]) for rule in each]

    def sweep(self) -> None:
        """Take out what is too old to open anything."""
        now_ns = time.monotonic_ns()
        for key in self._map.keys(16):
            if all(rule.expires_ns <= now_ns for rule in self._held(key)):
                self._take_out(key)
