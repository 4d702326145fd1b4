"""Files, programs, processes and unix peers, tiers 1 and 2: verdicts of the path automaton in the kernel's own hooks.

The same bodies are LSM programs (tier 1) and modify-return programs on the functions that call the modules (tier 2). Kernels
differ in what hooks they have; what a policy cannot do without is required, and a host without it does not get the tier.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from mcpguard.kernel import bpf, btf

LSM, MODIFY_RETURN = "lsm", "modify-return"
_PREFIX = {LSM: "mg_lsm_", MODIFY_RETURN: "mg_mod_"}
_LAYOUT_SECTION = ".rodata.layout"


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook of the kernel.

    Attributes:
        name: as the kernel's module framework calls it.
        guards: what is open without it, as `doctor` says it.
        required: no tier without it; else it is used where the kernel has it.
        instead: set when it only stands in for a path_* hook.
        function: the function that calls the modules, where it is not `security_<name>`.
    """

    name: str
    guards: str
    required: bool = True
    instead: bool = False
    function: str = ""

    def target(self, way: str) -> str:
        """The kernel function that a program for it is attached to."""
        return f"bpf_lsm_{self.name}" if way == LSM else self.function or f"security_{self.name}"


_PATHS = ("mknod", "mkdir", "symlink", "unlink", "rmdir", "link", "rename", "chmod", "chown", "truncate")
HOOKS: dict[str, tuple[Hook, ...]] = {
    "guard_files": (
        Hook("file_open", "opening"),
        Hook("file_receive", "descriptors sent by others"),
        Hook("mmap_file", "mapping as code"),
        Hook("file_mprotect", "mapping as code"),
        *(Hook(f"path_{name}", f"{name} by name", required=False) for name in _PATHS),
        *(Hook(f"inode_{name}", f"{name} by name", required=False, instead=True) for name in ("create", *_PATHS[:7])),
        Hook("inode_setattr", "times"),
        Hook("inode_setxattr", "extended attributes"),
        Hook("inode_removexattr", "extended attributes"),
        Hook("inode_set_acl", "access lists", required=False),
        Hook("inode_remove_acl", "access lists", required=False),
        Hook("inode_file_setattr", "file flags", required=False),
        Hook("file_ioctl", "file flags, snapshots, terminal input"),
        Hook("path_notify", "watching names", required=False),
    ),
    "guard_processes": (
        Hook("ptrace_access_check", "looking into other processes"),
        Hook("ptrace_traceme", "being traced from outside"),
        Hook("task_kill", "signals to other processes"),
        Hook("task_setnice", "priority of other processes"),
        Hook("task_setioprio", "priority of other processes"),
        Hook("task_setscheduler", "scheduling of other processes"),
        Hook("task_movememory", "memory of other processes", required=False),
        Hook("file_fcntl", "signals through files"),
        Hook("bpf", "the bpf system call"),
        Hook("perf_event_open", "performance events"),
        Hook("kernel_module_request", "loading modules"),
        Hook("kernel_load_data", "loading modules", required=False),
        Hook("uring_override_creds", "io_uring identities", required=False),
        Hook("uring_cmd", "io_uring device commands", required=False),
        Hook("uring_sqpoll", "io_uring kernel threads", required=False),
        Hook("uring_allowed", "io_uring", required=False),
        Hook("userns_create", "user namespaces", required=False, function="security_create_user_ns"),
        Hook("sb_mount", "mounts"),
        Hook("sb_remount", "mounts"),
        Hook("sb_umount", "mounts"),
        Hook("sb_pivotroot", "mounts"),
        Hook("move_mount", "mounts"),
        Hook("path_chroot", "chroot", required=False),
    ),
    "guard_sockets": (
        Hook("unix_stream_connect", "unix sockets"),
        Hook("unix_may_send", "unix datagram sockets"),
    ),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """Which programs fit this kernel, one way into it.

    Attributes:
        programs: per object, those to load.
        absent: hooks that this kernel lacks and the tier can do without.
        missing: hooks that it lacks and the tier needs; not empty: the tier cannot be had.
        setattr_dentry: place of the dentry among the arguments of inode_setattr.
        inode_hooks: the path_* hooks are missing as a whole and the inode_* ones stand in.
    """

    way: str
    programs: dict[str, tuple[str, ...]]
    absent: tuple[str, ...]
    missing: tuple[str, ...]
    setattr_dentry: int
    inode_hooks: bool


def choose(way: str, *, without_paths: bool = False) -> Choice:
    """Ask the kernel's own description which hooks it has.

    Args:
        way: LSM or MODIFY_RETURN.
        without_paths: pretend that there are no path_* hooks, as on kernels built so.

    Raises:
        KernelError: the kernel does not describe its types.
    """
    hooks = [hook for group in HOOKS.values() for hook in group]
    found = btf.function_parameters({hook.target(way) for hook in hooks})
    named = {f"path_{name}" for name in _PATHS}
    if without_paths:
        for name in named:
            found.pop(Hook(name, "").target(way), None)
    there = {hook.name for hook in hooks if hook.target(way) in found}
    inode_hooks = not named <= there
    wanted = {hook.name for hook in hooks if not (hook.instead and not inode_hooks)}
    if inode_hooks:
        wanted -= named
    needed = {hook.name for hook in hooks if hook.required or (hook.instead and inode_hooks)}
    needed -= {"inode_truncate", "inode_chmod", "inode_chown"}
    programs = {
        group: tuple(_PREFIX[way] + hook.name for hook in members if hook.name in wanted & there)
        for group, members in HOOKS.items()
    }
    return Choice(
        way,
        programs,
        absent=tuple(sorted(wanted - there - needed)),
        missing=tuple(sorted(needed - there)),
        setattr_dentry=found.get(Hook("inode_setattr", "").target(way), 3) - 2,
        inode_hooks=inode_hooks,
    )


def prepare(choice: Choice, opened: bpf.Object) -> None:
    """Make an open object fit: leave programs out, say where arguments stand."""
    wanted = set(choice.programs[opened.name])
    opened.skip(set(opened.programs) - wanted)
    if opened.name == "guard_files":
        opened.set_constants(_LAYOUT_SECTION, _words(choice.setattr_dentry, choice.inode_hooks))


def preparing(choice: Choice) -> partial[None]:
    """`prepare` with its choice."""
    return partial(prepare, choice)


def _words(*numbers: int) -> bytes:
    import sys

    return b"".join(int(number).to_bytes(4, sys.byteorder) for number in numbers)


def links(choice: Choice) -> Iterable[str]:
    """All programs that are attached."""
    return [program for group in choice.programs.values() for program in group]
