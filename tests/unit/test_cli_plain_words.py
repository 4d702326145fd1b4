"""The short parser of `run` means what the whole one means, or nothing."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcpguard.cli import plain_words, run_words
from mcpguard.errors import UsageError

WORDS = st.sampled_from(
    [
        *("-p", "--profile", "-w", "--workspace", "--audit", "--ask", "--best-effort", "--tier", "-q", "--quiet"),
        *(
            "--read",
            "--write",
            "--net",
            "--",
            "-",
            "",
            "1",
            "2",
            "3",
            "4",
            "-1",
            "codex",
            "a b",
            "db:5432",
            "~/x",
            "-h",
        ),
        *(
            "--profile=x",
            "-px",
            "-qp",
            "--tier=1",
            "--aud",
            "--no",
            "--ask=1",
            "-x",
            "true",
            "-c",
            "--help",
            "é",
            "-q -p",
        ),
    ]
)


@given(st.lists(WORDS, max_size=7))
@example(["-q", "--", "true"])
@example(["claude-code", "-p", "fix", "--", "x"])
@example(["--", "--", "x"])
@example(["-q", "--"])
@example(["--read", "a", "--read", "b", "-w", "", "codex", "--audit"])
def test_what_it_understands_means_the_same(words: list[str]) -> None:
    found = plain_words.parse(words)
    if found is not None:
        assert found == run_words.parse(words)


@pytest.mark.parametrize(
    "words",
    [
        ["-q", "--", "true"],
        ["claude-code", "-p", "fix it"],
        [
            "-p",
            "dev-tools",
            "-w",
            "/x",
            "--tier",
            "3",
            "--read",
            "a",
            "--net",
            "h:1",
            "--ask",
            "--",
            "make",
            "--",
            "-j2",
        ],
    ],
)
def test_what_people_write_is_plain(words: list[str]) -> None:
    assert plain_words.parse(words) is not None


@pytest.mark.parametrize("words", [[], ["--"], ["-p"], ["--tier", "4", "x"], ["--ask", "--audit", "x"], ["-z", "x"]])
def test_what_is_wrong_is_left_to_the_whole_one(words: list[str]) -> None:
    assert plain_words.parse(words) is None
    with pytest.raises(UsageError):
        run_words.parse(words)
