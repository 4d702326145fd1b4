"""What a running session consists of, and what each part of it holds in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

KIB = 1024
# Part of the command line, or the process's own name -> what it is.
_ROLES = {"resolver/__main__.py": "resolver", "gate/__main__.py": "gate"}
_NAMES = {"mcpguard-broker": "broker"}
_LEAVES = "0::/mcpguard/"


def processes(supervisor: int) -> dict[str, int]:
    """Role -> PID of our own processes of one session; the guarded tree is not among them."""
    found = {"supervisor": supervisor}
    own = _words(supervisor)
    for pid in _below(supervisor):
        try:
            in_tree = _LEAVES in Path(f"/proc/{pid}/cgroup").read_text()
            words, name = _words(pid), Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            continue
        role = _NAMES.get(name) or next((role for word, role in _ROLES.items() if word in words), None)
        if role is None and words == own:  # it was forked a moment ago, to become something
            continue
        if not in_tree:
            found[role or f"other: {name}"] = pid
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


def engine() -> dict[str, int]:
    """Bytes that the kernel charges for what all engines have pinned for all sessions: `maps` and `programs`."""
    from mcpguard.kernel import bpf, pins

    found = {"maps": 0, "programs": 0}
    for folder in pins.folders():
        for kind, of in (("maps", pins.MAPS), ("programs", pins.PROGRAMS)):
            for name in os.listdir(f"{folder}/{of}"):
                fd = bpf.pinned(f"{folder}/{of}/{name}")
                found[kind] += _fields(f"/proc/self/fdinfo/{fd}").get("memlock", 0)
                os.close(fd)
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
    """Its descendants, by whichever thread they were started."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = (task / "children").read_text().split()
        except OSError:  # it ended
            continue
        for child in map(int, children):
            yield child
            yield from _below(child)
