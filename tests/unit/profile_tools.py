"""Policies compiled for somebody who does not exist, and the tables that they are held against."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from mcpguard.model.policy import Policy, User
from mcpguard.policy.compile import compile_policy
from mcpguard.profile.load import load

HOME = "/home/ada"
WORKSPACE = "/home/ada/project"
TMP = "/tmp"
ADA = User(1000, 1000, (1000,), "ada", HOME)
BUILTIN = ("base", "dev-tools", "default", "claude-code", "codex", "gemini-cli", "opencode", "qwen-code")
# For what an agent's profile keeps to less; nothing runs under one alone.
KEPT = ("mcp-server", "mcp-server-workspace")
# Joined to another one; nothing runs under it alone.
JOINED = ("mcp-read-only",)
AGENTS = ("claude-code", "codex", "gemini-cli", "opencode", "qwen-code")

DATA = Path(__file__).parents[1] / "data" / "profiles"


def listed(name: str) -> list[str]:
    """The entries of a table in `tests/data/profiles`, one on each line."""
    return (DATA / f"{name}.txt").read_text().split()


@lru_cache
def policy_of(name: str) -> Policy:
    """A built-in profile compiled on a host without symlinks."""
    return compile_policy(load(name), user=ADA, workspace=WORKSPACE, tmp=TMP, resolve=lambda path: None)


def place(path: str) -> str:
    """`~/x`, `{workspace}/x` and `{tmp}/x` for Ada."""
    return path.replace("{workspace}", WORKSPACE).replace("{tmp}", TMP).replace("~", HOME)
