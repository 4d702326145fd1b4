"""The system-call filter that closes what no profile needs, made with libseccomp and handed over as bytes.

It refuses with EPERM (ENOSYS where programs are known to fall back), so an honest program gets an error and not a kill.
Verdicts on paths and destinations are never made here: a filter cannot see them without a race.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import zlib

from mcpguard import __version__
from mcpguard.errors import HostError
from mcpguard.model.profile import SystemSwitches

_NAMESPACE_FLAGS = {
    "CLONE_NEWNS": 0x00020000,
    "CLONE_NEWCGROUP": 0x02000000,
    "CLONE_NEWUTS": 0x04000000,
    "CLONE_NEWIPC": 0x08000000,
    "CLONE_NEWUSER": 0x10000000,
    "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000,
}
# Only unshare takes this one; in clone the same bits carry the exit signal.
_CLONE_NEWTIME = 0x80
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
_HIGHEST_FAMILY = 64
# TIOCSTI and TIOCLINUX type into the person's terminal.
_TYPING = (0x5412, 0x541C)
# Of btrfs: SUBVOL_CREATE, SNAP_CREATE, SNAP_DESTROY, their second versions, SUBVOL_SETFLAGS. No cover lies over a second view
# of a subvolume, and Landlock is not asked when one is made or removed.
_SUBVOLUMES = (0x5000940E, 0x50009418, 0x50009401, 0x50009417, 0x5000940F, 0x5000943F, 0x4008941A)
_REFUSED_REQUESTS = (*_TYPING, *_SUBVOLUMES)
_SOCK_TYPE_MASK = 0xF

# Refused whatever the profile says. Names unknown to an architecture are left out by libseccomp itself.
REFUSED = """
acct add_key bpf chroot clock_adjtime clock_settime delete_module fanotify_init finit_module fsconfig fsmount
fsopen fspick get_kernel_syms init_module ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie
mount mount_setattr move_mount name_to_handle_at nfsservctl open_by_handle_at open_tree open_tree_attr
perf_event_open pidfd_getfd pivot_root process_madvise process_vm_readv process_vm_writev ptrace quotactl
quotactl_fd reboot request_key setdomainname sethostname setns settimeofday stime swapoff swapon sysfs syslog
umount umount2 uselib userfaultfd ustat vhangup vm86 vm86old
""".split()  # noqa: SIM905 - a list of seventy words is read better as text
# What a program needs that makes a sandbox of its own; of use only inside a user namespace, and only where the kernel's own
# hooks name files by what they are (tier 1): under Landlock no mount is allowed.
SELF_SANDBOX = """
chroot fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree open_tree_attr pivot_root setdomainname
sethostname setns umount umount2
""".split()  # noqa: SIM905 - as above
# What debuggers, tracers and leak checkers do to processes. Landlock and the kernel's own hooks keep them inside the tree, and
# a traced process stands behind this very filter: it is asked after a tracer has changed a call.
DEBUGGING = ("process_vm_readv", "process_vm_writev", "ptrace")
# clone3 hides its flags in memory that a filter cannot read, and with them it can put a child of root's into another cgroup,
# which is out of the tree. C libraries fall back to clone.
CLONE3 = "clone3"
# Programs try these first and do without them. What they read and write so ends no call of theirs.
MISSING = ("io_uring_setup", "io_uring_enter", "io_uring_register", "io_setup", "io_submit")


def cached_filter(switches: SystemSwitches, directory: str, *, mounts: bool = False) -> bytes:
    """`build_filter`, kept in `directory` (the state directory, which no guarded process can write): loading libseccomp costs
    more than all the rest of a launch's planning."""
    key = repr(
        (__version__, os.uname().machine, switches, mounts, REFUSED, MISSING, CLONE3, _REFUSED_REQUESTS)
    ).encode()
    path = f"{directory}/seccomp-{zlib.crc32(key):08x}-{len(key)}.bpf"
    try:
        with open(path, "rb") as file:
            program = file.read()
            if program and len(program) % 8 == 0 and os.fstat(file.fileno()).st_uid == os.getuid():
                return program
    except OSError:
        pass
    program = build_filter(switches, mounts=mounts)
    with contextlib.suppress(OSError):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        made = f"{path.removesuffix('.bpf')}.{os.getpid()}"
        with open(made, "wb") as file:
            file.write(program)
        os.replace(made, path)
    return program


def build_filter(switches: SystemSwitches, *, mounts: bool = False) -> bytes:
    """The filter as an array of `struct sock_filter` for this machine's native architecture.

    Args:
        mounts: with user namespaces permitted, let through what changes mounts inside them.

    Calls of every other architecture (32-bit, x32) fail with ENOSYS: their numbers mean something else.

    Raises:
        HostError: libseccomp is missing or refuses.
    """
    import tempfile

    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError) as error:
        raise HostError(
            "the system-call filter cannot be made",
            why=f"libseccomp could not be loaded: {error}",
            do="install the package libseccomp2 (Debian, Ubuntu) or libseccomp (others)",
            code="host.libseccomp-missing",
        ) from error
    rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
    rules.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.ERRNO(errno.ENOSYS))
    refuse, missing = pyseccomp.ERRNO(errno.EPERM), pyseccomp.ERRNO(errno.ENOSYS)
    arg, masked, equal, greater = pyseccomp.Arg, pyseccomp.MASKED_EQ, pyseccomp.EQ, pyseccomp.GT

    def add(action: object, name: str, *arguments: object) -> None:
        try:
            rules.add_rule(action, name, *arguments)
        except (OSError, RuntimeError, ValueError):
            if pyseccomp.resolve_syscall(pyseccomp.system_arch(), name) >= 0:
                raise

    permitted = {
        *(SELF_SANDBOX if mounts and switches.user_namespaces else ()),
        *(DEBUGGING if switches.debuggers else ()),
    }
    for name in REFUSED:
        if name not in permitted:
            add(refuse, name)
    if not switches.io_uring:
        for name in MISSING:
            add(missing, name)
    add(missing, CLONE3)
    if not switches.user_namespaces:
        for flag in _NAMESPACE_FLAGS.values():
            add(refuse, "clone", arg(0, masked, flag, flag))
            add(refuse, "unshare", arg(0, masked, flag, flag))
        add(refuse, "unshare", arg(0, masked, _CLONE_NEWTIME, _CLONE_NEWTIME))
    # Limits of another process end it or blind it, and no other guard looks at this call.
    add(refuse, "prlimit64", arg(0, greater, 0))
    for family in range(_HIGHEST_FAMILY):
        if family not in _FAMILIES:
            add(refuse, "socket", arg(0, equal, family))
        if family != socket.AF_UNIX:
            add(refuse, "socketpair", arg(0, equal, family))
    add(refuse, "socket", arg(0, greater, _HIGHEST_FAMILY - 1))
    add(refuse, "socketpair", arg(0, greater, _HIGHEST_FAMILY - 1))
    # NETLINK_ROUTE is what name look-ups and `ip` need; every other netlink protocol configures or watches the host.
    add(refuse, "socket", arg(0, equal, socket.AF_NETLINK), arg(2, greater, 0))
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind in (socket.SOCK_RAW, 10):
            add(refuse, "socket", arg(0, equal, family), arg(1, masked, _SOCK_TYPE_MASK, kind))
    for request in _REFUSED_REQUESTS:
        add(refuse, "ioctl", arg(1, masked, 0xFFFFFFFF, request))
    from typing import IO, cast

    with tempfile.TemporaryFile() as output:
        rules.export_bpf(cast("IO[bytes]", output))
        output.seek(0)
        return output.read()
