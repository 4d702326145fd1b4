"""Files and programs, tier 3: a private mount namespace takes away, Landlock grants the rest.

Runs in the child, between fork and exec. `arrange_mounts` needs root and follows no symlink: every place is opened as
the user, exactly, and root acts on the descriptor. `restrict` needs nothing.
"""

from __future__ import annotations

import contextlib
import os
import resource
import stat
from collections.abc import Iterator, Sequence

from mcpguard.kernel import landlock, mounts, terminals
from mcpguard.kernel.places import RUN
from mcpguard.kernel.terminals import Terminal
from mcpguard.model.access import Access
from mcpguard.model.paths import is_below
from mcpguard.model.plan import FilesPlan, MaskEntry, MountStep
from mcpguard.model.policy import User
from mcpguard.model.values import dataclass

# Root's own directory: the stand-ins for hidden files live in a tmpfs mounted over it, private to the session.
STAGE = RUN
CANARY = f"{STAGE}/canary"
SHARED_MEMORY = "/dev/shm"
_PROTECTING = ("mask", "ro", "link")
# What stays as the host has it: what is mounted over the root is not where anybody's paths begin.
_EVERYTHING = MountStep("rw", "/", True)
_STAND_IN_FILE = f"{STAGE}/file"
_STAND_IN_DIRECTORY = f"{STAGE}/directory"
_TMPFS_OPTIONS = "mode=0755,size=1m,nr_inodes=16k"
# nr_inodes bounds what one session's stand-ins can cost the kernel; a plan that needs more fails loudly.


@dataclass(frozen=True, slots=True)
class Masked:
    """A hidden place, for the canary."""

    path: str
    directory: bool


def arrange_mounts(plan: FilesPlan, user: User) -> list[Masked]:
    """In the private mount namespace of the caller, make everything read-only (but for a plan that makes the root writable),
    then run the plan's steps in order.

    A writable place or a socket that vanished since the plan was made is left out; a protected place that did stops the launch.

    Returns:
        what was hidden.

    Raises:
        OSError: a step failed; the caller must not go on.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    before = mounts.table()
    if _EVERYTHING not in plan.steps:
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        mounts.set_attributes(root, mounts.ATTR_RDONLY, 0)
        os.close(root)
    _make_stage()
    if not any(step.path.startswith(SHARED_MEMORY + "/") for step in plan.steps):
        mounts.mount_tmpfs(SHARED_MEMORY, "mode=1777")
    hidden: list[Masked] = []
    # Terminals in the plan are the host's; what has their names here is the session's own.
    steps = [step for step in plan.steps if step != _EVERYTHING and not step.path.startswith(terminals.FOLDER + "/")]
    for number, step in enumerate((*steps, *_same_elsewhere(steps, before))):
        try:
            _run_step(step, number, user, before)
        except FileNotFoundError:
            if step.op in _PROTECTING:
                # Somebody moves files while we look: what was to be protected may stand under another name now.
                raise
            continue
        if step.op == "mask":
            hidden.append(Masked(step.path, step.directory))
    _seal_stage()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return hidden


def arrange_own_places() -> list[Masked]:
    """Tier 1: a /dev/shm of the session's own; nothing else changes in its private mount namespace."""
    _make_stage()
    mounts.mount_tmpfs(SHARED_MEMORY, "mode=1777")
    _seal_stage()
    return []


def put_back(step: MountStep, user: User) -> None:
    """Run one covering step again, in the namespace that `arrange_mounts` made.

    Raises:
        OSError: it could not be done; FileNotFoundError: nothing is there to be covered.
    """
    os.setgroups(user.groups)
    _run_step(step, 0, user, [])


def _same_elsewhere(steps: Sequence[MountStep], before: list[mounts.Mount]) -> list[MountStep]:
    """The protecting steps again, for each other path that the same object has through another mount.

    Landlock's grants belong to the object and hold through every mount; a cover holds on one path only.
    """
    return [
        MountStep("cover-ro" if step.op == "ro" else "hide", alias, step.directory)
        for step in steps
        if step.op in ("mask", "hide", "ro")
        for alias in mounts.aliases(step.path, before)
    ]


def _make_stage() -> None:
    mounts.mount_tmpfs(STAGE, _TMPFS_OPTIONS)
    os.close(os.open(_STAND_IN_FILE, os.O_CREAT | os.O_WRONLY, 0))
    os.mkdir(_STAND_IN_DIRECTORY, 0)
    os.chmod(_STAND_IN_FILE, 0)
    os.chmod(_STAND_IN_DIRECTORY, 0)
    with open(CANARY, "w", encoding="ascii") as canary:
        canary.write("only Landlock stands between a guarded process and this line\n")
    os.chmod(CANARY, 0o444)


def _seal_stage() -> None:
    fd = mounts.open_exact(STAGE)
    mounts.set_attributes(fd, mounts.ATTR_RDONLY, 0)
    os.close(fd)


def _run_step(step: MountStep, number: int, user: User, before: list[mounts.Mount]) -> None:
    # A cover over an alias may lie where the user's own rights do not reach; root follows no symlink there either.
    with contextlib.nullcontext() if step.op in ("hide", "cover-ro") else _as_user(user):
        place = mounts.open_exact(step.path)
    try:
        if step.op in ("mask", "hide"):
            _mask(step, place, number, user, before)
        elif step.op == "link":
            _show_target(step, place, user)
        elif step.op == "rw":
            _make_writable(step.path, mounts.clone_tree(place), place, before)
        else:
            tree = mounts.clone_tree(place)
            mounts.set_attributes(tree, mounts.ATTR_NOEXEC if step.op == "noexec" else mounts.ATTR_RDONLY, 0)
            mounts.attach(tree, place)
            os.close(tree)
    finally:
        os.close(place)


def _make_writable(path: str, tree: int, place: int, before: list[mounts.Mount]) -> None:
    """Attach `tree` on `place`, writable; what the host had mounted read-only, here or below, stays so."""
    if not mounts.covering(path, before).read_only:
        mounts.set_attributes(tree, 0, mounts.ATTR_RDONLY)
    mounts.attach(tree, place)
    os.close(tree)
    for mount in before:
        if mount.read_only and mount.point.startswith(path.rstrip("/") + "/"):
            inner = mounts.open_exact(mount.point)
            mounts.set_attributes(inner, mounts.ATTR_RDONLY, 0)
            os.close(inner)


def _show_target(step: MountStep, place: int, user: User) -> None:
    with _as_user(user):
        target = mounts.open_exact(step.target)
    tree = mounts.clone_tree(target)
    mounts.set_attributes(tree, mounts.ATTR_RDONLY, 0)
    mounts.attach(tree, place)
    os.close(tree)
    os.close(target)


def _mask(step: MountStep, place: int, number: int, user: User, before: list[mounts.Mount]) -> None:
    directory = stat.S_ISDIR(os.fstat(place).st_mode)
    if not directory or not step.entries:
        _attach_copy(_STAND_IN_DIRECTORY if directory else _STAND_IN_FILE, place)
        return
    # Originals that show through are cloned before they are hidden.
    kept: list[tuple[MaskEntry, int]] = []
    for entry in step.entries:
        if entry.kind.startswith("keep"):
            with contextlib.suppress(FileNotFoundError), _as_user(user):
                kept.append((entry, mounts.open_exact(f"{step.path}/{entry.path}")))
    trees = [(entry, mounts.clone_tree(fd)) for entry, fd in kept]
    stand_in = f"{STAGE}/{number}"
    _build_stand_in(stand_in, step.entries)
    _attach_copy(stand_in, place)
    for entry, tree in trees:
        path = f"{step.path}/{entry.path}"
        inner = mounts.open_exact(path)
        if entry.kind == "keep-rw":
            _make_writable(path, tree, inner, before)
        else:
            mounts.set_attributes(tree, mounts.ATTR_RDONLY, 0)
            mounts.attach(tree, inner)
            os.close(tree)
        os.close(inner)
    for _entry, fd in kept:
        os.close(fd)


def _build_stand_in(root: str, entries: tuple[MaskEntry, ...]) -> None:
    """A directory that may be passed through but not listed, with stand-ins in place of what it hides."""
    os.mkdir(root, 0o711)
    for entry in entries:
        path = f"{root}/{entry.path}"
        if entry.directory:
            os.mkdir(path, 0o711)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0))
    for entry in reversed(entries):
        os.chmod(f"{root}/{entry.path}", 0o111 if entry.kind == "way" else 0)
    os.chmod(root, 0o111)


def _attach_copy(source: str, place: int) -> None:
    fd = mounts.open_exact(source)
    tree = mounts.clone_tree(fd)
    mounts.set_attributes(tree, mounts.ATTR_RDONLY, 0)
    mounts.attach(tree, place)
    os.close(tree)
    os.close(fd)


@contextlib.contextmanager
def _as_user(user: User) -> Iterator[None]:
    """Look paths up with the user's rights, so that root's never reach where the user's do not."""
    os.setegid(user.gid)
    os.seteuid(user.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def restrict(plan: FilesPlan, own: Sequence[Terminal], version: int) -> None:
    """Apply the plan's grants as a Landlock ruleset to the calling thread. Runs as the user; final.

    A grant whose path vanished, or that the user cannot reach, is left out: less is allowed, never more.

    Args:
        own: terminals that live outside the session; granted by themselves, so that they can be opened by descriptor
            (`/dev/stdin`), which leads to the host's mount and to no grant above it.
    """
    ruleset = landlock.Ruleset(version)
    if plan.wide:
        fd = mounts.open_exact("/")
        ruleset.allow(fd, landlock.READ | landlock.WRITE & ~landlock.IOCTL_DEV | landlock.EXECUTE)
        os.close(fd)
    for grant in plan.grants:
        try:
            fd = mounts.open_exact(grant.path)
        except OSError:
            continue
        rights = _rights(grant.access)
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= landlock.FILE_RIGHTS
        ruleset.allow(fd, rights)
        os.close(fd)
    for terminal in own:
        ruleset.allow(terminal.fd, _rights(granted(plan, terminal.path)) & landlock.FILE_RIGHTS)
    ruleset.restrict_self()


def granted(plan: FilesPlan, path: str) -> Access:
    """What the plan's grants hold for `path`."""
    access = Access.NONE
    for grant in plan.grants:
        if is_below(path, grant.path):
            access |= grant.access
    return access


def _rights(access: Access) -> int:
    rights = 0
    if Access.READ in access:
        rights |= landlock.READ
    if Access.WRITE in access:
        rights |= landlock.WRITE
    if Access.EXECUTE in access:
        rights |= landlock.EXECUTE
    return rights
