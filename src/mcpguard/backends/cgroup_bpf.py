"""Network and unix socket verdicts by BPF programs on the session's cgroup leaf.

Programs are attached to the cgroup itself, so they outlive every process of ours and go when the cgroup goes. A program that
cannot be attached stops the launch; only the unix socket part, which old kernels do not have, is reported as missing instead.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from mcpguard.backends import base
from mcpguard.errors import KernelError
from mcpguard.kernel import bpf
from mcpguard.wire import encode

# Attach types of the kernel, by program.
NETWORK = {
    "mg_ingress": 0,
    "mg_egress": 1,
    "mg_sock_create": 2,
    "mg_bind4": 8,
    "mg_bind6": 9,
    "mg_connect4": 10,
    "mg_connect6": 11,
    "mg_sendmsg4": 14,
    "mg_sendmsg6": 15,
    "mg_recvmsg4": 19,
    "mg_recvmsg6": 20,
}
UNIX = {"mg_connect_unix": 49, "mg_sendmsg_unix": 50}
_PROGRAM_CGROUP_SOCK_ADDR = 18
# What kernels before 6.7 answer to an attach type or a function that they do not know.
_NO_SUCH_HOOK = (errno.EINVAL, errno.ESRCH, errno.ENOENT)


@dataclass(frozen=True, slots=True)
class Settings:
    """Plain values, as they come out of JSON.

    Attributes:
        connect, listen: rows of `wire.encode.NetRow`.
        unix: rows of `wire.encode.UnixRow`; `guard_unix` False leaves unix sockets alone.
        audit: what only the default denies is let through and recorded.
        allow_relative: let relative unix socket paths without `..` through; only right when every directory that the tree can
            work in is one whose sockets are allowed.
    """

    connect: tuple[encode.NetRow, ...] = ()
    listen: tuple[encode.NetRow, ...] = ()
    unix: tuple[encode.UnixRow, ...] = ()
    guard_unix: bool = True
    audit: bool = False
    allow_relative: bool = False


@dataclass(slots=True)
class CgroupAttachment(base.Attachment):
    """The armed backend. `unix` tells whether unix sockets are enforced (kernel 6.7 and newer)."""

    cgroup: int = -1
    unix: bool = False
    _table: bpf.Map | None = None
    _listen: bpf.Map | None = None
    _unix: bpf.Map | None = None
    _rows: dict[bytes, bytes] = field(default_factory=dict)
    _update: threading.Lock = field(default_factory=threading.Lock)

    def set_rules(self, settings: Settings) -> None:
        """Fill the tables. Until then every destination, listener and socket is refused.

        Raises:
            PolicyError: a row does not fit.
            KernelError: a map refused one.
        """
        self.update_connect(settings.connect)
        if self._listen is not None:
            for key, value in encode.prefix_table(settings.listen).items():
                self._listen.set(key, value)
        if self._unix is not None:
            self._unix.set(bytes(4), encode.unix_table(settings.unix))

    def update_connect(self, rows: Iterable[encode.NetRow]) -> None:
        """Replace the destinations: new and changed ones first, then what is gone, so nothing allowed in both is ever refused.

        Raises:
            PolicyError: a row does not fit.
            KernelError: the map refused one; earlier rows are in.
        """
        wanted = encode.prefix_table(rows)
        with self._update:
            if self._table is None:
                raise ValueError("the attachment is closed")
            for key, value in wanted.items():
                if self._rows.get(key) != value:
                    self._table.set(key, value)
                    self._rows[key] = value
            for key in set(self._rows) - set(wanted):
                self._table.delete(key)
                del self._rows[key]

    def detach_verify(self) -> list[str]:
        """Programs that should be on the cgroup and are not; empty: all are armed."""
        kinds = {**NETWORK, **UNIX}
        return [
            name for name, number in self.programs.items() if not base.has_program(self.cgroup, kinds[name], number)
        ]

    def close(self) -> None:
        """Close our descriptors. The programs stay on the cgroup."""
        base.Attachment.close(self)
        with self._update:
            for table in (self._table, self._listen, self._unix):
                if table is not None:
                    table.close()
            self._table = self._listen = self._unix = None
        if self.cgroup >= 0:
            os.close(self.cgroup)
            self.cgroup = -1


def attach(settings: Settings, cgroup_fd: int, cgroup_id: int, shared: bpf.Shared) -> CgroupAttachment:
    """Load and attach everything to the leaf.

    Args:
        cgroup_fd: an open directory of the leaf; a copy is kept.
        cgroup_id: what `bpf_get_current_cgroup_id` gives inside.
        shared: from `base.create_shared`.

    Raises:
        HostError, KernelError, PolicyError: nothing that matters was attached; remove the leaf.
    """
    attachment = CgroupAttachment(cgroup=os.dup(cgroup_fd))
    config = encode.configuration(cgroup_id, audit=settings.audit, allow_relative=settings.allow_relative)
    try:
        base.lend_out(attachment, shared)
        _arm_network(attachment, shared, config)
        if settings.guard_unix:
            attachment.unix = _arm_unix(attachment, shared, config)
        attachment.set_rules(settings)
    except BaseException:
        attachment.close()
        raise
    return attachment


def _arm_network(attachment: CgroupAttachment, shared: bpf.Shared, config: bytes) -> None:
    with base.opened("network", shared, config) as loaded:
        loaded.load()
        attachment._table = loaded.map("mg_connect")
        attachment._listen = loaded.map("mg_listen")
        for name in ("mg_net_sums", "mg_net_denied"):
            attachment.fds[f"sums.{name}"] = loaded.map(name).fd
        _attach_all(attachment, loaded, NETWORK)


def _arm_unix(attachment: CgroupAttachment, shared: bpf.Shared, config: bytes) -> bool:
    """Arm the unix socket programs; False where the kernel has no such hook."""
    with base.opened("unix", shared, config) as loaded:
        for name, kind in UNIX.items():
            loaded.set_kind(name, _PROGRAM_CGROUP_SOCK_ADDR, kind)
        try:
            loaded.load()
        except KernelError as error:
            if error.errno in _NO_SUCH_HOOK:
                return False
            raise
        attachment._unix = loaded.map("mg_unix_rules")
        for name in ("mg_unix_sums", "mg_unix_denied"):
            attachment.fds[f"sums.{name}"] = loaded.map(name).fd
        _attach_all(attachment, loaded, UNIX)
    return True


def _attach_all(attachment: CgroupAttachment, loaded: bpf.Object, kinds: dict[str, int]) -> None:
    for name, kind in kinds.items():
        program = loaded.program(name)
        bpf.attach_cgroup(program, attachment.cgroup, kind, name)
        attachment.programs[name] = bpf.program_id(program)
