"""A leaf in which only the kernel's hooks judge: no filter of calls, no Landlock, no mounts, no programs on the cgroup."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from errno import EACCES
from pathlib import Path

import arena
from acts_names import access_list
from bpf_tree import errno_of, in_child
from test_files_write import snapshot

from mcpguard.backends import guard
from mcpguard.backends.engine import Engine, Session
from mcpguard.kernel import cgroup, mounts, privileges
from mcpguard.kernel.cgroup import Leaf
from mcpguard.kernel.ring import Ring
from mcpguard.model.access import Access, Effect
from mcpguard.model.plan import GuardPlan
from mcpguard.model.policy import User
from mcpguard.model.profile import Profile
from mcpguard.model.rule import FileRule, Origin, SocketRule
from mcpguard.policy.compile import compile_policy
from mcpguard.session.places import guard_plan
from mcpguard.wire import _abi, decode
from mcpguard.wire.records import FileRecord, Record

# Below the first all may be read, below the second nothing, below the third all may be done.
LOCKED, VAULT, FREE = "locked", "vault", "free"
MARK, ACCESS_LIST = "user.mark", "system.posix_acl_access"
MODPROBE = Path("/proc/sys/kernel/modprobe")
Doing = Callable[[], object]
_leaves = itertools.count()


@dataclass(frozen=True)
class Scene:
    """What an act is done to.

    Attributes:
        folder: holds `file`, `privileged`, `marked`, `sub`, and `stream` and `dgram`, two sockets that somebody outside serves.
        side: a folder with the file `mine`, where all may be done.
        victim: a process outside.
        asked: gets a line when the kernel looks for a module.
    """

    folder: Path
    side: Path
    victim: int
    asked: Path

    def path(self, name: str = "file") -> str:
        return str(self.folder / name)


@dataclass(frozen=True)
class Act:
    """One act, which a hook refuses.

    Attributes:
        begin: is called outside of the leaf and returns what is to be done inside.
        refused: errno of the refusal.
        unguarded: errno of what the kernel itself says; 0: it succeeds.
        place: the folder below which it is refused; empty: it is not about a file.
        capable: root's capabilities are kept, without which the kernel would refuse it by itself.
        told: the hook puts it on record; of others the record of calls tells.
        flags: MG_SESSION_* that let it come to its hook.
    """

    begin: Callable[[Scene], Doing]
    refused: int = EACCES
    unguarded: int = 0
    place: str = LOCKED
    capable: bool = False
    told: bool = True
    flags: int = 0


@dataclass(frozen=True)
class Done:
    """What came of an act: its errno, the process that did it, whether anything in its folder changed."""

    errno: int
    pid: int
    changed: bool


@dataclass
class Bare:
    """The leaf, with a session of the hooks' alone."""

    leaf: Leaf
    session: Session
    policies: tuple[int, int]
    places: Path
    victim: int
    asked: Path
    ring: Ring
    seen: list[Record] = field(default_factory=list)
    scenes: int = 0

    def scene(self, below: str) -> Scene:
        """Files of its own for one act."""
        self.scenes += 1
        folder, side = self.places / below / f"act{self.scenes}", self.places / FREE / f"side{self.scenes}"
        (folder / "sub").mkdir(parents=True)
        side.mkdir()
        for path in (folder / "file", folder / "privileged", folder / "marked", side / "mine"):
            path.write_text("original\n")
        (folder / "privileged").chmod(0o4755)
        with contextlib.suppress(OSError):  # where a file system has none
            os.setxattr(folder / "marked", MARK, b"1")
            os.setxattr(folder / "marked", ACCESS_LIST, access_list())
        return Scene(folder, side, self.victim, self.asked)

    def live(self, flags: int = 0) -> None:
        """Have the hooks judge by the rules; flags: MG_SESSION_* besides."""
        self.session.set_state(_abi.MG_SESSION_LIVE | _abi.MG_SESSION_FILES | flags, *self.policies)

    def do(self, act: Act, below: str, *, guarded: bool, flags: int = 0) -> Done:
        """Do an act to files below a folder, in the leaf or outside."""
        scene = self.scene(below)
        self.live(act.flags | flags)

        def work() -> list[int]:
            doing = act.begin(scene)
            if guarded:
                self.leaf.enter()
            if not act.capable:
                privileges.drop_capabilities()
            return [errno_of(doing), os.getpid()]

        with contextlib.ExitStack() as stack:
            for name, kind in (("stream", socket.SOCK_STREAM), ("dgram", socket.SOCK_DGRAM)):
                server = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
                server.bind(scene.path(name))
                if kind == socket.SOCK_STREAM:
                    server.listen()
            before = snapshot(scene.folder)
            number, pid = in_child(work)
            return Done(number, pid, snapshot(scene.folder) != before)

    def told(self, pid: int) -> list[FileRecord]:
        """What the hooks put on record of a process."""
        return [record for record in self.told_at_all(pid) if isinstance(record, FileRecord)]

    def told_at_all(self, pid: int) -> list[Record]:
        """All refusals of a process that are on record."""
        while samples := self.ring.drain():
            self.seen += map(decode.record, samples)
        return [record for record in self.seen if getattr(record, "head", None) and record.head.pid == pid]

    def assert_refused(self, act: Act) -> None:
        """Outside it is done. Inside it is refused where the rules say so, and on record, and nothing comes of it."""
        below = act.place or LOCKED
        control = self.do(act, below, guarded=False)
        assert control.errno == act.unguarded, os.strerror(control.errno)
        done = self.do(act, below, guarded=True)
        assert done.errno == act.refused, os.strerror(done.errno)
        assert not done.changed
        assert not act.told or self.told_at_all(done.pid)
        if act.place:
            assert self.told(done.pid)
            free = self.do(act, FREE, guarded=True)
            assert (free.errno, self.told(free.pid)) == (act.unguarded, []), os.strerror(free.errno)


def policy_of(places: Path) -> GuardPlan:
    """The rules on those folders, placed on this host."""

    def origin(text: str) -> Origin:
        return Origin("bare", "bare.yaml", 1, text)

    everything = Access.READ | Access.WRITE | Access.EXECUTE
    files = (
        FileRule(Effect.ALLOW, Access.READ, "/", origin("read /")),
        FileRule(Effect.ALLOW, everything, f"{places}/{FREE}", origin("allow free")),
        FileRule(Effect.DENY, everything, f"{places}/{VAULT}", origin("deny vault")),
    )
    sockets = (SocketRule(Effect.ALLOW, f"{places}/{FREE}/**", origin("allow free sockets")),)
    profile = Profile("bare", "bare.yaml", files=files, sockets=sockets)
    user = User(0, 0, (), "root", "/vmtmp/home")
    made = compile_policy(profile, user=user, workspace=f"{places}/{FREE}", tmp="/vmtmp/scratch")
    return guard_plan(made, mounts.table())


@contextlib.contextmanager
def bare(engine: Engine, parent: Path) -> Iterator[Bare]:
    """A leaf in an engine, with rules on folders below `parent`."""
    mount = cgroup.unified_mount()
    assert mount is not None
    with contextlib.ExitStack() as stack:
        places = stack.enter_context(arena.world_at(parent)).root / "bare"
        for name in (LOCKED, VAULT, FREE):
            (places / name).mkdir(parents=True)
        asked = stack.enter_context(modules_asked_for(places))
        victim = stack.enter_context(subprocess.Popen(["sleep", "10000"]))
        stack.callback(victim.kill)
        leaf = cgroup.make_leaf(mount, f"bare-{os.getpid()}-{next(_leaves)}")
        stack.callback(leaf.remove)
        stack.callback(os.close, leaf.fd)
        session = engine.add_session(leaf.fd, leaf.id)
        stack.callback(session.close)
        stack.callback(session.remove)
        session.await_maps()
        policies = guard.Guard(session).set_policy(policy_of(places))
        ring = Ring(os.dup(session.fds["mg_denials"]), session.sizes["mg_denials"])
        stack.callback(ring.close)
        yield Bare(leaf, session, policies, places, victim.pid, asked, ring)


@contextlib.contextmanager
def modules_asked_for(folder: Path) -> Iterator[Path]:
    """A file with a line for each time that the kernel looked for a module; none is found meanwhile."""
    helper, asked = folder / "modprobe", folder / "asked"
    asked.touch()
    helper.write_text(f'#!/bin/sh\necho "$@" >>{asked}\nexit 1\n')
    helper.chmod(0o755)
    before = MODPROBE.read_text()
    MODPROBE.write_text(str(helper))
    try:
        yield asked
    finally:
        MODPROBE.write_text(before)
