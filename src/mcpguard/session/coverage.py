"""What a tier really enforces of a policy on this host, kind by kind, and when that is too little to start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mcpguard.errors import HostError
from mcpguard.kernel import landlock
from mcpguard.model import plain_json as json
from mcpguard.model.coverage import SAFE_PREEMPTION, Coverage, Need, Strength
from mcpguard.model.plan import FilesPlan
from mcpguard.model.policy import Policy
from mcpguard.model.profile import SniMode
from mcpguard.model.values import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# What a tier leaves open, said in the same words wherever it is said.
LATER_NAMES = "a protected name that is created after launch is reported, not stopped"
NO_GATE = "without `gate: true` nobody stands between agents and their servers"
AROUND = "a server that is started without the shim, by whatever program, is not judged as MCP"
REMOTE = "messages to remote MCP servers are not judged; where they go is (network)"
NO_RINGS = (
    "what programs do through io_uring with files is judged like everything else, but not on record on this kernel"
)
RINGS = (
    "of what programs do through io_uring with files, what is opened into the ring's own table, and what has its result while "
    "the ring's completions overflow, is not on record"
)
MEMORY_PROGRAMS = "a program that exists only in memory (memfd) can be executed; it is on record"
SHARED_ADDRESSES = "while an address of an allowed name is open, every other name on that address is reached too"
NAMELESS = "what names no host in its first bytes reaches every name on the address of an allowed one"
INSIDE_TLS = "what is said inside TLS is not read: a server may answer there for its neighbours"
LATER_SOCKETS = (
    "a socket made after launch can be reached through a symlink for about two seconds, until it is hidden, "
    "and where the session may have its own sockets it stays reachable"
)
NO_UNIX_HOOK = "only sockets that exist at launch are hidden; the connect hook for unix sockets needs Linux 6.7"
ABSTRACT_SOCKETS = "abstract sockets of others need Landlock ABI 6 (Linux 6.12)"
SKIPPED_HOOKS = (
    "this kernel preempts at will, so hooks can be skipped (tier 2): that is counted, and what tier 3 says holds"
)
UNASKED_HOOKS = "this kernel does not ask hooks about every act (tier 2), so what tier 3 says holds"
HOOKS = {
    1: "BPF programs on the kernel's security hooks",
    2: "BPF modify-return programs, over Landlock and mount masks",
}
HOOKS_ALONE = "BPF modify-return programs (alone where merely no rule allows), over mount masks"
SIGNALS = "signals to the user's other processes need Landlock ABI 6 (Linux 6.12)"

# Of rules by name, with what looks at the names that are sent to their addresses.
NAMED_GAPS = {
    SniMode.OFF: (SHARED_ADDRESSES,),
    SniMode.CHECK: (NAMELESS, INSIDE_TLS),
    SniMode.REQUIRE: (INSIDE_TLS,),
}

# What closes a gap, or keeps it small; a gap without an entry has nothing that helps.
FIXES = {
    LATER_NAMES: "create the protected names before the run",
    MEMORY_PROGRAMS: "nothing on this kernel; `mcpguard log --kind exec` shows them",
    SHARED_ADDRESSES: "write `sni: check` under `network`",
    NAMELESS: "write `sni: require` under `network`, where programs speak only TLS",
    LATER_SOCKETS: "start what listens on protected sockets before the run",
    NO_UNIX_HOOK: "use Linux 6.7 or newer",
    ABSTRACT_SOCKETS: "use Linux 6.12 or newer",
    SIGNALS: "use Linux 6.12 or newer",
    SKIPPED_HOOKS: "boot with preempt=voluntary, or put bpf into lsm= for tier 1",
}

TIER_NAMES = {1: "1 bpf-lsm", 2: "2 bpf-modify-return", 3: "3 landlock"}


@dataclass(frozen=True, slots=True)
class Offer:
    """What this host gives, as the broker found it.

    Attributes:
        tier: 1, 2 or 3.
        reasons: why each better tier is not it.
        preemption: how the kernel preempts; empty where it cannot be told.
        unix_hook: the kernel has the connect_unix hook (6.7).
        tracepoint: why the record comes from a tracepoint, for which every process of the host pays; empty: it does not.
        terminals: file system and number of those that the agent will be started on.
        files_fixed: why what files may be opened cannot change while the session runs; empty: it can.
        rings: what is done through io_uring can be put on record.
        lacking: hooks that this kernel does not have and some policies need.
    """

    tier: int
    reasons: Mapping[int, str]
    preemption: str
    unix_hook: bool
    tracepoint: str = ""
    terminals: tuple[tuple[str, int], ...] = ()
    files_fixed: str = ""
    rings: bool = False
    lacking: Mapping[Need, tuple[str, ...]] = field(default_factory=dict)

    @staticmethod
    def from_broker(message: Mapping[str, Any]) -> Offer:
        """From the broker's plain values."""
        reasons = {int(tier): str(why) for tier, why in message["reasons"].items()}
        own = tuple((str(device), int(index)) for device, index in message["terminals"])
        preemption, tracepoint = str(message["preemption"]), str(message["tracepoint"])
        fixed = str(message["files_fixed"])
        lacking = {Need(need): tuple(map(str, hooks)) for need, hooks in message["lacking"].items()}
        return Offer(
            *(int(message["tier"]), reasons, preemption, bool(message["unix"]), tracepoint, own, fixed),
            rings=bool(message["rings"]),
            lacking=lacking,
        )

    @property
    def words(self) -> str:
        """The tier, and why it is no better one."""
        return "; ".join((TIER_NAMES[self.tier], *(f"not {TIER_NAMES[t]}: {why}" for t, why in self.reasons.items())))

    @property
    def hooks_hold(self) -> bool:
        """Whether the kernel's hooks alone carry what the policy says of files and processes."""
        return self.tier == 1 or (self.tier == 2 and not self.files_fixed)


def recorded_by(tracepoint: str) -> str:
    """What makes the record of system calls, and why it is no better (`Offer.tracepoint`)."""
    if not tracepoint:
        return "BPF programs on the ends of system calls"
    return f"a BPF tracepoint that slows each system call of every process a little ({tracepoint})"


def files_at_once(tier: str, holds: Sequence[Coverage]) -> bool:
    """Whether a file that a person allows is open at the next attempt, as a session's record says."""
    return tier == TIER_NAMES[1] or any(held.by == HOOKS_ALONE for held in holds)


def live_files(tier: str, holds: Sequence[Coverage]) -> str:
    """For `doctor`: when a file that a person allows in `watch` is open, by the record of a session in this tier."""
    when = "at the next attempt" if files_at_once(tier, holds) else "in the next run"
    return f"a file that you allow in `watch` is open {when}"


def answers_for_files(offer: Offer) -> str:
    """When a file that a person allows in `watch` is open, and what that rests on."""
    if offer.files_fixed:
        return f"a file that you allow is open in the next run only: {offer.files_fixed}"
    if offer.tier == 1:
        return "a file that you allow is open at the next attempt"
    return "a file that you allow is open at the next attempt; for that BPF programs alone keep what no rule allows (tier 2)"


def of_policy(policy: Policy, plan: FilesPlan, offer: Offer) -> tuple[Coverage, ...]:
    """Coverage of every rule kind in the tier that the host gives."""
    network = _network(policy)
    tier = Coverage("tier", Strength.FULL, offer.words)
    record = f"{recorded_by(offer.tracepoint)} and cgroup programs, keyed by the cgroup"
    events = Coverage("events", Strength.FULL, record)
    if policy.system.io_uring:
        events = Coverage("events", Strength.PARTIAL, record, (RINGS if offer.rings else NO_RINGS,))
    mcp = _mcp(policy)
    if not offer.hooks_hold:
        files, execute, sockets, processes = _of_landlock(plan, offer)
        return (tier, files, execute, network, sockets, processes, events, *mcp)
    by = HOOKS[offer.tier]
    by_files = HOOKS_ALONE if plan.wide else by
    held = (
        tier,
        # Nothing is open for what is hidden; but honest work there is refused, and that is to be told.
        Coverage("files", Strength.FULL, by_files, plan.hidden),
        Coverage("execute", Strength.FULL, by_files),
        network,
        Coverage("unix sockets", Strength.FULL, f"{by}, cgroup BPF"),
        Coverage("processes", Strength.FULL, f"cgroup leaf, seccomp, {by}"),
        events,
        *mcp,
    )
    if not offer.lacking:
        return held
    from mcpguard.session import hook_needs  # hardly a kernel lacks one

    unmet = hook_needs.unmet(policy, offer.lacking)
    return tuple(hook_needs.held_without(row, unmet) for row in held)


def _mcp(policy: Policy) -> tuple[Coverage, ...]:
    if not policy.mcp:
        return ()
    if json.loads(policy.mcp)["gate"]:
        return (Coverage("mcp", Strength.PARTIAL, "the gate, outside of the tree", (AROUND, REMOTE)),)
    do = "write `gate: true` under `mcp`, or remove `mcp` from the profile, or accept it with --best-effort"
    return (Coverage("mcp", Strength.NONE, "", (NO_GATE,), do),)


def _of_landlock(plan: FilesPlan, offer: Offer) -> tuple[Coverage, ...]:
    abi = landlock.abi()
    why = UNASKED_HOOKS if offer.preemption in SAFE_PREEMPTION else SKIPPED_HOOKS
    gaps = plan.gaps if offer.tier == 3 else (*plan.gaps, why)
    return (
        Coverage(
            "files",
            Strength.PARTIAL if gaps else Strength.FULL,
            f"Landlock ABI {abi} and a private mount namespace",
            gaps,
        ),
        Coverage("execute", Strength.PARTIAL, f"Landlock ABI {abi}", (MEMORY_PROGRAMS,)),
        _sockets(abi, offer.unix_hook),
        Coverage(
            "processes",
            Strength.FULL if abi >= 6 else Strength.PARTIAL,
            "cgroup leaf, seccomp, Landlock",
            () if abi >= 6 else (SIGNALS,),
        ),
    )


def fix_of(gaps: Sequence[str]) -> str:
    """What to do about these gaps, in their order; empty when nothing helps."""
    return "; ".join(dict.fromkeys(FIXES[gap] for gap in gaps if gap in FIXES))


def _network(policy: Policy) -> Coverage:
    by = "cgroup BPF on connect, send, bind and every packet out"
    gaps = NAMED_GAPS[policy.sni] if policy.names else ()
    return Coverage("network", Strength.PARTIAL if gaps else Strength.FULL, by, gaps)


def _sockets(abi: int, unix_hook: bool) -> Coverage:
    return Coverage(
        "unix sockets", Strength.PARTIAL, "cgroup BPF, hidden sockets, Landlock scopes", socket_gaps(abi, unix_hook)
    )


def socket_gaps(abi: int, unix_hook: bool) -> tuple[str, ...]:
    """What is open about unix sockets with this Landlock ABI, with and without the connect hook."""
    first = LATER_SOCKETS if unix_hook else NO_UNIX_HOOK
    return (first,) if abi >= 6 else (first, ABSTRACT_SOCKETS)


def insist(holds: Sequence[Coverage], *, best_effort: bool) -> tuple[str, ...]:
    """Stop when a kind of rule is not enforced at all, unless the person accepts that; the gaps that were accepted."""
    missing = [coverage for coverage in holds if coverage.strength is Strength.NONE]
    if missing and not best_effort:
        first = missing[0]
        raise HostError(
            f"{first.kind} rules cannot be enforced on this host",
            why="; ".join(first.gaps) or first.by,
            do=first.fix or "see `mcpguard doctor`, or accept the gap with --best-effort",
            code="run.not-enforceable",
        )
    return tuple(f"{one.kind} rules are not enforced: {'; '.join(one.gaps) or one.by}" for one in missing)
