"""Refused system calls without a path: which of them are our denials.

The seccomp filter refuses before the kernel looks at who asks, so its calls are always ours. For signals the kernel's
own permission comes first: a signal to another user's process is refused to everybody and is not reported.
"""

from __future__ import annotations

import errno
import signal
import socket
from pathlib import Path

from mcpguard.events.finding import QUIET, UNEXPLAINED, Finding, system_rule
from mcpguard.events.processes import ProcessTable
from mcpguard.model.access import Verdict
from mcpguard.model.event import Kind
from mcpguard.wire.records import CallRecord

_SIGNALS = frozenset(["kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal"])
# System call -> the event's op and the words of the rule.
_FILTERED = {
    **dict.fromkeys(
        ["ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp"],
        ("ptrace", "no control of other processes"),
    ),
    **dict.fromkeys(["unshare", "clone", "clone3", "setns"], ("unshare", "user_namespaces: false")),
    **dict.fromkeys(
        ["mount", "umount", "umount2", "pivot_root", "fsopen", "fsconfig", "fsmount", "fspick", "move_mount"],
        ("mount", "no mounts"),
    ),
    **dict.fromkeys(["mount_setattr", "open_tree", "open_tree_attr"], ("mount", "no mounts")),
    **dict.fromkeys(["keyctl", "add_key", "request_key"], ("keyctl", "no kernel keys")),
    **dict.fromkeys(
        ["io_uring_setup", "io_uring_enter", "io_uring_register", "io_uring"], ("io_uring", "io_uring: false")
    ),
    **dict.fromkeys(
        ["init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load"], ("module", "no kernel code")
    ),
    "bpf": ("bpf", "no BPF"),
    "perf_event_open": ("perf", "no performance counters"),
    "userfaultfd": ("userfaultfd", "no fault handling in user space"),
    "chroot": ("chroot", "no change of root"),
    "ioctl": ("ioctl", "no typing into terminals"),
}
# libuv and others ask for io_uring at every start and do without.
_PROBED = frozenset({"io_uring"})
_REFUSALS = frozenset({errno.EPERM, errno.EACCES})


def judge_call(record: CallRecord, processes: ProcessTable, uid: int) -> Finding | None:
    """The finding of a refused call; None: it is the kernel's ordinary answer.

    Args:
        uid: the user of the guarded tree.
    """
    if record.op in ("socket", "socketpair"):
        return _socket(record)
    if record.op in _SIGNALS or record.op == "signal":
        return _signal(record, processes, uid)
    op, words = _FILTERED.get(record.op, (record.op, ""))
    if record.result not in _REFUSALS and not (record.result == errno.ENOSYS and op in _PROBED):
        return None
    if not words:
        return Finding(Kind.PROCESS, op, Verdict.DENY, detail=UNEXPLAINED)
    detail = f"{QUIET}: programs ask for it and do without" if op in _PROBED else None
    if op == "ptrace" and record.argument > 0:
        detail = f"process {record.argument}"
    return Finding(Kind.PROCESS, op, Verdict.DENY, rule=system_rule(words), detail=detail)


def _socket(record: CallRecord) -> Finding | None:
    """Only the filter answers EPERM or EACCES here: the tree has no capability, so raw and packet sockets are closed
    twice."""
    if record.result not in _REFUSALS:
        return None
    try:
        family = socket.AddressFamily(record.argument).name
    except ValueError:
        family = f"family {record.argument}"
    return Finding(
        *(Kind.NET, "socket", Verdict.DENY), rule=system_rule("no raw sockets, no other families"), detail=family
    )


def _signal(record: CallRecord, processes: ProcessTable, uid: int) -> Finding | None:
    target = record.argument if record.argument < 1 << 31 else record.argument - (1 << 32)
    if record.result not in _REFUSALS or target in processes or _of_another_user(target, uid):
        return None
    number = record.argument2
    probe = number == 0
    name = signal.Signals(number).name if number in signal.valid_signals() and number else f"signal {number}"
    detail = f"{QUIET}: only asks whether a process lives" if probe else f"{name} to process {target}"
    return Finding(
        Kind.PROCESS, "signal", Verdict.DENY, rule=system_rule("no signals to processes outside"), detail=detail
    )


def _of_another_user(pid: int, uid: int) -> bool:
    """The kernel compares with the target's real and saved user. Groups and ended processes: it cannot be told."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace") if pid > 0 else ""
    except OSError:
        return False
    line = next((line for line in text.splitlines() if line.startswith("Uid:")), "")
    fields = line.split()
    return len(fields) == 5 and uid not in (int(fields[1]), int(fields[3]))
