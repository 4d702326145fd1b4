"""Which tier this host gives: the best one whose own programs refuse what they must, tried and not guessed.

What the kernel refused once it refuses until the next boot; it is remembered in a directory of root's, so that a launch need
not try again. A tier that was asked for by name is tried in any case.
"""

from __future__ import annotations

import contextlib
import os

from mcpguard.backends.engine import MOMENTARY, Engine, Session
from mcpguard.errors import HostError, KernelError
from mcpguard.kernel import cgroup
from mcpguard.kernel.beside import Beside
from mcpguard.kernel.cgroup import Leaf
from mcpguard.kernel.places import REFUSED_TIERS
from mcpguard.model import plain_json as json
from mcpguard.model.values import dataclass, field
from mcpguard.wire import _abi

BETTER = (1, 2)
HOOKS_ON_LANDLOCK, LANDLOCK = 2, 3
_LASTING = ("host.no-bpf-lsm", "host.no-hooks", "host.tier")
_ACTIVE_MODULES = "/sys/kernel/security/lsm"
_BOOT = "/proc/sys/kernel/random/boot_id"
# 0: the kernel calls no program on any of its functions, those of security modules included. Root may write it at any time.
_CALLS_PROGRAMS = "/proc/sys/kernel/ftrace_enabled"
_OFF = "kernel.ftrace_enabled is 0"


@dataclass(slots=True)
class Armed:
    """A session in the engine of the tier that was chosen.

    Attributes:
        tier: 1, 2 or 3.
        reasons: why each better tier is not it.
        unasked: acts on files that this kernel does not ask the programs about; only in tier 2, where Landlock keeps them.
    """

    tier: int
    engine: Engine
    session: Session
    reasons: dict[int, str] = field(default_factory=dict)
    unasked: list[str] = field(default_factory=list)


def arm(leaf: Leaf, asked: int | None) -> Armed:
    """Open the engine of the best tier and give the leaf a session in it, in which everything is refused still.

    Args:
        asked: the only tier that will do; None: the best there is.

    Raises:
        HostError, KernelError: the asked tier cannot be had, or none.
    """
    if asked is not None:
        return _try(leaf, asked)
    remembered, was_narrow = _remembered()
    found, lasting = dict(remembered), dict(remembered)
    for tier in (*BETTER, LANDLOCK):
        if tier in found:
            continue
        try:
            armed = _try(leaf, tier)
        except (HostError, KernelError) as error:
            if tier == LANDLOCK:
                raise
            found[tier] = error.why
            if _lasts(error):
                lasting[tier] = error.why
            continue
        armed.reasons = {better: found[better] for better in found if better < tier}
        break
    narrow = armed.tier == HOOKS_ON_LANDLOCK and bool(files_fixed(armed))
    if (lasting, narrow) != (remembered, was_narrow):
        _remember(lasting, narrow=narrow)
    return armed


def is_last(asked: int | None) -> bool:
    """Whether `arm` will try tier 3 alone."""
    return asked == LANDLOCK or (asked is None and _remembered()[0].keys() >= set(BETTER))


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


def files_fixed(armed: Armed) -> str:
    """Why what files may be opened cannot change while a session runs; empty where it can.

    Landlock takes no more once it is applied. Tier 2 can leave what merely no rule allows to the hooks, if none of them can be
    skipped, and the kernel asked about each act when it was tried.
    """
    if armed.tier == 1:
        return ""
    if armed.tier == LANDLOCK:
        return "Landlock cannot be widened"
    from mcpguard.model.coverage import SAFE_PREEMPTION

    now = preemption()
    if now not in SAFE_PREEMPTION:
        return f"this kernel preempts at will ({now or 'it does not say how'}), so Landlock stays narrow"
    if armed.unasked:
        return f"this kernel asks no program about {', '.join(armed.unasked)}, so Landlock stays narrow"
    return ""


def let_down(tier: int, *, fixed: str) -> str:
    """Why the kernel may no longer ask programs that a running session rests on; empty: it asks them.

    Args:
        fixed: what `files_fixed` said when the session began; where it says something, tier 2 rests on Landlock.
    """
    if tier == LANDLOCK:
        return ""
    if _is_off():
        return f"{_OFF}, so the kernel asks none of the programs that guard this session"
    if tier == HOOKS_ON_LANDLOCK and not fixed:
        from mcpguard.model.coverage import SAFE_PREEMPTION

        now = preemption()
        if now and now not in SAFE_PREEMPTION:
            return f"this kernel preempts at will now ({now}), so programs that guard this session can be skipped"
    return ""


def _is_off() -> bool:
    try:
        return _text(_CALLS_PROGRAMS).strip() == "0"
    except OSError:  # such a kernel has other means, which nobody can switch off
        return False


def _try(leaf: Leaf, tier: int) -> Armed:
    if tier == LANDLOCK:
        engine = Engine.open()
    else:
        _insist_on_module(tier)
        mount = leaf.path.rpartition(f"/{cgroup.PARENT}/")[0]
        Beside(lambda: cgroup.expect_a_move(mount))  # for the rehearsal, which goes into the leaf and comes back
        from mcpguard.backends import guard  # most of what it brings along is only used here

        engine = guard.open_engine(guard.LSM if tier == 1 else guard.MODIFY_RETURN)
    try:
        session = engine.add_session(leaf.fd, leaf.id)
    except BaseException:
        engine.close()
        raise
    unasked: list[str] = []
    try:
        if tier != LANDLOCK:
            session.set_state(_abi.MG_SESSION_LIVE | _abi.MG_SESSION_FILES)
            unasked = _rehearse(leaf, session, tier)
            session.set_state(0)
    except BaseException:
        session.remove()
        session.close()
        engine.close()
        raise
    return Armed(tier, engine, session, unasked=unasked)


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


def _rehearse(leaf: Leaf, session: Session, tier: int) -> list[str]:
    """Insist that the tier holds; what of files the kernel did not ask about although the tier does."""
    from mcpguard.backends import guard
    from mcpguard.broker import rehearsal

    if _is_off():  # for now: nothing is to be remembered of it
        raise HostError(
            f"tier {tier} does not hold on this host",
            why=f"{_OFF}, so the kernel asks no program",
            do="sysctl kernel.ftrace_enabled=1",
            code="host.rehearsal",
        )
    missing = guard.detach_verify(session.engine)
    done, unsure = rehearsal.not_refused(leaf) if not missing else ([], [])
    needless = {*done} - {*rehearsal.NEEDED, rehearsal.NOT_TRIED} if tier == HOOKS_ON_LANDLOCK else set()
    if missing or not needless.issuperset(done):
        why = (
            f"the kernel does not list {', '.join(missing)}"
            if missing
            else f"the programs are attached, and yet these were not refused: {', '.join(done)}"
        )
        code = "host.tier" if missing or done != [rehearsal.NOT_TRIED] else "host.rehearsal"
        raise HostError(f"tier {tier} does not hold on this host", why=why, do="mcpguard doctor", code=code)
    return [*done, *unsure]


def _text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _key() -> list[str]:
    from mcpguard.backends.engine import LAYOUT
    from mcpguard.kernel import bpf, pins

    return [_text(_BOOT).strip(), pins.version(bpf.OBJECTS, LAYOUT)]


def _remembered() -> tuple[dict[int, str], bool]:
    """Tiers that this kernel refused with the reasons, and whether Landlock stayed narrow in tier 2."""
    try:
        kept = json.loads(_text(REFUSED_TIERS))
        if kept["key"] == _key():
            return {int(tier): str(why) for tier, why in kept["refused"].items()}, kept["narrow"] is True
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}, False


def _remember(refused: dict[int, str], *, narrow: bool) -> None:
    made = f"{REFUSED_TIERS}.{os.getpid()}"
    with contextlib.suppress(OSError):
        # Whatever mask root runs with: who writes here chooses everybody's tier.
        with open(made, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o644)) as file:
            file.write(json.dumps({"key": _key(), "refused": refused, "narrow": narrow}))
        os.replace(made, REFUSED_TIERS)
