"""Raw system calls that Python's standard library does not wrap. Numbers, structures and errno; no policy.

All numbers used here are above 424 or the same on x86-64 and arm64 (the common table), unless a table says otherwise.
"""

from __future__ import annotations

import ctypes
import os
import signal

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

# Keeps the interpreter's lock meanwhile, as whoever forks must.
_python = ctypes.PyDLL(None, use_errno=True)
_python.syscall.restype = ctypes.c_long

OPEN_TREE = 428
MOVE_MOUNT = 429
_CLONE3 = 435
OPENAT2 = 437
MOUNT_SETATTR = 442
LANDLOCK_CREATE_RULESET = 444
LANDLOCK_ADD_RULE = 445
LANDLOCK_RESTRICT_SELF = 446

_SECCOMP = {"x86_64": 317, "aarch64": 277}
SECCOMP = _SECCOMP.get(os.uname().machine, -1)

_PTRACE_DETACH = 17

_CLONE_INTO_CGROUP = 0x200000000

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000


def syscall(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """Call the kernel.

    Integers are passed as 64 bit, bytes and buffers as pointers, None as a null pointer.

    Raises:
        OSError: the call failed; errno is set.
    """
    converted: list[object] = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(libc.syscall(ctypes.c_long(number), *converted))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


class _CloneArguments(ctypes.Structure):
    """clone_args of clone3(2)."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls"),
            *("set_tid", "set_tid_size", "cgroup"),
        )
    )


def fork_into(cgroup: int) -> int:
    """`os.fork`, with a child that is born in a cgroup (Linux 5.7). Only for a process without other threads: libc, which would
    see to what those hold, is not asked.

    Args:
        cgroup: descriptor of its open directory.

    Returns:
        the child's number; 0 in the child.

    Raises:
        OSError: the kernel, or a filter of system calls, refused.
    """
    arguments = _CloneArguments(flags=_CLONE_INTO_CGROUP, exit_signal=signal.SIGCHLD, cgroup=cgroup)
    size = ctypes.c_long(ctypes.sizeof(arguments))
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = int(_python.syscall(ctypes.c_long(_CLONE3), ctypes.byref(arguments), size))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    number = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(number, os.strerror(number))
    return pid


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2); raises OSError."""
    result = int(
        libc.prctl(
            ctypes.c_int(option), ctypes.c_ulong(arg2), ctypes.c_ulong(arg3), ctypes.c_ulong(arg4), ctypes.c_ulong(arg5)
        )
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def release_tracee(pid: int, stopped_by: int) -> bool:
    """Let a stopped child or thread run that has made the caller its tracer (PTRACE_TRACEME, ptrace(2)), which nobody wanted.

    Args:
        stopped_by: the signal; it gets it, but for the trap of a traced exec.

    Returns:
        False: the caller does not trace it.
    """
    import signal  # takes longer than all else here

    passed = 0 if stopped_by == signal.SIGTRAP else stopped_by
    return int(libc.ptrace(ctypes.c_long(_PTRACE_DETACH), ctypes.c_long(pid), None, ctypes.c_void_p(passed))) == 0
