"""From a leaf to the end of the agent: the child, an armed engine, the request, the child confined, then idling.

The child is made first, and takes its mount namespace while the engine is armed. While the agent runs the broker only waits,
passes signals on, and takes new addresses for names.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pwd
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence

from mcpguard.broker import canary, tiers
from mcpguard.broker.channel import Channel, peer_pid
from mcpguard.broker.child import become_agent
from mcpguard.broker.engine import Engine
from mcpguard.broker.protocol import LaunchRequest, checked_paths, error_to_json, guard_from_json
from mcpguard.broker.rearm import INTERVAL_S, Covers
from mcpguard.errors import HostError, KernelError, McpguardError, PrivilegeError
from mcpguard.kernel import cgroup, landlock, mounts, syscalls, terminals
from mcpguard.kernel.beside import Beside
from mcpguard.model import plain_json as json
from mcpguard.model.plan import OWN_PLACES
from mcpguard.model.values import dataclass, field
from mcpguard.wire import _abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mcpguard.broker.keeping import Keeping
    from mcpguard.kernel.keys import Keys

MINIMUM_LANDLOCK = 3
_MOST_HELD = 8
PR_SET_CHILD_SUBREAPER = 36
_ALL_KINDS = 0x40000000  # __WALL of waitpid(2): threads, too
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_KEYS = (signal.SIGINT, signal.SIGQUIT)
# What stands still would never hear of them.
_ENDING = (signal.SIGTERM, signal.SIGHUP, *_KEYS)
# So long somebody who looks at the tree waits for one that does not stand still at once.
_PAUSE_S = 0.2
# Ctrl-Z stops the agent, if it lets itself be stopped; then we freeze its tree and stop ourselves.
_FROM_THE_TERMINAL = (*_KEYS, signal.SIGTSTP)
_DIED: dict[str, Any] = {"failed": "start", "errno": None, "words": "the child died"}


@dataclass(slots=True)
class _Child:
    """What becomes the agent.

    Attributes:
        orders: where it gets the request from.
        line: where it reports; closed by exec.
        inside: it was born in the leaf.
        held: what keeps the names of its terminals taken; open as long as we are.
    """

    pid: int
    orders: Channel
    line: socket.socket
    inside: bool = False
    held: list[int] = field(default_factory=list)


def _groups(caller_uid: int) -> set[int] | None:
    """Those that a user may have; None: root may have any."""
    if caller_uid == 0:
        return None
    entry = pwd.getpwuid(caller_uid)
    return {entry.pw_gid, *os.getgrouplist(entry.pw_name, entry.pw_gid)}


def _check_user(request: LaunchRequest, caller_uid: int, groups: set[int] | None) -> None:
    """The agent runs as who asked, with no group that who asked does not have."""
    user = request.user
    if user.uid != caller_uid or (groups is not None and not {user.gid, *user.groups} <= groups):
        raise PrivilegeError(
            "the broker refused to start the agent as somebody else",
            why=f"user {caller_uid} asked for uid {user.uid}, gid {user.gid}, groups {list(user.groups)}",
            do="log out and in again if your groups changed a moment ago",
            code="broker.wrong-user",
        )


def _insist_that_hooks_keep(request: LaunchRequest, engine: Engine) -> None:
    """A wide plan leaves what merely no rule allows to the hooks; where they can be skipped or are missing it is not taken."""
    if request.files.wide and (engine.tier != tiers.HOOKS_ON_LANDLOCK or engine.files_fixed or request.guard is None):
        raise HostError(
            "the broker refused to leave files to the kernel's hooks alone",
            why=engine.files_fixed or "the session has no hooks that would keep them",
            do="reinstall mcpguard, then run `mcpguard setup`",
            code="broker.wide",
        )


class Launch:
    """One session of the user `caller_uid` on `channel`; the leaf stays the caller's to take down."""

    def __init__(self, channel: Channel, caller_uid: int, leaf: cgroup.Leaf, engine: Engine) -> None:
        """
        Args:
            engine: not entered yet.
        """
        self.channel = channel
        self.caller_uid = caller_uid
        self.leaf = leaf
        self.engine = engine
        self.client_gone = False
        self.keeping: Keeping | None = None
        # Why the tree stands still; empty: it runs.
        self.still = ""
        self.paused = False
        self.keys: Keys | None = None
        # The child inherits them. Held open here, so that no other terminal gets their numbers while the session lives.
        self.terminals = terminals.own()
        for terminal in self.terminals:
            terminals.hand_over(terminal, caller_uid)

    def run(self) -> None:
        """Serve the session until the user's process leaves."""
        with _signals() as wakeup:
            target = canary.Target.open(outside_pid=peer_pid(self.channel.connection))
            # An orphan's parent is nobody outside, who could be made its tracer.
            syscalls.prctl(PR_SET_CHILD_SUBREAPER, 1)
            # Before there are threads, and before the engine: its namespace takes the kernel as long as all of that takes us.
            child = _fork(target, self.terminals, self.leaf if self.engine.only_landlock() else None)
            try:
                with self.engine as engine:
                    abi = _insist_on_landlock(engine.tier)
                    own = [[terminal.device, terminal.index] for terminal in self.terminals]
                    self.channel.send({**engine.offer(), "terminals": own})
                    engine.go_live()
                    # The kernel takes its time to let a process into a cgroup, and takes it beside what it takes for the maps.
                    entering = Beside(lambda: self._let_in(child))
                    try:
                        self._serve(child, target, entering, wakeup, signals=abi >= 6 or engine.tier < tiers.LANDLOCK)
                    finally:
                        entering.join()
            finally:
                child.orders.close()  # one that still waits for them ends

    def _let_in(self, child: _Child) -> None:
        if not child.inside:
            self.leaf.enter(child.pid)

    def _serve(
        self, child: _Child, target: canary.Target, entering: Beside, wakeup: socket.socket, *, signals: bool
    ) -> None:
        engine, leaf = self.engine, self.leaf
        groups = _groups(self.caller_uid)
        received = self.channel.receive()
        if received is None:  # the user's process changed its mind
            return
        request = LaunchRequest.from_json(received[0])
        _check_user(request, self.caller_uid, groups)
        _insist_that_hooks_keep(request, engine)
        # It confines itself while the tables are filled.
        _order(child, {"tier": engine.tier, "signals": signals, "request": received[0]})
        engine.set_rules(request.network, keeps=bool(request.kept))
        self._keep(request, received[1])
        if request.guard is not None:
            engine.set_guard(request.guard, request.switches)
        if request.switches & _abi.MG_SESSION_IO_URING:
            engine.watch_rings()
        canary_pid, covers = _confine(child, request, engine, entering)
        target.close()
        _drop_to_idle()
        facts = {"ready": True, "pid": child.pid, "canary_pid": canary_pid, "cgroup": leaf.path}
        self.channel.send({**facts, **engine.facts()}, engine.descriptors())
        received = self.channel.receive()
        if received is None or received[0].get("go") is not True:
            return
        child.line.send(b"go")
        gc.freeze()
        gc.enable()
        answer = child.line.recv(4096)
        if answer:
            self._tell({"exec_failed": json.loads(answer)["exec"]})
        status = self._wait(child, leaf, wakeup, engine, covers)
        covers.close()
        leftover = max(0, len(leaf.pids()) if leaf.populated() else 0)
        leaf.kill()
        if (
            not leftover
        ):  # nothing more can happen: the user's process finishes its record while the last counts are read
            self._tell({"ended": True})
        self._tell({"exited": status, "leftover": leftover, **engine.final()})
        engine.release()
        self._until_client_leaves()

    def _keep(self, request: LaunchRequest, descriptors: Sequence[int]) -> None:
        """Make what servers can be kept to; the descriptor that came along is the line on which their gate asks for it."""
        lines = [socket.socket(fileno=fd) for fd in descriptors]
        if request.kept and lines:
            from mcpguard.broker.keeping import Keeping  # few sessions need it

            self.keeping = Keeping(lines[0], self.leaf, self.engine.keep(request.kept))

    def _wait(self, child: _Child, leaf: cgroup.Leaf, wakeup: socket.socket, engine: Engine, covers: Covers) -> int:
        """Wait for the agent to end; returns its wait status. Meanwhile, look that what it is guarded by is in place."""
        ended = os.pidfd_open(child.pid)
        next_look = time.monotonic() + INTERVAL_S
        while True:
            sources = [wakeup.fileno(), ended, *([] if self.client_gone else [self.channel.fileno()])]
            if self.keeping is not None:
                sources.append(self.keeping.fileno())
            ready, _, _ = select.select(sources, (), (), max(0.0, next_look - time.monotonic()))
            # By the clock: a tree whose orphans end all the time must not keep us from looking.
            if time.monotonic() >= next_look:
                self._stand_still(tiers.let_down(engine.tier, fixed=engine.files_fixed))
                self._restore(covers)
                next_look = time.monotonic() + INTERVAL_S
            if wakeup.fileno() in ready:
                for number in wakeup.recv(4096):
                    if number in _FORWARDED:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(child.pid, number)
                    if self.still and number in _ENDING:
                        leaf.kill()
            if wakeup.fileno() in ready or ended in ready:
                status = _reap(child.pid, leaf, lambda: self._go_on(engine))
                if status is None and ended in ready:
                    # Somebody in the tree traces it, and so keeps its end to itself.
                    leaf.kill()
                    _pid, status = os.waitpid(child.pid, 0)
                if status is not None:
                    os.close(ended)
                    return status
            if self.channel.fileno() in ready:
                self._read_update(engine, covers)
            if self.keeping is not None and self.keeping.fileno() in ready and not self.keeping.serve():
                self.keeping.close()
                self.keeping = None
            if self.client_gone and self.paused:
                self._pause(False)
            if self.client_gone and engine.resolver:
                with contextlib.suppress(KernelError):
                    engine.drop_resolver()

    def _stand_still(self, why: str) -> None:
        """Let the tree do nothing for as long as the kernel does not ask our programs; nothing of it is lost."""
        if why == self.still:
            return
        with contextlib.suppress(OSError):  # the next look tries again
            self._take_keys() if why else self._give_keys_back()
            self.leaf.freeze(bool(why))
            self.still = why
            self._tell({"still": why})

    def _take_keys(self) -> None:
        """Have Ctrl-C end what stands still, also where the agent takes keys as they come, or sudo has its own terminal."""
        for number in _KEYS:
            signal.signal(number, _noted)
        if self.keys is None:
            from mcpguard.kernel.keys import Keys  # seldom needed

            with contextlib.suppress(OSError):  # nobody has a keyboard there
                self.keys = Keys(self.leaf.pids())

    def _give_keys_back(self) -> None:
        if self.keys is not None:
            self.keys.give_back()
            self.keys = None
        for number in _KEYS:
            signal.signal(number, signal.SIG_IGN)

    def _go_on(self, engine: Engine) -> None:
        """Somebody stopped us, with the tree frozen, and has continued us: it goes on, unless it would not be judged."""
        self._stand_still(tiers.let_down(engine.tier, fixed=engine.files_fixed))
        if not self.still:
            self.leaf.freeze(False)

    def _pause(self, paused: bool) -> None:
        """Have the tree do nothing for a moment, in which the user's process looks at all of it."""
        self.paused = paused
        with contextlib.suppress(OSError):  # the leaf is gone with its last process
            self.leaf.freeze(paused or bool(self.still))
            if paused:
                self.leaf.await_frozen(_PAUSE_S)

    def _restore(self, covers: Covers) -> None:
        restored: list[str] = []
        with contextlib.suppress(OSError):  # no memory for a moment: the next look tries again
            restored = covers.restore()
        if restored:
            self._tell({"restored": restored})

    def _read_update(self, engine: Engine, covers: Covers) -> None:
        try:
            received = self.channel.receive()
        except (OSError, ValueError):
            received = None
        if received is None:
            self.client_gone = True
            return
        message, descriptors = received
        for fd in descriptors:
            os.close(fd)
        refused: dict[str, Any] = {}
        try:
            if "pause" in message:
                self._pause(bool(message["pause"]))
            _update(message, engine, covers)
        except McpguardError as error:  # what was decided before still counts
            refused = error_to_json(error)
        except (KeyError, TypeError, ValueError, OSError) as error:
            refused = error_to_json(_no_update(error))
        if "number" in message:
            self._tell({"updated": message["number"], **refused})

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            self.channel.send(message)
        except OSError:
            self.client_gone = True

    def _until_client_leaves(self) -> None:
        """Maps and rings live as long as somebody holds them; the user's process reads the last records first."""
        while not self.client_gone:
            try:
                if self.channel.receive() is None:
                    return
            except (OSError, ValueError):
                return


def _update(message: dict[str, Any], engine: Engine, covers: Covers) -> None:
    """Do what the user's process asks while the agent runs."""
    if "network" in message or "guard" in message:
        plan = guard_from_json(message["guard"]) if "guard" in message else None
        engine.update(message.get("network", {}), plan)
    if "hide" in message:
        covers.add(checked_paths(message["hide"]))
        covers.restore()


def _no_update(error: Exception) -> HostError:
    return HostError(
        "the broker refused new rules for the session",
        why=f"{type(error).__name__}: {error}",
        do="the rules from before hold; reinstall mcpguard, then run `mcpguard setup`",
        code="broker.malformed-update",
    )


def _fork(target: canary.Target, own: Sequence[terminals.Terminal], leaf: cgroup.Leaf | None) -> _Child:
    """The child, which waits for its orders.

    Args:
        leaf: where it is born, if the kernel does that: none has to wait then until it is moved.
    """
    orders, theirs = socket.socketpair()
    line, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = -1
    with contextlib.suppress(OSError):
        pid = syscalls.fork_into(leaf.fd) if leaf else -1
    inside = pid >= 0
    if not inside:
        pid = os.fork()
    if pid == 0:
        orders.close()
        line.close()
        become_agent(Channel(theirs), end, target, own)
    theirs.close()
    end.close()
    return _Child(pid, Channel(orders), line, inside)


def _order(child: _Child, message: dict[str, Any]) -> None:
    """Give the child the request as it came, and what it goes by; it goes no further than to wait for the hooks."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # one that failed has said why
        child.orders.send(message)


def _confine(child: _Child, request: LaunchRequest, engine: Engine, entering: Beside) -> tuple[int, Covers]:
    """Arm the hooks once the child has confined itself by its orders and is in the leaf, and wait until its canary was refused.

    Returns:
        the canary's pid, and what looks after the child's covers.
    """
    report, child.held = _read_report(child.line)
    covers = None
    if report.get("confined"):
        entering.done()
        engine.arm(_own_places(child.pid) if engine.tier < tiers.LANDLOCK else {})  # only hooks ask for them
        child.line.send(b"arm")
        # While the child waits it is there to be looked at; a quick program has ended before we get to it again.
        covers = Covers(child.pid, request.files.steps, request.user)
        report, _none = _read_report(child.line)
    if covers is None or not report.get("ready"):
        entering.join()  # the number may be somebody else's once the child is taken away
        os.waitpid(child.pid, 0)
        raise _child_error(report)
    if report["canary"]:
        raise HostError(
            "the sandbox does not hold on this host, so nothing was started",
            why="the canary was not refused: " + "; ".join(report["canary"]),
            do="run `mcpguard doctor` and report its output",
            code="run.canary",
        )
    return int(report["canary_pid"]), covers


def _read_report(line: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What the child says, and the descriptors that it hands over."""
    answer, descriptors, _flags, _address = socket.recv_fds(line, 1 << 16, _MOST_HELD, socket.MSG_CMSG_CLOEXEC)
    report: dict[str, Any] = json.loads(answer) if answer else _DIED
    return report, descriptors


def _own_places(pid: int) -> dict[str, int]:
    """The kernel's numbers of the file systems that the child has for itself."""
    shown = {mount.point: mount.device for mount in mounts.visible(mounts.table(f"/proc/{pid}/mountinfo"))}
    return {point: mounts.device_number(shown[point]) for point in OWN_PLACES if point in shown}


def _insist_on_landlock(tier: int) -> int:
    """The Landlock ABI; tier 3 is nothing without it, tier 2 stands on it, tier 1 does without."""
    abi = landlock.abi()
    least = {1: 0, 2: 1}.get(tier, MINIMUM_LANDLOCK)
    if abi < least:
        raise HostError(
            "files cannot be guarded on this host",
            why=f"Landlock ABI {least} is needed, this kernel has {abi or 'none'}",
            do="boot a newer kernel, or add landlock to the lsm= boot parameter",
            code="host.landlock-too-old",
        )
    return abi


def _child_error(report: dict[str, Any]) -> McpguardError:
    step = str(report["failed"])
    if report.get("errno"):
        return KernelError(
            f"the child could not {step}",
            int(report["errno"]),
            do="run `mcpguard doctor`",
            log=str(report["words"]),
            code="run.child-failed",
        )
    return HostError(
        f"the child could not {step}", why=str(report["words"]), do="run `mcpguard doctor`", code="run.child-failed"
    )


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """Turn signals into bytes to select on. What comes from the terminal reaches the agent by itself."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.detach(), warn_on_full_buffer=False)
    for number in (*_FORWARDED, signal.SIGCHLD):
        signal.signal(number, _noted)
    for number in _FROM_THE_TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    # The user's process blocks signals before it starts us; a mask is inherited.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        yield ours
    finally:
        signal.set_wakeup_fd(-1)  # nobody reads any more that a child has ended


def _noted(_number: int, _frame: object) -> None:
    """The byte that says so is there to be read."""


def _reap(pid: int, leaf: cgroup.Leaf, go_on: Callable[[], None]) -> int | None:
    """The wait status if the agent ended. When it stopped itself, stop too, so that the shell takes the terminal back.

    All of the tree stands still meanwhile: nobody would put back covers that come off. Orphans of the tree are ours too, and
    whoever made us its tracer, down to single threads: the agent counts as ended only when those are taken away.
    """
    while True:
        found, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | _ALL_KINDS)
        if found == 0:
            return None
        if not os.WIFSTOPPED(status):
            if found == pid:
                return status
        elif not syscalls.release_tracee(found, os.WSTOPSIG(status)) and found == pid:
            leaf.freeze(True)
            os.kill(os.getpid(), signal.SIGSTOP)
            go_on()
            # Continued: the shell woke the whole group, but an agent with a group of its own needs a word from us.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _drop_to_idle() -> None:
    """What is left to do needs no home, no terminal and no working directory of the user's."""
    os.chdir("/")
