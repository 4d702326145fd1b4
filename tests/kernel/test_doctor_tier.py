"""What `doctor` says of the tiers is what runs here get, with the reason for each better one that they do not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from harness import need_root, sandbox

from mcpguard.session.coverage import TIER_NAMES

pytestmark = pytest.mark.kernel

MODULES = Path("/sys/kernel/security/lsm")
TRIES_SECONDS = 300


def test_doctor_says_which_tier_runs_get_and_why_no_better_one() -> None:
    need_root()
    with sandbox() as box:
        assert box.run(["true"]).code == 0
        session = box.mcpguard("sessions", "--format", "json").json_lines()[0]
        done = box.mcpguard("doctor", "--format", "json", timeout=TRIES_SECONDS)
    report = json.loads(done.out)
    told = {one["number"]: one for one in report["tiers"]}
    (used,) = [number for number, one in told.items() if one["used"]]
    assert report["tier"] == session["tier"] == TIER_NAMES[used]
    assert told[used]["works"], told
    better = [told[number] for number in told if number < used]
    assert all(one["reason"] and not one["works"] for one in better), told
    if MODULES.exists() and "bpf" not in MODULES.read_text().strip().split(","):
        assert "bpf is not among the active security modules" in told[1]["reason"]
        assert "do: boot with lsm=" in told[1]["reason"]
    lane = os.environ.get("MCPGUARD_LANE_LSM")
    if lane:
        assert used == (1 if lane == "bpf" else 2)
