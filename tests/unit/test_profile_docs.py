"""The reference in docs/profiles.md says what the parser does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mcpguard.profile.parse import parse
from mcpguard.profile.schema import KEYS, Type
from mcpguard.session.policy import trial

TEXT = (Path(__file__).parents[2] / "docs" / "profiles.md").read_text()
EXAMPLES = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("key", [key.path for key in KEYS if key.type is not Type.SECTION])
def test_every_key_has_its_row(key: str) -> None:
    assert f"| `{key}` |" in TEXT


def test_there_are_no_rows_for_keys_that_do_not_exist() -> None:
    table = TEXT.partition("## Keys\n")[2].partition("\n\n`because`")[0]
    assert set(re.findall(r"^\| `([a-z_.]+)` \|", table, re.MULTILINE)) <= {key.path for key in KEYS}


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_example_can_be_compiled(example: str) -> None:
    assert trial(parse(example, "docs/profiles.md", name="example").profile) == []


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3
