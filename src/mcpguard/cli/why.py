"""`mcpguard why`: the verdict on one access, and the one rule that decides it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mcpguard.cli import exit_codes, render
from mcpguard.cli.profile import Format, complete
from mcpguard.model.access import Verdict
from mcpguard.model.policy import Policy
from mcpguard.session.explain import Explanation, explain
from mcpguard.session.policy import load_policy


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("why")(why)


def why(
    access: Annotated[
        Literal["read", "write", "execute", "connect", "unix"], typer.Argument(help="What a program would do.")
    ],
    target: Annotated[
        str, typer.Argument(help="A path; HOST:PORT (443 when left out, /udp may follow); a socket's path or @name.")
    ],
    profile: Annotated[
        str, typer.Option("--profile", "-p", help="Name or path of a profile.", autocompletion=complete)
    ] = "default",
    workspace: Annotated[
        Path | None,
        typer.Option("--workspace", "-w", metavar="DIR", help="The project; default: the current directory."),
    ] = None,
    format: Format = "text",
) -> None:
    """Say whether a profile allows an access, and which rule decides: file and line.

    Only the profile is asked, not the file's own permissions. Exits 0 allowed, 1 denied, 2 cannot say.
    """
    policy = load_policy(profile, str(workspace) if workspace else None)
    answer = explain(policy, access, target)
    if format == "json":
        render.as_json(_as_json(policy, access, target, answer))
    else:
        _show(policy, access, target, answer)
    allowed = answer.verdict is Verdict.ALLOW
    raise typer.Exit(exit_codes.ALLOWED if allowed else exit_codes.DENIED)


def _as_json(policy: Policy, access: str, target: str, answer: Explanation) -> dict[str, object]:
    """Keys are absent when they have no meaning, as in events."""
    result: dict[str, object] = {
        "verdict": answer.verdict.value,
        "profile": policy.profile,
        "access": access,
        "target": target,
        "object": answer.object,
        "because": answer.because,
        "detail": answer.detail,
    }
    if answer.rule is not None:
        rule = answer.rule
        result["rule"] = {"profile": rule.profile, "file": rule.file, "line": rule.line, "text": rule.text}
    return {key: value for key, value in result.items() if value != ""}


def _show(policy: Policy, access: str, target: str, answer: Explanation) -> None:
    render.line(f"{answer.verdict.value.upper():<6} {access} {answer.object}")
    if answer.by_link:
        render.line(f"  from     {target}")
    if answer.rule is None:
        render.line(f"  rule     none: no rule of {policy.profile} allows it")
        if not answer.detail:
            render.line(f"  do       mcpguard profile edit {policy.profile}")
    else:
        render.line(f"  rule     {answer.rule.place}  {answer.rule.text}")
    if answer.because:
        render.line(f"  because  {answer.because}")
    if answer.detail:
        render.line(f"  note     {answer.detail}")
