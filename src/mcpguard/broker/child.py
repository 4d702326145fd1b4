"""The guarded child: everything between fork and exec, in the one order that works.

    as root   own terminals -> wait for the request -> groups, private mounts, bounding set
    as user   ids -> no_new_privs -> Landlock -> capabilities -> seccomp
    then      wait until it is in the cgroup and the hooks are armed, canary, wait for the word, exec

The broker puts it into the cgroup meanwhile.

Nothing of the agent runs before the broker has said go. Any failure is reported and ends the child.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import warnings  # noqa: F401 - `os.execvpe` imports it, and then everybody waits
from collections.abc import Sequence

from mcpguard.backends import landlock as files
from mcpguard.backends import terminals
from mcpguard.broker import canary
from mcpguard.broker.channel import Channel
from mcpguard.broker.protocol import LaunchRequest
from mcpguard.kernel import landlock, mounts, privileges
from mcpguard.kernel.terminals import Terminal
from mcpguard.model import plain_json as json
from mcpguard.model.access import Access

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

NOT_FOUND, NOT_EXECUTABLE, FAILED = 127, 126, 125
_STANDARD_ERROR = 2


def become_agent(
    orders: Channel,
    line: socket.socket,
    target: canary.Target,
    own: Sequence[Terminal],
) -> NoReturn:
    """Confine this process and turn it into the agent.

    In tier 1 the kernel's hooks carry all rules about files: neither covers nor Landlock are needed for them. Of a wide
    plan (tier 2) they carry what merely no rule allows, and the canary tries that as well.

    Args:
        orders: gives the request, which the broker has checked, with the tier, and whether signals to outside are refused.
        line: reports to the broker; closed by exec.
        own: the terminals that the agent is started on.
    """
    signal.set_wakeup_fd(-1)
    step = "start"
    try:
        step = "make terminals of its own"
        outside, held = _private_namespace(own)
        step = "take the request"
        received = orders.receive()
        if received is None:
            os._exit(FAILED)
        tier = int(received[0]["tier"])
        request = LaunchRequest.from_json(received[0]["request"])
        step = "take the user's groups"
        os.setgroups(request.user.groups)
        step = "look at what was mounted meanwhile"
        if outside != mounted_outside():
            held = _renewed_namespace(own, held)
        step = "arrange the private mounts"
        hidden = files.arrange_mounts(request.files, request.user) if tier > 1 else files.arrange_own_places()
        step = "close inherited descriptors"
        privileges.close_from(3, {line.fileno(), *held, *(terminal.fd for terminal in own)})
        step = "give up privilege"
        privileges.drop_bounding_set()
        os.setresgid(request.user.gid, request.user.gid, request.user.gid)
        os.setresuid(request.user.uid, request.user.uid, request.user.uid)
        privileges.set_no_new_privs()
        step = "enter the workspace"
        os.chdir(request.cwd)
        os.umask(request.umask)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if tier > 1:
            step = "apply Landlock"
            files.restrict(request.files, own, landlock.abi())
        step = "give up capabilities"
        privileges.drop_capabilities()
        step = "install the system-call filter"
        privileges.install_seccomp(request.seccomp)
        step = "wait for the cgroup and the hooks"
        _report(line, {"confined": True}, held)
        for fd in (*held, *(terminal.fd for terminal in own if terminal.fd > _STANDARD_ERROR)):
            os.close(fd)
        if line.recv(3) != b"arm":
            os._exit(FAILED)
        step = "try the canary"
        everything = Access.READ in files.granted(request.files, files.CANARY)
        failures, pid = canary.run_inside(
            target, hidden, reads_everything=everything, signals=bool(received[0]["signals"])
        )
        _report(line, {"ready": True, "canary": failures, "canary_pid": pid})
    except BaseException as error:
        number = error.errno if isinstance(error, OSError) else None
        _report(line, {"failed": step, "errno": number, "words": f"{type(error).__name__}: {error}"})
        os._exit(FAILED)
    if line.recv(2) != b"go":
        os._exit(FAILED)
    _execute(request, line)


def mounted_outside() -> bytes:
    """The mount table of the broker, which stays where the plan was made."""
    with open(f"/proc/{os.getppid()}/mountinfo", "rb") as table:
        return table.read()


def _private_namespace(own: Sequence[Terminal]) -> tuple[bytes, list[int]]:
    """Enter one, with terminals of its own; for that the kernel takes its time, which nobody waits for as long as there is no
    request.

    Returns:
        the mount table that it was copied from, at the latest; what `terminals.arrange` returns.
    """
    outside = mounted_outside()
    mounts.enter_private_namespace()
    return outside, terminals.arrange(own)


def _renewed_namespace(own: Sequence[Terminal], held: Sequence[int]) -> list[int]:
    """Something was mounted or taken away since: the plan knows of it and this namespace does not. Make another one."""
    for fd in held:
        os.close(fd)
    mounts.return_to_namespace_of(os.getppid())
    return _private_namespace(own)[1]


def _execute(request: LaunchRequest, line: socket.socket) -> NoReturn:
    _default_signals()
    try:
        os.execvpe(request.argv[0], request.argv, request.environment)
    except OSError as error:
        number = error.errno or errno.ENOEXEC
        _report(line, {"exec": number})
        os._exit(NOT_FOUND if number in (errno.ENOENT, errno.ENOTDIR) else NOT_EXECUTABLE)


def _default_signals() -> None:
    """Python ignores SIGPIPE and SIGXFSZ, the broker others; the agent starts as a shell would start it."""
    for number in (
        signal.SIGPIPE,
        signal.SIGXFSZ,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGCHLD,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGWINCH,
    ):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _report(line: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    socket.send_fds(line, [json.dumps(message).encode()], list(descriptors))
