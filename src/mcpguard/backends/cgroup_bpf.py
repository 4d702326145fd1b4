"""Network and unix socket verdicts by BPF programs on the session's cgroup leaf.

Programs are attached to the cgroup itself, so they outlive every process of ours and go when the cgroup goes. A program that
cannot be attached stops the launch; only the unix socket part, which old kernels do not have, is reported as missing instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mcpguard.backends.engine import UNIX_PROGRAMS, Session
from mcpguard.errors import KernelError, McpguardError
from mcpguard.kernel import bpf
from mcpguard.model.values import dataclass, field
from mcpguard.wire import _abi, encode

# Attach types of the kernel, by program.
NETWORK = {
    "mg_ingress": 0,
    "mg_egress": 1,
    "mg_sock_create": 2,
    "mg_tcp_events": 3,
    "mg_bind4": 8,
    "mg_bind6": 9,
    "mg_connect4": 10,
    "mg_connect6": 11,
    "mg_sendmsg4": 14,
    "mg_sendmsg6": 15,
    "mg_recvmsg4": 19,
    "mg_recvmsg6": 20,
    "mg_getpeername4": 29,
    "mg_getpeername6": 30,
}


UNIX_RULES = "mg_unix_rules"


@dataclass(frozen=True, slots=True)
class Settings:
    """Plain values, as they come out of JSON.

    Attributes:
        connect, listen: rows of `wire.encode.NetRow`.
        hosts: rows of `wire.encode.HostRow`.
        unix: rows of `wire.encode.UnixRow`.
        audit: what only the default denies is let through and recorded.
        allow_relative: let relative unix socket paths without `..` through; only right when every directory that the tree can
            work in is one whose sockets are allowed.
    """

    connect: tuple[encode.NetRow, ...] = ()
    listen: tuple[encode.NetRow, ...] = ()
    hosts: tuple[encode.HostRow, ...] = ()
    unix: tuple[encode.UnixRow, ...] = ()
    audit: bool = False
    allow_relative: bool = False

    @property
    def flags(self) -> int:
        """What the session's state has to say of them."""
        return (self.audit and _abi.MG_SESSION_AUDIT) | (self.allow_relative and _abi.MG_SESSION_RELATIVE)


@dataclass(slots=True)
class Replacement:
    """Tables that are written and not yet asked."""

    session: Session
    made: list[bpf.Map]
    tell: Callable[[], None]

    def take_over(self) -> None:
        """Have decisions ask them: each table changes in one step, so no reader ever sees a part of one.

        Raises:
            KernelError: the kernel refused; the old ones are asked, all of them.
        """
        old: list[bpf.Map] = []
        try:
            for one in self.made:
                old.append(self.session.put(one))
        except BaseException:
            for one in old:
                self.session.put(one)
            self.drop()
            raise
        self.tell()
        self.made = old
        self.drop()

    def drop(self) -> None:
        """Close what nobody asks."""
        for one in self.made:
            one.close()
        self.made = []


def _fill(table: bpf.Map, rows: dict[bytes, bytes]) -> None:
    for key, value in rows.items():
        table.set(key, value)


@dataclass(slots=True)
class CgroupAttachment:
    """The armed backend.

    Attributes:
        programs: kernel numbers of the attached programs, by name.
    """

    session: Session
    programs: dict[str, int] = field(default_factory=dict)
    _held: dict[str, dict[bytes, bytes]] = field(default_factory=dict)

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
        for name, rows in self._tables(settings.connect, settings.listen, settings.hosts, settings.unix).items():
            _fill(self.session.maps[name], rows)
            self._held[name] = rows

    def keep(self, leaves: Sequence[tuple[int, int, Settings]]) -> None:
        """Have leaves below the session's kept to tables of their own besides; sockets with a path are not among them.

        Args:
            leaves: of each its cgroup id, the rule that keeps it, and what is left there.

        Raises:
            PolicyError: a row does not fit.
            HostError, KernelError: as `Session.keep`.
        """
        filled = [(leaf, rule, self._tables(one.connect, one.listen, one.hosts, None)) for leaf, rule, one in leaves]
        self.session.keep(filled)

    def update_connect(self, rows: Sequence[encode.NetRow]) -> None:
        """Replace the destinations.

        Raises:
            PolicyError, KernelError: as `prepared`; the old ones count.
        """
        self.prepared(connect=rows).take_over()

    def prepared(
        self,
        connect: Sequence[encode.NetRow] | None = None,
        listen: Sequence[encode.NetRow] | None = None,
        hosts: Sequence[encode.HostRow] | None = None,
        unix: Sequence[encode.UnixRow] | None = None,
    ) -> Replacement:
        """Write new tables where no decision looks yet; None: this one stays as it is.

        Raises:
            PolicyError: a row does not fit.
            KernelError: the kernel has no room for them; nothing changed.
        """
        wanted = self._tables(connect, listen, hosts, unix)
        tables = {name: rows for name, rows in wanted.items() if rows != self._held.get(name)}
        made: list[bpf.Map] = []
        try:
            for name, rows in tables.items():
                made.append(self.session.another(name))
                _fill(made[-1], rows)
        except McpguardError:
            for one in made:
                one.close()
            raise
        return Replacement(self.session, made, lambda: self._held.update(tables))

    def _tables(
        self,
        connect: Sequence[encode.NetRow] | None,
        listen: Sequence[encode.NetRow] | None,
        hosts: Sequence[encode.HostRow] | None,
        unix: Sequence[encode.UnixRow] | None,
    ) -> dict[str, dict[bytes, bytes]]:
        """Keys and values of each map that is given rows and that this kernel has a use for."""
        tables = {}
        if connect is not None:
            tables["mg_connect"] = encode.prefix_table(connect)
        if listen is not None:
            tables["mg_listen"] = encode.prefix_table(listen)
        if hosts is not None:
            tables["mg_hosts"] = encode.host_table(hosts)
        if unix is not None and UNIX_RULES in self.session.maps:
            tables[UNIX_RULES] = {bytes(4): encode.unix_table(unix)}
        return tables

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
