"""Performance events of the kernel's tracepoints; see perf_event_open(2)."""

from __future__ import annotations

import ctypes
import os
import struct

from mcpguard.kernel import syscalls

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CREATE, _CLOEXEC = 6, 1
_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_TRACEPOINT, _ATTRIBUTES_BYTES, _DISABLED, _FD_CLOEXEC = 2, 64, 1, 8


def tracepoint(name: str) -> int:
    """Open the event of a tracepoint (`group/name`) for all processes, without counting it; returns its descriptor.

    Raises:
        OSError: the kernel has no such event, or does not give it to us.
    """
    fields = (_TRACEPOINT, _ATTRIBUTES_BYTES, _number(name), 0, 0, 0, _DISABLED)
    attributes = struct.pack("@IIQQQQQ", *fields).ljust(_ATTRIBUTES_BYTES, b"\0")
    # It belongs to one processor; programs that are attached to it are asked on all.
    processor = min(os.sched_getaffinity(0))
    number = _PERF_EVENT_OPEN.get(os.uname().machine, -1)
    return syscalls.syscall(number, ctypes.create_string_buffer(attributes), -1, processor, -1, _FD_CLOEXEC)


def _number(name: str) -> int:
    """The number of a tracepoint in this boot, from a tracefs of our own that has no place in any tree of files."""
    context = syscalls.syscall(_FSOPEN, b"tracefs", _CLOEXEC)
    try:
        syscalls.syscall(_FSCONFIG, context, _CREATE, None, None, 0)
        mounted = syscalls.syscall(_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)
    try:
        fd = os.open(f"events/{name}/id", os.O_RDONLY | os.O_CLOEXEC, dir_fd=mounted)
    finally:
        os.close(mounted)
    with open(fd, "rb") as file:
        return int(file.read())
