"""For every suite: a test that did not run, or was expected to fail, is a failure where the caller says so.

`MCPGUARD_KERNEL_TESTS=require` (CI) turns each skip and each expected failure into a failure, whatever the test is marked with.
`auto`, the default, lets a laptop skip what it cannot do.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

# Boots kernels in an emulator, for minutes: `make test-vm` runs it.
collect_ignore = ["vm"]
REQUIRED = os.environ.get("MCPGUARD_KERNEL_TESTS", "auto") == "require"
# In a guest, of what its kernel does not have; `tests/vm/suite.py` shows each of these.
NOT_HERE = "not on this lane: " if os.environ.get("MCPGUARD_LANE_KERNEL") else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    not_here = NOT_HERE is not None and NOT_HERE in str(report.longrepr)
    if REQUIRED and report.skipped and not not_here:  # an expected failure is reported as a skip, too
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and MCPGUARD_KERNEL_TESTS=require forbids it: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that skips itself as a whole (importorskip) would hide its kernel tests before they have a marker."""
    report = yield
    if REQUIRED and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} skipped itself, and MCPGUARD_KERNEL_TESTS=require forbids it"
    return report
