"""How many bytes went to and came from each destination: the kernel's counts, read now and then.

A count that grew becomes an event `traffic` with what it grew by, so adding up gives the whole. What could not be read stays
for the next time.
"""

from __future__ import annotations

import time

from mcpguard.errors import KernelError
from mcpguard.kernel.bpf import read_entries
from mcpguard.wire import _abi, decode
from mcpguard.wire.records import FlowRecord

_KEY, _VALUE = _abi.MG_FLOW_KEY, _abi.MG_FLOW


class Flows:
    """The map of one session. One thread at a time."""

    def __init__(self, fd: int) -> None:
        """
        Args:
            fd: the map `mg_flows`; stays the caller's.
        """
        self._fd = fd
        self._told: dict[bytes, tuple[int, int]] = {}

    def grown(self) -> list[FlowRecord]:
        """What went and came since the last call, by destination; nothing where the kernel does not say."""
        try:
            entries = read_entries(self._fd, _KEY.size, _VALUE.size, "mg_flows")
        except (KernelError, OSError):
            return []
        now_ns = time.monotonic_ns()
        found = []
        for key, value in dict(entries).items():
            sent, received = _VALUE.unpack(value)
            before = self._told.get(key, (0, 0))
            if (sent, received) != before:
                self._told[key] = (sent, received)
                found.append(decode.flow(key, now_ns, sent - before[0], received - before[1]))
        return found
