"""Asks the kernel's own evaluation of the path automaton about real files, without a hook, a session or an LSM.

`tests/bpf/parity.bpf.c` is compiled with the product's flags and the product's code writes the tables; then a system call runs
the walk on the file behind a descriptor.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcpguard.backends import guard
from mcpguard.kernel import bpf, libbpf, mounts, syscalls
from mcpguard.model.access import Access
from mcpguard.model.plan import TablePlan
from mcpguard.policy.automaton import Automaton
from mcpguard.session.places import table_plan

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "tools"))

import build_objects  # noqa: E402

ALL = Access.READ | Access.WRITE | Access.EXECUTE
_QUESTION = struct.Struct("=4I")
_SEEN = struct.Struct("=Q4I4B4x")
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSCONFIG_CREATE = 6
Name = str | bytes


class _TestRunOptions(ctypes.Structure):
    """bpf_test_run_opts of libbpf 1.x."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


@dataclass(frozen=True)
class Seen:
    """struct mg_seen; `rules` are those for read, write, execute where asked and not allowed, else 0."""

    below: int
    rules: tuple[int, int, int]
    device: int
    allowed: Access
    protected: Access
    pinned: bool
    detail: int


class Parity:
    """The test program, loaded, with the maps of the product's programs."""

    def __init__(self, folder: Path) -> None:
        """Compile into `folder` and load."""
        clang = build_objects.find_clang()
        assert clang is not None, "clang is needed"
        build_objects.compile_program(REPOSITORY / "tests/bpf/parity.bpf.c", folder / "parity.bpf.o", clang)
        self.object = bpf.Object("parity", folder)
        self.object.load()
        self._maps: dict[str, bpf.Map] = {}
        self._buffer = ctypes.create_string_buffer(_QUESTION.size + 2 * _SEEN.size)
        self._run = libbpf.library().bpf_prog_test_run_opts

    def map(self, name: str) -> bpf.Map:
        """A map of the program."""
        if name not in self._maps:
            self._maps[name] = self.object.map(name)
        return self._maps[name]

    def write(self, plan: TablePlan, index: int = 1) -> None:
        """Put a policy in place, with the product's own code."""
        guard.write_policy(self.map, index, plan)

    def place(self, automaton: Automaton, mounted: Sequence[mounts.Mount], index: int = 1) -> None:
        """Put an automaton in place on a host with these mounts."""
        self.write(table_plan(automaton, "/tmp", mounted), index)

    def ask(self, fd: int, asked: Access = ALL, index: int = 1, rounds: int = 1) -> Seen:
        """What the kernel says about the file behind a descriptor."""
        self._call("mg_parity", _QUESTION.pack(index, fd, int(asked), rounds), 1)
        return self._seen(0)

    def ask_both(self, fd: int, other: int, index: int = 1) -> tuple[Seen, Seen] | None:
        """What a rename asks of two objects, where one walk says it of both; None: each is to be asked by itself."""
        self._call("mg_parity_both", _QUESTION.pack(index, fd, other, 0), 2)
        shared = _QUESTION.unpack_from(self._buffer)[3]
        return (self._seen(0), self._seen(1)) if shared else None

    def _call(self, program: str, question: bytes, answers: int) -> None:
        ctypes.memmove(self._buffer, question, len(question))
        options = _TestRunOptions(
            sz=ctypes.sizeof(_TestRunOptions),
            ctx_in=ctypes.addressof(self._buffer),
            ctx_size_in=_QUESTION.size + answers * _SEEN.size,
        )
        result = self._run(self.object.program(program), ctypes.byref(options))
        assert result == 0 and options.retval == 0, (result, options.retval)

    def _seen(self, place: int) -> Seen:
        at = _QUESTION.size + place * _SEEN.size
        below, *rules, device, allowed, protected, pinned, detail = _SEEN.unpack_from(self._buffer, at)
        read, write, execute = rules
        return Seen(below, (read, write, execute), device, Access(allowed), Access(protected), bool(pinned), detail)

    def close(self) -> None:
        """Let go of everything."""
        for one in self._maps.values():
            one.close()
        self.object.close()


class Tree:
    """An empty tmpfs that is mounted nowhere; only its descriptor leads into it."""

    def __init__(self) -> None:
        context = syscalls.syscall(_FSOPEN, b"tmpfs", 0)
        syscalls.syscall(_FSCONFIG, context, _FSCONFIG_CREATE, None, None, 0)
        self.fd = syscalls.syscall(_FSMOUNT, context, 0, 0)
        os.close(context)

    @property
    def device(self) -> str:
        """`major:minor`, as the mount table has it."""
        return device_of(self.fd)

    def mounted_at(self, point: str, root: str = "/") -> mounts.Mount:
        """The line of a mount table that would show it there."""
        return mounts.Mount(self.device, root, point, False)

    def make(self, path: Name) -> int:
        """Make the directories of a path as far as they are missing; returns a descriptor of the last one."""
        raw = os.fsencode(path)
        at = os.dup(self.fd)
        for name in filter(None, raw.split(b"/")):
            try:
                os.mkdir(name, dir_fd=at)
            except FileExistsError:
                pass
            below = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = below
        return at

    def close(self) -> None:
        """Forget it, with everything in it."""
        os.close(self.fd)


def device_of(fd: int) -> str:
    """`major:minor` of the file system behind a descriptor."""
    number = os.fstat(fd).st_dev
    return f"{os.major(number)}:{os.minor(number)}"


def differences(automaton: Automaton, path: Name, seen: Seen) -> list[str]:
    """What the kernel says otherwise than Python about a path that has one name; empty: nothing."""
    decision = automaton.decision(automaton.walk(path))
    rules = tuple(0 if access & decision.allowed else decision.rule(access) for access in Access if access)
    taken = Access.NONE
    for access in Access:
        if access & ~decision.allowed and decision.rule(access):
            taken |= access
    pairs = {
        "allowed": (seen.allowed, decision.allowed),
        "rules": (seen.rules, rules),
        "protected": (seen.protected, taken),
        "pinned": (seen.pinned, decision.pinned),
        "detail": (seen.detail, 0),
    }
    return [f"{path!r}: {name}: C {one}, Python {other}" for name, (one, other) in pairs.items() if one != other]
