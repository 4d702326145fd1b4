"""The record that the tests of the screen look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from records import Recorded


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Recorded]:
    made = Recorded(tmp_path / "events.db")
    yield made
    made.store.close()
