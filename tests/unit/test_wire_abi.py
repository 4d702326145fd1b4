"""The committed layout is the one that the C header has, asked from the compiler."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import build_objects  # noqa: E402
import gen_abi  # noqa: E402


@pytest.mark.kernel  # no test of the kernel, but one that must not be skipped where those run
@pytest.mark.skipif(
    build_objects.find_clang() is None or not (shutil.which("bpftool") or Path("/usr/sbin/bpftool").exists()),
    reason="needs clang and bpftool",
)
def test_the_committed_layout_is_the_headers() -> None:
    assert gen_abi.TARGET.read_text() == gen_abi.generate(), "run tools/gen_abi.py"
