"""What the kernel tells of a process in /proc/PID/stat; see proc_pid_stat(5)."""

from __future__ import annotations

# Places behind the name, which stands in brackets and may itself hold blanks and brackets.
STATE, PARENT, START = 0, 1, 19


def stat_of(pid: int) -> list[str]:
    """The fields behind the name; empty when there is no such process, or no more."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def parent_of(pid: int) -> int:
    """PID of the process that started it or took it over; 0 when there is no such process."""
    found = stat_of(pid)
    return int(found[PARENT]) if found else 0
