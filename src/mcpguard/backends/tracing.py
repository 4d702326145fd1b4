"""The record of what trees start, open, change and are refused: raw tracepoints, filtered by session. Never a verdict.

The engine attaches them for the whole host while any session lives; here is only looked whether it did.
"""

from __future__ import annotations

from mcpguard.backends.engine import Engine

PROGRAMS = ("mg_forked", "mg_executed", "mg_exited", "mg_sys_exit", "mg_any_send")


def detach_verify(engine: Engine) -> list[str]:
    """Programs that should be attached and are not; empty: all are armed."""
    linked = engine.linked()
    return [name for name in PROGRAMS if name not in linked]
