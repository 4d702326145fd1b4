"""The whole error tree, told apart by who can act.

    McpguardError
    |-- ProfileError        what was written is wrong   -> edit the file at file:line
    |-- PolicyError         it cannot be compiled       -> simplify or correct the profile
    |-- UsageError          the command line is wrong   -> type it differently
    |-- HostError           this machine cannot         -> change the host or ask for less
    |   '-- PrivilegeError  root is needed and was not had
    |-- StoreError          the event store is broken or full
    '-- KernelError         a call was refused          -> holds the call and its errno

Every error says four things: what, why, do, code. Raise at the lowest layer with facts; print only in `cli.render`.
A code never changes its meaning.
"""

from __future__ import annotations

import errno as errno_names
import os


def one_line(text: str) -> str:
    """Text that stays on its line and cannot steer a terminal or turn round: names in it were chosen by anybody."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class McpguardError(Exception):
    """Base of all errors that a person may see.

    Attributes:
        what: one line, the person's words, no class names.
        why: the reason, one line.
        do: what to do next, one line.
        code: stable dotted identifier, such as `profile.unknown-key`.
        exit_code: what the command exits with; `run` uses 125.
    """

    exit_code = 1

    def __init__(self, what: str, *, why: str, do: str, code: str) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.do = do
        self.code = code

    def lines(self) -> tuple[str, str, str, str]:
        """The four lines shown on stderr."""
        return (
            f"mcpguard: {one_line(self.what)}",
            f"  why   {one_line(self.why)}",
            f"  do    {one_line(self.do)}",
            f"  code  {self.code}",
        )


class ProfileError(McpguardError):
    """A profile is wrong at a known place; `what` begins with `file:line:`."""


class PolicyError(McpguardError):
    """A correct profile cannot become a policy here."""


class UsageError(McpguardError):
    """The command line asks for something impossible."""

    exit_code = 2


class HostError(McpguardError):
    """This machine cannot do what is asked."""


class PrivilegeError(HostError):
    """The privileged part could not be started."""


class StoreError(McpguardError):
    """The event store cannot be read or written."""


class KernelError(McpguardError):
    """A system call was refused.

    Attributes:
        call: the call and its object, such as `bpf(PROG_LOAD, mg_connect4)`.
        errno: the error number.
        log: the verifier's or library's own words; empty when there are none.
    """

    def __init__(self, call: str, errno: int, *, do: str, log: str = "", code: str = "kernel.refused") -> None:
        name = errno_names.errorcode.get(errno, str(errno))
        super().__init__(f"{call} failed", why=f"{os.strerror(errno)} ({name})", do=do, code=code)
        self.call = call
        self.errno = errno
        self.log = log
