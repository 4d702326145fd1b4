"""What `base` denies or keeps readonly, asked of any path: also for sessions whose own profile does not extend it."""

from __future__ import annotations

from mcpguard.model.access import Access, Verdict
from mcpguard.model.policy import Policy
from mcpguard.model.rule import Origin
from mcpguard.policy.decide import Answer, decide_connect, decide_file, decide_name, decide_unix
from mcpguard.profile.load import load
from mcpguard.session.policy import compile_for


def base_policy(workspace: str) -> Policy:
    """The policy of `base` for this user; the workspace need not exist any more.

    Raises:
        ProfileError, PolicyError: it cannot be loaded or compiled.
    """
    return compile_for(load("base"), workspace)


def of_file(policy: Policy, path: str, access: Access) -> tuple[Origin, str] | None:
    """The rule that refuses this on purpose, and its reason; None where there is none."""
    try:
        verdict, rules = decide_file(policy, path, access)
    except ValueError:  # no canonical path: nothing can be said of it
        return None
    return _named(policy, rules[0]) if verdict is Verdict.DENY else None


def of_address(policy: Policy, host: str, port: int, protocol: int) -> tuple[Origin, str] | None:
    """The same for a destination, by name or address."""
    answers = [decide_name(policy, host, port, protocol)]
    try:
        answers.append(decide_connect(policy, host.strip("[]"), port, protocol))
    except ValueError:
        pass
    return next((found for answer in answers if (found := _refused(policy, answer))), None)


def of_socket(policy: Policy, target: str) -> tuple[Origin, str] | None:
    """The same for a unix socket."""
    try:
        return _refused(policy, decide_unix(policy, target))
    except ValueError:
        return None


def _refused(policy: Policy, answer: Answer) -> tuple[Origin, str] | None:
    return _named(policy, answer.rule) if answer.verdict is Verdict.DENY else None


def _named(policy: Policy, rule: int) -> tuple[Origin, str] | None:
    return (policy.rules[rule], policy.reasons[rule]) if rule else None
