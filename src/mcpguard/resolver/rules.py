"""What the policy says of a name, and of an address that a name leads to. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from mcpguard.model.access import Effect, Verdict
from mcpguard.model.policy import PROTO_TCP, PROTO_UDP, NameEntry, NetEntry
from mcpguard.model.values import dataclass, replace
from mcpguard.policy.addresses import inner
from mcpguard.policy.decide import answer_address, name_order
from mcpguard.policy.network import cut, mapped, name_matches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DNS_PORT = 53
_EVERY_PORT = (0, 65535)
_EVERY_IPV4 = 96
_LOOPBACK_V4 = mapped("127.0.0.0")
_LOOPBACK_V6 = mapped("::1")


@dataclass(frozen=True, slots=True)
class Opening:
    """Ports (inclusive) and protocols that a rule for a name opens at its addresses."""

    low: int
    high: int
    protocols: int
    rule: int


@dataclass(frozen=True, slots=True)
class Decision:
    """About one name.

    Attributes:
        verdict: ALLOW: it may be asked for. AUDIT: no rule allows it, and it is let through.
        rule: what decides; 0: no rule.
        openings: empty unless a rule for the name allows it.
        straight: the question goes to the server that the program asked, which a rule allows by its address.
    """

    verdict: Verdict
    rule: int
    openings: tuple[Opening, ...] = ()
    straight: bool = False


class Rules:
    """The part of a policy that is about names and addresses."""

    def __init__(self, names: Sequence[NameEntry], connect: Sequence[NetEntry], *, audit: bool) -> None:
        self._names = tuple(names)
        self._connect = tuple(connect)
        self._audit = audit

    @classmethod
    def from_json(cls, message: dict[str, Any]) -> Rules:
        """As `session.resolver.rules_to_json` writes it."""
        return cls(
            [
                NameEntry(name, low, high, protocols, Effect(effect), rule)
                for name, low, high, protocols, effect, rule in message["names"]
            ],
            [
                NetEntry(bytes.fromhex(address), prefix, low, high, protocols, Effect(effect), rule)
                for address, prefix, low, high, protocols, effect, rule in message["connect"]
            ],
            audit=bool(message["audit"]),
        )

    def of_name(self, name: str, server: bytes) -> Decision:
        """May this name be asked for?

        Args:
            name: lower case, without a trailing dot.
            server: whom the program asked, 16 bytes.
        """
        matching = self._matching(name)
        denied = _denials(matching)
        whole = next((entry for entry in denied if _is_whole(entry)), None)
        if whole is not None:
            return Decision(Verdict.DENY, whole.rule)
        allowed = [entry for entry in matching if entry.effect is Effect.ALLOW]
        openings = tuple(opening for entry in allowed for opening in _left_of(entry, denied))
        if openings:
            return Decision(Verdict.ALLOW, allowed[0].rule, openings)
        if allowed:
            return Decision(Verdict.DENY, denied[0].rule)
        by_address = self._of_server(server)
        if by_address:
            return Decision(Verdict.ALLOW, by_address, straight=True)
        return Decision(Verdict.AUDIT if self._audit else Verdict.DENY, 0)

    def is_above(self, name: str) -> bool:
        """Whether a rule allows something below this name. Then it must not be told not to exist: resolvers inside would take
        that for an answer about everything below.

        Args:
            name: as for `of_name`; "." is the root.
        """
        allowed = [entry.pattern for entry in self._names if entry.effect is Effect.ALLOW]
        return any(name == "." or pattern.endswith(f".{name}") for pattern in allowed)

    def of_alias(self, decision: Decision, name: str) -> Decision:
        """The same, when the name turns out to be an alias of another one: what rules deny of that one is denied."""
        denied = _denials(self._matching(name))
        whole = next((entry for entry in denied if _is_whole(entry)), None)
        if whole is not None:
            return Decision(Verdict.DENY, whole.rule)
        left = tuple(piece for opening in decision.openings for piece in _less(opening, denied))
        if decision.openings and not left:
            return Decision(Verdict.DENY, denied[0].rule)
        return replace(decision, openings=left)

    def _matching(self, name: str) -> list[NameEntry]:
        """In deciding order."""
        return sorted((e for e in self._names if name_matches(e.pattern, name)), key=name_order)

    def _of_server(self, server: bytes) -> int:
        """The rule that allows port 53 of a server by its address; 0: none. A resolver of this very host asks anybody for
        whoever comes: a rule for its local services does not mean it, one for port 53 or for every address does."""
        if not any(server):
            return 0
        entries = self._connect
        if cut(server, 104) == _LOOPBACK_V4 or server == _LOOPBACK_V6:
            entries = tuple(entry for entry in entries if entry.effect is Effect.DENY or _means_a_resolver(entry))
        answer = answer_address(entries, server, DNS_PORT, PROTO_UDP)
        return answer.rule if answer.verdict is Verdict.ALLOW else 0

    def objection(self, address: str, behind: str = "") -> str:
        """Why an answer must not tell this address, in words; empty: it may.

        An inner one that a rule by address allows may be told, for that rule to decide; a name opens none.

        Args:
            behind: the IPv4 address that a gateway carries it to; empty: none does.
        """
        words = inner(address) or (inner(behind) if behind else "")
        if words:
            return "" if self._is_spoken_of(address, Effect.ALLOW) else words
        return "a rule denies where it leads" if behind and self._is_spoken_of(behind, Effect.DENY) else ""

    def _is_spoken_of(self, address: str, effect: Effect) -> bool:
        raw = mapped(address)
        return any(
            entry.effect is effect and cut(raw, entry.prefix) == cut(entry.address, entry.prefix)
            for entry in self._connect
        )


def _means_a_resolver(entry: NetEntry) -> bool:
    return entry.prefix <= _EVERY_IPV4 or (entry.port_low, entry.port_high) == (DNS_PORT, DNS_PORT)


def _is_whole(entry: NameEntry) -> bool:
    return (entry.port_low, entry.port_high) == _EVERY_PORT and entry.protocols == PROTO_TCP | PROTO_UDP


def _denials(entries: Sequence[NameEntry]) -> list[NameEntry]:
    return [entry for entry in entries if entry.effect is Effect.DENY]


def _left_of(entry: NameEntry, denied: Sequence[NameEntry]) -> list[Opening]:
    """What an entry allows, less what others deny."""
    return _less(Opening(entry.port_low, entry.port_high, entry.protocols, entry.rule), denied)


def _less(opening: Opening, denied: Sequence[NameEntry]) -> list[Opening]:
    left = [opening]
    for other in denied:
        left = [piece for one in left for piece in _without(one, other)]
    return left


def _without(opening: Opening, denied: NameEntry) -> list[Opening]:
    both, other = opening.protocols & denied.protocols, opening.protocols & ~denied.protocols
    if not both or denied.port_high < opening.low or denied.port_low > opening.high:
        return [opening]
    pieces = [replace(opening, protocols=other)] if other else []
    if opening.low < denied.port_low:
        pieces.append(replace(opening, high=denied.port_low - 1, protocols=both))
    if denied.port_high < opening.high:
        pieces.append(replace(opening, low=denied.port_high + 1, protocols=both))
    return pieces
