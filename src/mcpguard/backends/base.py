"""What a backend gives back when it is armed, and the maps that all BPF backends of a session share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from mcpguard.errors import HostError, KernelError
from mcpguard.kernel import bpf
from mcpguard.wire import _abi, decode, encode
from mcpguard.wire.records import SumRecord

HANDED_OUT = ("mg_denials", "mg_activity", "mg_counters")


@dataclass(slots=True)
class Attachment:
    """One armed backend.

    Attributes:
        fds: descriptors to keep or to hand over: rings, counters, maps of sums (`sums.*`), links (`link.*`). Closing a
            link ends that attachment; closing the others ends nothing.
        sizes: bytes of each ring's data area, by the names in `fds`.
        programs: kernel numbers of the attached programs, by name.
    """

    fds: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    programs: dict[str, int] = field(default_factory=dict)

    def final_counts(self) -> list[SumRecord]:
        """What the aggregates had counted and not yet sent; to be read when the tree has ended.

        Together with all records it gives the exact numbers, unless an aggregate of activity was pushed out by newer ones
        or the ring was full.

        Raises:
            KernelError: a map cannot be read.
        """
        counts = []
        for name, fd in self.fds.items():
            if name.startswith("sums."):
                counts += decode.remainders(bpf.read_values(fd, _abi.MG_SUM.size, name))
        return counts

    def close(self) -> None:
        """Close all descriptors; safe to call twice."""
        for fd in self.fds.values():
            with contextlib.suppress(OSError):
                os.close(fd)
        self.fds.clear()


def create_shared() -> bpf.Shared:
    """Make the rings and counters of a session. Raises KernelError."""
    return bpf.create_shared(_abi.MG_COUNTERS.size, _abi.MG_NAME.size)


@contextlib.contextmanager
def opened(name: str, shared: bpf.Shared, config: bytes) -> Iterator[bpf.Object]:
    """Open an object of the package for this session; it is closed at the end, attached programs stay.

    Raises:
        HostError: the object is missing or was built from another contract.
        KernelError: libbpf or the kernel refused it.
    """
    loaded = bpf.Object(name)
    try:
        version = encode.configured_version(loaded.configuration())
        if version != _abi.ABI_VERSION:
            raise HostError(
                f"the BPF object {name} does not fit this mcpguard",
                why=f"it speaks version {version} of the contract, this is version {_abi.ABI_VERSION}",
                do="reinstall mcpguard; in a source tree run `make bpf`",
                code="host.object-version",
            )
        loaded.configure(config)
        loaded.lend(shared.fds)
        yield loaded
    finally:
        loaded.close()


def lend_out(attachment: Attachment, shared: bpf.Shared) -> None:
    """Give an attachment descriptors of its own for the shared maps that only carry records."""
    for name in HANDED_OUT:
        attachment.fds[name] = os.dup(shared.fds[name])
    attachment.sizes.update(shared.sizes)


def has_program(cgroup: int, kind: int, program: int) -> bool:
    """Whether the kernel still lists this program on the cgroup; a question it refuses counts as no."""
    try:
        return program in bpf.attached_programs(cgroup, kind)
    except KernelError:
        return False
