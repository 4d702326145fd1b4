"""Network and unix socket verdicts by BPF programs on the session's cgroup leaf.

Programs are attached to the cgroup itself, so they outlive every process of ours and go when the cgroup goes. A program that
cannot be attached stops the launch; only the unix socket part, which old kernels do not have, is reported as missing instead.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from mcpguard.backends.engine import UNIX_PROGRAMS, Session
from mcpguard.errors import KernelError
from mcpguard.kernel import bpf
from mcpguard.model.values import dataclass, field
from mcpguard.wire import _abi, encode

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


@dataclass(frozen=True, slots=True)
class Settings:
    """Plain values, as they come out of JSON.

    Attributes:
        connect, listen: rows of `wire.encode.NetRow`.
        unix: rows of `wire.encode.UnixRow`.
        audit: what only the default denies is let through and recorded.
        allow_relative: let relative unix socket paths without `..` through; only right when every directory that the tree can
            work in is one whose sockets are allowed.
    """

    connect: tuple[encode.NetRow, ...] = ()
    listen: tuple[encode.NetRow, ...] = ()
    unix: tuple[encode.UnixRow, ...] = ()
    audit: bool = False
    allow_relative: bool = False

    @property
    def flags(self) -> int:
        """What the session's state has to say of them."""
        return (self.audit and _abi.MG_SESSION_AUDIT) | (self.allow_relative and _abi.MG_SESSION_RELATIVE)


@dataclass(slots=True)
class CgroupAttachment:
    """The armed backend.

    Attributes:
        programs: kernel numbers of the attached programs, by name.
    """

    session: Session
    programs: dict[str, int] = field(default_factory=dict)
    _rows: dict[bytes, bytes] = field(default_factory=dict)
    _update: threading.Lock = field(default_factory=threading.Lock)

    @property
    def unix(self) -> bool:
        """Whether unix sockets are enforced (kernel 6.7 and newer)."""
        return not UNIX_PROGRAMS.keys() - self.programs.keys()

    def set_rules(self, settings: Settings) -> None:
        """Fill the tables. Until then every destination, listener and socket is refused.

        Raises:
            PolicyError: a row does not fit.
            KernelError: a map refused one.
        """
        self.update_connect(settings.connect)
        for key, value in encode.prefix_table(settings.listen).items():
            self.session.maps["mg_listen"].set(key, value)
        if "mg_unix_rules" in self.session.maps:
            self.session.maps["mg_unix_rules"].set(bytes(4), encode.unix_table(settings.unix))

    def update_connect(self, rows: Iterable[encode.NetRow]) -> None:
        """Replace the destinations: new and changed ones first, then what is gone, so nothing allowed in both is ever refused.

        Raises:
            PolicyError: a row does not fit.
            KernelError: the map refused one; earlier rows are in.
        """
        wanted = encode.prefix_table(rows)
        table = self.session.maps["mg_connect"]
        with self._update:
            for key, value in wanted.items():
                if self._rows.get(key) != value:
                    table.set(key, value)
                    self._rows[key] = value
            for key in set(self._rows) - set(wanted):
                table.delete(key)
                del self._rows[key]

    def detach_verify(self) -> list[str]:
        """Programs that should be on the cgroup and are not; empty: all are armed."""
        kinds = {**NETWORK, **UNIX_PROGRAMS}
        return [
            name
            for name, number in self.programs.items()
            if not _has_program(self.session.leaf_fd, kinds[name], number)
        ]


def attach(session: Session, *, guard_unix: bool = True) -> CgroupAttachment:
    """Attach everything to the session's leaf. Until the session's state says that it lives, all is refused.

    Raises:
        KernelError: nothing that matters was attached; remove the leaf.
    """
    attachment = CgroupAttachment(session)
    unix = UNIX_PROGRAMS if guard_unix and all(map(session.engine.has, UNIX_PROGRAMS)) else {}
    for name, kind in {**NETWORK, **unix}.items():
        program = session.engine.program(name)
        bpf.attach_cgroup(program, session.leaf_fd, kind, name)
        attachment.programs[name] = bpf.program_id(program)
    return attachment


def _has_program(cgroup: int, kind: int, program: int) -> bool:
    """Whether the kernel still lists this program on the cgroup; a question it refuses counts as no."""
    try:
        return program in bpf.attached_programs(cgroup, kind)
    except KernelError:
        return False
