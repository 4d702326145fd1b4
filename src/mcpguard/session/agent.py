"""From the command line to what is started and under which policy."""

from __future__ import annotations

from pathlib import Path

from mcpguard.errors import UsageError
from mcpguard.model.policy import Policy
from mcpguard.session.options import RunOptions
from mcpguard.session.policy import load_policy

DEFAULT_PROFILE = "default"


def choose(options: RunOptions) -> tuple[tuple[str, ...], Policy]:
    """The full command and the compiled policy.

    Raises:
        McpguardError: no such agent, a broken profile, an impossible workspace.
    """
    agent = None if options.after_separator else options.command[0]
    profile = options.profile or agent or DEFAULT_PROFILE
    try:
        policy = load_policy(
            profile,
            workspace=options.workspace,
            read=options.read,
            write=options.write,
            net=options.net,
            audit=options.audit,
        )
    except UsageError as error:
        raise _about_agent(error, agent) if profile == agent else error from None
    if agent is None:
        return options.command, policy
    command = policy.command if profile == agent else _command_of(agent, options.workspace)
    if not command:
        raise UsageError(
            f"the profile {agent} names no command",
            why="only a profile with `command:` can be started by its name",
            do=f"mcpguard run -p {agent} -- CMD...",
            code="usage.no-command",
        )
    return (*command, *options.command[1:]), policy


def _command_of(agent: str, workspace: str | None) -> tuple[str, ...]:
    from mcpguard.profile.load import load

    try:
        return load(agent, workspace=workspace).command
    except UsageError as error:
        raise _about_agent(error, agent) from None


def _about_agent(error: UsageError, agent: str | None) -> UsageError:
    """An unknown AGENT is as often a program that was meant to be run."""
    if agent is None or error.code != "usage.unknown-profile":
        return error
    do = f"{error.do}; to run the program itself: mcpguard run -- {agent}"
    return UsageError(error.what, why=error.why, do=do, code=error.code)


def working_directory(policy: Policy) -> str:
    """Where the agent starts: the current directory when it lies in the workspace, else the workspace."""
    try:
        current = str(Path.cwd().resolve())
    except FileNotFoundError:
        return policy.workspace
    inside = current == policy.workspace or current.startswith(policy.workspace + "/")
    return current if inside else policy.workspace
