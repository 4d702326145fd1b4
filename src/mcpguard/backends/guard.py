"""Files, programs, processes and unix peers, tiers 1 and 2: verdicts of the path automaton in the kernel's own hooks.

The same bodies are LSM programs (tier 1) and modify-return programs on the functions that call the modules (tier 2). Kernels
differ in what hooks they have. What no policy can do without is required: a host without it does not get the tier. What only
some need is told, and those policies do not start.
"""

from __future__ import annotations

import contextlib
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import takewhile

from mcpguard.backends.engine import Engine, ObjectSpec, Session, on_calls, together
from mcpguard.errors import HostError
from mcpguard.kernel import bpf, btf, libbpf, pins
from mcpguard.model.coverage import Need
from mcpguard.model.plan import OWN_PLACES, GuardPlan, TablePlan
from mcpguard.model.values import dataclass
from mcpguard.wire import _abi, encode

LSM, MODIFY_RETURN = "lsm", "modify-return"
_PREFIX = {LSM: "mg_lsm_", MODIFY_RETURN: "mg_mod_"}
_LAYOUT, _NAMES = ".rodata.layout", ".rodata.names"
# How many programs on this host may be attached by links that could all go at once: the kernel stands still with 256. The
# second number is of those that an engine has besides hooks, where another one has the programs on calls.
LINKS_LIMIT, _OTHER_LINKS = 255, 7
_PAGE = _abi.MG_LINE.size * _abi.MG_PAGE_LINES
# Two policies of a session and, while an edit goes live, two more.
_PER_SLOT = _abi.MG_POLICIES_LIMIT // _abi.MG_SESSIONS_LIMIT


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook of the kernel.

    Attributes:
        name: as the kernel's module framework calls it.
        guards: what is open without it, as `doctor` says it.
        needed: by which policies; no tier without one that every policy needs, others are used where the kernel has them.
        instead: set when it only stands in for a path_* hook.
        function: the function that calls the modules, where it is not `security_<name>`.
    """

    name: str
    guards: str
    needed: Need = Need.EVERY
    instead: bool = False
    function: str = ""

    def target(self, way: str) -> str:
        """The kernel function that a program for it is attached to."""
        return f"bpf_lsm_{self.name}" if way == LSM else self.function or f"security_{self.name}"


# The kernel function that the programs on the cgroup need to see an abstract name.
_UNIX_HOOK = "bpf_sock_addr_set_sun_path"
# Calls of which the tier records nothing at their ends: the system-call filter lets them through in tier 1 alone.
UNRECORDED: dict[str, tuple[str, ...]] = {
    LSM: (),
    MODIFY_RETURN: (
        *("chroot", "fsconfig", "fsmount", "fsopen", "fspick", "mount", "mount_setattr", "move_mount", "open_tree"),
        *("open_tree_attr", "pivot_root", "setdomainname", "sethostname", "setns", "umount"),
    ),
}
_PATHS = ("mknod", "mkdir", "symlink", "unlink", "rmdir", "link", "rename", "chmod", "chown", "truncate")
# Needed by none: the system-call filter refuses the same to every process of the tree, or another hook is asked before, or, of
# access lists and flags by name, older kernels ask another hook about them. What is made past the filter comes from a ring.
HOOKS: dict[str, tuple[Hook, ...]] = {
    "guard_files": (
        Hook("file_open", "opening"),
        Hook("file_receive", "descriptors sent by others"),
        Hook("mmap_file", "mapping as code", Need.EXECUTE),
        Hook("file_mprotect", "mapping as code", Need.EXECUTE),
        # As a whole: without one of the first the second stand in, and those are required then.
        *(Hook(f"path_{name}", f"{name} by name", Need.NONE) for name in _PATHS),
        *(Hook(f"inode_{name}", f"{name} by name", Need.NONE, instead=True) for name in ("create", *_PATHS[:7])),
        Hook("inode_setattr", "times"),
        Hook("inode_setxattr", "extended attributes"),
        Hook("inode_removexattr", "extended attributes"),
        Hook("inode_set_acl", "access lists", Need.NONE),
        Hook("inode_remove_acl", "access lists", Need.NONE),
        Hook("inode_file_setattr", "file flags", Need.NONE),
        Hook("file_ioctl", "file flags, snapshots, terminal input"),
        Hook("path_notify", "watching names", Need.READ),
    ),
    "guard_processes": (
        Hook("ptrace_access_check", "looking into other processes"),
        Hook("ptrace_traceme", "being traced from outside", Need.DEBUGGERS),
        Hook("task_kill", "signals to other processes"),
        Hook("task_setnice", "priority of other processes"),
        Hook("task_setioprio", "priority of other processes"),
        Hook("task_setscheduler", "scheduling of other processes"),
        Hook("task_movememory", "memory of other processes", Need.NONE),
        Hook("file_fcntl", "signals through files"),
        Hook("bpf", "the bpf system call", Need.NONE),
        Hook("perf_event_open", "performance events", Need.NONE),
        Hook("kernel_module_request", "loading modules"),
        Hook("kernel_load_data", "loading modules", Need.NONE),
        Hook("uring_override_creds", "io_uring identities", Need.RINGS),
        Hook("uring_cmd", "io_uring device commands", Need.RINGS),
        Hook("uring_sqpoll", "io_uring kernel threads", Need.NONE),
        Hook("uring_allowed", "io_uring", Need.NONE),
        Hook("userns_create", "user namespaces", Need.NONE, function="security_create_user_ns"),
        Hook("sb_mount", "mounts", Need.NONE),
        Hook("sb_remount", "mounts", Need.NONE),
        Hook("sb_umount", "mounts", Need.NONE),
        Hook("sb_pivotroot", "mounts", Need.NONE),
        Hook("move_mount", "mounts", Need.NONE),
        Hook("path_chroot", "chroot", Need.NONE),
    ),
    "guard_sockets": (
        Hook("unix_stream_connect", "unix sockets"),
        Hook("unix_may_send", "unix datagram sockets"),
        Hook("socket_create", "other socket families", Need.RINGS),
    ),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """Which programs fit this kernel, one way into it.

    Attributes:
        programs: per object, those to load.
        absent: hooks that this kernel lacks and the tier can do without, if not every policy (`lacking`).
        missing: hooks that it lacks and the tier needs; not empty: the tier cannot be had.
        setattr_dentry: place of the dentry among the arguments of inode_setattr.
        inode_hooks: the path_* hooks are missing as a whole and the inode_* ones stand in.
        names_judged: programs on the cgroup judge abstract unix names (Linux 6.7 and newer).
    """

    way: str
    programs: dict[str, tuple[str, ...]]
    absent: tuple[str, ...]
    missing: tuple[str, ...]
    setattr_dentry: int
    inode_hooks: bool
    names_judged: bool


def choose(way: str, *, without_paths: bool = False) -> Choice:
    """Ask the kernel's own description which hooks it has.

    Args:
        way: LSM or MODIFY_RETURN.
        without_paths: pretend that there are no path_* hooks, as on kernels built so.

    Raises:
        KernelError: the kernel does not describe its types.
    """
    hooks = [hook for group in HOOKS.values() for hook in group]
    found = btf.function_parameters({_UNIX_HOOK, *(hook.target(way) for hook in hooks)})
    named = {f"path_{name}" for name in _PATHS}
    if without_paths:
        for name in named:
            found.pop(Hook(name, "").target(way), None)
    there = {hook.name for hook in hooks if hook.target(way) in found}
    inode_hooks = not named <= there
    wanted = {hook.name for hook in hooks if not (hook.instead and not inode_hooks)}
    if inode_hooks:
        wanted -= named
    needed = {hook.name for hook in hooks if hook.needed is Need.EVERY or (hook.instead and inode_hooks)}
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
        names_judged=_UNIX_HOOK in found,
    )


def lacking(programs: Iterable[str]) -> dict[Need, tuple[str, ...]]:
    """Hooks that some policies need and for which there is no program among these, by who needs them."""
    there = {name.removeprefix(prefix) for name in programs for prefix in _PREFIX.values()}
    found: dict[Need, tuple[str, ...]] = {}
    for hook in (hook for group in HOOKS.values() for hook in group):
        if hook.needed not in (Need.EVERY, Need.NONE) and hook.name not in there:
            found[hook.needed] = (*found.get(hook.needed, ()), hook.name)
    return found


def open_engine(way: str) -> Engine:
    """The engine of this build with the hooks that this kernel has, loaded or found.

    Raises:
        HostError: a hook that the tier needs is missing.
        KernelError: the kernel refuses such programs.
    """
    return Engine.open(lambda: _specs(choose(way)), f"-{way}", _forget)


def _specs(choice: Choice) -> tuple[ObjectSpec, ...]:
    if choice.missing:
        raise HostError(
            "the kernel lacks hooks that this tier needs",
            why=f"there are no programs for {', '.join(choice.missing)}",
            do="use a tier that needs less: --tier 3",
            code="host.no-hooks",
        )
    others, own = pins.links(), sum(map(len, choice.programs.values())) + _OTHER_LINKS
    if others + own > LINKS_LIMIT:
        raise HostError(
            "the kernel would not take so many programs on hooks away again",
            why=f"{others} programs of other builds of mcpguard are attached, and {own} more, removed with them, could stop it",
            do="end the sessions of other builds, or use a tier that needs less: --tier 3",
            code="host.too-many-engines",
        )
    guards = [
        ObjectSpec(group, partial(_prepare, choice), links=dict.fromkeys(programs))
        for group, programs in choice.programs.items()
    ]
    return (*guards, on_calls(UNRECORDED[choice.way]))


def _prepare(choice: Choice, opened: bpf.Object) -> None:
    """Make an open object fit: leave programs out, say where arguments stand."""
    opened.skip(set(opened.programs) - set(choice.programs[opened.name]))
    if opened.name == "guard_files":
        opened.set_constants(_LAYOUT, _numbers(choice.setattr_dentry, choice.inode_hooks))
    if opened.name == "guard_sockets":
        opened.set_constants(_NAMES, _numbers(choice.names_judged, 0))


def _numbers(*values: int) -> bytes:
    return b"".join(int(value).to_bytes(4, sys.byteorder) for value in values)


def write_policy(map_of: Callable[[str], bpf.Map], index: int, plan: TablePlan) -> None:
    """Write one automaton where no decision looks yet.

    Args:
        map_of: gives a map by its name.

    Raises:
        KernelError: the kernel refused something; then nothing is allowed by this policy.
    """
    clear_policy(map_of, index)
    with contextlib.ExitStack() as pages:
        fds = array("i")
        for at in range(0, len(plan.lines), _PAGE):
            page = bpf.Map("mg_lines", bpf.create_map(libbpf.MAP_TYPE_ARRAY, "mg_lines", 4, _PAGE, 1))
            pages.enter_context(contextlib.closing(page))
            page.set(_numbers(0), plan.lines[at : at + _PAGE].ljust(_PAGE, b"\0"))
            fds.append(page.fd)
        first = index * _abi.MG_PAGES_LIMIT
        map_of("mg_tables").set_many(_numbers(*range(first, first + len(fds))), fds.tobytes(), len(fds))
    for name, rows, key_bytes in (
        ("mg_roots", plan.roots, _abi.MG_ROOT_KEY.size),
        ("mg_branches", plan.branches, _abi.MG_BRANCH_KEY.size),
    ):
        table = map_of(name)
        size = key_bytes - 4 + _abi.MG_PLACE.size
        for at in range(0, len(rows), size):
            row = rows[at : at + size]
            table.set(_numbers(index) + row[: key_bytes - 4], row[key_bytes - 4 :])
    map_of("mg_policies").set(_numbers(index), plan.head)


def clear_policy(map_of: Callable[[str], bpf.Map], index: int) -> None:
    """Take an automaton out; whoever asks it is refused."""
    _clear(map_of, range(index, index + 1))


def _forget(engine: Engine, slot: int) -> None:
    """Remove the policies of a session that nobody lives in any more, also where somebody was interrupted at that."""
    _clear(engine.map, range(slot * _PER_SLOT, (slot + 1) * _PER_SLOT), interrupted=True)


def _clear(map_of: Callable[[str], bpf.Map], indices: range, *, interrupted: bool = False) -> None:
    """Take these automata out.

    Args:
        interrupted: some of their pages may be gone; to look at all places would be felt at each launch.
    """
    tables, limit = map_of("mg_tables"), _abi.MG_PAGES_LIMIT
    there: list[bytes] = []
    for index in indices:
        map_of("mg_policies").set(_numbers(index), bytes(_abi.MG_POLICY.size))
        places = (_numbers(index * limit + page) for page in range(limit))
        # Pages are written in order. What is not there is not deleted: that would wait as well.
        there += (filter if interrupted else takewhile)(lambda place: tables.get(place, 4) is not None, places)
    # Each deletion waits for all programs that run; side by side they wait once.
    together([partial(tables.delete, place) for place in there])
    cleared = {_numbers(index) for index in indices}
    for name, size in (("mg_roots", _abi.MG_ROOT_KEY.size), ("mg_branches", _abi.MG_BRANCH_KEY.size)):
        table = map_of(name)
        for key in table.keys(size):
            if key[:4] in cleared:
                table.delete(key)


# --- one session ------------------------------------------------------------------------------------------------


class Guard:
    """The policies of one session in the kernel. A new one is written beside the old one, then takes its place in one step."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._misses = self._count_misses()
        session.at_removal(partial(_forget, session.engine, session.slot))

    def set_policy(self, plan: GuardPlan) -> tuple[int, int]:
        """Write both automata where no decision looks yet; returns their indices, for `Session.set_state`.

        Raises:
            KernelError: the kernel refused something; decisions are made as before.
        """
        # The kernel itself says which pair counts: whatever failed before, that one is not written over.
        first = self.session.slot * _PER_SLOT
        if first in self.session.state():
            first += 2
        write_policy(self.session.engine.map, first, plan.files)
        write_policy(self.session.engine.map, first + 1, plan.sockets)
        return first, first + 1

    def add_own_places(self, indices: tuple[int, int], devices: Mapping[str, int], plan: GuardPlan) -> None:
        """Tell of the file systems that the session has for itself (OWN_PLACES), which exist only now."""
        roots = self.session.engine.map("mg_roots")
        for index, table in zip(indices, (plan.files, plan.sockets), strict=True):
            for point, device in devices.items():
                roots.set(encode.root_key(index, device), getattr(table, OWN_PLACES[point]))

    def missed(self) -> int:
        """How often the kernel skipped a program of ours since the session began, for whatever process (`recursion_misses`)."""
        return self._count_misses() - self._misses

    def _count_misses(self) -> int:
        return self.session.engine.misses(_programs(self.session.engine))


def detach_verify(engine: Engine) -> list[str]:
    """Programs that should be attached and are not; empty: all are armed."""
    linked = engine.linked()
    return [name for name in _programs(engine) if name not in linked]


def _programs(engine: Engine) -> list[str]:
    return [name for name in engine.programs if name.startswith(tuple(_PREFIX.values()))]
