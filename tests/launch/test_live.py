"""A session of root's, or of an ordinary user with sudo, takes more rules from that user."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from launcher import Account

pytestmark = pytest.mark.kernel

# Tries until it is let through; says how often it was refused.
ASKS = """
import socket, sys, time
for refused in range(3000):
    with socket.socket() as sock:
        if not sock.connect_ex(("127.0.0.1", int(sys.argv[1]))):
            sys.exit(0 if refused else 2)
    time.sleep(0.02)
sys.exit(3)
"""
# The user's own side of `watch`, without the screen.
APPROVES = """
import sys, time
from mcpguard.profile.amend import Addition
from mcpguard.profile.store import control_directory
from mcpguard.session.approve import Scope, approve
for _ in range(3000):
    if control_directory().is_dir() and (found := [path.name for path in control_directory().iterdir() if path.name[0] != "."]):
        print(approve(found[0], [Addition("network", "allow", sys.argv[1])], Scope.SESSION).now)
        sys.exit(0)
    time.sleep(0.02)
sys.exit(3)
"""


def test_what_its_user_allows_holds_at_once(account: Account, workspace: Path) -> None:
    python = str(Path(account.mcpguard[0]).parent / "python") if account.name != "root" else sys.executable
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        port = str(listening.getsockname()[1])
        running = account.start(
            [*account.mcpguard, "run", "--", "/usr/bin/python3", "-c", ASKS, port],
            cwd=workspace,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        done = account.do([python, "-c", APPROVES, f"127.0.0.1:{port}"], cwd=account.home)
        _out, said = running.communicate(timeout=90)
    assert done.returncode == 0, done.stderr.decode()
    assert f"network allow 127.0.0.1:{port}" in done.stdout.decode()
    assert running.returncode == 0, said.decode()
    assert f"approved network allow 127.0.0.1:{port} (for the session)" in said.decode()
