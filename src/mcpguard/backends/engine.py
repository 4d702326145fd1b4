"""The BPF programs of this host: loaded once, pinned until the next boot, shared by all sessions.

A run adds a session: a slot, maps of its own in it (rings, counters, rules, sums), and its leaf in the map of sessions.
Nothing of that needs a process of ours: killed at any moment, we leave guarded what was guarded, and the next run clears away
what nobody lives in any more. Links to tracepoints, for which every process of the host pays, exist just while a session does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from mcpguard.errors import HostError, KernelError
from mcpguard.kernel import bpf, cgroup, libbpf, pins, privileges
from mcpguard.kernel.beside import Beside
from mcpguard.model import plain_json as json
from mcpguard.model.values import dataclass, field
from mcpguard.wire import _abi, encode, sums

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Raise it when what is pinned changes in a way that the objects do not show.
LAYOUT = 3
DENIALS, ACTIVITY, MESSAGES, COUNTERS = "mg_denials", "mg_activity", "mg_messages", "mg_counters"
SESSIONS, LEAVES, PLACES = "mg_sessions", "mg_leaves", "mg_leaf_places"
NAMES, QUESTIONS, RESOLVERS = "mg_names", "mg_questions", "mg_resolvers"
FLOWS = "mg_flows"
# Tables that a leaf below a session's has for itself, besides; and the rules that keep those leaves to them.
KEPT, KEPT_BY = ("mg_connect", "mg_listen", "mg_hosts", NAMES), "mg_kept_by"
_SUMS = ("_sums", "_denied")
_FACTS, _FACTS_BYTES = "facts", 1 << 15
_FIRST = bytes(4)
_FREE, _TAKEN = 0, 1
_RESOLVERS_SHAPE = (libbpf.MAP_TYPE_HASH, 4, 8, 1024, 0)
# A HostError of this code in `prepare`: the object would be of no use on this host, which lacks nothing without it.
NEEDLESS = "host.needless"
# A host that is short of something for a moment is no host without the hooks.
MOMENTARY = (errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ENFILE, errno.EMFILE)


@dataclass(frozen=True, slots=True)
class ObjectSpec:
    """One object of the engine.

    Attributes:
        prepare: called when it is open, before it is loaded: kinds, targets, programs to leave out.
        optional: a kernel may refuse it, because it has no such hooks; then the engine does without, and says so. So it does
            where `prepare` raises HostError.
        links: programs that are attached for the whole host while any session lives; with the name of their raw tracepoint, of
            their event (`group/name`), or None: to the function that they were loaded for (LSM, modify-return, fexit).
        wanted: programs that are attached so while there is a session that asked for them (`Engine.attach_wanted`); with the
            names that their raw tracepoint has on one kernel or another.
        traced: what the names of more programs begin with that are attached so, at once and until the next boot; an object that
            cannot be attached as a whole counts as refused.
        rehearse: called with the descriptors of those when they are attached, or else of all that are loaded; HostError counts
            as refused, too.
        spares: programs of later objects that are left out where this one is loaded.
    """

    name: str
    prepare: Callable[[bpf.Object], None] = lambda _object: None
    optional: bool = False
    links: Mapping[str, str | None] = field(default_factory=dict)
    wanted: Mapping[str, Sequence[str]] = field(default_factory=dict)
    traced: str = ""
    rehearse: Callable[[Mapping[str, int]], None] = lambda _programs: None
    spares: tuple[str, ...] = ()


# Tells of what is done through io_uring, where the kernel takes it.
RINGS = ("mg_ring_asked", "mg_ring_done")
# Sees what processes send to one another, where the kernel takes it.
ANY_SEND = "mg_any_send"
# Attach types of the kernel, by program; libbpf learned these later than the kernel.
UNIX_PROGRAMS = {"mg_connect_unix": 49, "mg_sendmsg_unix": 50}
_PROGRAM_CGROUP_SOCK_ADDR = 18


def _name_unix_kinds(opened: bpf.Object) -> None:
    for program, attach in UNIX_PROGRAMS.items():
        opened.set_kind(program, _PROGRAM_CGROUP_SOCK_ADDR, attach)


# Programs on the ends of system calls, and what stands in for all of them where the kernel has no such programs.
CALLS, ANY_CALL = "mg_call_", "mg_sys_exit"


def on_calls(without: Iterable[str] = ()) -> ObjectSpec:
    """The record by programs on the ends of calls, and the messages; where it does not hold, the tracepoint stands in for all.

    Args:
        without: calls of which nothing is to be recorded at their ends.
    """
    from mcpguard.backends.calls import Calls

    chosen = Calls(CALLS, without)
    return ObjectSpec(
        "calls", chosen.fit, optional=True, traced=CALLS, rehearse=chosen.rehearse, spares=(ANY_CALL, ANY_SEND)
    )


# What those can be attached to in place of the raw tracepoint.
EVENT = "raw_syscalls/sys_exit"


def _by_event(name: str, program: str) -> ObjectSpec:
    """A program at the end of every call, where the kernel skips it unless it is attached to an event."""

    def fit(opened: bpf.Object) -> None:
        from mcpguard.backends import call_ends

        call_ends.fit(program, opened)

    def rehearse(programs: Mapping[str, int]) -> None:
        from mcpguard.backends import call_ends

        call_ends.rehearse(EVENT, programs)

    return ObjectSpec(name, fit, optional=True, links={program: EVENT}, rehearse=rehearse, spares=(program,))


OBJECTS: tuple[ObjectSpec, ...] = (
    ObjectSpec("network"),
    ObjectSpec("unix", _name_unix_kinds, optional=True),
    _by_event("trace", ANY_CALL),
    ObjectSpec(
        "trace",
        links={
            "mg_forked": "sched_process_fork",
            "mg_executed": "sched_process_exec",
            "mg_exited": "sched_process_exit",
            ANY_CALL: "sys_exit",
        },
    ),
    _by_event("messages", ANY_SEND),
    ObjectSpec("messages", optional=True, links={ANY_SEND: "sys_exit"}),
    ObjectSpec(
        "rings",
        optional=True,
        wanted=dict(zip(RINGS, (("io_uring_submit_req", "io_uring_submit_sqe"), ("io_uring_complete",)), strict=True)),
    ),
)


class Engine:
    """The pinned engine of this build, open in this process."""

    def __init__(self, folder: str) -> None:
        """Open what is pinned in `folder`; a few system calls. See `open`."""
        self._folder = folder
        self._held = pins.hold(folder)
        self._maps: dict[str, bpf.Map] = {}
        self._programs: dict[str, int] = {}
        try:
            self._facts = _read_facts(folder)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        more: Callable[[], Iterable[ObjectSpec]] = tuple,
        kind: str = "",
        forget: Callable[[Engine, int], None] = lambda _engine, _slot: None,
    ) -> Engine:
        """Find the engine of this build or load it, then clear away what sessions and other builds left behind.

        Args:
            more: the objects besides OBJECTS, loaded before them, asked for only when there is something to load.
            kind: names engines of one build that differ in those.
            forget: what those keep of the session of a slot, to be taken out when nobody lives in it any more.

        Raises:
            HostError: an object is missing or of another contract, or the pins cannot be had.
            KernelError: libbpf or the kernel refused an object.
        """
        build = pins.version(bpf.OBJECTS, LAYOUT)
        name = build + kind
        with pins.locked():
            pins.prepare()
            folder = f"{pins.ROOT}/{name}"
            _remove_others(build)
            if not os.path.isdir(folder):
                _load((*more(), *OBJECTS), name)
            engine = cls(folder)
            try:
                engine._sweep(forget)
            except BaseException:
                engine.close()
                raise
            _rest_kin(build, name)
        return engine

    @property
    def absent(self) -> dict[str, str]:
        """Optional objects that this kernel refused, with its words."""
        return dict(self._facts["absent"])

    @property
    def second_best(self) -> dict[str, str]:
        """Objects that are loaded in their second form, with why the kernel did not take the first."""
        return dict(self._facts["second_best"])

    @property
    def programs(self) -> tuple[str, ...]:
        """All loaded programs."""
        return tuple(self._facts["programs"])

    def has(self, program: str) -> bool:
        """Whether the program is loaded; it is not when its object is absent or left it out."""
        return program in self._facts["programs"]

    def tracepoint(self, program: str) -> str | None:
        """What a program is attached to while a session lives: a raw tracepoint or an event (`group/name`); None: neither."""
        place: str | None = self._facts["links"].get(program)
        return place

    def map(self, name: str) -> bpf.Map:
        """A map that is shared by all sessions, or an outer map; it stays the engine's to close."""
        if name not in self._maps:
            self._maps[name] = bpf.Map(name, bpf.pinned(f"{self._folder}/{pins.MAPS}/{name}"))
        return self._maps[name]

    def program(self, name: str) -> int:
        """Descriptor of a program; it stays the engine's to close."""
        if name not in self._programs:
            self._programs[name] = bpf.pinned(f"{self._folder}/{pins.PROGRAMS}/{name}")
        return self._programs[name]

    def misses(self, names: Iterable[str]) -> int:
        """How often the kernel has skipped these programs until now, for whatever process (`recursion_misses`)."""
        misses = 0
        for name in names:
            fd = bpf.pinned(f"{self._folder}/{pins.PROGRAMS}/{name}")
            try:
                misses += bpf.program_facts(fd).recursion_misses
            finally:
                os.close(fd)
        return misses

    def linked(self) -> set[str]:
        """Programs that are attached for the whole host now."""
        return set(os.listdir(f"{self._folder}/{pins.LINKS}"))

    def add_session(
        self, leaf_fd: int, leaf_id: int, *, denials: int = 1 << 20, activity: int = 8 << 20, messages: int = 4 << 20
    ) -> Session:
        """Give a leaf a slot with maps of its own. Until `Session.set_state` everything that its programs judge is refused.

        Args:
            leaf_fd: an open directory of the leaf; a copy is kept.
            leaf_id: what `bpf_get_current_cgroup_id` gives inside.
            denials, activity, messages: bytes of the rings, powers of two.

        Raises:
            HostError: too many sessions.
            KernelError: the kernel refused something; nothing of the session is left.
        """
        sizes = {DENIALS: denials, ACTIVITY: activity, MESSAGES: messages}
        with pins.locked():
            slot = self._free_slot()
            session = Session(self, os.dup(leaf_fd), leaf_id, slot, sizes)
            try:
                session._make_maps(self._facts["inner"])
                self._link()
                self._know(leaf_id, _abi.MG_SESSION.pack(slot, 0, 0, 0, 0, 0))
                session._move_in()
            except BaseException:
                session._forget()
                session.close()
                raise
        return session

    def _free_slot(self) -> int:
        taken = {slot for value in self._sessions().values() for slot in _slots(value)}
        free = next((slot for slot in range(1, _abi.MG_SESSIONS_LIMIT) if slot not in taken), None)
        if free is None:
            raise HostError(
                "too many guarded sessions at once",
                why=f"{len(taken)} sessions live on this host, and there is room for {_abi.MG_SESSIONS_LIMIT - 1}",
                do="end some of them: `mcpguard sessions` lists yours",
                code="host.too-many-sessions",
            )
        return free

    def _sessions(self) -> dict[int, bytes]:
        sessions = self.map(SESSIONS)
        found = {key: sessions.get(key, _abi.MG_SESSION.size) for key in sessions.keys(8)}
        return {_number64(key): value for key, value in found.items() if value is not None}

    def _link(self) -> None:
        """Attach what is attached for the whole host, as far as it is not."""
        there = self.linked()
        for program, tracepoint in self._facts["links"].items():
            if program in there:
                continue
            fd = self.program(program)
            link = _attach(tracepoint, fd, program)
            try:
                bpf.pin(link, f"{self._folder}/{pins.LINKS}/{program}")
            finally:
                os.close(link)

    def attach_wanted(self) -> None:
        """Attach what is attached only while a session asks for it.

        Raises:
            KernelError: the kernel refused.
        """
        with pins.locked():
            there = self.linked()
            for program, places in self._facts["wanted"].items():
                if program in there:
                    continue
                link = _attach_to_one(places, self.program(program))
                try:
                    bpf.pin(link, f"{self._folder}/{pins.LINKS}/{program}")
                finally:
                    os.close(link)

    def _unlink(self) -> None:
        """Take the tracepoint links away, for which every process of the host pays.

        Programs on functions stay until the next boot: one look-up each, and to attach them anew would hold up each launch.
        """
        for program in self.linked():
            if self._facts["links"].get(program) or program in self._facts["wanted"]:
                _take_away(f"{self._folder}/{pins.LINKS}/{program}")

    def _sweep(self, forget: Callable[[Engine, int], None]) -> None:
        """Forget sessions whose leaf is gone; without any, take the links away."""
        sessions = self._sessions()
        for leaf_id in _gone(sessions):
            slot, kept = _slots(sessions.pop(leaf_id))
            if not kept:
                forget(self, slot)  # first: who is interrupted here finds the session again
            self._clear(leaf_id, slot, kept)
        self._free_ports(sessions)
        if not sessions:
            self._unlink()

    def _clear(self, leaf_id: int, slot: int, kept: int = 0) -> None:
        """Take a session out that nobody lives in any more; or a leaf below one, with the slot of its tables."""
        if kept:
            self._forget(leaf_id)
            together(self._slot_deletions(kept, KEPT))
            return
        self._end(leaf_id)
        together(self._slot_deletions(slot, self._facts["inner"]))

    def _end(self, leaf_id: int) -> None:
        """No decision finds the session any more. Its sockets may outlive it: they may finish, not begin."""
        ended = _abi.MG_LEAF.pack(_abi.MG_SESSION.pack(0, _abi.MG_SESSION_ENDED, 0, 0, 0, 0), leaf_id)
        _set_if_there(self.map(LEAVES), _key64(leaf_id), ended)
        self._forget(leaf_id)

    def _know(self, leaf_id: int, value: bytes) -> None:
        """Have decisions find a leaf. Whose place is free nobody looks up, so that is taken first, and both only here."""
        self.map(PLACES).set(_place(leaf_id), _key32(_TAKEN))
        self.map(SESSIONS).set(_key64(leaf_id), value)

    def _forget(self, leaf_id: int) -> None:
        """Have no decision find a leaf any more."""
        self.map(SESSIONS).delete(_key64(leaf_id))
        if _place(leaf_id) not in map(_place, self._sessions()):
            self.map(PLACES).set(_place(leaf_id), _key32(_FREE))

    def _free_ports(self, sessions: Mapping[int, bytes]) -> None:
        """Take out the ports of resolvers whose leaf is gone. Not earlier: a resolver ends a moment later than its tree.

        Two sessions can have the same port, in network namespaces of their own: what ours have is put back.
        """
        resolvers = self.map(RESOLVERS)
        leaves = {port: resolvers.get(port, 8) for port in resolvers.keys(4)}
        gone = _gone(_number64(leaf) for leaf in leaves.values() if leaf)
        for port, leaf in leaves.items():
            if leaf and _number64(leaf) in gone:
                resolvers.delete(port)
        for leaf_id, value in sessions.items():
            port = _key32(_resolver_of(value))
            if any(port) and resolvers.get(port, 8) is None:
                resolvers.set(port, _key64(leaf_id))

    def _slot_deletions(self, slot: int, names: Iterable[str]) -> list[Callable[[], None]]:
        """Each of these waits until no program uses the map any more; together they wait once."""
        return [_deletion(self.map(name), _key32(slot)) for name in names]

    def _fds(self) -> set[int]:
        """What is open of it now."""
        return {self._held, *(one.fd for one in self._maps.values()), *self._programs.values()}

    def close(self) -> None:
        """Close our descriptors; what is pinned stays. Safe to call twice."""
        for one in self._maps.values():
            one.close()
        for fd in self._programs.values():
            os.close(fd)
        self._maps, self._programs = {}, {}
        if self._held >= 0:
            os.close(self._held)
            self._held = -1


@dataclass(slots=True)
class Kept:
    """A leaf below a session's, with tables of its own.

    Attributes:
        slot: the index of its maps.
        maps: those of KEPT.
    """

    leaf_id: int
    slot: int
    maps: dict[str, bpf.Map] = field(default_factory=dict)


class Session:
    """One guarded leaf in the engine.

    Attributes:
        slot: the index of its maps.
        leaf_fd, leaf_id: the cgroup.
        fds: what may be handed to the user's process: rings, counters, sums (`sums.*`), and what its resolver writes and reads
            (NAMES, QUESTIONS), and how many bytes went where (FLOWS). Closing them ends nothing.
        sizes: bytes of each ring's data area, by the names in `fds`.
        maps: all maps of its own by name; those that are not in `fds` are part of verdicts and stay here.
        kept: leaves below that have tables of their own besides.
    """

    def __init__(self, engine: Engine, leaf_fd: int, leaf_id: int, slot: int, sizes: dict[str, int]) -> None:
        self.engine = engine
        self.leaf_fd = leaf_fd
        self.leaf_id = leaf_id
        self.slot = slot
        self.sizes = sizes
        self.maps: dict[str, bpf.Map] = {}
        self._shapes: dict[str, bpf.Shape] = {}
        self.kept: list[Kept] = []
        self._state = (0, 0, 0, 0)
        self._moving: Beside | None = None
        # Of the maps, as the kernel counts them: what it tells of a slot.
        self._numbers: dict[str, bytes] = {}
        self._leftovers: list[Callable[[], None]] = []
        self._gone = False

    @property
    def fds(self) -> dict[str, int]:
        names = (DENIALS, ACTIVITY, MESSAGES, COUNTERS, NAMES, QUESTIONS, FLOWS)
        carried = {name: self.maps[name].fd for name in names if name in self.maps}
        counted = {f"sums.{name}": one.fd for name, one in self.maps.items() if name.endswith(_SUMS)}
        learned = {f"{NAMES}.{one.slot}": one.maps[NAMES].fd for one in self.kept if one.maps}
        return {**carried, **counted, **learned}

    def set_state(
        self, flags: int, files: int = 0, sockets: int = 0, resolver: int = 0, *, early: bool = False
    ) -> None:
        """Say what the session is from now on; for one reader all of it changes in one step.

        Args:
            flags: MG_SESSION_*, or-ed; without MG_SESSION_LIVE everything is refused.
            files, sockets: indices of policies; 0: none.
            resolver: port on 127.0.0.1 and ::1 where questions for names go, whomever they were for; 0: they are judged by the
                rules like any other request.
            early: do not wait until the session's maps are in its slots. What asks a table that is not there is refused;
                `await_maps` must come before anything is to be allowed or recorded.

        Raises:
            KernelError: the kernel refused; what was said before still counts.
        """
        if not early:
            self.await_maps()
        self._state = (flags, files, sockets, resolver)
        value = self._value()
        with pins.locked():
            if resolver:
                self.engine.map(RESOLVERS).set(_key32(resolver), _key64(self.leaf_id))
            _set_if_there(self.engine.map(LEAVES), _key64(self.leaf_id), _abi.MG_LEAF.pack(value, self.leaf_id))
            self.engine._know(self.leaf_id, value)
            for one in self.kept:
                self.engine._know(one.leaf_id, self._value(one.slot))
            if not early and cgroup.is_populated(self.leaf_fd):
                self._await_readers()

    def state(self) -> tuple[int, int]:
        """The indices of the policies that decisions use now, as `set_state` was told."""
        value = self.engine.map(SESSIONS).get(_key64(self.leaf_id), _abi.MG_SESSION.size)
        if value is None:
            return 0, 0
        _slot, _flags, files, sockets, *_rest = _abi.MG_SESSION.unpack(value)
        return files, sockets

    def _value(self, kept: int = 0) -> bytes:
        return _abi.MG_SESSION.pack(self.slot, *self._state, kept)

    def keep(self, leaves: Sequence[tuple[int, int, Mapping[str, Mapping[bytes, bytes]]]]) -> None:
        """Have leaves below this one kept to tables of their own, besides the session's. Nobody may live there yet.

        Args:
            leaves: of each its cgroup id, the rule that keeps it, and keys and values for those of KEPT that are not empty.

        Raises:
            HostError: there are too many sessions.
            KernelError: the kernel refused; what is there already goes with the session.
        """
        self.await_maps()
        moves: list[Callable[[], None]] = []
        with pins.locked():
            for leaf_id, rule, tables in leaves:
                one = Kept(leaf_id, self.engine._free_slot())
                self.engine._know(leaf_id, self._value(one.slot))
                self.kept.append(one)
                self.engine.map(KEPT_BY).set(_key32(one.slot), _key32(rule))
                for name in KEPT:
                    one.maps[name] = self.another(name)
                    for key, value in tables.get(name, {}).items():
                        one.maps[name].set(key, value)
                    moves.append(_insertion(self.engine.map(name), _key32(one.slot), one.maps[name].fd))
            together(moves)

    def another(self, name: str) -> bpf.Map:
        """An empty map that can take the place of the session's map `name`; the caller's to close until it has.

        Raises:
            KernelError: there is no memory for it.
        """
        kind, *rest = self._shapes[name]
        return bpf.Map(name, bpf.create_map(kind, name, *rest))

    def put(self, one: bpf.Map) -> bpf.Map:
        """Have decisions ask `one` in place of the session's map of that name: one step for every reader.

        Returns:
            the map that was there; nobody reads it any more.

        Raises:
            KernelError: the kernel refused; the old one still counts.
        """
        if self._moving is not None:
            self._moving.done()
        self.engine.map(one.name).set_fd(_key32(self.slot), one.fd)
        old, self.maps[one.name] = self.maps[one.name], one
        return old

    def _await_readers(self) -> None:
        """Wait until no program reads the value that was replaced: its memory may become another session's entry.

        Changing a map of maps waits for that, also when nothing changes.
        """
        self.engine.map(COUNTERS).set_fd(_key32(self.slot), self.maps[COUNTERS].fd)

    def final_counts(self) -> list[tuple[int, int]]:
        """What the aggregates had counted and not yet sent, as series and count; to be read when the tree has ended.

        Together with all records it gives the exact numbers, unless an aggregate of activity was pushed out by newer ones
        or the ring was full.

        Raises:
            KernelError: a map cannot be read.
        """
        counts = []
        for name, fd in self.fds.items():
            if name.startswith("sums."):
                counts += sums.remainders(bpf.read_values(fd, _abi.MG_SUM.size, name))
        return counts

    def exchanged(self) -> bool:
        """Whether anything went to or came from a destination. Raises KernelError."""
        return FLOWS in self.maps and not self.maps[FLOWS].is_empty(_abi.MG_FLOW_KEY.size)

    def at_removal(self, act: Callable[[], None]) -> None:
        """What else to take out when no decision finds the session any more, before its slot can be another's."""
        self._leftovers.append(act)

    def remove(self, *, apart: bool = False) -> bool:
        """Take the session out of the engine, if no process lives in its leaf any more; else it stays guarded.

        Safe to call twice. The last one takes the links with it. The maps live on for those who hold their descriptors.

        Args:
            apart: from the return on no decision finds the session; a child empties its slot, for which the kernel takes its
                time, and nobody else touches the engine until it has.

        Returns:
            whether it is gone.
        """
        if self._gone:
            return True
        self._wait_for_moving()
        if cgroup.is_populated(self.leaf_fd):
            return False
        with pins.locked() as lock:
            self.engine._end(self.leaf_id)
            for one in self.kept:
                self.engine._forget(one.leaf_id)
            if not self.engine._sessions():
                self.engine._unlink()
            if apart:
                lock.left_to_child = self._empty_apart(lock.fd)
            if not lock.left_to_child:
                self._empty()
        self._gone = True
        return True

    def _deletions(self) -> list[Callable[[], None]]:
        kept = [deletion for one in self.kept for deletion in self.engine._slot_deletions(one.slot, KEPT)]
        return [*self.engine._slot_deletions(self.slot, self._shapes), *kept]

    def _empty(self) -> None:
        together([*self._deletions(), *self._leftovers])

    def _empty_apart(self, lock: int) -> bool:
        """Have a child do it that holds nothing of ours but the engine and the lock; False: there can be none now."""
        deletions = self._deletions()  # opens what is not open yet
        try:
            child = os.fork()
        except OSError:
            return False
        if child == 0:
            try:
                privileges.close_from(0, {lock, *self.engine._fds()})
                together([*deletions, *self._leftovers])
            finally:
                os._exit(0)
        return True

    def close(self) -> None:
        """Close our descriptors; the session goes on as it is. Safe to call twice."""
        self._wait_for_moving()
        for one in (*self.maps.values(), *(one for kept in self.kept for one in kept.maps.values())):
            one.close()
        self.maps = {}
        for kept in self.kept:
            kept.maps = {}
        if self.leaf_fd >= 0:
            os.close(self.leaf_fd)
            self.leaf_fd = -1

    def _make_maps(self, shapes: Mapping[str, list[int]]) -> None:
        for name, numbers in shapes.items():
            kind, key_bytes, value_bytes, entries, flags = numbers
            self._shapes[name] = (kind, key_bytes, value_bytes, self.sizes.get(name, entries), flags)
            self.maps[name] = self.another(name)

    def _move_in(self) -> None:
        """Put the maps into the slot. The kernel makes each of these wait for all programs, so it happens meanwhile."""
        self._numbers = {name: bpf.map_id(one.fd).to_bytes(4, sys.byteorder) for name, one in self.maps.items()}
        moves = [_insertion(self.engine.map(name), _key32(self.slot), one.fd) for name, one in self.maps.items()]
        self._moving = Beside(partial(together, moves))

    def _wait_for_moving(self) -> None:
        if self._moving is not None:
            self._moving.join()

    def await_maps(self) -> None:
        """Wait until the kernel has put the session's maps into its slots.

        Each is there before the kernel begins to wait for those who may still use what was there before, which was nobody's:
        so it is asked first. Who is to replace one must wait for the end of that.

        Raises:
            KernelError: it refused one.
        """
        if self._moving is not None and not self._are_in():
            self._moving.done()

    def _are_in(self) -> bool:
        slot = _key32(self.slot)
        return all(self.engine.map(name).get(slot, 4) == number for name, number in self._numbers.items())

    def _forget(self) -> None:
        self._wait_for_moving()
        self.engine._clear(self.leaf_id, self.slot)


def _load(objects: Iterable[ObjectSpec], name: str) -> None:
    """Load every object and pin what it has, maps of one name once; to be called under the lock."""
    folder = pins.begin(name)
    facts: dict[str, Any] = {"inner": {}, "programs": [], "links": {}, "wanted": {}, "absent": {}, "second_best": {}}
    shared = _of_other_engines()
    spared: set[str] = set()
    try:
        for one, fd in shared.items():
            bpf.pin(fd, f"{folder}/{pins.MAPS}/{one}")
        for spec in objects:
            opened = bpf.Object(spec.name)
            try:
                opened.skip(spared.intersection(opened.programs))
                if _load_one(spec, opened, folder, facts, shared):
                    spared.update(spec.spares)
            finally:
                opened.close()
        _write_facts(folder, facts)
        pins.finish(folder, name)
    except BaseException:
        with contextlib.suppress(OSError):  # unfinished, so the next launch removes what is left of it
            pins.remove(folder)
        raise
    finally:
        for fd in shared.values():
            os.close(fd)


def _of_other_engines() -> dict[str, int]:
    """What all engines of this host have in common, where there is one already.

    Sessions of different tiers, or builds, must know each other's resolvers.
    """
    for folder in pins.folders():
        if pins.is_unfinished(folder):
            continue
        with contextlib.suppress(KernelError):  # a build that has no such map
            fd = bpf.pinned(f"{folder}/{pins.MAPS}/{RESOLVERS}")
            if bpf.shape(fd) == _RESOLVERS_SHAPE:
                return {RESOLVERS: fd}
            os.close(fd)
    return {}


def _load_one(spec: ObjectSpec, opened: bpf.Object, folder: str, facts: dict[str, Any], shared: dict[str, int]) -> bool:
    _check_contract(opened)
    opened.lend(shared)
    inner = {name: shape for name in opened.maps if (shape := opened.inner_shape(name))}
    try:
        spec.prepare(opened)
        opened.load()
        links = _attached(opened, spec)
    except (HostError, KernelError) as error:
        momentary = isinstance(error, KernelError) and error.errno in MOMENTARY
        if not spec.optional or (momentary and not spec.spares):
            raise
        if error.code != NEEDLESS:
            facts["absent"][spec.name] = error.why[:500]
        return False
    for name, fd in links.items():
        bpf.pin(fd, f"{folder}/{pins.LINKS}/{name}")
        os.close(fd)
    for name in opened.maps:
        if name in shared:
            continue
        shared[name] = opened.map(name).fd
        bpf.pin(shared[name], f"{folder}/{pins.MAPS}/{name}")
    if spec.name in facts["absent"]:
        facts["second_best"][spec.name] = facts["absent"].pop(spec.name)
    facts["inner"].update(inner)
    for name in opened.programs:
        bpf.pin(opened.program(name), f"{folder}/{pins.PROGRAMS}/{name}")
        facts["programs"].append(name)
        if name in spec.links or name in links:
            facts["links"][name] = spec.links.get(name)
        if name in spec.wanted:
            facts["wanted"][name] = list(spec.wanted[name])
    return True


def _attached(opened: bpf.Object, spec: ObjectSpec) -> dict[str, int]:
    """Attach the `traced` programs to what they were loaded for: all, or none; rehearse; returns their links.

    Raises:
        HostError, KernelError: the kernel refused one, or one is not asked.
    """
    links: dict[str, int] = {}
    programs = {name: opened.program(name) for name in opened.programs if name.startswith(spec.traced)}
    try:
        for name, program in programs.items() if spec.traced else ():
            links[name] = bpf.attach_traced(program, name)
        spec.rehearse(programs)
    except BaseException:
        for fd in links.values():
            os.close(fd)
        raise
    return links


def _attach(place: str | None, fd: int, program: str) -> int:
    """Attach to what `ObjectSpec.links` says; returns the link's descriptor."""
    if place is None:
        return bpf.attach_traced(fd, program)
    if place != EVENT:
        return bpf.attach_raw_tracepoint(place, fd)
    from mcpguard.backends import call_ends

    return call_ends.attach(EVENT, fd)


def _attach_to_one(places: Sequence[str], fd: int) -> int:
    """Attach to the raw tracepoint that has one of these names; returns the link's descriptor."""
    for place in places[:-1]:
        try:
            return bpf.attach_raw_tracepoint(place, fd)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
    return bpf.attach_raw_tracepoint(places[-1], fd)


def _take_away(link: str) -> None:
    """Remove the pin of a link, and with it the link.

    One that a pin was the last to hold goes some time later on a busy host, and the next session's would stand beside it: what
    happens once would be told twice. One that a descriptor holds last is gone when that is closed, where pins let go at once.
    """
    held = bpf.pinned(link)
    try:
        os.unlink(link)
    finally:
        os.close(held)


def _check_contract(opened: bpf.Object) -> None:
    version = encode.configured_version(opened.configuration())
    if version != _abi.ABI_VERSION:
        raise HostError(
            f"the BPF object {opened.name} does not fit this mcpguard",
            why=f"it speaks version {version} of the contract, this is version {_abi.ABI_VERSION}",
            do="reinstall mcpguard; in a source tree run `make bpf`",
            code="host.object-version",
        )


def _write_facts(folder: str, facts: dict[str, Any]) -> None:
    """What was loaded, beside what was loaded: a BPF file system holds no plain files, but a map can hold a text."""
    fd = bpf.create_map(libbpf.MAP_TYPE_ARRAY, "mg_facts", 4, _FACTS_BYTES, 1)
    try:
        bpf.Map(_FACTS, fd).set(_FIRST, json.dumps(facts).encode().ljust(_FACTS_BYTES, b"\0"))
        bpf.pin(fd, f"{folder}/{_FACTS}")
    finally:
        os.close(fd)


def _read_facts(folder: str) -> dict[str, Any]:
    try:
        one = bpf.Map(_FACTS, bpf.pinned(f"{folder}/{_FACTS}"))
        with contextlib.closing(one):
            text = one.get(_FIRST, _FACTS_BYTES) or b""
        facts: dict[str, Any] = json.loads(text.rstrip(b"\0"))
        return facts
    except (KernelError, ValueError) as error:
        raise HostError(
            "the loaded BPF programs cannot be found",
            why=f"{folder} is not whole: {error}",
            do=f"end all guarded sessions, then: rm -r {folder}",
            code="host.engine-damaged",
        ) from error


def _remove_others(build: str) -> None:
    """Remove engines of other builds that no session and no process uses; to be called under the lock."""
    for folder in pins.others(build):
        if pins.is_unfinished(folder) or not (pins.is_held(folder) or _has_sessions(folder)):
            with contextlib.suppress(OSError):  # whatever it is, it is not in our way
                pins.remove(folder)


def _rest_kin(build: str, name: str) -> None:
    """Take from this build's engines for other tiers the links to tracepoints that killed sessions left there.

    Every process pays for those, and there may never be a run in that tier again; the rest waits for one.
    """
    for folder in pins.folders():
        kin = os.path.basename(folder)
        if kin == name or not kin.startswith(build):
            continue
        with contextlib.suppress(HostError, KernelError, OSError), contextlib.closing(Engine(folder)) as engine:
            sessions = engine._sessions()
            if len(_gone(sessions)) == len(sessions):
                engine._unlink()


def _has_sessions(folder: str) -> bool:
    """Whether a leaf that is known there exists. A build may change all but this: the keys of its sessions are cgroup ids."""
    try:
        sessions = bpf.Map(SESSIONS, bpf.pinned(f"{folder}/{pins.MAPS}/{SESSIONS}"))
    except KernelError as error:
        return error.errno != errno.ENOENT
    with contextlib.closing(sessions):
        known = {_number64(key) for key in sessions.keys(8)}
    return len(known) > len(_gone(known))


def _gone(leaves: Iterable[int]) -> set[int]:
    """Which of these cgroups do not exist any more."""
    asked = set(leaves)
    mount = cgroup.unified_mount() if asked else None
    if mount is None:
        return set()
    fd = os.open(mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return {leaf for leaf in asked if not cgroup.exists(fd, leaf)}
    finally:
        os.close(fd)


def _slots(session: bytes) -> tuple[int, int]:
    """Of a value of the map of sessions: the session's slot, and that of tables of its own; 0: it has none."""
    slot, *_rest, kept = _abi.MG_SESSION.unpack(session)
    return int(slot), int(kept)


def _resolver_of(session: bytes) -> int:
    """The port that a value of the map of sessions tells."""
    return int(_abi.MG_SESSION.unpack(session)[4])


def _set_if_there(storage: bpf.Map, key: bytes, value: bytes) -> None:
    """A leaf's storage exists from its first attached program on."""
    try:
        storage.set(key, value)
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise


def _insertion(outer: bpf.Map, key: bytes, fd: int) -> Callable[[], None]:
    return lambda: outer.set_fd(key, fd)


def _deletion(outer: bpf.Map, key: bytes) -> Callable[[], None]:
    return lambda: outer.delete(key)


def together(calls: Iterable[Callable[[], None]]) -> None:
    """Make all calls side by side and wait for them; the first thing that goes wrong is raised at the end."""
    begun = [Beside(call) for call in calls]
    for call in begun:
        call.join()
    for call in begun:
        call.done()


def _place(leaf_id: int) -> bytes:
    """Key of PLACES. Some leaves have the same."""
    return _key32(leaf_id % _abi.MG_PLACES)


def _key32(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


def _key64(number: int) -> bytes:
    return number.to_bytes(8, sys.byteorder)


def _number64(key: bytes) -> int:
    return int.from_bytes(key, sys.byteorder)
