"""Facts about this host, each read from the kernel itself.

Facts only: what follows from them is said elsewhere, and what really works is found out by rehearsal, never by version.
A fact that cannot be read is None, never a guess.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
from pathlib import Path

from mcpguard.kernel import cgroup, landlock
from mcpguard.model.values import dataclass


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What this host is.

    Attributes:
        kernel: release, for display only.
        active_lsms: the active LSM list in order; None when securityfs is not mounted.
        landlock_abi: 0 when Landlock is missing or switched off.
        cgroup_mount: where cgroup v2 is mounted; None when it is not.
        btf: the kernel describes its own types (`/sys/kernel/btf/vmlinux`).
        unprivileged_bpf: value of `kernel.unprivileged_bpf_disabled`; None when unreadable.
        preemption: `none`, `voluntary`, `full`, `lazy` or `rt`; None when the running model cannot be told.
        capabilities: the effective set of this process as a bit mask.
        guarded: this process runs inside a guarded session.
        sudo: path of sudo; None when there is none.
        seccomp_library: libseccomp can be loaded.
    """

    kernel: str
    machine: str
    active_lsms: tuple[str, ...] | None
    landlock_abi: int
    cgroup_mount: str | None
    btf: bool
    unprivileged_bpf: int | None
    preemption: str | None
    wsl: bool
    container: bool
    uid: int
    capabilities: int
    guarded: bool
    sudo: str | None
    seccomp_library: bool


def facts() -> HostFacts:
    """Read every fact now; takes a few milliseconds and changes nothing."""
    release = platform.release()
    unprivileged = _text("/proc/sys/kernel/unprivileged_bpf_disabled")
    return HostFacts(
        kernel=release,
        machine=platform.machine(),
        active_lsms=_active_lsms(),
        landlock_abi=landlock.abi(),
        cgroup_mount=cgroup.unified_mount(),
        btf=Path("/sys/kernel/btf/vmlinux").exists(),
        unprivileged_bpf=int(unprivileged) if unprivileged else None,
        preemption=preemption_now(),
        wsl="microsoft" in release.lower(),
        container=any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv", "/run/systemd/container")),
        uid=os.geteuid(),
        capabilities=_effective_capabilities(),
        guarded=is_guarded(),
        sudo=shutil.which("sudo"),
        seccomp_library=_loads("libseccomp.so.2"),
    )


def is_guarded() -> bool:
    """Whether this process lives in a leaf that mcpguard made."""
    return f"/{cgroup.PARENT}/" in (_text("/proc/self/cgroup") or "")


def preemption_now() -> str | None:
    """The running preemption model of this host; None when it cannot be told."""
    return preemption(_text("/sys/kernel/debug/sched/preempt"), platform.version(), _text("/proc/cmdline"))


def preemption(debugfs: str | None, version: str, boot_line: str | None) -> str | None:
    """The running preemption model.

    Args:
        debugfs: text of `sched/preempt`, the running one in brackets: `none (voluntary) full`.
        version: the kernel's build line, such as `#1 SMP PREEMPT_DYNAMIC Debian 6.1`.
        boot_line: the boot parameters; they decide where the model is chosen at boot.
    """
    running = re.search(r"\((\w+)\)", debugfs or "")
    if running:
        return running[1]
    flags = version.split()
    if "PREEMPT_RT" in flags:
        return "rt"
    if "PREEMPT_DYNAMIC" in flags:
        chosen = re.findall(r"(?:^|\s)preempt=(\w+)", boot_line or "")
        return chosen[-1] if chosen else None
    return "full" if "PREEMPT" in flags else None


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _active_lsms() -> tuple[str, ...] | None:
    listed = _text("/sys/kernel/security/lsm")
    return tuple(listed.split(",")) if listed else None


def _effective_capabilities() -> int:
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", _text("/proc/self/status") or "", re.MULTILINE)
    return int(found[1], 16) if found else 0


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
