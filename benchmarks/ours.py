"""What a running session consists of, and what each part of it holds in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

KIB = 1024
# A word of the command line -> what the process is.
_ROLES = {"broker/__main__.py": "broker", "mcpguard.resolver": "resolver", "mcpguard.gate": "gate"}
_LEAVES = "0::/mcpguard/"


def processes(supervisor: int) -> dict[str, int]:
    """Role -> PID of our own processes of one session; the guarded tree is not among them."""
    found = {"supervisor": supervisor}
    own = _words(supervisor)
    for pid in _below(supervisor):
        try:
            in_tree = _LEAVES in Path(f"/proc/{pid}/cgroup").read_text()
            words = _words(pid)
        except OSError:
            continue
        if not in_tree and words != own:  # else it was forked a moment ago, to become something
            found[next((role for word, role in _ROLES.items() if word in words), words or "?")] = pid
    return found


def _words(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()


def memory(pid: int) -> dict[str, float]:
    """MiB of a process: `rss`, `pss` (its share of what it shares), `own` (what only it has) and `peak` of the first."""
    rolled, status = _fields(f"/proc/{pid}/smaps_rollup"), _fields(f"/proc/{pid}/status")
    kib = {"rss": rolled["Rss"], "pss": rolled["Pss"], "peak": status["VmHWM"]}
    kib["own"] = rolled["Private_Dirty"] + rolled["Private_Clean"]
    return {name: round(value / KIB, 1) for name, value in kib.items()}


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process took so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def maps(pids: list[int]) -> dict[int, int]:
    """Id of each BPF map that these processes hold -> bytes that the kernel charges for it."""
    found: dict[int, int] = {}
    for pid in pids:
        for info in Path(f"/proc/{pid}/fdinfo").iterdir():
            fields = _fields(str(info))
            if "map_id" in fields:
                found[fields["map_id"]] = fields["memlock"]
    return found


def _fields(path: str) -> dict[str, int]:
    """Lines `name: number ...` of a file."""
    found = {}
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return {}
    for line in lines:
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            found[name] = int(words[0])
    return found


def _below(pid: int) -> Iterator[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in map(int, children):
        yield child
        yield from _below(child)
