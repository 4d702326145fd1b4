"""What a session says of itself: which kinds of rule hold, and where the gaps are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from events_help import OPEN_POLICY, make_policy

from mcpguard.model.coverage import Coverage, Strength
from mcpguard.model.plan import FilesPlan
from mcpguard.model.profile import SystemSwitches
from mcpguard.session.coverage import (
    HOOKS,
    HOOKS_ALONE,
    NO_RINGS,
    RINGS,
    SKIPPED_HOOKS,
    TIER_NAMES,
    UNASKED_HOOKS,
    Offer,
    answers_for_files,
    files_at_once,
    live_files,
    of_policy,
)


@pytest.mark.parametrize("tier", [1, 2, 3])
def test_a_record_of_what_goes_through_io_uring_is_no_whole_record(tier: int) -> None:
    offer = Offer(tier, {}, "voluntary", unix_hook=True, files_fixed="" if tier < 3 else "Landlock cannot be widened")

    def events(offer: Offer, *, io_uring: bool) -> Coverage:
        policy = replace(make_policy(*OPEN_POLICY), system=SystemSwitches(io_uring=io_uring))
        (held,) = [held for held in of_policy(policy, FilesPlan((), ()), offer) if held.kind == "events"]
        return held

    assert events(offer, io_uring=False).strength is Strength.FULL
    assert (events(offer, io_uring=True).strength, events(offer, io_uring=True).gaps) == (Strength.PARTIAL, (NO_RINGS,))
    assert events(replace(offer, rings=True), io_uring=True).gaps == (RINGS,)


@pytest.mark.parametrize(("preemption", "gap"), [("voluntary", UNASKED_HOOKS), ("full", SKIPPED_HOOKS)])
def test_hooks_that_are_not_asked_or_can_be_skipped_promise_nothing(preemption: str, gap: str) -> None:
    plan = FilesPlan((), (), gaps=("a gap of the plan",))
    offer = Offer(2, {}, preemption, unix_hook=True, files_fixed="whatever the reason is")
    holds = {held.kind: held for held in of_policy(make_policy(*OPEN_POLICY), plan, offer)}
    assert holds["files"].gaps == ("a gap of the plan", gap)
    assert holds["execute"].strength is Strength.PARTIAL


def test_the_record_of_a_wide_plan_says_that_the_programs_stand_alone() -> None:
    policy = make_policy(*OPEN_POLICY)
    offer = Offer(2, {}, "voluntary", unix_hook=True)
    for wide, by in ((False, HOOKS[2]), (True, HOOKS_ALONE)):
        holds = {held.kind: held for held in of_policy(policy, FilesPlan((), (), wide=wide), offer)}
        assert (holds["files"].by, holds["execute"].by, holds["processes"].strength) == (by, by, Strength.FULL)
        assert HOOKS[2] in holds["processes"].by
        assert files_at_once("2 bpf-modify-return", tuple(holds.values())) is wide


@pytest.mark.parametrize(
    ("tier", "by", "fixed", "said", "doctor"),
    [
        (1, HOOKS[1], "", "open at the next attempt", "at the next attempt"),
        (2, HOOKS_ALONE, "", "BPF programs alone keep what no rule allows", "at the next attempt"),
        (2, HOOKS[2], "this kernel asks no program", "in the next run only: this kernel asks", "in the next run"),
        (2, "Landlock ABI 7", "this kernel preempts at will", "in the next run only: this kernel", "in the next run"),
        (3, "Landlock ABI 7", "Landlock cannot be widened", "in the next run only: Landlock", "in the next run"),
    ],
)
def test_when_a_file_that_is_allowed_live_is_open_is_said(
    tier: int, by: str, fixed: str, said: str, doctor: str
) -> None:
    assert said in answers_for_files(Offer(tier, {}, "voluntary", unix_hook=True, files_fixed=fixed))
    assert doctor in live_files(TIER_NAMES[tier], [Coverage("files", Strength.FULL, by)])
