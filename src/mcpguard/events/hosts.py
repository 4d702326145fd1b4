"""The names that addresses were learned by, for events that only know an address."""

from __future__ import annotations

from collections.abc import Mapping

from mcpguard.wire.records import LookupRecord

# Addresses that are remembered; the oldest make room.
MOST = 20_000


class Hosts:
    """Textual address -> name: the newest that the deciding rule is for, else the newest at all."""

    def __init__(self, names: Mapping[str, str]) -> None:
        """
        Args:
            names: of addresses that need no looking up.
        """
        self._fixed = names
        self._learned: dict[str, dict[int, str]] = {}

    def add(self, record: LookupRecord) -> None:
        """Remember the addresses of an answer."""
        for address in record.addresses:
            by_rule = self._learned.pop(address, {})
            by_rule.pop(record.rule, None)
            self._learned[address] = {**by_rule, record.rule: record.host}
        while len(self._learned) > MOST:
            del self._learned[next(iter(self._learned))]

    def of(self, address: str, rule: int = 0) -> str | None:
        """The name of an address; None: it was not learned by one."""
        by_rule = self._learned.get(address)
        if not by_rule:
            return self._fixed.get(address)
        return by_rule.get(rule) or next(reversed(by_rule.values()))
