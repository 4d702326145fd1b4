"""From the command line to what is started and under which policy."""

from __future__ import annotations

import os

from mcpguard.errors import McpguardError, ProfileError, UsageError
from mcpguard.model.paths import is_below
from mcpguard.model.policy import Policy
from mcpguard.session.options import RunOptions
from mcpguard.session.policy import load_policy

DEFAULT_PROFILE = "default"
# Similarity from which a mistyped word is taken for another one.
_NEAR = 0.6


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
    except (UsageError, ProfileError) as error:
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
    except (UsageError, ProfileError) as error:
        raise _about_agent(error, agent) from None


def _about_agent(error: McpguardError, agent: str | None) -> McpguardError:
    """An unknown AGENT is a mistyped one, the name of its command, or a program that was meant to be run."""
    if agent is None:
        return error
    import shlex

    program = f"mcpguard run -- {shlex.quote(agent)}"
    if "/" in agent and not agent.endswith((".yaml", ".yml")):
        why = "AGENT is the name of a profile; a program of your own stands behind --"
        return UsageError(
            f"{agent} is not a profile that can be used",
            why=why,
            do=f"{program}   (if it is a profile: {error.do})",
            code="usage.not-an-agent",
        )
    if error.code != "usage.unknown-profile":
        return error
    meant = _nearest(agent)
    do = f"mcpguard run {meant}" if meant else error.do
    return UsageError(error.what, why=error.why, do=f"{do}   (to run the program itself: {program})", code=error.code)


def _nearest(word: str) -> str:
    """The profile whose name or whose command's first word is nearest; empty when none is near."""
    import difflib

    from mcpguard.profile import store
    from mcpguard.profile.load import inspect

    known: dict[str, str] = {}
    for name in store.names():
        profile, _errors = inspect(name)
        if profile is not None and profile.command:
            known[name] = name
            known.setdefault(os.path.basename(profile.command[0]), name)
    found = difflib.get_close_matches(word, known, n=1, cutoff=_NEAR)
    return known[found[0]] if found else ""


def working_directory(policy: Policy) -> str:
    """Where the agent starts: the current directory when it lies in the workspace, else the workspace."""
    try:
        current = os.path.realpath(os.getcwd())
    except FileNotFoundError:
        return policy.workspace
    return current if is_below(current, policy.workspace) else policy.workspace
