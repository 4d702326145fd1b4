"""`mcpguard setup`: install the part that needs root where only root can change it, or remove it again."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Annotated

import typer

from mcpguard.errors import PrivilegeError
from mcpguard.session import install
from mcpguard.session.start import refuse_nesting


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("setup")(setup)


def setup(
    remove: Annotated[bool, typer.Option("--remove", help="Remove every installed copy.")] = False,
) -> None:
    """Install the part that needs root, where only root can change it.

    Needed once per version by users who start mcpguard from a directory of their own; `run` says when. Root never runs
    code that you, and so your agent, could change.
    """
    refuse_nesting()
    done = _as_root("remove" if remove else "install")
    for path in done["removed"]:
        typer.echo(f"removed    {path}")
    if remove:
        typer.echo(f"nothing is left below {install.PREFIX}")
        return
    path, python = done["installed"]
    typer.echo(f"installed  {path}")
    typer.echo(f"runs with  {python}")
    typer.echo("undo       mcpguard setup --remove")


def _as_root(action: str) -> dict[str, list[str]]:
    """Run the root half, through sudo when this is not root; sudo may ask for a password on the terminal.

    Raises:
        PrivilegeError: sudo refused, or the root half failed after it said why.
    """
    if os.geteuid() == 0:
        return install.act(action)
    command = install.sudo_command(action)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise PrivilegeError(
            "the privileged part was not installed" if action == "install" else "the privileged part was not removed",
            why=f"the part that runs as root ended with status {done.returncode}; its own words are above",
            do="ask for sudo on this host, or run `mcpguard setup` as root",
            code="privilege.sudo-refused",
        )
    answer: dict[str, list[str]] = json.loads(done.stdout)
    return answer
