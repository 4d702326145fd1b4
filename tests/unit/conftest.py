"""Every unit test has configuration and state of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# A busy host may take any time for an example.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture
def mcpguard_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for profiles and state, which MCPGUARD_HOME names."""
    home = tmp_path / "mcpguard-home"
    monkeypatch.setenv("MCPGUARD_HOME", str(home))
    return home
