"""What this host can enforce, found out by doing it, and what to change where it cannot.

Facts come from `kernel.probe`, proofs from the rehearsals in `session.trampolines` and `session.canary`.
Changes nothing on the host, prints nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from mcpguard.errors import McpguardError
from mcpguard.kernel import probe
from mcpguard.model.coverage import Coverage, Strength
from mcpguard.session import canary, coverage, foreign, install, trampolines

TIER = "landlock"
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
    """All that doctor knows. `enforced`: a run at `tier` would have every rule of its profile enforced."""

    facts: probe.HostFacts
    tier: str
    enforced: bool
    tiers: tuple[Tier, ...]
    coverage: tuple[Coverage, ...]
    problems: tuple[Problem, ...]


def examine() -> Report:
    """Rehearse everything; takes about a second, and may ask for the sudo password as `run` would."""
    facts = probe.facts()
    problems = _problems(facts)
    if any(problem.stops for problem in problems):
        result = canary.CanaryResult({}, False, next(problem.what for problem in problems if problem.stops))
    else:
        result = canary.run_canary()
        if result.trouble:
            problems.append(_start_problem(result.trouble))
    held = coverage_of(result, facts)
    works = not result.trouble and all(part.strength is not Strength.NONE for part in held)
    return Report(
        facts=facts,
        tier=TIER,
        enforced=works,
        tiers=(*_upper_tiers(facts), Tier(3, TIER, works, _reason(result, held), used=True)),
        coverage=held,
        problems=tuple(problems),
    )


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
            "use a kernel of 6.2 or newer",
            stops=True,
        )
    active = ",".join(facts.active_lsms or ()) or "the present list"
    return Problem("Landlock is missing or switched off", f"boot with lsm=landlock,{active}", stops=True)


def _privilege_problems(facts: probe.HostFacts) -> list[Problem]:
    if facts.sudo is None:
        return [Problem("there is no sudo, and this is not root", "apt-get install sudo, or run as root", stops=True)]
    try:
        install.broker_location()
    except McpguardError as error:
        return [Problem(f"{error.what}: {error.why}", error.do, stops=True)]
    return []


def _upper_tiers(facts: probe.HostFacts) -> tuple[Tier, Tier]:
    lsm, modify_return = trampolines.rehearse()
    if lsm.works is False and facts.active_lsms is not None and "bpf" not in facts.active_lsms:
        reason = f"{lsm.reason}; bpf is not in the active list ({','.join(facts.active_lsms)})"
        lsm = trampolines.Rehearsal(False, reason)
    return (
        Tier(1, "bpf-lsm", lsm.works, lsm.reason, used=False),
        Tier(2, "bpf-modify-return", modify_return.works, modify_return.reason, used=False),
    )


def _reason(result: canary.CanaryResult, held: tuple[Coverage, ...]) -> str:
    if result.trouble:
        return "a guarded run does not start"
    broken = [part.kind for part in held if part.strength is Strength.NONE]
    return f"not enforced: {', '.join(broken)}" if broken else "a guarded run refused every forbidden act"


def coverage_of(result: canary.CanaryResult, facts: probe.HostFacts) -> tuple[Coverage, ...]:
    """Per kind of rule, what the canary proved.

    A kind whose forbidden act got through, or whose honest act did not, has strength none: it does not hold.
    """
    by = {
        "read": f"Landlock ABI {facts.landlock_abi} and mount masks",
        "write": f"Landlock ABI {facts.landlock_abi} and mount masks",
        "execute": f"Landlock ABI {facts.landlock_abi}",
        "network": "cgroup BPF",
        "unix": "mount masks, Landlock scopes and cgroup BPF",
        "process": "Landlock scopes, seccomp and dropped capabilities",
    }
    known: dict[str, tuple[str, ...]] = {
        "read": (coverage.LATER_NAMES,),
        "write": (coverage.LATER_NAMES,),
        "execute": (coverage.MEMORY_PROGRAMS,),
        "unix": coverage.socket_gaps(facts.landlock_abi, unix_hook=True),
        "process": () if facts.landlock_abi >= 6 else (coverage.SIGNALS,),
    }
    rows = [_row(KINDS[prefix], by[prefix], known.get(prefix, ()), _acts(result, prefix)) for prefix in KINDS]
    network = next(row for row in rows if row.kind == "network")
    rows.insert(4, _names_row(network))
    rows.append(_events_row(result))
    return tuple(rows)


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
    kind, by = "events", "BPF rings and the event store"
    if not result.acts:
        return _not_rehearsed(kind, by)
    if not result.recorded:
        return Coverage(kind, Strength.NONE, by, ("a denial was not recorded",), fix=_REPORT)
    return Coverage(kind, Strength.FULL, by)


def _names_row(network: Coverage) -> Coverage:
    if network.strength is Strength.NONE:
        return Coverage("names", Strength.NONE, network.by, ("network rules do not hold",), fix=network.fix)
    gaps = (coverage.SHARED_ADDRESSES,)
    return Coverage("names", Strength.PARTIAL, network.by, gaps, fix=coverage.fix_of(gaps))
