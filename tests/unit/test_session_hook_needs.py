"""Which policies need a hook that a kernel may lack, and what a run and `doctor` make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from events_help import OPEN_POLICY, make_policy

from mcpguard.backends import guard
from mcpguard.errors import HostError
from mcpguard.kernel import btf
from mcpguard.model.access import Access, Effect
from mcpguard.model.coverage import Need, Strength
from mcpguard.model.plan import FilesPlan
from mcpguard.model.policy import Policy
from mcpguard.model.profile import SystemSwitches
from mcpguard.model.rule import Origin
from mcpguard.session import doctor, hook_needs
from mcpguard.session.coverage import Offer, insist, of_policy

ALL = Access.READ | Access.WRITE | Access.EXECUTE
EVERYTHING = make_policy((Effect.ALLOW, ALL, "/"))
LACKING = {
    Need.READ: ("path_notify",),
    Need.EXECUTE: ("mmap_file", "file_mprotect"),
    Need.RINGS: ("uring_cmd",),
    Need.DEBUGGERS: ("ptrace_traceme",),
}
HOOKS = {hook.name: hook for group in guard.HOOKS.values() for hook in group}


def with_switches(**switches: bool) -> Policy:
    return replace(EVERYTHING, system=SystemSwitches(**switches))


@pytest.mark.parametrize(
    ("policy", "kinds"),
    [
        (EVERYTHING, set()),
        (with_switches(user_namespaces=True, memory_programs=True), set()),
        (with_switches(io_uring=True), {"processes"}),
        (with_switches(debuggers=True), {"processes"}),
        (make_policy((Effect.ALLOW, ALL, "/"), (Effect.READONLY, Access.WRITE, "/etc")), set()),
        (make_policy((Effect.ALLOW, ALL, "/"), (Effect.DENY, ALL, "/secret")), {"files", "execute"}),
        (make_policy((Effect.ALLOW, ALL, "/"), (Effect.DENY, Access.READ, "/secret")), {"files"}),
        (make_policy((Effect.ALLOW, Access.READ, "/"), (Effect.ALLOW, Access.EXECUTE, "/usr")), {"execute"}),
        (make_policy((Effect.ALLOW, Access.READ, "/usr"), (Effect.ALLOW, Access.EXECUTE, "/")), {"files"}),
    ],
)
def test_a_policy_needs_what_its_rules_ask_for_and_no_more(policy: Policy, kinds: set[str]) -> None:
    assert set(hook_needs.unmet(policy, LACKING)) == kinds
    assert not hook_needs.unmet(policy, {})


def test_an_exception_of_an_open_rule_is_a_limit() -> None:
    rule = replace(EVERYTHING.paths[0], exceptions=("/x",))
    assert set(hook_needs.unmet(replace(EVERYTHING, paths=(rule,)), LACKING)) == {"files", "execute"}


def test_what_protects_mcpguard_itself_is_no_wish_of_the_policy() -> None:
    policy = make_policy((Effect.ALLOW, ALL, "/"), (Effect.DENY, ALL, "/state"))
    ours = Origin("mcpguard", "mcpguard", 0, "deny /state")
    assert hook_needs.unmet(replace(policy, rules=(*policy.rules[:2], ours)), LACKING) == {}


@pytest.mark.parametrize(
    ("need", "policy", "kind", "why"),
    [
        (Need.EXECUTE, make_policy(*OPEN_POLICY), "execute", "no hook mmap_file and no file_mprotect"),
        (
            Need.RINGS,
            with_switches(io_uring=True),
            "processes",
            "no hook uring_cmd, which the policy needs: it permits",
        ),
    ],
)
@pytest.mark.parametrize("tier", [1, 2])
def test_a_missing_hook_refuses_the_run_and_best_effort_tells_the_gap(
    tier: int, need: Need, policy: Policy, kind: str, why: str
) -> None:
    offer = Offer(tier, {}, "voluntary", unix_hook=True, lacking={need: LACKING[need]})
    holds = of_policy(policy, FilesPlan((), ()), offer)
    assert [row.kind for row in holds if row.strength is Strength.NONE] == [kind]
    with pytest.raises(HostError) as refused:
        insist(holds, best_effort=False)
    assert refused.value.code == "run.not-enforceable"
    assert kind in refused.value.what
    assert why in refused.value.why
    assert "--best-effort" in refused.value.do
    (told,) = insist(holds, best_effort=True)
    assert f"{kind} rules are not enforced" in told
    assert why in told


@pytest.mark.parametrize("need", LACKING)
def test_a_policy_that_does_not_need_it_runs_in_full(need: Need) -> None:
    offer = Offer(1, {}, "voluntary", unix_hook=True, lacking={need: LACKING[need]})
    assert insist(of_policy(EVERYTHING, FilesPlan((), ()), offer), best_effort=False) == ()


def test_where_landlock_keeps_the_rules_no_hook_is_needed() -> None:
    offer = Offer(2, {}, "full", unix_hook=True, files_fixed="it preempts", lacking=LACKING)
    holds = of_policy(make_policy(*OPEN_POLICY), FilesPlan((), ()), offer)
    assert Strength.NONE not in {row.strength for row in holds}


def test_an_offer_of_the_brokers_says_what_is_lacking() -> None:
    sent = {
        "tier": 1,
        "reasons": {},
        "preemption": "",
        "unix": True,
        "tracepoint": "",
        "terminals": [],
        "files_fixed": "",
    }
    offer = Offer.from_broker({**sent, "rings": True, "lacking": {"rings": ["uring_cmd"]}})
    assert (offer.rings, offer.lacking) == (True, {Need.RINGS: ("uring_cmd",)})


def test_every_need_has_a_hook_and_every_hook_a_known_need() -> None:
    told = {hook.needed for hook in HOOKS.values()} - {Need.EVERY, Need.NONE}
    assert told == set(hook_needs.NEEDS)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> dict[str, btf.Function]:
    """What a kernel with every hook tells of them; a test may take some out."""
    described = {
        hook.target(way): btf.Function(1, 4) for hook in HOOKS.values() for way in (guard.LSM, guard.MODIFY_RETURN)
    }
    monkeypatch.setattr(btf, "functions", lambda names: {name: described[name] for name in names if name in described})
    return described


@pytest.mark.parametrize("way", [guard.LSM, guard.MODIFY_RETURN])
def test_what_a_kernel_lacks_is_told_by_who_needs_it(way: str, kernel: dict[str, btf.Function]) -> None:
    def lacking() -> Mapping[Need, tuple[str, ...]]:
        choice = guard.choose(way)
        assert choice.missing == ()
        return guard.lacking(name for names in choice.programs.values() for name in names)

    assert lacking() == {}
    for name in ("sb_mount", "bpf", "userns_create", "uring_sqpoll", "uring_cmd", "socket_create", "path_notify"):
        del kernel[HOOKS[name].target(way)]
    assert lacking() == {Need.READ: ("path_notify",), Need.RINGS: ("uring_cmd", "socket_create")}


@pytest.mark.parametrize(("tier", "way"), [(1, guard.LSM), (2, guard.MODIFY_RETURN)])
def test_doctor_says_which_policies_do_not_start(tier: int, way: str, kernel: dict[str, btf.Function]) -> None:
    assert doctor._hook_problems(tier) == []
    del kernel[HOOKS["uring_cmd"].target(way)]
    (problem,) = doctor._hook_problems(tier)
    assert "this kernel has no hook uring_cmd" in problem.what
    assert f"starts in tier {tier}: it permits io_uring" in problem.what
    assert not problem.stops
    assert doctor._hook_problems(3) == []
