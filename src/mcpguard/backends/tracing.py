"""The record of what trees start, open, change and are refused: raw tracepoints, filtered by session. Never a verdict.

The engine attaches them for the whole host while any session lives; here is only looked whether it did.
"""

from __future__ import annotations

from mcpguard.backends.engine import ANY_SEND, Engine

PROGRAMS = ("mg_forked", "mg_executed", "mg_exited", "mg_sys_exit")


def detach_verify(engine: Engine) -> list[str]:
    """Programs that should be attached and are not; empty: all are armed."""
    linked = engine.linked()
    wanted = (*PROGRAMS, *(name for name in (ANY_SEND,) if engine.has(name)))
    return [name for name in wanted if name not in linked]
