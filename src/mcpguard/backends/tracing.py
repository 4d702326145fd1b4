"""The record of what the tree starts, opens, changes and is refused: raw tracepoints, filtered by cgroup. Never a verdict.

The attachment lives as long as its link descriptors, so whoever keeps them keeps the record going.
"""

from __future__ import annotations

from dataclasses import dataclass

from mcpguard.backends import base
from mcpguard.kernel import bpf
from mcpguard.wire import encode

PROGRAMS = {
    "mg_forked": "sched_process_fork",
    "mg_executed": "sched_process_exec",
    "mg_exited": "sched_process_exit",
    "mg_sys_exit": "sys_exit",
}


@dataclass(slots=True)
class TracingAttachment(base.Attachment):
    """The armed record."""

    def detach_verify(self) -> list[str]:
        """Programs whose link is not held here any more; empty: all are armed."""
        return [name for name in PROGRAMS if f"link.{name}" not in self.fds]


def attach(cgroup_id: int, shared: bpf.Shared) -> TracingAttachment:
    """Load and attach the tracing programs for the processes of one cgroup.

    Raises:
        HostError, KernelError: nothing is attached.
    """
    attachment = TracingAttachment()
    try:
        base.lend_out(attachment, shared)
        with base.opened("trace", shared, encode.configuration(cgroup_id)) as loaded:
            loaded.load()
            for name in ("mg_open_sums", "mg_refused_sums"):
                attachment.fds[f"sums.{name}"] = loaded.map(name).fd
            for name, tracepoint in PROGRAMS.items():
                program = loaded.program(name)
                attachment.fds[f"link.{name}"] = bpf.attach_raw_tracepoint(tracepoint, program)
                attachment.programs[name] = bpf.program_id(program)
    except BaseException:
        attachment.close()
        raise
    return attachment
