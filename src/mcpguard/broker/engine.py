"""All BPF of one session: armed on the leaf before the request is there, then given its rules, handed out by descriptor."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from mcpguard.backends import cgroup_bpf, tracing
from mcpguard.backends import engine as shared
from mcpguard.broker import tiers
from mcpguard.errors import HostError, PolicyError
from mcpguard.kernel.cgroup import Leaf
from mcpguard.model.access import Effect
from mcpguard.wire import _abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mcpguard.backends.guard import Guard
    from mcpguard.model.plan import GuardPlan, KeptPlan
    from mcpguard.wire.encode import HostRow, NetRow, UnixRow

_RINGS = (shared.DENIALS, shared.ACTIVITY, shared.MESSAGES)
_ALL_PORTS = (0, 65535)
_TCP_AND_UDP, _UDP = 3, 2


class Engine:
    """From `__enter__` on every act that the programs judge is refused; from `go_live` on they go by what `set_rules` says.

    What is armed outlives this process for as long as anything lives in the leaf.
    """

    def __init__(self, leaf: Leaf, audit: bool, tier: int | None, resolver: int = 0) -> None:
        """
        Args:
            resolver: port on 127.0.0.1 and ::1 where questions for names go; 0: they are judged like other requests.
        """
        self._canary: tuple[Effect, int] | None = None
        self._flags = _abi.MG_SESSION_LIVE | cgroup_bpf.Settings(audit=audit).flags
        self._leaf = leaf
        self._asked = tier
        self.resolver = resolver
        self._guard: Guard | None = None
        self._policies = (0, 0)
        self._plan: GuardPlan | None = None
        self._own_places: dict[str, int] | None = None
        self._stack = contextlib.ExitStack()

    def only_landlock(self) -> bool:
        """Whether no better tier will be tried, so that nothing judges what lives in the leaf before it is armed."""
        return tiers.is_last(self._asked)

    def __enter__(self) -> Engine:
        try:
            armed = tiers.arm(self._leaf, self._asked)
            self.tier, self._reasons = armed.tier, armed.reasons
            self._session = armed.session
            self.files_fixed = tiers.files_fixed(armed)
            self._stack.callback(armed.engine.close)
            self._stack.callback(self._session.close)
            self._stack.callback(self.release)
            if self.tier != tiers.LANDLOCK:
                from mcpguard.backends.guard import Guard

                self._guard = Guard(self._session)
            self._tracing = tracing.Tracing(self._session)
            self._network = cgroup_bpf.attach(self._session)
            missing = [*self._network.detach_verify(), *tracing.detach_verify(armed.engine)]
            if missing:
                raise HostError(
                    "not every BPF program is armed, so nothing was started",
                    why=f"the kernel does not list {', '.join(missing)} for the session",
                    do="run `mcpguard doctor` and report its output",
                    code="run.not-armed",
                )
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def release(self) -> None:
        """End what lives in the leaf, then take the session out; what cannot be ended stays guarded. Safe to call twice."""
        with contextlib.suppress(OSError):
            self._leaf.kill()
        if self._leaf.await_empty():
            self._session.remove(apart=True)

    def go_live(self) -> None:
        """Have the programs ask the session's tables, which are empty still, or even on their way into the session's slots."""
        self._session.set_state(self._flags, resolver=self.resolver, early=True)

    def set_rules(self, network: dict[str, Any], *, keeps: bool = False) -> None:
        """Fill the tables from the request; before this every destination is refused.

        Args:
            keeps: there will be servers that are kept to less, whose canary these tables have to let through.
        """
        self._canary = (Effect.ALLOW, 0) if keeps else None
        rows = _rows(network, self._canary)
        if len(rows) < len(_ROWS):
            raise _malformed(f"only {', '.join(rows) or 'nothing'} came")
        self._network.set_rules(cgroup_bpf.Settings(**rows))

    def keep(self, kept: Sequence[KeptPlan]) -> dict[int, Leaf]:
        """Make a leaf below the session's for each, with what is left there; by the rules that keep them.

        Raises:
            HostError, PolicyError, KernelError, OSError: what is there already goes with the session.
        """
        below: dict[int, Leaf] = {}
        leaves = []
        for one in kept:
            rows = {name: row for name, row in _rows(one.network, (Effect.DENY, one.rule)).items() if name != "unix"}
            leaf = below[one.rule] = self._leaf.below(str(one.rule))
            leaves.append((leaf.id, one.rule, cgroup_bpf.Settings(**rows)))
        if leaves:
            self._network.keep(leaves)
        return below

    def offer(self) -> dict[str, Any]:
        """What the user's process must know before it plans."""
        lacking = {}
        if self._guard is not None:
            from mcpguard.backends import guard

            lacking = guard.lacking(self._session.engine.programs)
        return {
            "tier": self.tier,
            "reasons": {str(tier): why for tier, why in self._reasons.items()},
            "preemption": tiers.preemption() if self.tier == 2 else "",
            "files_fixed": self.files_fixed,
            "rings": self._tells_of_rings(),
            "lacking": {str(need): list(hooks) for need, hooks in lacking.items()},
            "unix": self._network.unix,
            "tracepoint": tracing.why_everybody_pays(self._session.engine),
        }

    def watch_rings(self) -> None:
        """Put on record what is done through io_uring, on a kernel that takes programs for that.

        Raises:
            KernelError: the kernel refused what it took before.
        """
        if self._tells_of_rings():
            self._session.engine.attach_wanted()

    def _tells_of_rings(self) -> bool:
        return all(map(self._session.engine.has, shared.RINGS))

    def set_guard(self, plan: GuardPlan, switches: int) -> None:
        """Write the policy of files and sockets where `arm` finds it.

        Args:
            switches: MG_SESSION_* of what the profile permits besides.
        """
        if self._guard is None:
            return
        self._policies = self._guard.set_policy(plan)
        self._plan = plan
        self._flags |= switches | (_abi.MG_SESSION_PEERS if self.tier == 1 else 0)

    def update(self, network: dict[str, Any], plan: GuardPlan | None) -> None:
        """Replace what an armed session goes by: all of it, or nothing when something is wrong with a part.

        No decision sees a part of a table. Files change first, destinations a moment later.

        Args:
            network: as for `set_rules`, with those of its tables that change.
            plan: None: what the hooks go by stays.

        Raises:
            HostError, PolicyError: the tables are malformed or do not fit.
            KernelError: the kernel refused.
        """
        tables = self._network.prepared(**_rows(network, self._canary))
        before = self._policies
        try:
            if plan is not None and self._guard is not None and self._own_places is not None:
                policies = self._guard.set_policy(plan)
                self._guard.add_own_places(policies, self._own_places, plan)
                self._policies = policies
                self._set_state()
            tables.take_over()
        except BaseException:
            tables.drop()
            if self._policies != before:
                self._policies = before
                self._set_state()
            raise

    def drop_resolver(self) -> None:
        """Nobody answers questions for names any more, and its port may become somebody else's."""
        self.resolver = 0
        self._set_state()

    def _set_state(self) -> None:
        files = _abi.MG_SESSION_FILES if self._own_places is not None else 0
        self._session.set_state(self._flags | files, *self._policies, self.resolver)

    def arm(self, own_places: dict[str, int]) -> None:
        """From the return on the session's tables are where all programs look, and the hooks judge every act of the leaf by the
        policy.

        Args:
            own_places: numbers of the file systems that the session has for itself (OWN_PLACES).
        """
        self._session.await_maps()
        if self._guard is None or self._plan is None:
            return
        self._own_places = own_places
        self._guard.add_own_places(self._policies, own_places, self._plan)
        self._set_state()

    def descriptors(self) -> tuple[int, ...]:
        """Rings, counters, sums and what the resolver needs, in the order of `facts()["descriptors"]`."""
        return tuple(self._session.fds.values())

    def facts(self) -> dict[str, Any]:
        """What the user's process needs to know about the descriptors it gets."""
        return {
            "descriptors": list(self._session.fds),
            "kept": [one.slot for one in self._session.kept],
            "rings": {name: self._session.sizes[name] for name in _RINGS},
        }

    def final(self) -> dict[str, Any]:
        """Counts that no record has reported yet, as `[series, count]`, and whether anything was exchanged; to be read
        when the tree has ended.
        """
        return {
            "sums": self._session.final_counts(),
            "exchanged": self._session.exchanged(),
            "missed": self._guard.missed() if self._guard is not None else 0,
            "unrecorded": self._tracing.missed(),
        }


def _rows(network: dict[str, Any], kept_canary: tuple[Effect, int] | None) -> dict[str, Any]:
    """The tables that came, as `cgroup_bpf.Settings` has them.

    Args:
        kept_canary: what happens to the canary of kept servers, and by which rule.

    Raises:
        HostError, PolicyError: they are malformed, or leave no room for a canary.
    """
    try:
        rows = {name: read(network[name]) for name, read in _ROWS.items() if name in network}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _malformed(f"{type(error).__name__}: {error}") from error
    if kept_canary is not None and "connect" in rows:
        rows["connect"] = _with_kept_canary(rows["connect"], *kept_canary)
    return {name: tuple(row) for name, row in rows.items()}


def _malformed(why: str) -> HostError:
    return HostError(
        "the broker refused malformed network rules",
        why=why,
        do="reinstall mcpguard, then run `mcpguard setup`",
        code="broker.malformed-request",
    )


def _connect_rows(rows: list[Any]) -> list[NetRow]:
    own = _canary_address()
    made = [row for row in _net_rows(rows) if row[:2] != (own, 128)]
    return [*made, (own, 128, [(*_ALL_PORTS, _TCP_AND_UDP, Effect.DENY, 0)])]


def _net_rows(rows: list[Any]) -> list[NetRow]:
    return [(_address(address), int(prefix), [_port_rule(port) for port in ports]) for address, prefix, ports in rows]


def _with_kept_canary(rows: list[NetRow], effect: Effect, rule: int) -> list[NetRow]:
    """The rows, and what happens to the canary of kept servers; else its address keeps what the rows say of it.

    Raises:
        PolicyError: a rule of that very address denies what these servers have to be able to try.
    """
    address, port = _kept_canary()
    covering = [row for row in rows if _covers(row, address)]
    _, prefix, ports = max(covering, key=lambda row: row[1], default=(address, 0, []))
    deciding = next((one for one in ports if one[0] <= port <= one[1] and one[2] & _UDP), None)
    if prefix == 128 and effect is Effect.ALLOW and deciding and deciding[3] is Effect.DENY:
        shown = ".".join(map(str, address[-4:]))
        raise PolicyError(
            f"a rule denies {shown}:{port}/udp, where servers of mcp.confine show that they are kept",
            why="before such a server starts, it has to be refused there by its own rules, and not by the session's",
            do=f"name the other ports or /tcp in the rule for {shown}, or take mcp.confine away",
            code="policy.canary",
        )
    rest = [row for row in rows if row[:2] != (address, 128)]
    return [*rest, (address, 128, [(port, port, _UDP, effect, rule), *ports])]


def _covers(row: NetRow, address: bytes) -> bool:
    beyond = 128 - row[1]
    return int.from_bytes(row[0]) >> beyond == int.from_bytes(address) >> beyond


def _canary_address() -> bytes:
    from mcpguard.broker.canary import ADDRESS

    return _mapped(ADDRESS)


def _kept_canary() -> tuple[bytes, int]:
    from mcpguard.model.plan import KEPT_CANARY

    address, port = KEPT_CANARY
    return _mapped(address), port


def _mapped(address: str) -> bytes:
    return b"\0" * 10 + b"\xff\xff" + bytes(int(part) for part in address.split("."))


def _address(text: str) -> bytes:
    address = bytes.fromhex(text)
    if len(address) != 16:
        raise ValueError("an address is 16 bytes")
    return address


def _port_rule(port: list[int]) -> tuple[int, int, int, Effect, int]:
    low, high, protocols, allowed, rule = (int(value) for value in port)
    return low, high, protocols, Effect.ALLOW if allowed else Effect.DENY, rule


def _host_row(row: list[Any]) -> HostRow:
    pattern, ports = row
    if not isinstance(pattern, str):
        raise ValueError("a host is a text")
    return pattern, [_port_rule(port) for port in ports]


def _unix_row(row: list[Any]) -> UnixRow:
    pattern, allowed, rule = row
    if not isinstance(pattern, str):
        raise ValueError("a socket pattern is a text")
    return pattern, Effect.ALLOW if allowed else Effect.DENY, int(rule)


_ROWS: dict[str, Callable[[Any], list[Any]]] = {
    "connect": _connect_rows,
    "listen": _net_rows,
    "hosts": lambda rows: [_host_row(row) for row in rows],
    "unix": lambda rows: [_unix_row(row) for row in rows],
}
