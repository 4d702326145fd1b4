"""The tree cannot leave, cannot use a process outside it, and cannot reach its guard."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness import REPOSITORY, need_root
from matrix import Duel, Task, duel
from outside import victim
from world import World

pytestmark = pytest.mark.kernel

FLOOD, THREADS, ASKS, LIVES = 100_000, 32, 100, 5000
NEW_USER, NEW_MOUNTS, NEW_NET, NEW_PIDS = 0x10000000, 0x00020000, 0x40000000, 0x20000000
MOUNTS = Path("/proc/self/mounts").read_text().splitlines()
CGROUPS = next(line.split()[1] for line in MOUNTS if line.split()[2] == "cgroup2")

PROFILE = f"""\
name: matrix
extends: [dev-tools]
files:
  read: ["{REPOSITORY}/src", "{REPOSITORY}/.venv", "{sys.prefix}", "{sys.base_prefix}"]
  write: ["{{workspace}}"]
  execute: ["{{workspace}}", "{REPOSITORY}/.venv", "{sys.prefix}", "{sys.base_prefix}"]
"""
LOOSE_PROFILE = """\
name: loose
files:
  read: [/usr, /bin, /lib, /lib64, /etc, "{home}"]
  execute: [/usr, /bin, /lib, /lib64]
"""


# Shown to those only who may trace the process. They can be opened and not read: the record has the opening.
OPENED = ("io", "syscall", "stack", "personality")


def tasks_on(pid: int, fd: int, stack: tuple[int, int]) -> list[Task]:
    """Acts on the process outside."""
    wanted: dict[str, tuple[str, dict[str, Any]]] = {
        "signal 0": ("signal_to", {"pid": pid, "number": 0}),
        "stop": ("signal_to", {"pid": pid, "number": int(signal.SIGSTOP)}),
        "signal by pidfd": ("signal_by_pidfd", {"pid": pid, "number": int(signal.SIGCONT)}),
        "ptrace": ("ptrace", {"pid": pid}),
        "memory file": ("read_memory", {"pid": pid}),
        "memory copy": ("copy_memory", {"pid": pid, "start": stack[0], "size": stack[1]}),
        "descriptor": ("take_descriptor", {"pid": pid, "fd": fd}),
        "environ": ("read_file", {"path": f"/proc/{pid}/environ"}),
        "environ by thread": ("read_file", {"path": f"/proc/{pid}/task/{pid}/environ"}),
        "memory file for writing": ("write_memory", {"pid": pid, "address": stack[0] + stack[1] - 16}),
        "memory map": ("read_file", {"path": f"/proc/{pid}/maps"}),
        "auxiliary values": ("read_file", {"path": f"/proc/{pid}/auxv"}),
        "program": ("read_file", {"path": f"/proc/{pid}/exe"}),
        "working folder": ("read_file", {"path": f"/proc/{pid}/cwd/held"}),
        "working folder by thread": ("read_file", {"path": f"/proc/{pid}/task/{pid}/cwd/held"}),
        "list of the working folder": ("list_folder", {"path": f"/proc/{pid}/cwd/."}),
        "open file": ("read_file", {"path": f"/proc/{pid}/fd/{fd}"}),
        "open file by thread": ("read_file", {"path": f"/proc/{pid}/task/{pid}/fd/{fd}"}),
        "name of the open file": ("read_link", {"path": f"/proc/{pid}/fd/{fd}"}),
        "root of process": ("read_file", {"path": f"/proc/{pid}/root/etc/hostname"}),
        "namespace": ("join_namespace", {"pid": pid, "kind": "mnt"}),
        "signal to the group": ("signal_group", {"pid": pid}),
        "signal to a thread": ("signal_thread", {"pid": pid}),
        "signal with a value": ("signal_with_value", {"pid": pid}),
        "seize": ("seize", {"pid": pid}),
        "memory copy for writing": ("copy_into_memory", {"pid": pid, "start": stack[0]}),
        "adjust oom": ("write_file", {"path": f"/proc/{pid}/oom_score_adj", "text": "1000"}),
    }
    return [Task(id, act, args) for id, (act, args) in wanted.items()]


def tasks_away(world: World) -> list[Task]:
    """Acts that would leave the tree, or hide in it."""
    secret = str(world.home / ".ssh/id_ed25519")
    cgroup = make_cgroup(world)
    programs = {
        "sudo": ["sudo", "-n", "cat", secret],
        "setpriv": ["setpriv", "--reuid", "65534", "cat", "/etc/hostname"],
        "new namespaces by program": ["unshare", "-Urm", "true"],
        "su": ["su", "-c", f"cat {secret}"],
        "a child of its parent": ["./acts", "siblings", secret],
        "after many lives": ["./acts", "many-lives", secret, str(LIVES)],
        "born in another cgroup": ["./acts", "into-cgroup", secret, str(cgroup)],
    }
    wanted: dict[str, tuple[str, dict[str, Any]]] = {
        "move to a cgroup": ("move_to_cgroup", {"folder": str(cgroup), "path": secret}),
        "move to the root": ("move_to_cgroup", {"folder": CGROUPS, "path": secret}),
        "make a cgroup": ("make_cgroup", {"folder": f"{CGROUPS}/mcpguard-test-{world.root.name}-made"}),
        "user namespace": ("unshare", {"flags": NEW_USER}),
        "mount namespace": ("unshare", {"flags": NEW_MOUNTS}),
        "net namespace": ("unshare", {"flags": NEW_NET}),
        "pid namespace": ("unshare", {"flags": NEW_PIDS}),
        "chroot": ("chroot", {"path": str(world.project)}),
        "open by handle": ("open_by_handle", {"path": secret, "folder": str(world.project)}),
        "another's name": ("rename_itself", {"name": "mcpguard", "path": secret}),
        "storm": ("storm", {"path": secret, "threads": THREADS, "times": ASKS}),
        "flood": ("flood_and_read", {"path": secret, "harmless": "/etc/hostname", "times": FLOOD}),
    }
    return [Task(id, act, args) for id, (act, args) in wanted.items()] + [
        Task(id, "run_program", {"command": command}) for id, command in programs.items()
    ]


# To be removed at the end, when nobody is left in them.
made_cgroups: list[Path] = []
KERNEL_CALLS = (
    *("name the host", "stop accounting", "ask for the kernel's log", "handle page faults", "compare processes"),
    *("set the clock", "watch a file system", "write quotas", "clone a mount", "make a file system"),
)
KERNEL_FILES = {"program for core dumps": "/proc/sys/kernel/core_pattern", "the kernel's own log": "/dev/kmsg"}
GUARD = ("signal", "descriptor", "open file", "environ", "maps")
KERNEL_DOORS = ("load_bpf_map", "open_perf", "add_key", "read_keyrings")


def tasks_on_guard(world: World) -> list[Task]:
    """Acts on mcpguard's own files, and mcpguard inside the tree."""
    (world.state / "state").mkdir(exist_ok=True)
    (world.state / "state" / "filled").write_text("state\n")
    profiles = world.state / "config" / "profiles"
    (profiles / "loose.yaml").write_text(LOOSE_PROFILE)
    secret = str(world.home / ".ssh/id_ed25519")
    nested = [
        sys.executable,
        "-P",
        "-m",
        "mcpguard",
        "run",
        "-p",
        "loose",
        "-w",
        str(world.project),
        "--",
        "cat",
        secret,
    ]
    # The refusal to nest is a courtesy; an attacker brings a copy without it.
    words = f"import sys, mcpguard.session.start as s; s.refuse_nesting = lambda: None; sys.argv[1:] = {nested[4:]!r}"
    talked_over = [sys.executable, "-P", "-c", f"{words}; from mcpguard.cli.main import main; sys.exit(main())"]
    return [
        Task("profiles", "tamper", {"folder": str(profiles)}),
        Task("state", "tamper", {"folder": str(world.state / "state")}),
        Task("remove state", "remove", {"path": str(world.state / "state" / "filled")}),
        Task("mcpguard inside", "run_program", {"command": nested}),
        Task("mcpguard inside, talked over", "run_program", {"command": talked_over}),
        *(Task(f"guard {how}", "reach_guard", {"how": how}) for how in GUARD),
    ]


def make_cgroup(world: World) -> Path:
    """A cgroup beside the one of the session, such as a user's own manager would own."""
    folder = Path(CGROUPS) / f"mcpguard-test-{world.root.name}"
    folder.mkdir(exist_ok=True)
    made_cgroups.append(folder)
    return folder


def every_task(world: World, stack: contextlib.ExitStack) -> Sequence[Task]:
    """All of them; the process outside lives as long as the stack."""
    outside = stack.enter_context(victim(world))
    doors = [Task(door, door) for door in KERNEL_DOORS]
    doors += [Task(name, "call_kernel", {"name": name}) for name in KERNEL_CALLS]
    doors += [Task(name, "write_file", {"path": path, "text": ""}) for name, path in KERNEL_FILES.items()]
    doors += [
        Task("device", "make_device", {"path": str(world.project / "disk")}),
        Task("capability", "give_capability", {"path": str(world.project / "capable")}),
    ]
    memory = Task("nameless program", "execute_memory", {"program": "/usr/bin/true"})
    on_victim = tasks_on(outside.pid, outside.fd, outside.stack)
    on_victim += [Task(name, "read_file", {"path": f"/proc/{outside.pid}/{name}"}) for name in OPENED]
    return [*tasks_on_guard(world), *on_victim, *tasks_away(world), *doors, memory]


def remove_cgroups() -> None:
    """When nobody is left in them."""
    while made_cgroups:
        made_cgroups.pop().rmdir()


@pytest.fixture(scope="module")
def escapes() -> Iterator[Duel]:
    need_root()
    with contextlib.ExitStack() as stack:
        try:
            yield stack.enter_context(duel(PROFILE, lambda world: every_task(world, stack)))
        finally:
            remove_cgroups()


ON_VICTIM = [task.id for task in tasks_on(1, 0, (0, 0))]
LEAKS_CANARY = (
    *("memory file", "memory copy", "descriptor", "environ", "environ by thread", "open file", "open file by thread"),
    *("working folder", "working folder by thread"),
)
READS_SECRET = (
    *("sudo", "born in another cgroup", "move to a cgroup", "move to the root", "open by handle", "another's name"),
    *(
        "storm",
        "flood",
        "mcpguard inside",
        "mcpguard inside, talked over",
        "su",
        "a child of its parent",
        "after many lives",
    ),
)
LEAVES = ("setpriv", "new namespaces by program", "make a cgroup", "user namespace", "mount namespace", "chroot")
MORE_NAMESPACES = ("net namespace", "pid namespace")


def leaked(duel: Duel, id: str, guarded: bool) -> bool:
    world, outcome = (duel.caged, duel.guarded[id]) if guarded else (duel.free, duel.control[id])
    return any(canary in outcome.out for canary in world.canaries.values())


@pytest.mark.parametrize("id", ON_VICTIM)
def test_a_process_outside_cannot_be_touched(id: str, escapes: Duel) -> None:
    escapes.assert_refused(id)
    escapes.assert_recorded(id)


@pytest.mark.parametrize("id", OPENED)
def test_what_a_process_outside_does_cannot_be_read(id: str, escapes: Duel) -> None:
    escapes.assert_refused(id)


@pytest.mark.parametrize("id", LEAKS_CANARY)
def test_a_process_outside_keeps_its_secrets(id: str, escapes: Duel) -> None:
    assert leaked(escapes, id, guarded=False), escapes.control[id]
    assert not leaked(escapes, id, guarded=True)


@pytest.mark.parametrize("id", READS_SECRET)
def test_the_secret_stays_out_of_reach_whatever_the_reader_becomes(id: str, escapes: Duel) -> None:
    escapes.assert_refused(id)
    assert leaked(escapes, id, guarded=False), escapes.control[id]
    assert not leaked(escapes, id, guarded=True)


# sudo and mcpguard say no by themselves; clone3 does not exist in the tree, so that no library tries it twice.
UNRECORDED = ("sudo", "su", "mcpguard inside", "born in another cgroup")


@pytest.mark.parametrize("id", [id for id in READS_SECRET if id not in UNRECORDED])
def test_each_attempt_at_the_secret_is_recorded(id: str, escapes: Duel) -> None:
    escapes.assert_recorded(id)


@pytest.mark.parametrize("id", [*LEAVES, *MORE_NAMESPACES])
def test_the_tree_cannot_leave_its_surroundings(id: str, escapes: Duel) -> None:
    escapes.assert_refused(id)
    # Becoming somebody else is for the capable; to a process without capabilities it is refused everywhere.
    if id != "setpriv":
        escapes.assert_recorded(id)


@pytest.mark.parametrize("how", GUARD)
def test_the_guard_itself_is_a_process_outside(how: str, escapes: Duel) -> None:
    escapes.assert_refused(f"guard {how}")
    escapes.assert_recorded(f"guard {how}")


@pytest.mark.parametrize("name", [*KERNEL_CALLS, *KERNEL_FILES, "device", "capability"])
def test_the_host_cannot_be_configured(name: str, escapes: Duel) -> None:
    escapes.assert_refused(name)


@pytest.mark.parametrize("name", [*KERNEL_CALLS, *KERNEL_FILES])
def test_an_attempt_to_configure_the_host_is_recorded(name: str, escapes: Duel) -> None:
    escapes.assert_recorded(name)


@pytest.mark.parametrize("door", KERNEL_DOORS)
def test_the_kernels_own_controls_are_shut(door: str, escapes: Duel) -> None:
    escapes.assert_refused(door)
    escapes.assert_recorded(door)


@pytest.mark.parametrize("id", ["profiles", "state", "remove state"])
def test_the_guards_own_files_cannot_be_changed(id: str, escapes: Duel) -> None:
    escapes.assert_refused(id)
    escapes.assert_recorded(id)


def test_a_program_without_a_file_is_refused_or_on_record(escapes: Duel) -> None:
    assert escapes.control["nameless program"].ok
    if escapes.guarded["nameless program"].ok:
        family = escapes.descendants(escapes.guarded["nameless program"].pid)
        found = [e for e in escapes.events if e["kind"] == "exec" and "memfd" in f"{e.get('exe')} {e.get('path')}"]
        assert [e for e in found if e["pid"] in family], found
    else:
        escapes.assert_recorded("nameless program")


def test_a_flood_of_opens_is_counted(escapes: Duel) -> None:
    """What was not written down one by one is in a sum or in a loss; nothing vanishes."""
    pid = escapes.guarded["flood"].pid
    seen = sum(e.get("count", 1) for e in escapes.events if e.get("pid") == pid and e.get("path") == "/etc/hostname")
    lost = sum(e.get("count", 1) for e in escapes.events if e["kind"] == "loss")
    assert seen + lost >= FLOOD
