"""What the kernel tells of a process in /proc/PID; see proc_pid_stat(5), proc_pid_exe(5) and proc_pid_cmdline(5)."""

from __future__ import annotations

import os

_MOST_BYTES = 4096
# Places behind the name, which stands in brackets and may itself hold blanks and brackets.
STATE, PARENT, FLAGS, START = 0, 1, 6, 19
_PF_FORKNOEXEC = 0x40


def stat_of(pid: int) -> list[str]:
    """The fields behind the name; empty when there is no such process, or no more."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def has_ended(pid: int) -> bool:
    """Whether there is no such process, or one that only waits for its parent to hear of its end."""
    return stat_of(pid)[STATE:][:1] in ([], ["Z"], ["X"])


def parent_of(pid: int) -> int:
    """PID of the process that started it or took it over; 0 when there is no such process."""
    found = stat_of(pid)
    return int(found[PARENT]) if found else 0


def has_executed(pid: int) -> bool:
    """Whether it has executed something since it was made; False as well when there is no such process."""
    found = stat_of(pid)
    return bool(found) and not int(found[FLAGS]) & _PF_FORKNOEXEC


def program_of(pid: int) -> tuple[str, tuple[str, ...]] | None:
    """The program that it runs now, and its words as far as they fit; None: it is not there, or not ours to see."""
    try:
        program = os.readlink(f"/proc/{pid}/exe")
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(_MOST_BYTES).split(b"\0")[:-1]
    except OSError:
        return None
    return program, tuple(word.decode("utf-8", "backslashreplace") for word in words)
