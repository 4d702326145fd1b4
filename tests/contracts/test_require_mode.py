"""The guard of the guards: in CI no test can silently not run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).parent.parent / "conftest.py"
SKIPPING = """
import pytest

@pytest.mark.kernel
def test_needs_a_kernel():
    pytest.skip("no kernel here")

def test_needs_nothing():
    pytest.skip("not today")

@pytest.mark.xfail(strict=True)
def test_is_expected_to_fail():
    assert False
"""
SELF_SKIPPING = 'import pytest\npytest.skip("all of it", allow_module_level=True)\n'


def run_pytest(folder: Path, mode: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST.read_text())
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = kernel: k\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        env={**os.environ, "MCPGUARD_KERNEL_TESTS": mode},
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )


def test_what_is_skipped_or_expected_to_fail_fails_when_required(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SKIPPING)
    done = run_pytest(tmp_path, "require")
    assert done.returncode == 1, done.stdout
    assert "3 failed" in done.stdout


def test_a_skipped_kernel_test_is_only_skipped_on_a_laptop(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SKIPPING)
    done = run_pytest(tmp_path, "auto")
    assert done.returncode == 0, done.stdout
    assert "2 skipped, 1 xfailed" in done.stdout


def test_a_module_that_skips_itself_fails_when_required(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SELF_SKIPPING)
    done = run_pytest(tmp_path, "require")
    assert done.returncode != 0, done.stdout
