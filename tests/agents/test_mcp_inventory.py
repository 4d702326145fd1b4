"""What the real agent writes and lists is what `mcpguard mcp list` finds, in every scope and from every folder."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from agent_run import Agent, agent
from harness import mcpguard_command, need_root

pytestmark = [pytest.mark.kernel, pytest.mark.agent]
SCOPES = ("user", "local", "project")


def by_claude(one: Agent, folder: Path) -> set[str]:
    """Names that claude-code lists; `NAME: COMMAND - STATE`."""
    told = _ask(["claude", "mcp", "list"], one, folder)
    return {line.split(":")[0] for line in told.splitlines() if ": true " in line}


def by_mcpguard(one: Agent, folder: Path) -> set[str]:
    """Names that mcpguard lists for this folder."""
    told = json.loads(_ask([*mcpguard_command(), "mcp", "list", "--format", "json"], one, folder))
    return {server["name"] for server in told if server["here"]}


def _ask(command: list[str], one: Agent, folder: Path) -> str:
    environment = one.world.environment(**one.sandbox.variables)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_both_list_the_same_servers() -> None:
    need_root()
    with agent() as one:
        project = one.world.project
        (project / "sub").mkdir()
        for scope in SCOPES:
            _ask(["claude", "mcp", "add", "-s", scope, f"of-{scope}", "-e", "A=b", "--", "true"], one, project / "sub")
        above = {"mcpServers": {"above": {"command": "true"}}}
        (one.world.root / ".mcp.json").write_text(json.dumps(above))
        one.world.git("worktree", "add", str(one.world.root / "worktree"))
        other = one.world.root / "other"
        other.mkdir()
        everywhere = {"of-user", "above"}
        expected = {
            project: {*everywhere, "of-local"},
            project / "sub": {*everywhere, "of-local", "of-project"},
            one.world.root / "worktree": {*everywhere, "of-local"},
            other: everywhere,
        }
        for folder, names in expected.items():
            assert by_claude(one, folder) == names, folder
            assert by_mcpguard(one, folder) == names, folder
