"""Rehearsal of the two tiers that hook the kernel itself: can a program of ours refuse an open there?

Loading and attaching prove nothing: without `bpf` in the active LSM list an LSM program attaches and is never called.
So a canary process must be refused. Needs root; detaches before it returns; touches no process but its own canary.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

from mcpguard.errors import McpguardError
from mcpguard.kernel import bpf

# The name in bpf/include/mg_canary.h: the programs refuse every open of a process that carries it.
CANARY = """
import errno, os
with open("/proc/self/comm", "w") as comm:
    comm.write("mcpguard-canary")
try:
    os.open("/dev/null", os.O_RDONLY)
except OSError as error:
    os._exit(1 if error.errno == errno.EPERM else 2)
os._exit(0)
"""
REFUSED = 1
TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """`works`: None when it could not be tried; `reason` says why not, or what was seen."""

    works: bool | None
    reason: str


def rehearse() -> tuple[Rehearsal, Rehearsal]:
    """Try the LSM hook and the modify-return hook; in this order."""
    if os.geteuid() != 0:
        untried = Rehearsal(None, "not tried: only root can load these programs")
        return untried, untried
    return _try("probe_lsm", "mg_probe_lsm"), _try("probe_modret", "mg_probe_modret")


def _try(name: str, program: str) -> Rehearsal:
    try:
        loaded = bpf.Object(name)
    except McpguardError as error:
        return Rehearsal(None, f"not tried: {error.what}: {error.why}")
    doing = "load"
    try:
        loaded.load()
        doing = "attach"
        link = bpf.attach_traced(loaded.program(program), program)
    except McpguardError as error:
        return Rehearsal(False, f"the kernel refuses to {doing} such a program: {error.why}")
    finally:
        loaded.close()
    try:
        canary = subprocess.run([sys.executable, "-I", "-S", "-c", CANARY], timeout=TIMEOUT_S, check=False)
        return _judge(canary.returncode)
    finally:
        os.close(link)


def _judge(code: int) -> Rehearsal:
    if code == REFUSED:
        return Rehearsal(True, "the program refused the canary")
    return Rehearsal(False, "the program loads and attaches, but the kernel never calls it")
