"""Which tier this host gives: the best one whose own programs refuse what they must, tried and not guessed.

What the kernel refused once it refuses until the next boot; it is remembered in a directory of root's, so that a launch need
not try again. A tier that was asked for by name is tried in any case.
"""

from __future__ import annotations

import contextlib
import json
import os

from mcpguard.backends.engine import MOMENTARY, Engine, Session
from mcpguard.errors import HostError, KernelError
from mcpguard.kernel.cgroup import Leaf
from mcpguard.kernel.places import REFUSED_TIERS
from mcpguard.model.values import dataclass, field
from mcpguard.wire import _abi

BETTER = (1, 2)
HOOKS_ON_LANDLOCK, LANDLOCK = 2, 3
_LASTING = ("host.no-bpf-lsm", "host.no-hooks", "host.tier")
_ACTIVE_MODULES = "/sys/kernel/security/lsm"
_BOOT = "/proc/sys/kernel/random/boot_id"


@dataclass(slots=True)
class Armed:
    """A session in the engine of the tier that was chosen.

    Attributes:
        tier: 1, 2 or 3.
        reasons: why each better tier is not it.
    """

    tier: int
    engine: Engine
    session: Session
    reasons: dict[int, str] = field(default_factory=dict)


def arm(leaf: Leaf, asked: int | None) -> Armed:
    """Open the engine of the best tier and give the leaf a session in it, in which everything is refused still.

    Args:
        asked: the only tier that will do; None: the best there is.

    Raises:
        HostError, KernelError: the asked tier cannot be had, or none.
    """
    if asked is not None:
        return _try(leaf, asked)
    remembered = _remembered()
    found, lasting = dict(remembered), dict(remembered)
    for tier in BETTER:
        if tier in found:
            continue
        try:
            armed = _try(leaf, tier)
        except (HostError, KernelError) as error:
            found[tier] = error.why
            if _lasts(error):
                lasting[tier] = error.why
            continue
        armed.reasons = {better: found[better] for better in found if better < tier}
        return armed
    if lasting != remembered:
        _remember(lasting)
    armed = _try(leaf, LANDLOCK)
    armed.reasons = found
    return armed


def _lasts(error: HostError | KernelError) -> bool:
    """Whether the next launch would meet the same. A host that is short of something for a moment, by an agent's doing perhaps,
    keeps its tier.
    """
    if isinstance(error, KernelError):
        return error.errno not in MOMENTARY
    return error.code in _LASTING


def preemption() -> str:
    """How this kernel preempts now: none, voluntary, full, lazy or rt; empty where it cannot be told."""
    from mcpguard.kernel import probe

    return probe.preemption_now() or ""


def files_fixed(tier: int, engine: Engine, *, ask: bool) -> str:
    """Why what files may be opened cannot change while a session runs; empty where it can.

    Landlock takes no more once it is applied. Where a person answers live, tier 2 can leave what merely no rule allows to the
    hooks, if none of them can be skipped and none is missing.
    """
    if tier == 1:
        return ""
    if tier == LANDLOCK:
        return "Landlock cannot be widened"
    from mcpguard.model.coverage import SAFE_PREEMPTION

    now = preemption()
    if now not in SAFE_PREEMPTION:
        return f"this kernel preempts at will ({now or 'it does not say how'}), so Landlock stays narrow"
    if not ask:
        return "it was not started with --ask"
    from mcpguard.backends import guard

    missing = guard.uncovered(engine)
    return f"this kernel has no hook {', '.join(missing)}, so Landlock stays narrow" if missing else ""


def _try(leaf: Leaf, tier: int) -> Armed:
    if tier == LANDLOCK:
        engine = Engine.open()
    else:
        _insist_on_module(tier)
        from mcpguard.backends import guard  # most of what it brings along is only used here

        engine = guard.open_engine(guard.LSM if tier == 1 else guard.MODIFY_RETURN)
    try:
        session = engine.add_session(leaf.fd, leaf.id)
    except BaseException:
        engine.close()
        raise
    try:
        if tier != LANDLOCK:
            session.set_state(_abi.MG_SESSION_LIVE | _abi.MG_SESSION_FILES)
            _rehearse(leaf, session, tier)
            session.set_state(0)
    except BaseException:
        session.remove()
        session.close()
        engine.close()
        raise
    return Armed(tier, engine, session)


def _insist_on_module(tier: int) -> None:
    """Spare the kernel the work where its own list says that LSM programs are never called."""
    with contextlib.suppress(OSError), open(_ACTIVE_MODULES, encoding="ascii") as modules:
        active = modules.read().strip()
        if tier == 1 and "bpf" not in active.split(","):
            raise HostError(
                "tier 1 cannot be had",
                why=f"bpf is not among the active security modules ({active})",
                do=f"boot with lsm={active},bpf",
                code="host.no-bpf-lsm",
            )


def _rehearse(leaf: Leaf, session: Session, tier: int) -> None:
    from mcpguard.backends import guard
    from mcpguard.broker import rehearsal

    missing = guard.detach_verify(session.engine)
    done = rehearsal.not_refused(leaf) if not missing else []
    if missing or done:
        why = (
            f"the kernel does not list {', '.join(missing)}"
            if missing
            else f"the programs are attached, and yet these were not refused: {', '.join(done)}"
        )
        code = "host.tier" if missing or done != [rehearsal.NOT_TRIED] else "host.rehearsal"
        raise HostError(f"tier {tier} does not hold on this host", why=why, do="mcpguard doctor", code=code)


def _text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _key() -> list[str]:
    from mcpguard.backends.engine import LAYOUT
    from mcpguard.kernel import bpf, pins

    return [_text(_BOOT).strip(), pins.version(bpf.OBJECTS, LAYOUT)]


def _remembered() -> dict[int, str]:
    try:
        kept = json.loads(_text(REFUSED_TIERS))
        return {int(tier): str(why) for tier, why in kept["refused"].items()} if kept["key"] == _key() else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _remember(refused: dict[int, str]) -> None:
    made = f"{REFUSED_TIERS}.{os.getpid()}"
    with contextlib.suppress(OSError):
        # Whatever mask root runs with: who writes here chooses everybody's tier.
        with open(made, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o644)) as file:
            json.dump({"key": _key(), "refused": refused}, file)
        os.replace(made, REFUSED_TIERS)
