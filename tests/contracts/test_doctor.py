"""What doctor concludes from what it saw; the rehearsals themselves run in the kernel suites."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mcpguard.kernel import probe
from mcpguard.model.coverage import Strength
from mcpguard.session import canary, doctor, foreign
from mcpguard.session.canary import CanaryResult

ACTS = {
    "read.honest": "done",
    "read.denied": "EACCES",
    "write.honest": "done",
    "write.readonly": "EROFS",
    "execute.honest": "done",
    "execute.outside": "EACCES",
    "network.honest": "done",
    "network.tcp4": "EPERM",
    "names.unknown": "done",
    "names.closed": "EPERM",
    "names.answer": "done",
    "names.open": "done",
    "unix.pathname": "EACCES",
    "process.signal": "EPERM",
}


def strengths(result: CanaryResult) -> dict[str, Strength]:
    return {row.kind: row.strength for row in doctor.coverage_of(result, probe.facts(), 3)}


def test_every_kind_of_rule_has_a_row() -> None:
    kinds = {"files read", "files write", "execute", "network", "names", "unix sockets", "processes", "events"}
    assert set(strengths(CanaryResult(ACTS, True, ""))) == kinds


def test_a_forbidden_act_that_got_through_means_the_kind_does_not_hold() -> None:
    for act, kind in (("read.denied", "files read"), ("network.tcp4", "network"), ("unix.pathname", "unix sockets")):
        seen = strengths(CanaryResult({**ACTS, act: "done"}, True, ""))
        assert seen[kind] is Strength.NONE, act
        assert strengths(CanaryResult(ACTS, True, ""))[kind] is not Strength.NONE, act


@pytest.mark.parametrize(
    ("act", "seen", "words"),
    [
        ("names.unknown", "EPROTO", "was not refused"),
        ("names.unknown", "timed out", "did not reach"),
        ("names.leaked", "done", "asked for outside"),
        ("names.closed", "done", "open before its name"),
        ("names.answer", "EPROTO", "was not answered"),
        ("names.open", "EPERM", "did not open"),
    ],
)
def test_a_step_of_the_way_of_a_name_that_fails_is_named(act: str, seen: str, words: str) -> None:
    rows = doctor.coverage_of(CanaryResult({**ACTS, act: seen}, True, ""), probe.facts(), 3)
    (names,) = [row for row in rows if row.kind == "names"]
    assert names.strength is Strength.NONE and names.fix
    assert len(names.gaps) == 1 and words in names.gaps[0]


def test_an_honest_act_that_was_refused_means_the_kind_does_not_hold() -> None:
    assert strengths(CanaryResult({**ACTS, "write.honest": "EACCES"}, True, ""))["files write"] is Strength.NONE


def test_nothing_holds_when_no_guarded_run_was_possible() -> None:
    assert set(strengths(CanaryResult({}, False, "no")).values()) == {Strength.NONE}


def test_a_partial_row_names_its_gap() -> None:
    for row in doctor.coverage_of(CanaryResult(ACTS, True, ""), probe.facts(), 3):
        assert bool(row.gaps) is (row.strength is not Strength.FULL), row


def test_a_gap_comes_with_what_helps() -> None:
    for row in doctor.coverage_of(CanaryResult(ACTS, True, ""), probe.facts(), 3):
        assert bool(row.fix) is bool(row.gaps), row


def test_nothing_is_claimed_about_events_when_nothing_was_tried() -> None:
    events = doctor.coverage_of(CanaryResult({}, False, "no"), probe.facts(), 3)[-1]
    assert events.kind == "events"
    assert "not rehearsed" in events.gaps[0]


def test_a_user_without_sudo_is_told_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trouble = "ada is not in the sudoers file.\nmcpguard: sudo did not start the broker\n  why   ended\n  do    x"
    able = dataclasses.replace(probe.facts(), uid=0, guarded=False, landlock_abi=7, seccomp_library="x")
    monkeypatch.setattr(probe, "facts", lambda: able)
    monkeypatch.setattr(doctor.canary, "run_canary", lambda tier: CanaryResult({}, False, trouble))
    stops = [problem for problem in doctor.examine().problems if problem.stops]
    assert [(problem.what, problem.fix) for problem in stops] == [
        ("this user may not use sudo, and every run needs root", "ask for it, or run as root")
    ]


def test_a_denial_that_is_not_on_record_is_no_full_coverage() -> None:
    assert strengths(CanaryResult(ACTS, False, ""))["events"] is Strength.NONE


def test_old_landlock_is_a_problem_with_a_fix_and_stops_nothing_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    old = dataclasses.replace(probe.facts(), uid=0, landlock_abi=2, guarded=False, seccomp_library="x")
    monkeypatch.setattr(probe, "facts", lambda: old)
    monkeypatch.setattr(
        doctor.canary, "run_canary", lambda tier: CanaryResult({**ACTS}, True, "" if tier == 1 else "no")
    )
    report = doctor.examine()
    assert (report.enforced, report.tier) == (True, "1 bpf-lsm")
    assert any("ABI 2" in problem.what and not problem.stops and problem.fix for problem in report.problems)


def test_the_best_tier_that_works_is_the_one_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    able = dataclasses.replace(
        probe.facts(), uid=0, guarded=False, landlock_abi=7, seccomp_library="x", preemption="none"
    )
    monkeypatch.setattr(probe, "facts", lambda: able)
    leaks = {**ACTS, "read.denied": "done"}
    results = {1: CanaryResult(leaks, True, ""), 2: CanaryResult(ACTS, True, ""), 3: CanaryResult(ACTS, True, "")}
    monkeypatch.setattr(doctor.canary, "run_canary", results.__getitem__)
    report = doctor.examine()
    assert [(tier.works, tier.used) for tier in report.tiers] == [(False, False), (True, True), (True, False)]
    assert {row.strength for row in report.coverage} == {Strength.FULL, Strength.PARTIAL}  # names share addresses


@pytest.mark.parametrize(
    ("debugfs", "version", "boot", "model"),
    [
        ("none (voluntary) full", "#1 SMP PREEMPT_DYNAMIC", "preempt=full", "voluntary"),
        (None, "#1 SMP PREEMPT_DYNAMIC Debian", "quiet preempt=none", "none"),
        (None, "#1 SMP PREEMPT_DYNAMIC Debian", "quiet", None),
        (None, "#1 SMP PREEMPT_RT", "", "rt"),
        (None, "#1 SMP PREEMPT", None, "full"),
    ],
)
def test_the_running_preemption_model_is_read_or_unknown(
    debugfs: str | None, version: str, boot: str | None, model: str | None
) -> None:
    assert probe.preemption(debugfs, version, boot) == model


def test_a_foreign_command_of_our_name_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger, ours = tmp_path / "stranger", tmp_path / "ours"
    for folder, text in ((stranger, "from mcp_guard import main"), (ours, "from mcpguard.cli.main import main")):
        folder.mkdir()
        (folder / "mcpguard").write_text(f"#!/usr/bin/python3\n{text}\n")
        (folder / "mcpguard").chmod(0o755)
    monkeypatch.setenv("PATH", f"{stranger}{os.pathsep}{ours}")
    found = [what for what, _ in foreign.namesakes() if "another program" in what]
    assert len(found) == 1
    assert str(stranger) in found[0]


@pytest.mark.kernel
def test_doctor_finds_this_host_able_and_says_it_in_json() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mcpguard", "doctor", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout)
    assert (done.returncode, report["enforced"]) == (0, True), report
    assert {row["strength"] for row in report["coverage"]} <= {"full", "partial"}
    assert [tier["used"] for tier in report["tiers"]] == [False, False, True]


@pytest.mark.kernel
def test_doctor_inside_a_guarded_session_says_so(tmp_path: Path) -> None:
    run = [sys.executable, "-P", "-m", "mcpguard"]
    reads = ["--read", sys.prefix, "--read", str(Path(doctor.__file__).parents[2])]
    done = subprocess.run(
        [*run, "run", *reads, "--", *run, "doctor", "--format", "json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert "inside a guarded session" in report["problems"][0]["what"]


@pytest.mark.kernel
def test_doctor_names_the_step_that_fails_where_no_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = canary.run_canary(3).acts
    assert {name: seen for name, seen in whole.items() if name.startswith("names.")} == {
        "names.unknown": "done",
        "names.closed": "EPERM",
        "names.answer": "done",
        "names.open": "done",
    }
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        monkeypatch.setattr(canary, "_RUN", canary._RUN.replace("{server!r}", f"'127.0.0.1#{deaf.getsockname()[1]}'"))
        result = canary.run_canary(3)
    (names,) = [row for row in doctor.coverage_of(result, probe.facts(), 3) if row.kind == "names"]
    assert [gap.partition(" (")[0] for gap in names.gaps] == [
        "an allowed name was not answered",
        "the address of an allowed name did not open",
    ]
