"""Landlock's three calls. Knows rights and ABI versions; knows nothing of profiles.

Source: Linux Documentation/userspace-api/landlock.rst and include/uapi/linux/landlock.h.
"""

from __future__ import annotations

import errno
import os
import struct

from mcpguard.kernel import syscalls

EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
REMOVE_DIR = 1 << 4
REMOVE_FILE = 1 << 5
MAKE_CHAR = 1 << 6
MAKE_DIR = 1 << 7
MAKE_REG = 1 << 8
MAKE_SOCK = 1 << 9
MAKE_FIFO = 1 << 10
MAKE_BLOCK = 1 << 11
MAKE_SYM = 1 << 12
REFER = 1 << 13
TRUNCATE = 1 << 14
IOCTL_DEV = 1 << 15

SCOPE_ABSTRACT_UNIX_SOCKET = 1 << 0
SCOPE_SIGNAL = 1 << 1

READ = READ_FILE | READ_DIR
WRITE = (
    WRITE_FILE
    | REMOVE_DIR
    | REMOVE_FILE
    | MAKE_CHAR
    | MAKE_DIR
    | MAKE_REG
    | MAKE_SOCK
    | MAKE_FIFO
    | MAKE_BLOCK
    | MAKE_SYM
    | REFER
    | TRUNCATE
    | IOCTL_DEV
)
# The only rights that the kernel accepts on a rule whose object is not a directory.
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

_CREATE_VERSION = 1
_RULE_PATH_BENEATH = 1


def abi() -> int:
    """The kernel's Landlock ABI version; 0 when Landlock is missing or switched off."""
    try:
        return syscalls.syscall(syscalls.LANDLOCK_CREATE_RULESET, None, 0, _CREATE_VERSION)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return 0
        raise


def handled_rights(version: int) -> int:
    """Every file-system right that this ABI can govern."""
    rights = (1 << 13) - 1
    if version >= 2:
        rights |= REFER
    if version >= 3:
        rights |= TRUNCATE
    if version >= 5:
        rights |= IOCTL_DEV
    return rights


def handled_scopes(version: int) -> int:
    """Scopes that this ABI can close: abstract unix sockets and signals, both from ABI 6."""
    return SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL if version >= 6 else 0


class Ruleset:
    """A ruleset under construction; `restrict_self` is final for this thread and all it starts."""

    def __init__(self, version: int, *, scopes: int | None = None) -> None:
        self.rights = handled_rights(version)
        self.scopes = handled_scopes(version) if scopes is None else scopes
        # handled_access_fs, handled_access_net (from ABI 4), scoped (from ABI 6): all 64 bit.
        fields = (self.rights, 0, self.scopes)[: 3 if version >= 6 else 2 if version >= 4 else 1]
        attributes = struct.pack(f"={len(fields)}Q", *fields)
        self.fd = syscalls.syscall(syscalls.LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
        os.set_inheritable(self.fd, False)

    def allow(self, path_fd: int, rights: int) -> None:
        """Grant `rights` on the object behind `path_fd` and, for a directory, on everything below."""
        rights &= self.rights
        if rights:
            attributes = struct.pack("=Qi", rights, path_fd)
            syscalls.syscall(syscalls.LANDLOCK_ADD_RULE, self.fd, _RULE_PATH_BENEATH, attributes, 0)

    def restrict_self(self) -> None:
        """Apply to the calling thread. Needs no_new_privs."""
        syscalls.syscall(syscalls.LANDLOCK_RESTRICT_SELF, self.fd, 0)
        os.close(self.fd)
