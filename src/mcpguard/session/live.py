"""More rules for a session that runs, on the road that the first ones took: compiled, planned, checked and used by the broker.

A rule that is added allows; what a deny or readonly rule takes away stays taken away, for they win in every policy.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from mcpguard.broker.client import Broker
from mcpguard.errors import McpguardError, UsageError
from mcpguard.events.finding import NOT_NOW, system_rule
from mcpguard.kernel import landlock
from mcpguard.model.access import Access, Effect, Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.model.paths import is_below
from mcpguard.model.plan import FilesPlan
from mcpguard.model.policy import Policy
from mcpguard.model.profile import Profile
from mcpguard.model.rule import GRANTS, FileRule, NetDirection, NetRule, Origin, SocketRule
from mcpguard.model.values import replace
from mcpguard.policy.compile import extend_policy
from mcpguard.policy.decide import decide_file, decide_unix
from mcpguard.policy.network import closed_by, name_closed_by
from mcpguard.policy.patterns import split_literal, witness
from mcpguard.profile.amend import Addition
from mcpguard.session import network
from mcpguard.session.approvals import HOW_FAR
from mcpguard.session.approve import Outcome, Scope
from mcpguard.session.coverage import TIER_NAMES, Offer
from mcpguard.session.files_plan import cover_at
from mcpguard.session.hooks import Hooks
from mcpguard.session.planted import Trust
from mcpguard.session.recording import Recording
from mcpguard.session.resolver import Resolver
from mcpguard.session.sockets import LaterSockets
from mcpguard.session.wide import opened

Rule = FileRule | NetRule | SocketRule
APPROVED = "approved in watch"
_UPDATE_S = 10.0
# An intruder who knocks for hours fills no record.
_MOST_INTRUDERS = 100
NO_INTRUDERS = system_rule("no guarded process changes the rules of a session")
_RESTRICTING = {("files", "deny"), ("files", "readonly"), ("network", "deny"), ("sockets", "deny")}
# Scopes of Landlock that close abstract sockets of others, whatever a rule says.
_SCOPED_ABI = 6
_AT_LAUNCH = "only rules about files, network and sockets can be taken while a session runs"
_DENIALS = "a session that runs keeps its denials"
_ABSTRACT = "Landlock keeps the session from abstract sockets of others"
_FIXED = "in tier {} what files may be opened is fixed when the session begins"
_DEVICES, _SHARED_MEMORY = "/dev", "/dev/shm"
_COMMANDS = "Landlock keeps the session from commands to devices"
# What stays of a place whatever the hooks say, by the step that covers it.
_COVERED = {"mask": "hidden", "hide": "hidden", "ro": "read-only", "link": "read-only", "noexec": "without programs"}
_NO_ROW = "a socket pattern with a * inside allows nothing in this tier"


class Live:
    """What a running session goes by, and how it changes. One thread at a time."""

    def __init__(
        self,
        policy: Policy,
        offer: Offer,
        plan: FilesPlan,
        broker: Broker,
        resolver: Resolver,
        recording: Recording,
        hooks: Hooks | None,
        later: LaterSockets | None,
    ) -> None:
        self._policy = policy
        self._trusted = Trust(policy.user.home, set())
        self._offer = offer
        self._plan = plan
        self._broker = broker
        self._resolver = resolver
        self._recording = recording
        self._hooks = hooks
        self._later = later
        self._intruders = 0

    def approve(self, additions: Sequence[Addition], scope: Scope, who: str) -> Outcome:
        """Have more rules hold.

        Args:
            who: asks for it, for the record.

        Raises:
            McpguardError: none of them holds now, and what held before does.
        """
        written = _written(self._policy.profile, self._policy.workspace) if scope is Scope.PROFILE else {}
        now: list[Rule] = []
        later: dict[str, str] = {}
        for addition in additions:
            rule = rule_of(addition)
            why = _not_live(addition) if rule is None else self._not_now(rule)
            if rule is None or why:
                later[text_of(addition)] = why
            else:
                now.append(written.get(rule, rule))
        if now:
            self._take(now)
        how = f"{HOW_FAR[scope]}, by {who}"
        for rule in now:
            self._tell(rule.origin, how)
        for text, why in later.items():
            self._tell(None, f"{text}{NOT_NOW}{why}; {how}")
        return Outcome(tuple(rule.origin.text for rule in now), tuple(later), "; ".join(dict.fromkeys(later.values())))

    def intruder(self, pid: int) -> None:
        """Somebody asked who may not: a process of a guarded tree, or of another user."""
        self._intruders += 1
        if self._intruders <= _MOST_INTRUDERS:
            self._tell(NO_INTRUDERS, "asked this session for more rules", Verdict.DENY, pid or None)

    def _tell(self, rule: Origin | None, detail: str, verdict: Verdict = Verdict.ALLOW, pid: int | None = None) -> None:
        head = (time.time_ns(), self._recording.session, Kind.PROCESS, "approve", verdict)
        self._recording.tell([Event(*head, pid=pid, rule=rule, detail=detail)])

    def _not_now(self, rule: Rule) -> str:
        """Why a rule can be had by the next run at the earliest; empty when it can be had now."""
        if isinstance(rule, NetRule):
            return ""
        if self._offer.tier == 1:
            return ""
        if isinstance(rule, FileRule):
            if self._offer.files_fixed:
                return f"{_FIXED.format(TIER_NAMES[self._offer.tier])}: {self._offer.files_fixed}"
            return self._covered(rule)
        if rule.pattern.startswith("@") and landlock.abi() >= _SCOPED_ABI:
            return _ABSTRACT
        extended = extend_policy(self._policy, sockets=[rule], trusted=self._trusted)
        if not network.unix_rows(entry for entry in extended.sockets if entry not in self._policy.sockets):
            return "" if rule.own or extended.sockets == self._policy.sockets else _NO_ROW
        hidden = self._later.hidden() if self._later else []
        open_then = [path for path in hidden if decide_unix(extended, path).verdict is Verdict.ALLOW]
        return f"{open_then[0]} is hidden from the session, and stays so while it runs" if open_then else ""

    def _covered(self, rule: FileRule) -> str:
        """What mounts and Landlock keep of a rule's files although the hooks would not; empty: nothing."""
        if self._offer.tier == 1:
            return ""
        extended = extend_policy(self._policy, files=[rule], trusted=self._trusted)
        for entry in sorted({*extended.paths} - {*self._policy.paths}, key=lambda entry: entry.pattern):
            place = split_literal(entry.pattern)[0]
            if is_below(place, _DEVICES) and not is_below(place, _SHARED_MEMORY):
                return _COMMANDS
            if step := cover_at(self._plan, place, entry.access):
                return f"{step.path} is {_COVERED[step.op]} in the session, and stays so while it runs"
        return ""

    def _take(self, rules: Sequence[Rule]) -> None:
        before = self._policy
        extended = extend_policy(
            before,
            files=[rule for rule in rules if isinstance(rule, FileRule)],
            network=[rule for rule in rules if isinstance(rule, NetRule)],
            sockets=[rule for rule in rules if isinstance(rule, SocketRule)],
            trusted=self._trusted,
        )
        for rule in rules:
            _insist_it_opens(extended, rule)
        # Told first: a refusal means the same under both, and what will be allowed has its reason in the new one only.
        self._recording.adopt(extended, time.monotonic_ns())
        try:
            self._use(extended)
        except (McpguardError, OSError) as error:
            # Numbers of rules are never used again: who knows what the kernel has seen of them.
            self._policy = replace(before, rules=extended.rules, reasons=extended.reasons)
            self._recording.adopt(self._policy, time.monotonic_ns())
            if not isinstance(error, McpguardError) or error.code == "broker.no-answer":
                self._take_back()
            raise
        self._policy = extended
        if self._later is not None:
            self._later.follow(lambda path: decide_unix(extended, path).verdict is not Verdict.DENY)

    def _use(self, policy: Policy) -> None:
        planning = self._hooks.adopting(policy) if self._hooks else contextlib.nullcontext()
        with planning as plan:
            self._broker.update(self._tables(policy), plan, _UPDATE_S)
        # Names are answered by the new rules only once the kernel has its part of them.
        self._resolver.adopt(policy)

    def _tables(self, policy: Policy) -> dict[str, Any]:
        return network.settings(policy, network.fixed_names(policy), peers=self._offer.tier == 1)

    def _take_back(self) -> None:
        """It is not known what the broker did or will do: what it is told last counts."""
        with contextlib.suppress(OSError):
            self._broker.send_update(self._tables(self._policy), self._hooks.plan if self._hooks else None)


def _not_live(addition: Addition) -> str:
    return _DENIALS if addition[:2] == ("files", "except") else _AT_LAUNCH


def text_of(addition: Addition) -> str:
    """A rule in the words that profiles give it."""
    key = addition.key if addition.section == "files" else f"{addition.section} {addition.key}"
    return f"{key} {addition.value}"


def rule_of(addition: Addition) -> Rule | None:
    """The rule that an addition stands for; None: nothing that can be had without a new run.

    Raises:
        UsageError: it does not allow, or allows far more than can be meant.
    """
    where, value = addition[:2], addition.value
    origin = Origin(APPROVED, APPROVED, 0, text_of(addition))
    if where in _RESTRICTING:
        raise UsageError(
            f"{origin.text} is not taken while the session runs",
            why="it takes something away, and only what allows can be added to a session that runs",
            do="write it into the profile: the next run has it",
            code="live.only-allow",
        )
    if where[0] == "files" and where[1] in GRANTS:
        rule = FileRule(Effect.ALLOW, GRANTS[where[1]], value, origin)
        _refuse_wide(rule)
        return rule
    if where in (("network", "allow"), ("network", "listen")):
        direction = NetDirection.CONNECT if where[1] == "allow" else NetDirection.LISTEN
        return NetRule(Effect.ALLOW, direction, value, origin)
    if where in (("sockets", "allow"), ("sockets", "own")):
        return SocketRule(Effect.ALLOW, value, origin, own=where[1] == "own")
    return None


def _refuse_wide(rule: FileRule) -> None:
    from mcpguard.session.policy import current_user

    home = current_user().home
    if Access.WRITE in rule.access and (found := opened(rule.pattern, APPROVED, home, "/workspace")):
        raise UsageError(
            f"{rule.origin.text} opens far more than can be meant",
            why=f"everything in {home if found == 'home' else found} could be changed, start-up files and settings too",
            do="name the folder that is needed",
            code="usage.write-too-wide",
        )


def _written(name: str, workspace: str) -> dict[Rule, Rule]:
    """The rules of the profile as it is on disk now, by what they say: for their place alone."""
    from mcpguard.profile.load import inspect

    profile: Profile | None = None
    with contextlib.suppress(McpguardError, OSError):
        profile, _errors = inspect(name, workspace=workspace)
    if profile is None:
        return {}
    found: list[Rule] = [*profile.files, *profile.network, *profile.sockets]
    return {replace(rule, origin=Origin(APPROVED, APPROVED, 0, rule.origin.text)): rule for rule in found}


def _insist_it_opens(policy: Policy, rule: Rule) -> None:
    """Raises UsageError where a rule that takes away wins over everything that the new one names."""
    number = policy.rules.index(rule.origin)
    if isinstance(rule, FileRule):
        # What stands below the rule's own names is denied with them; where a name is free, an odd one stands for all.
        named = [witness(entry.pattern) for entry in policy.paths if entry.rule == number]
        answers = [decide_file(policy, path, rule.access) for path in named]
        winners = [rules[0] for verdict, rules in answers if verdict is Verdict.DENY]
    elif isinstance(rule, SocketRule):
        patterns = [entry.pattern for entry in policy.sockets if entry.rule == number]
        sockets = [
            decide_unix(policy, pattern if pattern.startswith("@") else witness(pattern)) for pattern in patterns
        ]
        winners = [answer.rule for answer in sockets if answer.verdict is Verdict.DENY]
    else:
        entries = policy.connect if rule.direction is NetDirection.CONNECT else policy.listen
        found = [closed_by(entry, entries) for entry in entries if entry.rule == number]
        found += [name_closed_by(entry, policy.names) for entry in policy.names if entry.rule == number]
        # Of `localhost`, one of the two addresses may be left.
        winners = [] if None in found else [rule for rule in found if rule]
    if any(winners):
        winner = policy.rules[next(filter(None, winners))]
        raise UsageError(
            f"{winner.text} refuses it on purpose",
            why=f"{winner.place}: a deny or readonly rule wins over whatever is added",
            do="if you must, use a profile that does not extend it; `mcpguard profile show --resolved` tells who does",
            code="allow.on-purpose",
        )
