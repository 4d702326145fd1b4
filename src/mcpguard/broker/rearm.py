"""Covers that came off, put back on.

A cover hangs on the file that was there at launch. When somebody outside replaces that file (an editor that saves,
`git config`), the kernel takes the cover away in every namespace. The broker looks once a second and covers the new file.
"""

from __future__ import annotations

import ctypes
import os

from mcpguard.backends import landlock as files
from mcpguard.kernel import mounts, syscalls
from mcpguard.model.plan import MountStep
from mcpguard.model.policy import User

INTERVAL_S = 1.0
# A user whose programs make sockets without end must not fill the kernel's mount table.
MAX_ADDED = 256
MAX_STEPS = 8_192
_COVERING = ("mask", "hide", "ro", "link")


class Covers:
    """The protecting mounts of one child, watched from outside its namespace."""

    def __init__(self, pid: int, steps: tuple[MountStep, ...], user: User) -> None:
        self._table = f"/proc/{pid}/mountinfo"
        self._namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self._user = user
        present = self._points()
        # What shows through a hidden directory cannot be told any more: put back, it hides everything.
        self._steps = {
            step.path: MountStep(step.op, step.path, step.directory, step.target)
            for step in steps
            if step.op in _COVERING and step.path in present
        }

    def close(self) -> None:
        os.close(self._namespace)

    def add(self, paths: list[str]) -> None:
        """Cover more places from the next look on; they are hidden, whatever they are."""
        for path in paths[:MAX_ADDED]:
            if len(self._steps) < MAX_STEPS:
                self._steps.setdefault(path, MountStep("hide", path))

    def restore(self) -> list[str]:
        """Put back what came off since the last look; returns the paths. What does not exist now is tried next time."""
        present = self._points()
        if not present:
            return []
        return [
            path
            for path, step in self._steps.items()
            if path not in present and os.path.lexists(path) and self._put_back(step)
        ]

    def _points(self) -> set[str]:
        try:
            return {mount.point for mount in mounts.table(self._table)}
        except OSError:
            return set()

    def _put_back(self, step: MountStep) -> bool:
        """In a child of the broker, because a process cannot leave the namespace again that it entered."""
        pid = os.fork()
        if pid == 0:
            try:
                if syscalls.libc.setns(ctypes.c_int(self._namespace), ctypes.c_int(mounts.CLONE_NEWNS)) < 0:
                    os._exit(2)
                files.put_back(step, self._user)
                os._exit(0)
            except BaseException:
                os._exit(1)
        _pid, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status) == 0
