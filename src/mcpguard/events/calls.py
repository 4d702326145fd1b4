"""Refused system calls without a path: which of them are our denials.

The seccomp filter refuses before the kernel looks at who asks, so its calls are always ours. For signals the kernel's
own permission comes first: a signal to another user's process is refused to everybody and is not reported.
"""

from __future__ import annotations

import errno
import signal
import socket

from mcpguard.events.finding import QUIET, UNEXPLAINED, Finding, system_rule
from mcpguard.events.processes import ProcessTable
from mcpguard.kernel import cgroup
from mcpguard.model.access import Verdict
from mcpguard.model.event import Kind
from mcpguard.model.profile import SystemSwitches
from mcpguard.wire.records import CallRecord

# Op of the record -> the event's op and the words of the rule.
_FILTERED = {
    "ptrace": ("ptrace", "no control of other processes"),
    "process-memory": ("ptrace", "no control of other processes"),
    "pidfd-getfd": ("ptrace", "no control of other processes"),
    "unshare": ("unshare", "user_namespaces: false"),
    "clone": ("unshare", "user_namespaces: false"),
    "setns": ("setns", "no other namespaces"),
    "mount": ("mount", "no mounts"),
    "chroot": ("chroot", "no change of root"),
    "handle": ("handle", "no file handles, which name files without a path"),
    "process": ("process", "no control of other processes"),
    "identity": ("identity", "no other user, group or capability"),
    "keyctl": ("keyctl", "no kernel keys"),
    "module": ("module", "no kernel modules"),
    "host": ("host", "no settings of the host, no look at all of it"),
    "bpf": ("bpf", "no BPF"),
    "perf": ("perf", "no performance counters"),
    "io-uring": ("io_uring", "io_uring: false"),
    "ioctl": ("ioctl", "no typing into terminals"),
    "subvolume": ("ioctl", "no snapshots, no making and removing of subvolumes"),
}
_KEPT = "a server that is kept to a profile reaches no processes but its own"
_DEBUGGING = ("ptrace", "process-memory")
_REFUSALS = frozenset({errno.EPERM, errno.EACCES})
# Numbers on x86-64 and arm64; none of them is another recorded call on the other machine.
_TGKILL = frozenset({234, 131})
_KCMP = frozenset({312, 272})
_PIDFD_SEND_SIGNAL = 424
# The group that requests to btrfs are numbered in.
_BTRFS = 0x94
# The type's own bits; SOCK_CLOEXEC and SOCK_NONBLOCK stand above them.
_SOCKET_TYPE = 0xF


def judge_call(
    record: CallRecord, processes: ProcessTable, uid: int, switches: SystemSwitches, *, keeps: bool = False
) -> Finding | None:
    """The finding of a refused call; None: it is the kernel's ordinary answer.

    Args:
        uid: the user of the guarded tree.
        switches: what the profile permits; a permitted call that fails was refused by the kernel itself.
        keeps: servers of the tree are kept to less than it has.
    """
    if record.op == "socket":
        return _socket(record, keeps=keeps)
    if record.op == "signal":
        return _signal(record, processes, uid, keeps=keeps)
    if record.op in ("unshare", "clone") and switches.user_namespaces:
        return None
    if record.op == "identity" and uid != 0:
        # Only root could have done it without us.
        return None
    if switches.debuggers and _debugs_the_tree(record, processes, uid):
        return None
    if record.op == "io-uring":
        return _io_uring(record, switches)
    if record.result not in _REFUSALS:
        return None
    subvolume = record.op == "ioctl" and record.argument >> 8 & 0xFF == _BTRFS
    op, words = _FILTERED.get("subvolume" if subvolume else record.op, (record.op, ""))
    if not words:
        return Finding(Kind.PROCESS, op, Verdict.DENY, detail=UNEXPLAINED)
    aims = record.op in _DEBUGGING and record.argument > 0
    detail = f"process {record.argument}" if aims else None
    return Finding(Kind.PROCESS, op, Verdict.DENY, rule=system_rule(words), detail=detail)


def _debugs_the_tree(record: CallRecord, processes: ProcessTable, uid: int) -> bool:
    """Whether the kernel's own answer was no, to what the profile permits or what nobody could do without us."""
    if record.op not in _DEBUGGING or record.number in _KCMP:
        return False
    # A thread's number; 0: whoever asked means itself.
    target = record.argument
    if target <= 0 or target in processes:
        return not _is_kept_from(record, target, gone=False)
    process = _status(target).get("Tgid", [])
    return bool(process and int(process[0]) in processes) or (uid != 0 and _of_another_user(target, uid))


def _io_uring(record: CallRecord, switches: SystemSwitches) -> Finding | None:
    """libuv and others ask for it at every start and do without; the filter says that it does not exist."""
    if switches.io_uring or record.result not in (*_REFUSALS, errno.ENOSYS):
        return None
    op, words = _FILTERED["io-uring"]
    detail = f"{QUIET}: programs ask for it and do without"
    return Finding(Kind.PROCESS, op, Verdict.DENY, rule=system_rule(words), detail=detail)


def _socket(record: CallRecord, *, keeps: bool) -> Finding | None:
    """Only filters answer EPERM or EACCES here: the tree has no capability, so raw and packet sockets are closed twice. Those
    of the internet are closed to nobody but servers that are kept without a network."""
    if record.result not in _REFUSALS:
        return None
    raw = record.argument2 & _SOCKET_TYPE == socket.SOCK_RAW
    internet = record.argument in (socket.AF_INET, socket.AF_INET6) and not raw
    if internet and not keeps:  # a filter of the tree's own
        return None
    rule = None if internet else system_rule("no raw sockets, no other families")
    return Finding(Kind.NET, "socket", Verdict.DENY, rule=rule, detail=_socket_name(record.argument, record.argument2))


def _socket_name(family_number: int, type_number: int) -> str:
    """`packet socket (AF_PACKET, SOCK_RAW)`, `raw socket (AF_INET, SOCK_RAW)`, `socket (AF_VSOCK, SOCK_STREAM)`."""
    try:
        family = socket.AddressFamily(family_number).name
    except ValueError:
        family = f"family {family_number}"
    try:
        kind = socket.SocketKind(type_number & _SOCKET_TYPE).name
    except ValueError:
        kind = f"type {type_number & _SOCKET_TYPE}"
    word = "raw socket" if kind == "SOCK_RAW" else "socket"
    return f"{'packet socket' if family == 'AF_PACKET' else word} ({family}, {kind})"


def _signal(record: CallRecord, processes: ProcessTable, uid: int, *, keeps: bool) -> Finding | None:
    if record.result not in _REFUSALS:
        return None
    rule = system_rule("no signals to processes outside")
    name = _signal_name(record.argument2)
    if record.number == _PIDFD_SEND_SIGNAL:
        # The argument is a descriptor: whose process it is cannot be told any more.
        return Finding(Kind.PROCESS, "signal", Verdict.DENY, rule=rule, detail=f"{name} to a process")
    target = record.argument & 0xFFFFFFFF
    target -= 1 << 32 if target >= 1 << 31 else 0
    if target in processes and keeps and _is_kept_from(record, target, gone=True):
        rule, name = system_rule(_KEPT), "a signal" if record.number in _TGKILL else name
        return Finding(Kind.PROCESS, "signal", Verdict.DENY, rule=rule, detail=f"{name} to process {target}")
    if target in processes or _of_another_user(target, uid):
        return None
    if record.number in _TGKILL:
        name = "a signal"
    elif record.argument2 == 0:
        detail = f"{QUIET}: only asks whether a process lives"
        return Finding(Kind.PROCESS, "signal", Verdict.DENY, rule=rule, detail=detail)
    return Finding(Kind.PROCESS, "signal", Verdict.DENY, rule=rule, detail=f"{name} to process {target}")


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in signal.valid_signals() and number else f"signal {number}"


def _of_another_user(pid: int, uid: int) -> bool:
    """The kernel compares with the target's real and saved user. Groups and ended processes: it cannot be told."""
    users = _status(pid).get("Uid", [])
    return len(users) == 4 and uid not in (int(users[0]), int(users[2]))


def _is_kept_from(record: CallRecord, target: int, *, gone: bool) -> bool:
    """Whether a server asked that is kept to a leaf of its own, and meant a process elsewhere in the tree. Whoever started it
    lives where it did.

    Args:
        gone: the answer where one of them has ended, so that nobody can tell where it lived. In a tree of one user, who becomes
            no other, nobody else is refused a signal; a debugger may be refused for other reasons.
    """
    mine = cgroup.place_of(record.head.pid) or cgroup.place_of(record.head.ppid)
    other = cgroup.place_of(target)
    session = mine.rpartition("/")[0]
    if mine and not session.startswith(f"/{cgroup.PARENT}/"):
        return False
    return gone if not (mine and other) else cgroup.is_in(other, session) and not cgroup.is_in(other, mine)


def _status(pid: int) -> dict[str, list[str]]:
    """What the kernel tells of a process or thread, by its names; empty when there is none."""
    try:
        with open(f"/proc/{max(pid, 0)}/status", errors="replace") as status:  # of 0 there is none
            lines = status.read().splitlines()
    except OSError:
        return {}
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
