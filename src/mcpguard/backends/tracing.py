"""The record of what trees start, open, change and are refused: programs that see the whole host, and ask by session. Never a
verdict.

The engine attaches them while any session lives; here is only looked whether it did, and whether each of them was asked.
"""

from __future__ import annotations

from mcpguard.backends.engine import ANY_CALL, ANY_SEND, CALLS, RINGS, Engine, Session

PROCESSES = ("mg_forked", "mg_executed", "mg_exited")


def programs(engine: Engine) -> tuple[str, ...]:
    """The programs that the record on this host consists of."""
    return (*PROCESSES, *(name for name in (ANY_CALL, ANY_SEND) if engine.has(name)), *_on_calls(engine))


def detach_verify(engine: Engine) -> list[str]:
    """Programs that should be attached and are not; empty: all are armed."""
    linked = engine.linked()
    unseen = [] if _on_calls(engine) or engine.has(ANY_CALL) else [ANY_CALL]
    return [*unseen, *(name for name in programs(engine) if name not in linked)]


def why_everybody_pays(engine: Engine) -> str:
    """Why the record comes from a tracepoint, for which every process pays; empty: it comes from programs on the calls."""
    if _on_calls(engine):
        return ""
    why = engine.absent.get("calls", "the kernel's own hooks are not in use, and the record takes no others")
    event = engine.second_best.get("trace")
    return f"{why}; where the kernel skips programs there, it did not take them elsewhere: {event}" if event else why


def _on_calls(engine: Engine) -> list[str]:
    return [name for name in engine.programs if name.startswith(CALLS)]


class Tracing:
    """What the record of one session may have missed."""

    def __init__(self, session: Session) -> None:
        self._engine = session.engine
        self._misses = self._count_misses()

    def missed(self) -> int:
        """How often the kernel skipped a program of the record since the session began, for whatever process.

        Programs on functions, where the kernel preempts at will; on newer kernels (7.3) those on tracepoints as well.
        """
        return self._count_misses() - self._misses

    def _count_misses(self) -> int:
        rings = filter(self._engine.has, RINGS)
        return self._engine.misses((*programs(self._engine), *rings))
