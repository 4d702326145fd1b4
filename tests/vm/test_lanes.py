"""The lanes from outside: each is booted once, and each of its guest's tests is a line of output.

MCPGUARD_VM_LANES chooses: all (the default), ci, or names and patterns with commas between them. Not a part of
`make test`; `make test-vm` runs it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import boot
import pytest
import suite
from boot import Ended, Machine
from suite import Lane

CHOSEN = suite.choose(os.environ.get("MCPGUARD_VM_LANES", "all").split(","))
LANE = Lane("6.12", "bpf", "voluntary")
SHORT = Machine("6.12", seconds=120)
PASSED = '<testcase classname="c" name="one" />'
FAILED = '<testcase classname="c" name="two"><failure message="m">it broke</failure></testcase>'
SKIPPED = '<testcase classname="c" name="three"><skipped type="pytest.skip" message="no tool" /></testcase>'
NOT_HERE = '<testcase classname="c" name="four"><skipped type="pytest.skip" message="not on this lane: x" /></testcase>'


def judged(tmp_path: Path, *cases: str, code: int | None = 0, why: str = "") -> suite.Report:
    junit = tmp_path / "junit.xml"
    junit.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    return suite.judge(LANE, Ended(code, why, "6.12.1", 1.0), junit, "output")


@pytest.fixture(scope="module")
def running() -> Iterator[dict[Lane, Future[suite.Report]]]:
    with suite.running(CHOSEN) as lanes:
        yield lanes


@pytest.mark.parametrize(
    "lane", [pytest.param(lane, id=lane.name, marks=pytest.mark.timeout(lane.seconds + 900)) for lane in CHOSEN]
)
def test_lane(lane: Lane, running: dict[Lane, Future[suite.Report]], capfd: pytest.CaptureFixture[str]) -> None:
    report = running[lane].result()
    with capfd.disabled():
        print("", *report.lines(), sep="\n")
    assert report.ok, report.summary()


def test_a_lane_whose_tests_pass_is_ok(tmp_path: Path) -> None:
    assert judged(tmp_path, PASSED, NOT_HERE).ok


def test_a_failed_or_skipped_test_fails_the_lane(tmp_path: Path) -> None:
    assert [case.text for case in judged(tmp_path, PASSED, FAILED, code=1).failed] == ["it broke"]
    assert [case.text for case in judged(tmp_path, PASSED, SKIPPED).failed] == ["no tool"]


def test_the_summary_says_what_failed_and_why(tmp_path: Path) -> None:
    failure = "def test_two():\n>   assert 1 == 2\nE   assert 1 == 2"
    case = f'<testcase classname="c" name="two"><failure message="m">{failure}</failure></testcase>'
    assert judged(tmp_path, PASSED, case, SKIPPED, code=1).summary().splitlines() == [
        "2 tests failed in the guest",
        "c::two: failed",
        "E   assert 1 == 2",
        "c::three: skipped",
        "no tool",
    ]


def test_no_tests_no_results_and_an_exit_code_fail_the_lane(tmp_path: Path) -> None:
    assert "no test passed" in judged(tmp_path).problem
    assert "no test passed" in judged(tmp_path, NOT_HERE).problem
    assert "exit code 3" in judged(tmp_path, PASSED, code=3).problem
    absent = suite.judge(LANE, Ended(0, "", "6.12.1", 1.0), tmp_path / "absent.xml", "")
    assert "no results" in absent.problem


def test_a_guest_that_died_after_its_tests_fails_the_lane(tmp_path: Path) -> None:
    report = judged(tmp_path, PASSED, code=None, why="the guest died")
    assert not report.ok
    assert report.cases


@pytest.mark.timeout(300)
def test_the_exit_code_and_the_files_come_back_and_the_host_is_not_written(tmp_path: Path) -> None:
    # Not in /tmp, where the guest has a folder of its own.
    target = suite.RESULTS / "of-the-host"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("of the host\n")
    script = f"cat {target}; echo of the guest >{target}; cp {target} $MCPGUARD_LANE_OUT/copy; exit 7"
    with (tmp_path / "output").open("wb") as output:
        results = tmp_path / "results"
        ended = boot.boot(SHORT, ["sh", "-c", script], folder=Path("/"), output=output, results=results)
    assert ended.code == 7, ended.why
    assert (tmp_path / "output").read_text() == "of the host\n"
    assert (results / "copy").read_text() == "of the guest\n"
    assert target.read_text() == "of the host\n"


@pytest.mark.timeout(300)
def test_a_guest_that_panics_has_no_exit_code() -> None:
    ended = boot.boot(SHORT, ["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 60"], folder=Path("/"))
    assert ended.code is None
    assert "died" in ended.why


@pytest.mark.timeout(300)
def test_a_guest_that_hangs_is_ended() -> None:
    ended = boot.boot(Machine("6.12", seconds=15), ["sleep", "1000"], folder=Path("/"))
    assert ended.code is None
    assert "hung" in ended.why
