"""Which programs on the ends of system calls fit this host, and whether the record is whole with them.

Each is attached to the kernel's own function for one call, so the calls that are not on record cost nobody anything. Where such
programs might miss a call they are not used at all; then a tracepoint sees every call, and every process of the host pays.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import signal
import struct
from collections.abc import Iterable, Mapping

from mcpguard.errors import HostError
from mcpguard.kernel import bpf, btf, pins, probe

# The program that those of all calls go on in, and the same for sends and for what is received; all are made for this call.
_SHARED, _SHARED_FOR, _SECOND = ("mg_goes_on", "mg_goes_on_sent", "mg_goes_on_received"), "openat", "__2"
# One call may have two programs: for the record of calls, and for the messages that were sent or received by it.
_SENT, _RECEIVED = "sent_", "received_"
_NUMBER = re.compile(r"_(\d+)$")
_FUNCTIONS = {"x86_64": "__x64_sys_", "aarch64": "__arm64_sys_"}
# What a system-call filter refuses ends here, and reaches no function of its own.
_FILTERED, _FILTER = "filtered", "__secure_computing"
# Refusals of a socket's path are told by programs on the cgroup, where the kernel has such: it then has this function.
_NAMES_JUDGED = "bpf_sock_addr_set_sun_path"
PEERS = ("connect", "sendto", "sendmsg")
# Many links that go at once, as when their pins are removed by hand, can stop the kernel for ever: it takes 256 apart at a
# time, and all of them wait for what comes after. So the engines of a host together have these programs once.
LINKS_LIMIT = 150
_NOBODY = 65534
_PATIENCE_S = 60
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER, _ALLOW = 38, 22, 2, 0x7FFF0000


class Calls:
    """The programs for one engine.

    Args:
        prefix: what the names of programs that belong to one call begin with; then come the function's name and the number.
        without: calls that are refused elsewhere, or never.
    """

    def __init__(self, prefix: str, without: Iterable[str]) -> None:
        self._prefix = prefix
        self._without = tuple(without)
        self._wanted: list[str] = []

    def fit(self, opened: bpf.Object) -> None:
        """Leave out of an open object what this kernel has no function for, and what would tell nothing here.

        Raises:
            HostError: with such programs something might not be recorded on this host.
            KernelError: the kernel does not describe its functions.
        """
        running = probe.preemption_now()
        if running not in ("none", "voluntary"):
            raise _unfit(f"the kernel may skip such programs, as it preempts at will ({running or 'unknown'})")
        prefix = self._prefix
        firsts = [name for name in opened.programs if name.startswith(prefix) and not name.endswith(_SECOND)]
        functions = {name: _function(name.removeprefix(prefix)) for name in firsts}
        found = btf.functions([*functions.values(), _NAMES_JUDGED])
        if _FILTER not in found or _function(_SHARED_FOR) not in found:
            raise _unfit(f"the kernel does not describe {_FILTER} or {_function(_SHARED_FOR)}")
        out = {_function(call) for call in (*self._without, *(PEERS if _NAMES_JUDGED in found else ()))}
        self._wanted = [name for name in firsts if functions[name] not in out or name.startswith(prefix + _SENT)]
        kinds = {name: found[functions[name]].kind for name in self._wanted if functions[name] in found}
        others = pins.links()
        if others + len(kinds) > LINKS_LIMIT:
            raise _unfit(f"{others} programs of other engines are attached, and too many at once can stop the kernel")
        _choose(opened, prefix, kinds, found[_function(_SHARED_FOR)].kind)

    def rehearse(self, programs: Mapping[str, int]) -> None:
        """Make every call once, in a way that does nothing, and look whether its program was asked.

        A compiler may merge a call's function into its caller: then a program is attached to it and never asked.

        Args:
            programs: descriptors of what is attached, by name.

        Raises:
            HostError: one was not asked, or a call that this kernel has has no program.
            KernelError: the kernel does not count.
        """
        numbers = {name: int(found[0]) for name in self._wanted if (found := _NUMBER.findall(name))}
        with bpf.counting():
            missing = _call_each(sorted({*numbers.values()}))
            asked = {name.removesuffix(_SECOND) for name, fd in programs.items() if bpf.program_facts(fd).runs}
        unseen = [name for name in self._wanted if name not in asked and numbers.get(name) not in missing]
        if unseen:
            named = ", ".join(sorted(name.removeprefix(self._prefix) for name in unseen))
            raise _unfit(f"the programs for these calls were not asked when they were made: {named}")


def _choose(opened: bpf.Object, prefix: str, kinds: Mapping[str, int], first: int) -> None:
    """Of the two programs for each of these calls take the one that goes on in a program for a function described alike."""
    others = {name: kind for name, kind in kinds.items() if kind != first and name != prefix + _FILTERED}
    if len(set(others.values())) > 1:
        raise _unfit("the kernel describes the functions of system calls in more than two ways")
    for name in others:
        for shared in _SHARED:
            opened.set_target(shared + _SECOND, _function(name.removeprefix(prefix)))
        break
    taken = {name + (_SECOND if name in others else "") for name in kinds}
    opened.skip({name for name in opened.programs if name.startswith(prefix)} - taken)


def _function(call: str) -> str:
    """The kernel's function for a call, as it is named in a program or without its number."""
    if call == _FILTERED:
        return _FILTER
    machine = os.uname().machine
    if machine not in _FUNCTIONS:
        raise _unfit(f"functions of system calls are not known by name on {machine}")
    return _FUNCTIONS[machine] + _NUMBER.sub("", call.removeprefix(_SENT).removeprefix(_RECEIVED))


# --- a canary ---------------------------------------------------------------------------------------------------


def _call_each(numbers: list[int]) -> set[int]:
    """Make these calls with arguments that none takes, behind a filter that allows all; returns those that the kernel lacks."""
    library = ctypes.CDLL(None, use_errno=True)
    reading, writing = os.pipe()
    try:
        child = os.fork()
    except OSError as error:
        os.close(reading)
        os.close(writing)
        raise _unfit(f"there was no process for the canary: {error.strerror}") from None
    if child == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_PATIENCE_S)
            _disarm(library)
            os.write(writing, bytes(_is_missing(library, number) for number in numbers))
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answers:
        answered = answers.read()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)
    if len(answered) != len(numbers):
        raise _unfit("the calls of the canary were not made")
    return {number for number, missing in zip(numbers, answered, strict=True) if missing}


def _disarm(library: ctypes.CDLL) -> None:
    """Give up every right, and put a filter before all calls from here on."""
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    rule = ctypes.create_string_buffer(struct.pack("@HBBI", 6, 0, 0, _ALLOW))  # return: allow
    program = ctypes.create_string_buffer(struct.pack("@HP", 1, ctypes.addressof(rule)))
    if library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or library.prctl(_PR_SET_SECCOMP, _MODE_FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _is_missing(library: ctypes.CDLL, number: int) -> bool:
    answer = library.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)
    return answer == -1 and ctypes.get_errno() == errno.ENOSYS


def _unfit(why: str) -> HostError:
    return HostError(
        "system calls are recorded by a tracepoint here",
        why=why,
        do="nothing: it only costs more",
        code="host.no-calls",
    )
