"""A scratch place for profiles, and a policy compiled for somebody who does not exist."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mcpguard.model.policy import Policy, User
from mcpguard.policy.compile import compile_policy
from mcpguard.profile.load import load

HOME = "/home/ada"
WORKSPACE = "/home/ada/project"
TMP = "/tmp"
ADA = User(1000, 1000, (1000,), "ada", HOME)
BUILTIN = ("base", "dev-tools", "default", "claude-code", "codex", "gemini-cli", "opencode", "qwen-code")
AGENTS = ("claude-code", "codex", "gemini-cli", "opencode", "qwen-code")

Write = Callable[[str, str], Path]


def policy_of(name: str) -> Policy:
    """A profile compiled on a host without symlinks."""
    return compile_policy(load(name), user=ADA, workspace=WORKSPACE, tmp=TMP, resolve=lambda path: None)


def place(path: str) -> str:
    """`~/x`, `{workspace}/x` and `{tmp}/x` for Ada."""
    return path.replace("{workspace}", WORKSPACE).replace("{tmp}", TMP).replace("~", HOME)
