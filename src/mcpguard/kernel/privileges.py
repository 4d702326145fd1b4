"""Giving privilege up: capabilities, no_new_privs, seccomp, descriptors. Nothing here can be undone by the caller."""

from __future__ import annotations

import ctypes
import os
import struct

from mcpguard.kernel import syscalls

PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
# SECBIT_NOROOT and its lock: uid 0 gains nothing at exec.
_SECUREBITS = 0x1 | 0x2
_CAPABILITY_VERSION_3 = 0x20080522
_SECCOMP_SET_MODE_FILTER = 1


def drop_bounding_set() -> None:
    """Empty the capability bounding set and stop uid 0 from meaning anything at exec. Needs CAP_SETPCAP."""
    syscalls.prctl(PR_SET_SECUREBITS, _SECUREBITS)
    for capability in range(64):
        try:
            syscalls.prctl(PR_CAPBSET_DROP, capability)
        except OSError:
            if capability <= 40:
                raise
            return


def drop_capabilities() -> None:
    """Empty the permitted, effective, inheritable and ambient sets of this thread."""
    syscalls.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = bytes(24)
    if syscalls.libc.capset(ctypes.c_char_p(header), ctypes.c_char_p(data)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "capset")


def set_no_new_privs() -> None:
    """No exec from here on grants anything: set-user-id bits and file capabilities are ignored."""
    syscalls.prctl(PR_SET_NO_NEW_PRIVS, 1)


def install_seccomp(program: bytes) -> None:
    """Install a classic BPF filter (an array of 8-byte `struct sock_filter`) on this thread. Needs no_new_privs."""
    if not program or len(program) % 8:
        raise ValueError("a seccomp program is a non-empty multiple of 8 bytes")
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: unsigned short len, padding, pointer.
    fprog = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(instructions))
    syscalls.syscall(syscalls.SECCOMP, _SECCOMP_SET_MODE_FILTER, 0, fprog)


def close_from(lowest: int, keep: set[int]) -> None:
    """Close every descriptor at or above `lowest` but those in `keep`."""
    start = lowest
    for fd in sorted(keep):
        if fd >= start:
            os.closerange(start, fd)
            start = fd + 1
    os.closerange(start, max(start, _highest_descriptor() + 1))


def _highest_descriptor() -> int:
    return max((int(name) for name in os.listdir("/proc/self/fd")), default=0)
