"""Every command but the work of `run`, as one typer application."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mcpguard import __version__
from mcpguard.cli import doctor, log, profile, render, run, sessions, setup, why

_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def build() -> typer.Typer:
    """The application, with its help and completion for shells."""
    app = typer.Typer(
        name="mcpguard",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_top)
    app.command("run", help=run.HELP, context_settings=_PASS_ON)(_run)
    for module in (log, sessions, profile, why, doctor, setup):
        module.register(app)
    return app


def _version(asked: bool) -> None:
    if asked:
        render.line(f"mcpguard {__version__}")
        raise typer.Exit


def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Run an AI agent under a profile that the kernel enforces on its whole process tree, and see what it did."""


def _run(
    context: typer.Context,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="AGENT [ARGS...] | -- CMD...", autocompletion=profile.complete)
    ] = None,
    profile_name: Annotated[str | None, typer.Option("--profile", "-p", autocompletion=profile.complete)] = None,
    workspace: Annotated[Path | None, typer.Option("--workspace", "-w", file_okay=False)] = None,
    audit: Annotated[bool, typer.Option("--audit")] = False,
    best_effort: Annotated[bool, typer.Option("--best-effort")] = False,
    tier: Annotated[Literal["1", "2", "3"] | None, typer.Option("--tier")] = None,
    read: Annotated[list[str] | None, typer.Option("--read")] = None,
    write: Annotated[list[str] | None, typer.Option("--write")] = None,
    net: Annotated[list[str] | None, typer.Option("--net")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False,
) -> None:
    """Only help and completion come here: `main` hands the words of `run` to `cli.run` unread."""
    raise typer.Exit(run.main(["--help"]))
