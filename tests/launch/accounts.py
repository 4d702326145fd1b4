"""Ordinary users for the launch suites: made, given mcpguard, removed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from launcher import Account


def make_user(name: str, *, sudo: bool) -> None:
    subprocess.run(
        ["useradd", "--create-home", "--user-group", "--groups", "users,games", "-s", "/bin/bash", name], check=True
    )
    if sudo:
        rule = Path("/etc/sudoers.d", name)
        rule.write_text(f"{name} ALL=(root) NOPASSWD: ALL\n")
        rule.chmod(0o440)


def remove_user(name: str) -> None:
    Path("/etc/sudoers.d", name).unlink(missing_ok=True)
    subprocess.run(["userdel", "--remove", "--force", name], check=False, capture_output=True)


def install_for(account: Account, wheel: Path) -> None:
    """A virtual environment that belongs to the user, with the wheel in it, made by the user."""
    environment = {**account.env(), **{key: os.environ[key] for key in os.environ if key.startswith("PIP_")}}
    for command in (
        ["/usr/bin/python3", "-m", "venv", str(account.home / "venv")],
        [str(account.home / "venv/bin/python"), "-m", "pip", "install", "--quiet", str(wheel)],
    ):
        process = account.start(command, cwd=account.home, env=environment)
        assert process.wait(300) == 0, command
