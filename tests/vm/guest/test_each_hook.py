"""Each hook by itself: what is refused here is refused by that hook.

In a whole run most of these acts meet something else before, a filter, Landlock, a capability that is not there: then nobody
would notice that a hook is gone.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import arena  # noqa: F401 (it knows where what follows lies)
import pytest
from acts_escape import SYS_HANDLE_AT, call
from acts_file import AT_FDCWD, checked, libc
from asked import Lane
from bare import FREE, LOCKED, VAULT, Act, Bare, Doing, Scene, bare
from hook_acts import FILES, HOST, INODES, IO_URING, MORE, NAMESPACES, PEERS, SETUP_SQPOLL, Uring

from mcpguard.backends import guard
from mcpguard.backends.engine import Engine
from mcpguard.backends.guard import HOOKS, Choice, Hook
from mcpguard.broker import tiers
from mcpguard.errors import HostError
from mcpguard.kernel import btf, cgroup
from mcpguard.model.coverage import Need

pytestmark = pytest.mark.kernel

WAYS = {1: guard.LSM, 2: guard.MODIFY_RETURN}
ALL_HOOKS = {hook.name: hook for group in HOOKS.values() for hook in group}
ACTS = FILES | MORE | HOST | PEERS
# What a switch of the profile permits.
SWITCHED = {
    "userns_create": NAMESPACES,
    **dict.fromkeys(("sb_mount", "sb_remount", "sb_umount", "sb_pivotroot", "move_mount", "path_chroot"), NAMESPACES),
    "uring_sqpoll": IO_URING,
    "uring_allowed": IO_URING,
}
# The first kernel on which anything comes to the hook; for uring_cmd: from a device that every guest has.
SINCE = {"inode_file_setattr": (6, 17), "uring_allowed": (6, 15), "uring_cmd": (6, 4)}
# What a kernel does without, by its series: anything else that is missing is a name spelled wrongly.
ABSENT = {
    "6.1": ("inode_file_setattr", "inode_remove_acl", "inode_set_acl", "uring_allowed"),
    "6.12": ("inode_file_setattr", "uring_allowed"),
}
ASYNC = 1 << 4
CAP_DAC_READ_SEARCH, CAPABILITY_VERSION_3 = 2, 0x20080522


@pytest.fixture(scope="module")
def hooks(lane: Lane, tier: int) -> Iterator[Bare]:
    """The hooks of this kernel, in the engine that runs use."""
    engine = guard.open_engine(WAYS[tier])
    try:
        with bare(engine, lane.places("ext4")[0]) as made:
            yield made
    finally:
        engine.close()


def need_act(name: str, lane: Lane) -> None:
    kernel = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    if kernel < SINCE.get(name, (0,)):
        lane.not_here("this kernel has no act that comes to the hook")


@pytest.mark.parametrize("name", ACTS)
def test_each_hook_refuses_by_itself(name: str, hooks: Bare, lane: Lane) -> None:
    need_act(name, lane)
    hooks.assert_refused(ACTS[name])


@pytest.mark.parametrize("name", SWITCHED)
def test_what_a_profile_switches_on_its_hook_lets_through(name: str, hooks: Bare, lane: Lane) -> None:
    need_act(name, lane)
    done = hooks.do(HOST[name], LOCKED, guarded=True, flags=SWITCHED[name])
    assert done.errno == 0, os.strerror(done.errno)


def test_every_hook_has_an_act_and_every_act_a_hook() -> None:
    tried = {name.replace(",", "").split(" ")[0] for name in ACTS | INODES}
    assert tried == set(ALL_HOOKS)


# --- who works for the tree, and what has no name ---------------------------------------------------------------


@pytest.mark.parametrize(("setup", "flags"), [(0, 0), (0, ASYNC), (SETUP_SQPOLL, 0)], ids=["plain", "worker", "polled"])
def test_what_a_ring_opens_is_judged_whoever_opens_it(setup: int, flags: int, hooks: Bare) -> None:
    """The caller, a worker of the kernel's, or a thread of the kernel's that looks for requests by itself."""

    def begin(scene: Scene) -> Doing:
        return lambda: Uring(setup).opened(scene.path(), flags)

    hooks.assert_refused(Act(begin, place=VAULT, flags=IO_URING))


def by_number(scene: Scene) -> Doing:
    """Open a file past every folder, with the capability for that and no other."""
    handle = ctypes.create_string_buffer(136)
    ctypes.memmove(handle, (ctypes.c_uint32 * 2)(128, 0), 8)
    there = ctypes.c_int()
    asked = libc.name_to_handle_at(AT_FDCWD, scene.path().encode(), ctypes.byref(handle), ctypes.byref(there), 0)
    checked(asked, "name_to_handle_at")
    folder = os.open(scene.side, os.O_RDONLY)

    def do() -> None:
        kept = 1 << CAP_DAC_READ_SEARCH
        header, data = struct.pack("=Ii", CAPABILITY_VERSION_3, 0), struct.pack("=6I", kept, kept, 0, 0, 0, 0)
        checked(libc.capset(header, data), "capset")
        os.close(call(SYS_HANDLE_AT, folder, ctypes.byref(handle), os.O_RDONLY))

    return do


def test_a_file_opened_by_its_number_is_judged_by_its_name(hooks: Bare) -> None:
    hooks.assert_refused(Act(by_number, place=VAULT, capable=True))


def test_what_the_kernel_knows_no_name_of_is_refused(hooks: Bare) -> None:
    """A file that it opens by number and has no folder of in memory."""

    def forgotten(scene: Scene) -> Doing:
        do = by_number(scene)
        subprocess.run(["sync"], check=True)
        Path("/proc/sys/vm/drop_caches").write_text("2")
        return do

    act = Act(forgotten, place=FREE, capable=True)
    assert hooks.do(act, FREE, guarded=False).errno == 0
    done = hooks.do(act, FREE, guarded=True)
    assert os.strerror(done.errno) == "Permission denied"
    assert [record.detail for record in hooks.told(done.pid)] == ["its name leads to no mounted place"]


# --- which hooks a kernel has -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def described(tier: int) -> dict[str, btf.Function]:
    """What this kernel says of the functions that it is asked for."""
    asked = {hook.target(WAYS[tier]) for hook in ALL_HOOKS.values()}
    return btf.functions({guard._UNIX_HOOK, *asked})


@pytest.fixture
def choose_without(
    described: dict[str, btf.Function], tier: int, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Iterable[Hook]], Choice]:
    """What is chosen on a kernel that lacks these besides."""

    def choose(lacking: Iterable[Hook]) -> Choice:
        gone = {hook.target(WAYS[tier]) for hook in lacking}
        left = {name: one for name, one in described.items() if name not in gone}
        monkeypatch.setattr(btf, "functions", lambda names: {name: left[name] for name in names if name in left})
        return guard.choose(WAYS[tier])

    return choose


def chosen_hooks(choice: Choice) -> set[str]:
    programs = [name for group in choice.programs.values() for name in group]
    return {name.removeprefix("mg_lsm_").removeprefix("mg_mod_") for name in programs}


def test_only_what_this_kernel_cannot_have_is_left_out(
    choose_without: Callable[[Iterable[Hook]], Choice], lane: Lane
) -> None:
    choice = choose_without([])
    assert choice.missing == ()
    assert not choice.inode_hooks
    assert choice.absent == ABSENT.get(lane.kernel, choice.absent)
    wanted = {name for name, hook in ALL_HOOKS.items() if not hook.instead}
    assert chosen_hooks(choice) == wanted - set(choice.absent)


def test_a_kernel_without_a_hook_that_is_needed_does_not_get_the_tier(
    choose_without: Callable[[Iterable[Hook]], Choice],
) -> None:
    needed = [hook for hook in ALL_HOOKS.values() if hook.needed is Need.EVERY]
    assert len(needed) > 10
    for hook in needed:
        choice = choose_without([hook])
        assert choice.missing == (hook.name,)
        with pytest.raises(HostError) as refused:
            guard._specs(choice)
        assert (refused.value.code, hook.name in refused.value.why) == ("host.no-hooks", True)


def test_a_kernel_without_another_hook_goes_on_without_it(
    choose_without: Callable[[Iterable[Hook]], Choice],
) -> None:
    for hook in ALL_HOOKS.values():
        if hook.needed is Need.EVERY or hook.instead or hook.name in {f"path_{name}" for name in guard._PATHS}:
            continue
        choice = choose_without([hook])
        assert choice.missing == ()
        assert hook.name in choice.absent
        assert hook.name not in chosen_hooks(choice)
        lacking = guard.lacking(name for group in choice.programs.values() for name in group)
        assert lacking == ({} if hook.needed is Need.NONE else {hook.needed: (hook.name,)}), (
            "and says which policies do not"
        )


def test_hooks_for_paths_are_used_as_a_whole_or_not_at_all(
    choose_without: Callable[[Iterable[Hook]], Choice],
) -> None:
    stand_ins = {name for name, hook in ALL_HOOKS.items() if hook.instead}
    for name in guard._PATHS:
        choice = choose_without([ALL_HOOKS[f"path_{name}"]])
        assert choice.inode_hooks
        assert choice.missing == ()
        assert not {f"path_{one}" for one in guard._PATHS} & chosen_hooks(choice)
        assert stand_ins <= chosen_hooks(choice)
    both = [ALL_HOOKS["path_rename"], ALL_HOOKS["inode_rename"]]
    assert choose_without(both).missing == ("inode_rename",)


def test_a_tier_whose_hook_is_missing_is_refused_until_the_next_boot(
    tier: int, choose_without: Callable[[Iterable[Hook]], Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = choose_without([ALL_HOOKS["file_open"]])
    # One that is loaded already asks the kernel nothing.
    monkeypatch.setattr(guard, "open_engine", lambda way: Engine.open(lambda: guard._specs(choice), f"-{way}-lacking"))
    mount = cgroup.unified_mount()
    assert mount is not None
    leaf = cgroup.make_leaf(mount, f"lacking-{os.getpid()}")
    try:
        with pytest.raises(HostError) as refused:
            tiers.arm(leaf, tier)
        assert "there are no programs for file_open" in refused.value.why
        assert tiers._lasts(refused.value), "so a launch need not ask again, and takes the next"
    finally:
        os.close(leaf.fd)
        leaf.remove()
