"""A guarded program that does what it is told, one act at a time, so that rules can change in between.

It runs until it is closed: a test asks the same process before and after.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import RUN_SECONDS, SYSTEM_PYTHON, Json, Sandbox, mcpguard_command

from mcpguard.profile.amend import Addition
from mcpguard.profile.store import control_directory
from mcpguard.session.approve import Outcome, Scope, Watch, approve

PROGRAM = r"""
import errno, json, os, socket, sys, threading

def connect(host, port):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.settimeout(10)
        sock.connect((host, int(port)))

def datagram(host, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((host, int(port)))

def storm(honest, denied, threads, times):
    wrong = []

    def ask_often():
        for _ in range(int(times)):
            for host in (honest, denied):
                try:
                    datagram(host, 9)
                    answer = 0
                except OSError as refused:
                    answer = refused.errno
                if answer != (0 if host == honest else errno.EPERM):
                    wrong.append(host)

    running = [threading.Thread(target=ask_often) for _ in range(int(threads))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if wrong:
        raise OSError(0, f"{len(wrong)} wrong verdicts on {set(wrong)}")

def unix(path, kind="STREAM"):
    with socket.socket(socket.AF_UNIX, getattr(socket, "SOCK_" + kind)) as sock:
        sock.settimeout(10)
        sock.connect("\0" + path[1:] if path.startswith("@") else path)

def read(path):
    with open(path, "rb") as file:
        file.read(1)

def write(path):
    with open(path, "ab"):
        pass

def link(target, path):
    os.symlink(target, path)

def names(path):
    os.listdir(path)

def system(line):
    os.system(line)

print(json.dumps({"session": os.environ["MCPGUARD_SESSION"], "pid": os.getpid()}), flush=True)
for line in sys.stdin:
    act, *words = json.loads(line)
    try:
        globals()[act](*words)
        answer = ""
    except OSError as refused:
        answer = errno.errorcode.get(refused.errno) or str(refused)
    print(json.dumps(answer), flush=True)
"""


@dataclass
class Puppet:
    """A guarded process of ours.

    Attributes:
        session: its id.
    """

    sandbox: Sandbox
    process: subprocess.Popen[str]
    session: str
    pid: int

    def ask(self, act: str, *words: str | int | Path) -> str:
        """Have it do something; the errno as a symbol, empty when it succeeded."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([act, *map(str, words)]) + "\n")
        self.process.stdin.flush()
        answer: str = json.loads(self.process.stdout.readline())
        return answer

    def approve(self, *additions: tuple[str, str, str], scope: Scope = Scope.SESSION) -> Outcome:
        """Allow more, as the user outside, once the session takes it."""
        with _home_of(self.sandbox):
            deadline = time.monotonic() + RUN_SECONDS
            while not (control_directory() / self.session).exists():
                assert time.monotonic() < deadline, "the session takes no rules"
                time.sleep(0.01)
            return approve(self.session, [Addition(*one) for one in additions], scope)

    def control(self) -> Path:
        """Its control socket."""
        with _home_of(self.sandbox):
            return control_directory() / self.session

    def end(self) -> tuple[int, str]:
        """Let it end; its exit code, and what mcpguard had to say."""
        _out, err = self.process.communicate(timeout=RUN_SECONDS)
        return self.process.returncode, err

    def events(self, *filters: str) -> list[Json]:
        """Its record."""
        return self.sandbox.events(self.session, *filters)


@contextlib.contextmanager
def puppet(sandbox: Sandbox, *, options: Sequence[str] = ()) -> Iterator[Puppet]:
    """Start one under the sandbox's profile; ended at the latest when the block is left."""
    words = ["run", "-p", sandbox.profile, "-w", str(sandbox.world.project), *options, "--"]
    process = subprocess.Popen(
        [*sandbox.prefix, *mcpguard_command(), *words, SYSTEM_PYTHON, "-c", PROGRAM],
        cwd=sandbox.world.project,
        env=sandbox.world.environment(**sandbox.variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout
        first = process.stdout.readline()
        assert first, process.communicate()[1]
        told = json.loads(first)
        yield Puppet(sandbox, process, told["session"], told["pid"])
    finally:
        if process.poll() is None:
            with contextlib.suppress(BrokenPipeError):
                process.communicate(timeout=RUN_SECONDS)


@contextlib.contextmanager
def _home_of(sandbox: Sandbox) -> Iterator[None]:
    before = os.environ.get("MCPGUARD_HOME")
    os.environ["MCPGUARD_HOME"] = str(sandbox.world.state)
    try:
        yield
    finally:
        del os.environ["MCPGUARD_HOME"]
        if before is not None:
            os.environ["MCPGUARD_HOME"] = before


@contextlib.contextmanager
def watching(session: str) -> Iterator[Watch]:
    """A line to a session that has just begun, as the screen holds one."""
    deadline = time.monotonic() + RUN_SECONDS
    while True:
        try:
            made = Watch(session)
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    yield made
    made.close()
