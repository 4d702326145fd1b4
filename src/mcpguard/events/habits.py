"""Refusals that honest programs run into every day: on record as denied, left out of summaries.

Each habit names its program, its file and its access. A rule that names the file makes it an alarm again: quiet is only
what no rule speaks of. Nothing here changes a verdict.
"""

from __future__ import annotations

import posixpath
import re

from mcpguard.events.finding import QUIET
from mcpguard.events.processes import Process
from mcpguard.model.access import Access
from mcpguard.model.policy import Policy

# A reader of this many environments looks at all processes, as `ps` does, and not at one.
SWEEP = 5
EVERY_PROCESS = f"{QUIET}: as ps does for every process"
_LOOKS_AT_ALL = frozenset({"ps", "pgrep", "pkill", "pidof", "killall5", "top", "htop"})
_SYSTEM_FOLDERS = ("/usr/bin", "/bin", "/usr/sbin", "/sbin")
# Beginning of a name in the home -> who keeps its history there.
_HISTORIES = {
    ".lesshs": re.compile(r"less"),
    ".viminfo": re.compile(r"vi|vim(\.\w+)?"),
    ".python_history": re.compile(r"python\d*(\.\d+)?"),
    ".bash_history": re.compile(r"bash"),
    ".node_repl_history": re.compile(r"node"),
}
_TRACE_MARKERS = frozenset({"/sys/kernel/debug/tracing/trace_marker", "/sys/kernel/tracing/trace_marker"})
_CLIMBED_FOR = frozenset({".git", ".gitignore", "CLAUDE.md", "package.json"})


def habit(policy: Policy, process: Process | None, access: Access, path: str) -> str | None:
    """The detail of a refusal that no rule speaks of, when it is such a habit.

    Args:
        process: who was refused; None: unknown, and then nothing is excused.
        access: what was refused.
        path: the object, symlinks followed.
    """
    if process is None:
        return None
    program = posixpath.basename(process.exe)
    folder, name = posixpath.split(path)
    if access == Access.WRITE and folder == policy.user.home and _keeps_history(program, name):
        return f"{QUIET}: {program} keeps a history and does without"
    if path in _TRACE_MARKERS and {program, process.comm} & {"bun", "claude"}:
        return f"{QUIET}: the program's run time looks for a tracer and does without"
    if access == Access.READ and name in _CLIMBED_FOR and policy.workspace.startswith(folder.rstrip("/") + "/"):
        return f"{QUIET}: programs look for it in every folder above the workspace"
    return None


def looks_at_all_processes(exe: str | None) -> bool:
    """True for the system's own programs that list processes; a program elsewhere may only bear the name."""
    folder, name = posixpath.split(exe or "")
    return folder in _SYSTEM_FOLDERS and name in _LOOKS_AT_ALL


def _keeps_history(program: str, name: str) -> bool:
    return any(name.startswith(begin) and who.fullmatch(program) for begin, who in _HISTORIES.items())
