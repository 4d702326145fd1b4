"""`mcpguard mcp scan`: what is wrong with the declared servers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from mcpguard.catalogue import scan as scanning
from mcpguard.catalogue.findings import RULES, Finding, Level
from mcpguard.catalogue.survey import Survey, survey
from mcpguard.cli import exit_codes, render
from mcpguard.events.format import shorten

_WORST = (Level.ERROR, Level.WARNING, Level.NOTE)
_WIDTH = max(map(len, RULES))


def findings(found: Survey) -> list[Finding]:
    """What is wrong with the servers of this folder and of the user."""
    return scanning.scan(found, os.environ)


def scan(
    format: Annotated[
        Literal["table", "json", "sarif"], typer.Option("--format", help="How to print what was found.")
    ] = "table",
) -> None:
    """Find what is wrong with the declared servers: secrets, packages without a version, wide folders, and the like.

    Reads the settings of every known client and the files that they name; nothing is started, nothing is sent. Each
    finding has its number in the OWASP MCP Top 10 (2025). Exits 1 when an error or a warning was found; a note alone says what
    is so and cannot be mended, and exits 0.
    """
    found = survey(Path.cwd(), os.environ)
    told = findings(found)
    if format == "json":
        render.as_json([_as_json(one) for one in told])
    elif format == "sarif":
        from mcpguard.catalogue import sarif

        render.as_json(sarif.document(told, Path.cwd()))
    else:
        _print(told, len(found.rows))
    raise typer.Exit(exit_codes.NEGATIVE if any(one.rule.level is not Level.NOTE for one in told) else exit_codes.DONE)


def _print(told: Sequence[Finding], servers: int) -> None:
    """By server and file, the worst first in each; what to do is said once for each kind."""
    home = str(Path.home())
    groups: dict[tuple[str, str], list[Finding]] = {}
    for one in told:
        groups.setdefault((one.server, _where(one, home)), []).append(one)
    for (server, where), group in groups.items():
        render.line(f"{server or 'the file'}  {group[0].client}, {group[0].scope}: {where}")
        for one in sorted(group, key=lambda one: _WORST.index(one.rule.level)):
            render.line(f"  {one.rule.level.value:<7}  {one.rule.owasp}  {one.rule.name:<{_WIDTH}}  {one.detail}")
        render.line()
    for rule in dict.fromkeys(one.rule for one in told):
        render.line(f"{rule.name}: {rule.says}.")
        render.line(f"  do   {rule.do}")
    found = "nothing" if not told else "1 finding" if len(told) == 1 else f"{len(told)} findings"
    render.note(f"{found} in {servers} server{'' if servers == 1 else 's'}")


def _where(found: Finding, home: str) -> str:
    return shorten(found.file, home) + (f":{found.line}" if found.line else "")


def _as_json(found: Finding) -> dict[str, object]:
    values: dict[str, object] = {
        "finding": found.rule.name,
        "owasp": found.rule.owasp,
        "level": found.rule.level.value,
        "says": found.rule.says,
        "do": found.rule.do,
        "detail": found.detail,
        "server": found.server,
        "client": found.client,
        "scope": found.scope,
        "file": found.file,
        "line": found.line,
    }
    return {key: value for key, value in values.items() if value not in ("", 0)}
