"""A system-call filter for servers that may not use the network: no sockets but unix ones, and no other way to make one.

Ten instructions, so it is written by hand: loading libseccomp takes longer than starting the server.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

# From <linux/bpf_common.h>, <linux/seccomp.h> and <linux/audit.h>.
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_X32 = 0x40000000
_MACHINES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
_IO_URING_SETUP = 425
_MOST = 0xFFFFFFFF


def program() -> bytes:
    """The filter, as an array of `struct sock_filter`.

    Raises:
        OSError: this machine's numbers are not known.
    """
    machine = os.uname().machine
    if machine not in _MACHINES:
        raise OSError(errno.ENOSYS, f"no filter for {machine}")
    architecture, socket_call = _MACHINES[machine]
    refuse, missing = _ERRNO | errno.EACCES, _ERRNO | errno.ENOSYS
    # (code, jump if true, jump if false, value); jumps count the instructions that are left out.
    code = (
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 0, 7, architecture),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 5, 0, _X32 if machine == "x86_64" else _MOST),
        (_EQUAL, 5, 0, _IO_URING_SETUP),
        (_EQUAL, 0, 2, socket_call),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_EQUAL, 0, 1, socket.AF_UNIX),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, refuse),
        (_RETURN, 0, 0, missing),
    )
    return b"".join(struct.pack("=HBBI", *one) for one in code)
