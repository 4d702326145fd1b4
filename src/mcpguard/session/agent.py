"""From the command line to what is started and under which policy."""

from __future__ import annotations

from pathlib import Path

from mcpguard.errors import UsageError
from mcpguard.model.policy import Policy
from mcpguard.profile.load import load
from mcpguard.session.options import RunOptions
from mcpguard.session.policy import load_policy

DEFAULT_PROFILE = "default"


def choose(options: RunOptions) -> tuple[tuple[str, ...], Policy]:
    """The full command and the compiled policy.

    Raises:
        McpguardError: no such agent, a broken profile, an impossible workspace.
    """
    workspace = options.workspace
    if options.after_separator:
        command = options.command
        profile = options.profile or DEFAULT_PROFILE
    else:
        agent = options.command[0]
        profile = options.profile or agent
        command = (*_command_of(agent, workspace), *options.command[1:])
    policy = load_policy(
        profile,
        workspace=workspace,
        read=options.read,
        write=options.write,
        net=options.net,
        audit=options.audit,
    )
    return command, policy


def _command_of(agent: str, workspace: str | None) -> tuple[str, ...]:
    try:
        command = load(agent, workspace=workspace).command
    except UsageError as error:
        raise UsageError(
            error.what,
            why=error.why,
            do=f"to run the program itself: mcpguard run -- {agent}; `mcpguard profile list` shows the agents",
            code=error.code,
        ) from None
    if not command:
        raise UsageError(
            f"the profile {agent} names no command",
            why="only a profile with `command:` can be started by its name",
            do=f"mcpguard run -p {agent} -- CMD...",
            code="usage.no-command",
        )
    return command


def working_directory(policy: Policy) -> str:
    """Where the agent starts: the current directory when it lies in the workspace, else the workspace."""
    try:
        current = str(Path.cwd().resolve())
    except FileNotFoundError:
        return policy.workspace
    inside = current == policy.workspace or current.startswith(policy.workspace + "/")
    return current if inside else policy.workspace
