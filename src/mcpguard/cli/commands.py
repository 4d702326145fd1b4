"""Every command but the work of `run`, as one typer application."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.completion import get_completion_script, install  # type: ignore[attr-defined]
from typer.main import get_command

from mcpguard import __version__
from mcpguard.cli import doctor, log, mcp, profile, render, report, run, run_words, sessions, setup, watch, why
from mcpguard.errors import UsageError

NAME = "mcpguard"
SHELLS = ("bash", "zsh", "fish")
SHOW_COMPLETION = "--show-completion"
INSTALL_COMPLETION = "--install-completion"
_COMPLETE = "_MCPGUARD_COMPLETE"
_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def build() -> typer.Typer:
    """The application, with its help and completion for"""
    app = typer.Typer(
        name=NAME,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        # Boxes leave the words 40 columns of 80.
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_top)
    app.command("run", help=run_words.HELP, context_settings=_PASS_ON)(_run)
    for module in (watch, log, report, sessions, profile, mcp, why, doctor, setup):
        module.register(app)
    return app


def command() -> Any:
    """The application as one command to call, with arguments in its help named as in the documentation."""
    made = get_command(build())
    _name_values(made)
    return made


def _name_values(command: Any) -> None:
    """`NAMES` and `--profile PROFILE` in help, where typer writes the Python type; choices stay as they are."""
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            parameter.metavar = parameter.metavar or parameter.name.upper() + ("..." if parameter.nargs != 1 else "")
        # Older releases of typer have nothing to take away.
        if hasattr(parameter, "display_type"):
            parameter.display_type = partial(_value, parameter, parameter.display_type)
    for below in getattr(command, "commands", {}).values():
        _name_values(below)


def _value(parameter: Any, shown: Callable[[Any], str], context: Any) -> str:
    text = shown(context)
    if "|" in text:
        return text
    return "" if parameter.param_type_name == "argument" else parameter.name.upper()


def completion(option: str, shell: str) -> None:
    """`--show-completion SHELL` and `--install-completion SHELL`; without SHELL typer finds out which one runs.

    Raises:
        UsageError: there is no completion for this shell.
    """
    if shell not in SHELLS:
        raise UsageError(
            f'there is no completion for "{shell}"',
            why="completion is made for " + ", ".join(SHELLS),
            do=f"mcpguard {option} bash",
            code="usage.shell",
        )
    if option == SHOW_COMPLETION:
        typer.echo(get_completion_script(prog_name=NAME, complete_var=_COMPLETE, shell=shell))
        return
    _shell, path = install(shell=shell, prog_name=NAME, complete_var=_COMPLETE)
    render.line(f"{shell} completion is installed in {path}; it begins in the next terminal")


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
    ask: Annotated[bool, typer.Option("--ask")] = False,
    best_effort: Annotated[bool, typer.Option("--best-effort")] = False,
    tier: Annotated[Literal["1", "2", "3"] | None, typer.Option("--tier")] = None,
    read: Annotated[list[str] | None, typer.Option("--read")] = None,
    write: Annotated[list[str] | None, typer.Option("--write")] = None,
    net: Annotated[list[str] | None, typer.Option("--net")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False,
) -> None:
    """Only help and completion come here: `main` hands the words of `run` to `cli.run` unread."""
    raise typer.Exit(run.main(["--help"]))
