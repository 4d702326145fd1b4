"""What `run` answers to words that name no agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcpguard.cli.run_words import parse
from mcpguard.errors import McpguardError
from mcpguard.session import agent


def answer(*words: str) -> McpguardError:
    with pytest.raises(McpguardError) as refused:
        agent.choose(parse(list(words)))
    return refused.value


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("claud-code", "claude-code"), ("claude", "claude-code"), ("gemini", "gemini-cli"), ("codx", "codex")],
)
def test_a_mistyped_agent_or_its_command_leads_to_the_profile(mcpguard_home: Path, typed: str, meant: str) -> None:
    refused = answer(typed)
    assert refused.code == "usage.unknown-profile"
    assert refused.do.startswith(f"mcpguard run {meant} ")
    assert f"mcpguard run -- {typed}" in refused.do


def test_a_word_like_no_agent_gets_no_guess(mcpguard_home: Path) -> None:
    assert "mcpguard profile list" in answer("zzzzzz").do


@pytest.mark.parametrize("content", [None, "#!/usr/bin/python3\nprint(1)\n"])
def test_a_program_by_its_path_is_offered_behind_the_separator(
    mcpguard_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    if content is not None:
        (project / "app.py").write_text(content)
    assert answer("./app.py").do.startswith("mcpguard run -- ./app.py ")


def test_a_wrong_profile_option_is_not_taken_for_a_program(mcpguard_home: Path) -> None:
    assert "run --" not in answer("-p", "dev-tol", "--", "true").do
