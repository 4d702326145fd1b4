"""The user's side of the privilege line: start the broker, hand the request over, get descriptors and news back.

Imports little, for the broker is started before anything else is.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading

from mcpguard.broker.channel import Channel, peer_uid
from mcpguard.errors import HostError, PrivilegeError
from mcpguard.model.values import dataclass, field

TYPE_CHECKING = False  # as `typing` has it, which takes longer than all of this
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from typing import Any

    from mcpguard.broker.protocol import LaunchRequest
    from mcpguard.model.plan import GuardPlan

_SUDO = ("/usr/bin/sudo", "/bin/sudo", "/usr/local/bin/sudo", "/run/wrappers/bin/sudo")
# So long it may take until the tree stands still, and until the broker, which may have something else to do, has said so.
PAUSE_S = 0.3
_PROMPT = "mcpguard loads its sandbox as root, then drops it. Password for %u: "


@dataclass(frozen=True, slots=True)
class BrokerProgram:
    """What to start: an interpreter and the directory that holds the package."""

    python: str
    package_root: str

    @property
    def command(self) -> list[str]:
        return [self.python, "-I", "-S", "-B", f"{self.package_root}/mcpguard/broker/__main__.py"]


@dataclass(slots=True)
class Forked:
    """A broker that is a copy of this process, as far as it is used like a Popen."""

    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self) -> int | None:
        return self._reap(0)

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            found, status = os.waitpid(self.pid, options)
            if found:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


@dataclass(slots=True)
class Broker:
    """A started broker.

    Attributes:
        process: the broker itself, or the sudo in front of it.
        descriptors: what it handed over, by name; the receiver closes them.
    """

    process: subprocess.Popen[bytes] | Forked
    channel: Channel
    descriptors: dict[str, int] = field(default_factory=dict)
    _answers: dict[int, dict[str, Any] | None] = field(default_factory=dict)
    _answered: threading.Condition = field(default_factory=threading.Condition)
    _asked: int = 0
    _over: bool = False

    def load(self, *, audit: bool, tier: str | None, resolver: int = 0) -> None:
        """Have it load; until then it waits. To be called once, first.

        Args:
            tier: `1`, `2` or `3` to insist on one.
            resolver: port on 127.0.0.1 and ::1 where the tree's questions for names go; 0: they are judged like other requests.
        """
        # One that has failed already is found out at its first answer.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.channel.connection.sendall(bytes((audit, int(tier or 0))) + resolver.to_bytes(2, "big"))

    def offer(self) -> dict[str, Any]:
        """What the broker can give on this host: the tier, and why each better one is not it. To be taken once, first.

        Raises:
            HostError: nothing can be given; nothing was started.
        """
        return self._answer()[0]

    def silent(self) -> bool:
        """Whether it has said nothing that was not taken yet, so that waiting for it would take time."""
        return not select.select([self.channel.fileno()], (), (), 0)[0]

    def request(self, launch: LaunchRequest, keeping: int | None = None) -> None:
        """Have the child made and confined; `confined` waits for it.

        Args:
            keeping: the end of a socket pair on which a gate will ask for what `launch.kept` says; it stays the caller's.
        """
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # A broker that has failed already says why before it ends.
            self.channel.send(launch.to_json(), () if keeping is None else (keeping,))

    def confined(self) -> dict[str, Any]:
        """The broker's facts about the confined child, which waits for `go`.

        Raises:
            HostError: it could not be done; nothing was started.
        """
        message, descriptors = self._answer()
        self.descriptors = dict(zip(message["descriptors"], descriptors, strict=True))
        return message

    def _answer(self) -> tuple[dict[str, Any], tuple[int, ...]]:
        received = self.channel.receive()
        if received is None:
            raise self._died()
        if "error" in received[0]:
            from mcpguard.broker.protocol import error_from_json

            raise error_from_json(received[0])
        return received

    def _died(self) -> HostError:
        return HostError(
            "the broker ended before the agent was started",
            why=f"its exit code is {self.process.wait()}",
            do="run `mcpguard doctor`",
            code="broker.died",
        )

    def go(self) -> None:
        """Have the agent started.

        Raises:
            HostError: the broker is gone, and nothing was started.
        """
        try:
            self.channel.send({"go": True})
        except (BrokenPipeError, ConnectionResetError) as gone:
            raise self._died() from gone

    def send_update(
        self, network: dict[str, Any] | None = None, plan: GuardPlan | None = None, number: int = 0
    ) -> None:
        """Replace what the session goes by while it runs; whether it could be done is not waited for.

        Args:
            network: the tables that change, as in `LaunchRequest.network`.
            plan: the policy in the kernel's hooks.
        """
        message: dict[str, Any] = {"number": number} if number else {}
        if network is not None:
            message["network"] = network
        if plan is not None:
            from mcpguard.broker.protocol import guard_to_json

            message["guard"] = guard_to_json(plan)
        self.channel.send(message)

    def update(self, network: dict[str, Any], plan: GuardPlan | None, wait_s: float) -> None:
        """The same, and wait until the kernel goes by it. `answer` must be called meanwhile, by another thread.

        Raises:
            HostError: it was refused; nothing changed. With the code `broker.no-answer` that is not known.
        """
        answer = self._ask(lambda number: self.send_update(network, plan, number), wait_s)
        if not answer:
            raise HostError(
                "the session's broker did not take the new rules",
                why="it has ended" if answer is not None else f"it did not answer within {wait_s:.0f} s",
                do="try again; `mcpguard sessions` tells whether the session still runs",
                code="broker.no-answer",
            )
        if "error" in answer:
            from mcpguard.broker.protocol import error_from_json

            raise error_from_json(answer)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing of the tree goes on, as far as it can be had at once, or nothing more where the broker does not answer.
        `answer` must be called meanwhile, by another thread."""
        self._ask(lambda number: self.channel.send({"pause": True, "number": number}), PAUSE_S)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self.channel.send({"pause": False})

    def _ask(self, send: Callable[[int], None], wait_s: float) -> dict[str, Any] | None:
        """Send what has this number, and wait for its answer; None: there was none yet; empty: there will be none."""
        with self._answered:
            self._asked += 1
            number = self._asked
            self._answers[number] = {} if self._over else None
        try:
            send(number)
            with self._answered:
                self._answered.wait_for(lambda: self._answers[number] is not None, wait_s)
                return self._answers[number]
        except OSError:
            return None
        finally:
            self._answers.pop(number, None)

    def answer(self, message: dict[str, Any]) -> None:
        """An answer came to one of `update`."""
        with self._answered:
            if message["updated"] in self._answers:
                self._answers[message["updated"]] = message
            self._answered.notify_all()

    def hang_up(self) -> None:
        """No more answers will come."""
        with self._answered:
            self._over = True
            self._answers.update({number: {} for number in self._answers})
            self._answered.notify_all()

    def hide(self, paths: list[str]) -> None:
        """Cover sockets that appeared while the session runs."""
        self.channel.send({"hide": paths})

    def dismiss(self) -> None:
        """Nothing more is asked of it: it may clean up and end. What it handed over stays open."""
        with contextlib.suppress(OSError):
            self.channel.connection.shutdown(socket.SHUT_WR)

    def wait(self, timeout_s: float = 5.0) -> None:
        """Give it time to remove what it made; it does so also when nobody waits."""
        if self.process.poll() is not None:
            return
        # Popen.wait would look now and then, and sleep in between.
        ended = os.pidfd_open(self.process.pid)
        if select.select([ended], (), (), timeout_s)[0]:
            self.process.wait()
        os.close(ended)

    def close(self) -> None:
        for fd in self.descriptors.values():
            with contextlib.suppress(OSError):
                os.close(fd)
        self.descriptors = {}
        self.channel.close()


def fork() -> Broker:
    """Start the broker as a copy of this process, which is root's; to be called before there is a second thread."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        from mcpguard.broker.forked import be_broker

        be_broker(theirs.fileno())
    theirs.close()
    return Broker(Forked(pid), Channel(ours))


@dataclass(slots=True)
class Asked:
    """A broker that sudo was asked for; it may still want a password."""

    process: subprocess.Popen[bytes]
    listener: socket.socket

    def broker(self) -> Broker:
        """Wait for it; to be called once.

        Raises:
            PrivilegeError: sudo said no.
        """
        with self.listener:
            return Broker(self.process, Channel(_accept_root(self.listener, self.process)))


def start(program: BrokerProgram) -> Asked:
    """Have the broker started by sudo, which asks for a password on the terminal if it must.

    Raises:
        PrivilegeError: sudo is missing.
    """
    import subprocess

    name = f"mcpguard-{os.getpid()}-{os.urandom(16).hex()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(b"\0" + name.encode())
        listener.listen(4)
        command = [_sudo(), "-p", _PROMPT, "--", *program.command, "--socket", name]
        return Asked(subprocess.Popen(command), listener)
    except BaseException as error:
        listener.close()
        if isinstance(error, OSError):
            raise _no_privilege("sudo could not be started", str(error)) from error
        raise


def _sudo() -> str:
    """sudo from where only root can put one: a project's own PATH must not choose what asks for the password."""
    for path in _SUDO:
        if os.access(path, os.X_OK):
            return path
    raise _no_privilege("there is no sudo", f"none of {', '.join(_SUDO)} can be executed")


def _accept_root(listener: socket.socket, process: subprocess.Popen[bytes]) -> socket.socket:
    """Wait for the broker; anybody else who connects to the name is turned away."""
    ended = os.pidfd_open(process.pid)
    try:
        while True:
            ready, _, _ = select.select([listener.fileno(), ended], (), ())
            if listener.fileno() in ready:
                connection, _address = listener.accept()
                if peer_uid(connection) == 0:
                    return connection
                connection.close()
            elif ended in ready:
                raise _no_privilege("sudo did not start the broker", f"sudo ended with exit code {process.wait()}")
    finally:
        os.close(ended)


def _no_privilege(what: str, why: str) -> PrivilegeError:
    return PrivilegeError(
        what,
        why=why,
        do="run as a user who may use sudo, or as root; `mcpguard doctor` says what is missing",
        code="privilege.sudo",
    )
