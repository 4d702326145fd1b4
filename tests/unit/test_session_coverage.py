"""What a session says of itself: which kinds of rule hold, and where the gaps are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from events_help import OPEN_POLICY, make_policy

from mcpguard.model.coverage import Strength
from mcpguard.model.plan import FilesPlan
from mcpguard.model.profile import SystemSwitches
from mcpguard.session.coverage import Offer, of_policy


@pytest.mark.parametrize(
    ("tier", "preemption", "io_uring", "whole"),
    [
        (3, "full", False, True),
        (3, "full", True, False),
        (2, "full", True, False),
        (2, "voluntary", True, True),
        (1, "full", True, True),
    ],
)
def test_a_record_that_does_not_see_io_uring_is_no_whole_record(
    tier: int, preemption: str, io_uring: bool, whole: bool
) -> None:
    policy = replace(make_policy(*OPEN_POLICY), system=SystemSwitches(io_uring=io_uring))
    holds = of_policy(policy, FilesPlan((), ()), Offer(tier, {}, preemption, unix_hook=True))
    (events,) = [held for held in holds if held.kind == "events"]
    assert (events.strength is Strength.FULL) is whole
    assert whole or "io_uring" in events.gaps[0]
