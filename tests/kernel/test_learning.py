"""From what was seen to a profile that holds: audit a task, learn, run it enforced, and nothing is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from harness import REPOSITORY, SYSTEM_PYTHON, need_root
from wheels import put_wheel

pytestmark = pytest.mark.kernel

# Only what every program needs; what the task needs besides is to be learned.
PROFILE = f"""\
name: narrow
extends: [base]
files:
  read: ["{REPOSITORY}/.venv", "{REPOSITORY}/src", "{sys.base_prefix}"]
  execute: ["{REPOSITORY}/.venv", "{sys.base_prefix}"]
"""
TASK = f"""\
set -e
git init -q . && echo 'def test(): pass' > test_it.py && git add . && git -c user.name=x -c user.email=x@x commit -qm one
{sys.executable} -m pytest -q -p no:cacheprovider test_it.py
{sys.executable} -m venv --without-pip env && env/bin/python -c 'print(1)'
{SYSTEM_PYTHON} -m pip --python env/bin/python --disable-pip-version-check install -q --no-index ./small-1.0-py3-none-any.whl
env/bin/python -c 'import small'
mkdir -p ~/.cache/tool ~/.tool/state && echo x > ~/.cache/tool/a-83af2c91 && echo x > ~/.tool/state/db && cat ~/.tool/state/db
for n in 1 2 3 4 5; do cat ~/notes/n$n; done
node -e "require('fs').appendFileSync(require('os').homedir() + '/.tool/log', 'x')"
{sys.executable} - <<'END'
import socket
server = socket.create_server(("127.0.0.1", 0))
print(socket.create_connection(server.getsockname()).fileno())
END
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    need_root()
    # Below /tmp everything is the agent's own: the home must lie elsewhere to be one.
    for name in ("home/notes", "home/.ssh", "guard/config/profiles", "project"):
        (tmp_path / name).mkdir(parents=True)
    for number in range(1, 6):
        (tmp_path / f"home/notes/n{number}").write_text("note\n")
    (tmp_path / "home/.ssh/id_ed25519").write_text("secret\n")
    (tmp_path / "guard/config/profiles/narrow.yaml").write_text(PROFILE)
    (tmp_path / "tmp").mkdir()
    return tmp_path


def mcpguard(world: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {
        "HOME": str(world / "home"),
        "MCPGUARD_HOME": str(world / "guard"),
        "TMPDIR": str(world / "tmp"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "mcpguard", *words],
        env=environment,
        cwd=world / "project",
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


def log(world: Path, *words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in mcpguard(world, "log", "--format", "json", *words).stdout.splitlines()]


def test_a_task_that_was_audited_runs_enforced_with_what_was_learned(world: Path) -> None:
    put_wheel(world / "project")
    task = ("--", "bash", "-c", TASK)
    assert mcpguard(world, "run", "-p", "narrow", *task, check=False).returncode != 0, (
        "the profile is too narrow for it"
    )
    assert log(world, "--verdict", "deny")

    mcpguard(world, "run", "--audit", "-p", "narrow", *task)
    assert log(world, "--verdict", "audit")
    learned = mcpguard(world, "profile", "learn", "--install", "--yes", "--name", "learned")
    assert "~/.tool/" in learned.stdout and "~/notes" in learned.stdout
    mcpguard(world, "profile", "check", "learned")

    subprocess.run(["rm", "-rf", *map(str, (world / "project").iterdir())], check=True)
    put_wheel(world / "project")
    mcpguard(world, "run", "-p", "learned", *task)
    loud = [event for event in log(world, "--verdict", "deny") if not event.get("detail", "").startswith("quiet")]
    assert loud == []


def test_an_audited_run_names_the_variables_that_a_rule_kept_back(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning does not see them; what is in them is not shown."""
    monkeypatch.setenv("SOME_TOKEN", "hunter2")
    told = mcpguard(world, "run", "--audit", "-p", "narrow", "--", "true").stderr
    assert "variables that the agent did not get" in told and "SOME_TOKEN" in told and "hunter2" not in told
    assert "SOME_TOKEN" not in mcpguard(world, "run", "-p", "narrow", "--", "true").stderr


def test_an_audited_task_writes_where_no_rule_leads(world: Path) -> None:
    (world / "project/.env").write_text("TOKEN=1")
    with tempfile.TemporaryDirectory(dir="/srv") as elsewhere:
        task = ("--", "sh", "-c", f"echo x > {elsewhere}/made; cat .env")
        assert mcpguard(world, "run", "-p", "narrow", *task, check=False).returncode != 0
        assert not Path(elsewhere, "made").exists()
        told = {event["path"]: event["rule"]["text"] for event in log(world, "--verdict", "deny") if event.get("rule")}
        assert told[f"{elsewhere}/made"] == "no rule allows it" and ".env" in told[str(world / "project/.env")]
        done = mcpguard(world, "run", "--audit", "-p", "narrow", *task, check=False)
        assert Path(elsewhere, "made").read_text() == "x\n"
    assert "TOKEN" not in done.stdout
    assert [event["path"] for event in log(world, "--verdict", "audit") if event.get("path", "").endswith("/made")]


def test_what_was_learned_opens_no_key_and_no_start_up_file(world: Path) -> None:
    greedy = "cat ~/.ssh/id_ed25519; echo x >> ~/.bashrc; echo x > ~/.tool; cat ~/notes/n1"
    mcpguard(world, "run", "--audit", "-p", "narrow", "--", "bash", "-c", greedy, check=False)
    told = mcpguard(world, "profile", "learn", "--install", "--yes", "--name", "learned")
    assert "~/.ssh/id_ed25519" in told.stderr and "left out" in told.stderr
    written = (world / "guard/config/profiles/learned.yaml").read_text()
    assert ".ssh" not in written and ".bashrc" not in written
    # A name that comes later is told in tier 3, not stopped, and audit stops nothing.
    (world / "home/.bashrc").unlink(missing_ok=True)
    done = mcpguard(world, "run", "-p", "learned", "--", "bash", "-c", greedy, check=False)
    assert "secret" not in done.stdout and "note" in done.stdout
    assert not (world / "home/.bashrc").exists()
    told = {event.get("path") for event in log(world, "--verdict", "deny")}
    assert {str(world / "home" / name) for name in (".ssh/id_ed25519", ".bashrc")} <= told
