"""What tier 3 really enforces of a policy on this host, kind by kind, and when that is too little to start."""

from __future__ import annotations

from collections.abc import Sequence

from mcpguard.errors import HostError, UsageError
from mcpguard.kernel import landlock
from mcpguard.model.coverage import Coverage, Strength
from mcpguard.model.plan import FilesPlan
from mcpguard.model.policy import Policy
from mcpguard.session.network import wildcards

# What this tier leaves open, said in the same words wherever it is said.
LATER_NAMES = "a protected name that is created after launch is reported, not stopped"
MEMORY_PROGRAMS = "a program that exists only in memory (memfd) can be executed; it is on record"
SHARED_ADDRESSES = "names are resolved at launch and refreshed: every name on the same address is reached too"
LATER_SOCKETS = "a socket made after launch can be reached through a symlink for about two seconds, until it is hidden"
NO_UNIX_HOOK = "only sockets that exist at launch are hidden; the connect hook for unix sockets needs Linux 6.7"
ABSTRACT_SOCKETS = "abstract sockets of others need Landlock ABI 6 (Linux 6.12)"
SIGNALS = "signals to the user's other processes need Landlock ABI 6 (Linux 6.12)"

# What closes a gap, or keeps it small; a gap without an entry has nothing that helps.
FIXES = {
    LATER_NAMES: "create the protected names before the run",
    MEMORY_PROGRAMS: "nothing on this kernel; `mcpguard log --kind exec` shows them",
    SHARED_ADDRESSES: "name address ranges instead of hosts where neighbours matter",
    LATER_SOCKETS: "start what listens on protected sockets before the run",
    NO_UNIX_HOOK: "use Linux 6.7 or newer",
    ABSTRACT_SOCKETS: "use Linux 6.12 or newer",
    SIGNALS: "use Linux 6.12 or newer",
}

TIER = "3"
TIER_NAME = "3 landlock"
_SHOWN_NAMES = 3


def check_tier(asked: str | None) -> None:
    """Refuse a tier that this version does not have; never fall back in silence."""
    if asked not in (None, TIER):
        raise UsageError(
            f"tier {asked} is not available",
            why="this version enforces files with Landlock and mount masks (tier 3) on every host",
            do="leave --tier out, or say --tier 3",
            code="run.tier-unavailable",
        )


def of_plan(policy: Policy, plan: FilesPlan, *, unix_hook: bool = True) -> tuple[Coverage, ...]:
    """Coverage of every rule kind. `unix_hook`: the kernel has the connect_unix hook (6.7)."""
    abi = landlock.abi()
    return (
        Coverage(
            "files",
            Strength.PARTIAL if plan.gaps else Strength.FULL,
            f"Landlock ABI {abi} and a private mount namespace",
            plan.gaps,
        ),
        Coverage(
            "execute",
            Strength.PARTIAL,
            f"Landlock ABI {abi}",
            (MEMORY_PROGRAMS,),
        ),
        _network(policy),
        _sockets(abi, unix_hook),
        Coverage(
            "processes",
            Strength.FULL if abi >= 6 else Strength.PARTIAL,
            "cgroup leaf, seccomp, Landlock",
            () if abi >= 6 else (SIGNALS,),
        ),
        Coverage("events", Strength.FULL, "BPF tracepoints and cgroup programs, keyed by the cgroup"),
    )


def fix_of(gaps: Sequence[str]) -> str:
    """What to do about these gaps, in their order; empty when nothing helps."""
    return "; ".join(dict.fromkeys(FIXES[gap] for gap in gaps if gap in FIXES))


def _network(policy: Policy) -> Coverage:
    by = "cgroup BPF on connect, send, bind and every packet out"
    unresolved = [entry.pattern for entry in wildcards(policy)]
    gaps = []
    if policy.names:
        gaps.append(SHARED_ADDRESSES)
    if unresolved:
        shown = ", ".join(unresolved[:_SHOWN_NAMES]) + (", ..." if len(unresolved) > _SHOWN_NAMES else "")
        gaps.append(f"wildcard names allow nothing yet: {shown}")
    return Coverage("network", Strength.PARTIAL if gaps else Strength.FULL, by, tuple(gaps))


def _sockets(abi: int, unix_hook: bool) -> Coverage:
    return Coverage(
        "unix sockets", Strength.PARTIAL, "cgroup BPF, hidden sockets, Landlock scopes", socket_gaps(abi, unix_hook)
    )


def socket_gaps(abi: int, unix_hook: bool) -> tuple[str, ...]:
    """What is open about unix sockets with this Landlock ABI, with and without the connect hook."""
    first = LATER_SOCKETS if unix_hook else NO_UNIX_HOOK
    return (first,) if abi >= 6 else (first, ABSTRACT_SOCKETS)


def insist(holds: Sequence[Coverage], *, best_effort: bool) -> None:
    """Stop when a kind of rule is not enforced at all, unless the person accepts that."""
    missing = [coverage for coverage in holds if coverage.strength is Strength.NONE]
    if missing and not best_effort:
        first = missing[0]
        raise HostError(
            f"{first.kind} rules cannot be enforced on this host",
            why="; ".join(first.gaps) or first.by,
            do=first.fix or "see `mcpguard doctor`, or accept the gap with --best-effort",
            code="run.not-enforceable",
        )
