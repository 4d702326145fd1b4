"""All BPF of one session: armed on the leaf before the request is there, then given its rules, handed out by descriptor."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mcpguard.backends import base, cgroup_bpf, tracing
from mcpguard.broker.canary import ADDRESS
from mcpguard.errors import HostError
from mcpguard.kernel.cgroup import Leaf
from mcpguard.model.access import Effect
from mcpguard.wire.encode import NetRow, UnixRow

_RINGS = ("mg_denials", "mg_activity")
_ALL_PORTS = (0, 65535)
_TCP_AND_UDP = 3


class Engine:
    """Armed from `__enter__` on. What is attached to the leaf outlives this object; tracing lives while a link is held."""

    def __init__(self, leaf: Leaf, audit: bool) -> None:
        self._audit = audit
        self._leaf = leaf
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Engine:
        try:
            shared = base.create_shared()
            self._stack.callback(shared.close)
            # The kernel verifies programs without our interpreter's lock: side by side they load 25 ms sooner.
            with ThreadPoolExecutor(1) as pool:
                trace = pool.submit(tracing.attach, self._leaf.id, shared)
                closed = cgroup_bpf.Settings(audit=self._audit)
                self._network = cgroup_bpf.attach(closed, self._leaf.fd, self._leaf.id, shared)
                self._stack.callback(self._network.close)
                self._tracing = trace.result()
                self._stack.callback(self._tracing.close)
            missing = [*self._network.detach_verify(), *self._tracing.detach_verify()]
        except BaseException:
            self._stack.close()
            raise
        if missing:
            self._stack.close()
            raise HostError(
                "not every BPF program is armed, so nothing was started",
                why=f"the kernel does not list {', '.join(missing)} on the session's cgroup",
                do="run `mcpguard doctor` and report its output",
                code="run.not-armed",
            )
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def set_rules(self, network: dict[str, Any]) -> None:
        """Fill the tables from the request; before this every destination is refused."""
        self._network.set_rules(_settings(network))

    def _shared_out(self) -> dict[str, int]:
        return {**self._network.fds, **self._tracing.fds}

    def descriptors(self) -> tuple[int, ...]:
        """Rings, counters, sums and links, in the order of `facts()["descriptors"]`."""
        return tuple(self._shared_out().values())

    def facts(self) -> dict[str, Any]:
        """What the user's process needs to know about the descriptors it gets."""
        return {
            "descriptors": list(self._shared_out()),
            "rings": {name: self._network.sizes[name] for name in _RINGS},
            "unix": self._network.unix,
        }

    def update_connect(self, rows: list[Any]) -> None:
        """Replace the destinations with what the user's process resolved meanwhile."""
        self._network.update_connect(_net_rows(rows, canary=True))

    def final(self) -> dict[str, Any]:
        """Counts that no record has reported yet, as `[series, count]`; to be read when the tree has ended."""
        sums = [*self._network.final_counts(), *self._tracing.final_counts()]
        return {"sums": [[one.series, one.count] for one in sums]}


def _settings(network: dict[str, Any]) -> cgroup_bpf.Settings:
    try:
        return cgroup_bpf.Settings(
            connect=tuple(_net_rows(network["connect"], canary=True)),
            listen=tuple(_net_rows(network["listen"], canary=False)),
            unix=tuple(_unix_row(row) for row in network["unix"]),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise HostError(
            "the broker refused malformed network rules",
            why=f"{type(error).__name__}: {error}",
            do="reinstall mcpguard, then run `mcpguard setup`",
            code="broker.malformed-request",
        ) from error


def _net_rows(rows: list[Any], *, canary: bool) -> list[NetRow]:
    made: list[NetRow] = [
        (_address(address), int(prefix), [_port_rule(port) for port in ports])
        for address, prefix, ports in rows
        if (int(prefix), address) != (128, _canary_address().hex())
    ]
    if canary:
        made.append((_canary_address(), 128, [(*_ALL_PORTS, _TCP_AND_UDP, Effect.DENY, 0)]))
    return made


def _canary_address() -> bytes:
    return b"\0" * 10 + b"\xff\xff" + bytes(int(part) for part in ADDRESS.split("."))


def _address(text: str) -> bytes:
    address = bytes.fromhex(text)
    if len(address) != 16:
        raise ValueError("an address is 16 bytes")
    return address


def _port_rule(port: list[int]) -> tuple[int, int, int, Effect, int]:
    low, high, protocols, allowed, rule = (int(value) for value in port)
    return low, high, protocols, Effect.ALLOW if allowed else Effect.DENY, rule


def _unix_row(row: list[Any]) -> UnixRow:
    pattern, allowed, rule = row
    if not isinstance(pattern, str):
        raise ValueError("a socket pattern is a text")
    return pattern, Effect.ALLOW if allowed else Effect.DENY, int(rule)
