"""What this host can enforce, found out by doing it, and what to change where it cannot.

Facts come from `kernel.probe`, proofs from guarded runs in each tier (`session.canary`).
Changes nothing on the host, prints nothing.
"""

from __future__ import annotations

from mcpguard.errors import McpguardError
from mcpguard.kernel import probe
from mcpguard.model.coverage import SAFE_PREEMPTION, Coverage, Strength
from mcpguard.model.profile import SniMode
from mcpguard.model.values import dataclass
from mcpguard.session import canary, coverage, foreign, hook_needs, install

LANDLOCK = 3
OLDEST_LANDLOCK = 3
_REPORT = "please report this with the output of doctor"
# sudo's own words for a user whom it does not know, once it has the password.
_NO_SUDO_RIGHTS = (
    "is not in the sudoers file",
    "may not run sudo",
    "is not allowed to execute",
    "is not allowed to run",
)
# In the canary's acts: which prefix proves which kind of rule.
KINDS = {
    "read": "files read",
    "write": "files write",
    "execute": "execute",
    "network": "network",
    "unix": "unix sockets",
    "process": "processes",
}


# The way of a name, step by step: whether the act must succeed, and what is wrong where it does not do as it must.
NAMES = {
    "names.unknown": (
        True,
        "a question did not reach the session's own resolver, or one for another name was not refused",
    ),
    "names.leaked": (False, "a name that no rule allows was asked for outside"),
    "names.closed": (False, "an address was open before its name was asked for"),
    "names.answer": (True, "an allowed name was not answered"),
    "names.open": (True, "the address of an allowed name did not open"),
}


@dataclass(frozen=True, slots=True)
class Tier:
    """One way to enforce: does it work here (None: not tried), why, and does this version use it."""

    number: int
    name: str
    works: bool | None
    reason: str
    used: bool


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that stands in the way, with what to do about it. `stops`: no run is possible until it is corrected."""

    what: str
    fix: str
    stops: bool


@dataclass(frozen=True, slots=True)
class Report:
    """All that doctor knows.

    Attributes:
        enforced: a run at `tier` would have every rule of its profile enforced.
        live_files: when a file that a person allows while a session runs is open.
    """

    facts: probe.HostFacts
    tier: str
    enforced: bool
    tiers: tuple[Tier, ...]
    coverage: tuple[Coverage, ...]
    problems: tuple[Problem, ...]
    live_files: str


def examine() -> Report:
    """Rehearse every tier; takes seconds, and may ask for the sudo password as `run` would."""
    facts = probe.facts()
    problems = _problems(facts)
    stop = next((problem.what for problem in problems if problem.stops), "")
    results = {tier: _try(tier, stop) for tier in coverage.TIER_NAMES}
    if not stop and all(result.trouble for result in results.values()):
        problems.append(_start_problem(results[LANDLOCK].trouble))
    held = {tier: coverage_of(result, facts, tier) for tier, result in results.items()}
    works = {
        tier: not result.trouble and all(part.strength is not Strength.NONE for part in held[tier])
        for tier, result in results.items()
    }
    used = next((tier for tier, good in works.items() if good), LANDLOCK)
    problems += _hook_problems(used)
    return Report(
        facts=facts,
        tier=coverage.TIER_NAMES[used],
        enforced=works[used],
        tiers=tuple(
            Tier(tier, name.partition(" ")[2], works[tier], _reason(results[tier], held[tier]), used=tier == used)
            for tier, name in coverage.TIER_NAMES.items()
        ),
        coverage=held[used],
        problems=tuple(problems),
        live_files=coverage.live_files(coverage.TIER_NAMES[used], _as_recorded(results[used])),
    )


def _as_recorded(result: canary.CanaryResult) -> list[Coverage]:
    return [Coverage(kind, Strength.FULL, by) for kind, by in result.by.items()]


def _try(tier: int, stop: str) -> canary.CanaryResult:
    return canary.CanaryResult({}, False, stop) if stop else canary.run_canary(tier)


def _problems(facts: probe.HostFacts) -> list[Problem]:
    found = []
    if facts.guarded:
        found.append(Problem("this is inside a guarded session", "run doctor outside of it", stops=True))
    if facts.landlock_abi < OLDEST_LANDLOCK:
        found.append(_landlock_problem(facts))
    if not facts.seccomp_library:
        found.append(Problem("libseccomp is missing", "apt-get install libseccomp2", stops=True))
    if facts.uid != 0:
        found += _privilege_problems(facts)
    found += [Problem(what, fix, stops=False) for what, fix in foreign.namesakes()]
    return found


def _hook_problems(tier: int) -> list[Problem]:
    """Policies that do not start in this tier, for want of a hook that others can do without."""
    if tier == LANDLOCK:
        return []
    from mcpguard.backends import guard

    try:
        choice = guard.choose(guard.LSM if tier == 1 else guard.MODIFY_RETURN)
    except McpguardError:  # the tier works, so the kernel was asked by who may
        return []
    lacking = guard.lacking(name for names in choice.programs.values() for name in names)
    return [Problem(words, hook_needs.DO, stops=False) for words in hook_needs.said_of(lacking, tier)]


def _said(trouble: str) -> str:
    """The reason in a run's own four lines, and what to do where that is about the boot."""
    said = {line[:8].strip(): line[8:].strip() for line in trouble.splitlines() if line.startswith("  ")}
    do = said.get("do", "")
    return said.get("why", trouble.splitlines()[-1]) + (f"; do: {do}" if do.startswith("boot ") else "")


def _start_problem(trouble: str) -> Problem:
    """The run's own four lines, as one problem."""
    if any(words in trouble for words in _NO_SUDO_RIGHTS):
        return Problem("this user may not use sudo, and every run needs root", "ask for it, or run as root", stops=True)
    said = dict(line.split(None, 1) for line in trouble.splitlines() if len(line.split(None, 1)) == 2)
    what = said.get("mcpguard:", trouble.splitlines()[-1])
    why = f" ({said['why']})" if "why" in said else ""
    return Problem(
        f"a guarded run does not start: {what}{why}", said.get("do", "report this, with its text"), stops=True
    )


def _landlock_problem(facts: probe.HostFacts) -> Problem:
    if facts.landlock_abi:
        return Problem(
            f"Landlock has ABI {facts.landlock_abi}, {OLDEST_LANDLOCK} is needed (it cannot refuse truncation)",
            "use a kernel of 6.2 or newer, or tier 1",
            stops=False,
        )
    active = ",".join(facts.active_lsms or ()) or "the present list"
    return Problem("Landlock is missing or switched off", f"boot with lsm=landlock,{active}", stops=False)


def _privilege_problems(facts: probe.HostFacts) -> list[Problem]:
    if facts.sudo is None:
        return [Problem("there is no sudo, and this is not root", "apt-get install sudo, or run as root", stops=True)]
    try:
        install.broker_location()
    except McpguardError as error:
        return [Problem(f"{error.what}: {error.why}", error.do, stops=True)]
    return []


def _reason(result: canary.CanaryResult, held: tuple[Coverage, ...]) -> str:
    if result.trouble:
        return _said(result.trouble)
    broken = [part.kind for part in held if part.strength is Strength.NONE]
    return f"not enforced: {', '.join(broken)}" if broken else "a guarded run refused every forbidden act"


def coverage_of(result: canary.CanaryResult, facts: probe.HostFacts, tier: int) -> tuple[Coverage, ...]:
    """Per kind of rule, what the canary proved.

    A kind whose forbidden act got through, or whose honest act did not, has strength none: it does not hold.
    """
    by, known = _by_hooks(tier) if _hooks_hold(result, tier) else _by_landlock(facts, tier)
    rows = [_row(KINDS[prefix], by[prefix], known.get(prefix, ()), _acts(result, prefix)) for prefix in KINDS]
    network = next(row for row in rows if row.kind == "network")
    rows.insert(4, _names_row(network, result))
    rows.append(_events_row(result))
    return tuple(rows)


def _hooks_hold(result: canary.CanaryResult, tier: int) -> bool:
    return tier < LANDLOCK and coverage.files_at_once(coverage.TIER_NAMES[tier], _as_recorded(result))


def _by_hooks(tier: int) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    by = coverage.HOOKS[tier]
    return {**dict.fromkeys(KINDS, by), "network": "cgroup BPF"}, {}


def _by_landlock(facts: probe.HostFacts, tier: int) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    masks = f"Landlock ABI {facts.landlock_abi} and mount masks"
    why = coverage.UNASKED_HOOKS if facts.preemption in SAFE_PREEMPTION else coverage.SKIPPED_HOOKS
    skipped = (why,) if tier < LANDLOCK else ()
    by = {
        "read": masks,
        "write": masks,
        "execute": f"Landlock ABI {facts.landlock_abi}",
        "network": "cgroup BPF",
        "unix": "mount masks, Landlock scopes and cgroup BPF",
        "process": "Landlock scopes, seccomp and dropped capabilities",
    }
    known: dict[str, tuple[str, ...]] = {
        "read": (coverage.LATER_NAMES, *skipped),
        "write": (coverage.LATER_NAMES, *skipped),
        "execute": (coverage.MEMORY_PROGRAMS, *skipped),
        "unix": coverage.socket_gaps(facts.landlock_abi, unix_hook=True),
        "process": () if facts.landlock_abi >= 6 else (coverage.SIGNALS,),
    }
    return by, known


def _acts(result: canary.CanaryResult, prefix: str) -> dict[str, str]:
    return {name: seen for name, seen in result.acts.items() if name.startswith(f"{prefix}.")}


def _row(kind: str, by: str, known: tuple[str, ...], acts: dict[str, str]) -> Coverage:
    if not acts:
        return _not_rehearsed(kind, by)
    failed = []
    for name, seen in acts.items():
        honest = name.endswith(".honest")
        if honest != (seen == "done"):
            failed.append(f"{name}: {'refused with ' + seen if honest else 'got through'}")
    if failed:
        return Coverage(kind, Strength.NONE, by, tuple(failed), fix=_REPORT)
    return Coverage(kind, Strength.PARTIAL if known else Strength.FULL, by, known, fix=coverage.fix_of(known))


def _not_rehearsed(kind: str, by: str) -> Coverage:
    gap = "not rehearsed: no guarded run was possible"
    return Coverage(kind, Strength.NONE, by, (gap,), fix="first correct what stops a run")


def _events_row(result: canary.CanaryResult) -> Coverage:
    kind, by = "events", result.by.get("events") or "BPF rings and the event store"
    if not result.acts:
        return _not_rehearsed(kind, by)
    if not result.recorded:
        return Coverage(kind, Strength.NONE, by, ("a denial was not recorded",), fix=_REPORT)
    return Coverage(kind, Strength.FULL, by)


def _names_row(network: Coverage, result: canary.CanaryResult) -> Coverage:
    if network.strength is Strength.NONE:
        return Coverage("names", Strength.NONE, network.by, ("network rules do not hold",), fix=network.fix)
    seen = _acts(result, "names")
    failed = tuple(
        f"{words} ({seen[name]})"
        for name, (honest, words) in NAMES.items()
        if name in seen and honest != (seen[name] == "done")
    )
    if failed:
        return Coverage("names", Strength.NONE, "the session's own resolver", failed, fix=_REPORT)
    gaps = coverage.NAMED_GAPS[SniMode.CHECK]
    return Coverage("names", Strength.PARTIAL, network.by, gaps, fix=coverage.fix_of(gaps))
