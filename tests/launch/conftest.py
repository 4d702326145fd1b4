"""The launch suites: as root, and as an ordinary user with sudo who has mcpguard in an environment of their own.

The user, the sudo rule, the environment and the installed privileged part are made once and removed at the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from accounts import install_for, make_user, remove_user
from launcher import Account

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def wheel() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mcpguard-wheel-") as folder:
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, str(ROOT)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (built,) = Path(folder).glob("*.whl")
        Path(folder).chmod(0o755)
        yield built


@pytest.fixture(scope="session")
def ordinary(wheel: Path) -> Iterator[Account]:
    """A user with sudo, with mcpguard installed in the user's own environment; `setup` is not yet done."""
    name = f"mgtest{os.getpid()}"
    make_user(name, sudo=True)
    try:
        account = Account(name, (f"/home/{name}/venv/bin/mcpguard",))
        install_for(account, wheel)
        yield account
    finally:
        remove_user(name)


@pytest.fixture(scope="session")
def user(ordinary: Account) -> Iterator[Account]:
    """The same user after `mcpguard setup`."""
    done = ordinary.do([*ordinary.mcpguard, "setup"], cwd=ordinary.home)
    assert done.returncode == 0, done.stderr.decode()
    yield ordinary
    ordinary.do([*ordinary.mcpguard, "setup", "--remove"], cwd=ordinary.home)


@pytest.fixture(scope="session")
def root() -> Iterator[Account]:
    with tempfile.TemporaryDirectory(prefix="mcpguard-root-") as home:
        yield Account("root", (sys.executable, "-P", "-m", "mcpguard"), {"MCPGUARD_HOME": home})


@pytest.fixture(params=["root", "user"])
def account(request: pytest.FixtureRequest) -> Account:
    """Every launch property holds for both."""
    found: Account = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def workspace(account: Account, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty project in the user's home."""
    place = Path(tempfile.mkdtemp(prefix="project-", dir=account.home))
    os.chown(place, account.entry.pw_uid, account.entry.pw_gid)
    yield place
    shutil.rmtree(place, ignore_errors=True)
