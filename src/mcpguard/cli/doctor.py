"""`mcpguard doctor`: what this host can enforce, per kind of rule and tier, and the exact fix for each gap."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mcpguard import __version__
from mcpguard.session import doctor as session


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    format: Annotated[Literal["text", "json"], typer.Option("--format", help="How to print the report.")] = "text",
) -> None:
    """Try what this host can enforce, and say what helps with each gap.

    Exits 0 when a run would have every rule enforced, 1 when not.
    """
    report = session.examine()
    if format == "json":
        typer.echo(json.dumps(as_json(report), indent=1))
    else:
        show(report, Console(highlight=False))
    raise typer.Exit(0 if report.enforced else 1)


def as_json(report: session.Report) -> dict[str, object]:
    """The report as one object; keys are only ever added."""
    return {"version": __version__, **asdict(report)}


def show(report: session.Report, console: Console) -> None:
    """Print the report for a person."""
    facts = report.facts
    console.print(f"mcpguard {__version__} on Linux {facts.kernel} {facts.machine}", markup=False)
    console.print(_coverage(report))
    console.print(_tiers(report))
    for problem in report.problems:
        console.print(f"{'stops' if problem.stops else 'note '}  {problem.what}", markup=False)
        console.print(f"  do   {problem.fix}", markup=False)
    console.print(f"note   {report.live_files}", markup=False)
    gaps = any(row.gaps for row in report.coverage)
    held = "every kind of rule is enforced" + (", but for the gaps named above" if gaps else "")
    verdict = held if report.enforced else "a guarded run cannot be fully enforced"
    console.print(f"{verdict} (tier {report.tier})", style="green" if report.enforced else "red", markup=False)


def _coverage(report: session.Report) -> Table:
    table = Table("rules", "holds", "by", "gap and fix", box=None, pad_edge=False)
    colours = {"full": "green", "partial": "yellow", "none": "red"}
    for row in report.coverage:
        colour = colours[row.strength.value]
        gap = "; ".join((*row.gaps, *((f"do: {row.fix}",) if row.fix else ())))
        table.add_row(row.kind, f"[{colour}]{row.strength.value}[/]", escape(row.by), escape(gap))
    return table


def _tiers(report: session.Report) -> Table:
    works = {True: "yes", False: "no", None: "unknown"}
    table = Table("tier", "works", "used", "because", box=None, pad_edge=False)
    for tier in report.tiers:
        used = "yes" if tier.used else "no"
        table.add_row(f"{tier.number} {tier.name}", works[tier.works], used, escape(tier.reason))
    return table
