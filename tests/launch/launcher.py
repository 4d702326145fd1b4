"""Start programs as a chosen user, with pipes or on a terminal of their own, and talk to them without sleeping."""

from __future__ import annotations

import fcntl
import os
import pty
import pwd
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

# An emulated guest is many times slower than any host.
PATIENCE_S = 600.0 if os.environ.get("MCPGUARD_LANE_KERNEL") else 90.0


@dataclass
class Account:
    """A user of this host, and how this user starts mcpguard."""

    name: str
    mcpguard: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def entry(self) -> pwd.struct_passwd:
        return pwd.getpwnam(self.name)

    @property
    def home(self) -> Path:
        return Path(self.entry.pw_dir)

    @property
    def groups(self) -> list[int]:
        return os.getgrouplist(self.name, self.entry.pw_gid)

    def env(self, **extra: str) -> dict[str, str]:
        base = {
            "HOME": str(self.home),
            "USER": self.name,
            "LOGNAME": self.name,
            "SHELL": "/bin/bash",
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "TERM": "xterm",
            "LANG": "C.UTF-8",
        }
        return {**base, **self.environment, **extra}

    def start(self, argv: Sequence[str], *, cwd: Path, env: dict[str, str] | None = None, **options: object) -> Popen:
        return subprocess.Popen(
            list(argv),
            cwd=cwd,
            env=env or self.env(),
            user=self.entry.pw_uid,
            group=self.entry.pw_gid,
            extra_groups=self.groups,
            **options,  # type: ignore[call-overload]
        )

    def do(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: dict[str, str] | None = None,
        data: bytes | None = None,
        **options: object,
    ) -> Done:
        """Run to the end without a terminal, in a session of its own; bytes in, bytes out."""
        source = subprocess.PIPE if data is not None else subprocess.DEVNULL
        process = self.start(
            argv,
            cwd=cwd,
            env=env,
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **options,
        )
        try:
            out, err = process.communicate(data, timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise AssertionError(f"hangs: {argv}\nstdout: {out!r}\nstderr: {err!r}") from None
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

    def guarded(self, *command: str, cwd: Path, **options: object) -> Done:
        """`mcpguard run -- COMMAND`, without a terminal."""
        return self.do([*self.mcpguard, "run", "--", *command], cwd=cwd, **options)  # type: ignore[arg-type]

    def terminal(self, argv: Sequence[str], *, cwd: Path, env: dict[str, str] | None = None) -> Terminal:
        return Terminal(self, argv, cwd, env)


Popen = subprocess.Popen[bytes]
Done = subprocess.CompletedProcess[bytes]


class Terminal:
    """A program on a controlling terminal of its own."""

    def __init__(self, account: Account, argv: Sequence[str], cwd: Path, env: dict[str, str] | None) -> None:
        self.master, slave = pty.openpty()
        self.path = os.ttyname(slave)
        os.fchown(slave, account.entry.pw_uid, -1)
        self.resize(24, 80)
        self.seen = b""
        self.process = account.start(
            argv,
            cwd=cwd,
            env=env,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self.master >= 0:
            os.close(self.master)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, text: str) -> None:
        os.write(self.master, text.encode())

    def hang_up(self) -> None:
        """Close the terminal under the program."""
        os.close(self.master)
        self.master = -1

    def wait_for(self, text: str) -> str:
        """Read until `text` appears; what came before and with it is consumed and returned."""
        wanted = text.encode()
        deadline = time.monotonic() + PATIENCE_S
        while wanted not in self.seen:
            if not self._read(deadline):
                raise AssertionError(
                    f"{text!r} never appeared; the terminal shows: {self.seen.decode(errors='replace')}"
                )
        before, self.seen = self.seen.split(wanted, 1)
        return (before + wanted).decode(errors="replace")

    def end(self) -> tuple[int, str]:
        """Wait for the program; its status (negative: signal) and what was not yet consumed."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read(deadline):
            pass
        return self.process.wait(PATIENCE_S), self.seen.decode(errors="replace")

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise AssertionError(f"nothing more came; the terminal shows: {self.seen.decode(errors='replace')}")
        try:
            data = os.read(self.master, 65536)
        except OSError:  # the last program on the terminal has gone
            return False
        self.seen += data
        return bool(data)
