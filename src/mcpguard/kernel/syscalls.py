"""Raw system calls that Python's standard library does not wrap. Numbers, structures and errno; no policy.

All numbers used here are above 424 or the same on x86-64 and arm64 (the common table), unless a table says otherwise.
`ctypes` is imported at the first call: the user's process makes none before its request is on the way.
"""

from __future__ import annotations

import functools
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes
    from typing import Any

    libc: ctypes.CDLL

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


# clone_args of clone3(2): flags, pidfd, child_tid, parent_tid, exit_signal, five that stay 0, cgroup.
_CLONE_ARGUMENTS = struct.Struct("=11Q")


def __getattr__(name: str) -> Any:
    """`libc`, loaded when it is first asked for."""
    if name == "libc":
        return _libc()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _libc() -> ctypes.CDLL:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    return library


def _failed(about: str = "") -> OSError:
    import ctypes

    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), about) if about else OSError(number, os.strerror(number))


def call(function: str, about: str, *arguments: int | bytes | None) -> None:
    """Call a function of libc that returns less than 0 where it fails; integers are passed as 64 bit.

    Raises:
        OSError: it failed; `about` stands where a file name would.
    """
    import ctypes

    if getattr(_libc(), function)(*(ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments)) < 0:
        raise _failed(about)


def syscall(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """Call the kernel.

    Integers are passed as 64 bit, bytes and buffers as pointers, None as a null pointer.

    Raises:
        OSError: the call failed; errno is set.
    """
    import ctypes

    converted: list[object] = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(_libc().syscall(ctypes.c_long(number), *converted))
    if result < 0:
        raise _failed()
    return result


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
    import ctypes
    import signal

    library = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter's lock meanwhile, as whoever forks must
    library.syscall.restype = ctypes.c_long
    arguments = _CLONE_ARGUMENTS.pack(_CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, cgroup)
    library.PyOS_BeforeFork()
    pid = int(library.syscall(ctypes.c_long(_CLONE3), arguments, ctypes.c_long(len(arguments))))
    if pid == 0:
        library.PyOS_AfterFork_Child()
        return 0
    failed = _failed()
    library.PyOS_AfterFork_Parent()
    if pid < 0:
        raise failed
    return pid


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2); raises OSError."""
    import ctypes

    result = int(
        _libc().prctl(
            ctypes.c_int(option), ctypes.c_ulong(arg2), ctypes.c_ulong(arg3), ctypes.c_ulong(arg4), ctypes.c_ulong(arg5)
        )
    )
    if result < 0:
        raise _failed()
    return result


def release_tracee(pid: int, stopped_by: int) -> bool:
    """Let a stopped child or thread run that has made the caller its tracer (PTRACE_TRACEME, ptrace(2)), which nobody wanted.

    Args:
        stopped_by: the signal; it gets it, but for the trap of a traced exec.

    Returns:
        False: the caller does not trace it.
    """
    import ctypes
    import signal

    passed = 0 if stopped_by == signal.SIGTRAP else stopped_by
    return int(_libc().ptrace(ctypes.c_long(_PTRACE_DETACH), ctypes.c_long(pid), None, ctypes.c_void_p(passed))) == 0
