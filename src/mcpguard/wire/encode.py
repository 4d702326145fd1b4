"""Rules as map keys and values. Pure: no map is touched here.

The kernel takes the longest prefix and then the first rule that matches, so a row must already carry what less exact
prefixes say (`policy.network.connect_table` does that), and denies are put first here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence

from mcpguard.errors import PolicyError
from mcpguard.model.access import Effect
from mcpguard.model.values import dataclass
from mcpguard.wire import _abi

PortRule = tuple[int, int, int, Effect | str, int]
"""low, high, protocols (PROTO_TCP | PROTO_UDP), effect, rule id"""

NetRow = tuple[bytes, int, Sequence[PortRule]]
"""address (16 bytes, network order, IPv4 mapped), prefix (0 to 128), port rules"""

HostRow = tuple[str, Sequence[PortRule]]
"""name, `*.` and a name, or empty for what names no host; port rules"""

UnixRow = tuple[str, Effect | str, int]
"""pattern, effect, rule id. A path stands for itself and all below (`/**` at its end says the same), `@name` for one abstract
socket; `*` at the end of either: every name that begins so; `[*]` in a path: the character itself."""


def prefix_table(rows: Iterable[NetRow]) -> dict[bytes, bytes]:
    """Keys and values for the maps `mg_connect` and `mg_listen`.

    Raises:
        PolicyError: more port rules on one prefix than the kernel side holds.
    """
    return {_prefix_key(address, prefix): _port_rules(rules) for address, prefix, rules in rows}


def _prefix_key(address: bytes, prefix: int) -> bytes:
    kept = int.from_bytes(address, "big") >> (128 - prefix) << (128 - prefix)
    return _abi.MG_PREFIX.pack(prefix, kept.to_bytes(16, "big"))


def _port_rules(rules: Sequence[PortRule]) -> bytes:
    if len(rules) > _abi.MG_PORT_RULES_LIMIT:
        raise PolicyError(
            "too many port rules for one address",
            why=f"{len(rules)} rules meet at one address; {_abi.MG_PORT_RULES_LIMIT} fit",
            do="join ports into ranges, or drop rules that a wider one covers",
            code="policy.port-rules",
        )
    packed = b"".join(
        _abi.MG_PORT_RULE.pack(rule, low, high, protocols, _verdict(effect), b"")
        for low, high, protocols, effect, rule in sorted(rules, key=lambda r: _verdict(r[3]) != _abi.MG_DENY)
    )
    return _abi.MG_PORT_RULES.pack(len(rules), packed)


def host_table(rows: Iterable[HostRow]) -> dict[bytes, bytes]:
    """Keys and values for the map `mg_hosts`.

    Raises:
        PolicyError: more port rules on one name than the kernel side holds.
    """
    return {_host_key(pattern): _port_rules(rules) for pattern, rules in rows}


def _host_key(pattern: str) -> bytes:
    """Names stand backwards, so that a trie finds the longest end."""
    key = bytes([_abi.MG_HOST_NONE])
    if pattern.startswith("*"):
        key = bytes([_abi.MG_HOST_NAMED]) + pattern[:0:-1].encode()
    elif pattern:
        key = bytes([_abi.MG_HOST_NAMED]) + pattern[::-1].encode() + b"\0"
    return _abi.MG_HOST_KEY.pack(8 * len(key), key)


def unix_table(rows: Sequence[UnixRow]) -> bytes:
    """The one value of the map `mg_unix_rules`.

    Raises:
        PolicyError: too many rules, or a pattern that is too long or has a wildcard elsewhere than at its end.
    """
    if len(rows) > _abi.MG_UNIX_RULES_LIMIT:
        raise PolicyError(
            "too many unix socket rules",
            why=f"{len(rows)} rules, {_abi.MG_UNIX_RULES_LIMIT} fit",
            do="name a directory with /** in place of its sockets",
            code="policy.unix-rules",
        )
    packed = b"".join(_unix_rule(*row) for row in sorted(rows, key=lambda r: _verdict(r[1]) != _abi.MG_DENY))
    return _abi.MG_UNIX_RULES.pack(len(rows), packed)


# As `policy.patterns.quote` writes a character that means something in a pattern.
_QUOTED = re.compile(r"\[([*?\[\\{}])\]")


def _unix_rule(pattern: str, effect: Effect | str, rule: int) -> bytes:
    abstract = pattern.startswith("@")
    body, match = pattern, _abi.MG_UNIX_EXACT if abstract else _abi.MG_UNIX_SUBTREE
    if pattern.endswith("/**") and not abstract:
        body = pattern.removesuffix("/**")
    elif pattern.endswith("*"):
        body, match = pattern.removesuffix("*"), _abi.MG_UNIX_BEGINNING
    if match == _abi.MG_UNIX_SUBTREE:
        body = body.rstrip("/")
    plain = body
    if not abstract:
        body, plain = (_QUOTED.sub(by, body) for by in (r"\1", ""))
    encoded = body.encode(errors="surrogateescape")
    if abstract:
        encoded = b"\0" + encoded[1:]
    if len(encoded) > _abi.MG_SUN_BYTES or any(c in plain for c in "*?["):
        raise PolicyError(
            f"the socket pattern {pattern} cannot be enforced",
            why="a socket rule is a path of at most 108 bytes, with * or /** at its end at most",
            do="name the directory, or the socket itself",
            code="policy.unix-pattern",
        )
    return _abi.MG_UNIX_RULE.pack(rule, _verdict(effect), match, len(encoded), 0, encoded)


@dataclass(frozen=True, slots=True)
class LearnedRule:
    """Ports of an address that a name has opened.

    Attributes:
        expires_ns: CLOCK_MONOTONIC; no new flow begins from then on.
        low, high: ports, inclusive; protocols: PROTO_TCP | PROTO_UDP; rule: the id of the rule for the name.
    """

    expires_ns: int
    rule: int
    low: int
    high: int
    protocols: int


def learned(rules: Sequence[LearnedRule]) -> bytes:
    """Value of the map `mg_names`; at most MG_LEARNED_LIMIT rules."""
    packed = b"".join(
        _abi.MG_LEARNED_RULE.pack(rule.expires_ns, rule.rule, rule.low, rule.high, rule.protocols, b"")
        for rule in rules
    )
    return _abi.MG_LEARNED.pack(len(rules), 0, packed)


def question_key(address: bytes, port: int, protocol: int) -> bytes:
    """Key of the map `mg_questions`: where a question came from.

    Args:
        address: 16 bytes, IPv4 mapped.
        protocol: IPPROTO_TCP or IPPROTO_UDP.
    """
    return _abi.MG_QUESTION_KEY.pack(address, port, protocol)


def configured_version(value: bytes) -> int:
    """The ABI version that a compiled object carries."""
    return int(_abi.MG_CONFIG.unpack(value)[0])


def policy_head(
    guard_masks: tuple[int, int, int], factors: int, protect_from: int, rules: int, guards: int, telling: int
) -> bytes:
    """Value of the map `mg_policies`; see `policy.image.Image`."""
    masks = b"".join(mask.to_bytes(8, sys.byteorder) for mask in guard_masks)
    bits = b"".join((telling >> at & (1 << 64) - 1).to_bytes(8, sys.byteorder) for at in range(0, 256, 64))
    return _abi.MG_POLICY.pack(masks, factors, protect_from, rules, guards, bits)


def place(
    at: Sequence[int] = (),
    ranks: Sequence[int] = (0, 0, 0),
    matched: int = 0,
    excepted: int = 0,
    pinned: bool = False,
    *,
    node: int = 0,
    names: int = 1,
) -> bytes:
    """Value of the maps `mg_roots` and `mg_branches`.

    Args:
        at, ranks, matched, excepted, pinned: a state of the automaton, as `policy.image.Image.place` gives it.
        node: of the tree of mount roots; 0: no mount root lies below.
        names: mount points that show this very place; 0: it is only on the way to one.
    """
    lines = b"".join(one.to_bytes(4, sys.byteorder) for one in at).ljust(4 * _abi.MG_FACTORS_LIMIT, b"\0")
    raised = b"".join(one.to_bytes(4, sys.byteorder) for one in ranks)
    return _abi.MG_PLACE.pack(_abi.MG_STATE.pack(lines, raised, int(pinned), matched, excepted), node, names)


def root_key(policy: int, device: int, name: int = 0) -> bytes:
    """Key of the map `mg_roots`; `name` counts the mount points of one place from 0."""
    return _abi.MG_ROOT_KEY.pack(policy, device, name, 0)


def branch_key(policy: int, device: int, node: int, rest: bytes, name: int = 0) -> bytes:
    """Key of the map `mg_branches`: the next piece of a name of which `rest` is left."""
    return _abi.MG_BRANCH_KEY.pack(policy, device, node, len(rest), name, rest[: _abi.MG_BRANCH_BYTES])


def _verdict(effect: Effect | str) -> int:
    return _abi.MG_ALLOW if effect == Effect.ALLOW else _abi.MG_DENY
