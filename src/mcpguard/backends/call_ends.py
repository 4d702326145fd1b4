"""The end of every system call by the tracepoint's performance event, where the kernel would skip programs on the tracepoint.

Newer kernels may take the processor from a program on the raw tracepoint, and skip it meanwhile for whoever else ends a call
there. Around one on the event they hold preemption off.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from mcpguard.backends.engine import NEEDLESS
from mcpguard.errors import HostError, KernelError
from mcpguard.kernel import bpf, perf_events

_TRACEPOINT = 5
_BY_EVENT = ".rodata.end"
# Since programs at the ends of calls may wait for memory, nothing around those on raw tracepoints holds preemption off.
_WAITS = "trace_call_bpf_faultable"


def fit(program: str, opened: bpf.Object) -> None:
    """Leave `program` alone in an open object, to be loaded for the event.

    Raises:
        HostError: nothing would be won by it here (its code is NEEDLESS).
        KernelError: the kernel does not describe its functions.
    """
    if program not in opened.programs:
        raise _unfit("programs on the calls themselves stand in for it", NEEDLESS)
    if why := why_not():
        raise _unfit(why, NEEDLESS)
    opened.skip(set(opened.programs) - {program})
    opened.set_kind(program, _TRACEPOINT, 0)
    opened.set_constants(_BY_EVENT, (1).to_bytes(4, sys.byteorder))


def why_not() -> str:
    """Why the raw tracepoint will do on this kernel, which costs less; empty: it would skip programs."""
    from mcpguard.kernel import btf, probe  # only the first run of a boot asks

    running = probe.preemption_now()
    if running in ("none", "voluntary"):
        return f"the kernel preempts no program ({running})"
    return "" if btf.functions([_WAITS]) else "the kernel preempts no program on a raw tracepoint"


def attach(name: str, program: int) -> int:
    """Attach a loaded program to the event of a tracepoint (`group/name`); returns the link. Raises KernelError."""
    try:
        event = perf_events.tracepoint(name)
    except OSError as error:
        raise KernelError(
            f"perf_event_open({name})", error.errno or 0, do="run `mcpguard doctor` to see what this kernel accepts"
        ) from None
    try:
        return bpf.attach_event(event, program, name)
    finally:
        os.close(event)


def rehearse(event: str, programs: Mapping[str, int]) -> None:
    """Attach each for a moment, and see whether it is asked.

    Raises:
        HostError: it is not.
        KernelError: the kernel does not attach it, or does not count.
    """
    for name, program in programs.items():
        link = attach(event, program)
        try:
            with bpf.counting():
                os.getppid()
            asked = bpf.program_facts(program).runs
        finally:
            os.close(link)
        if not asked:
            raise _unfit(f"{name} was not asked when a call was made", "host.no-event")


def _unfit(why: str, code: str) -> HostError:
    return HostError(
        "system calls are recorded by the raw tracepoint here",
        why=why,
        do="nothing: what the kernel skips is told in the record",
        code=code,
    )
