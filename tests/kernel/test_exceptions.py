"""What a profile of one's own excepts from a built-in denial is open in a run of it, and nothing beside that."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import need_root

pytestmark = pytest.mark.kernel

FILES = (".ssh/id_ci", ".ssh/id_ed25519", ".npmrc")
EXCEPTION = """\
name: default
extends: [default]
files:
  read: [~/.ssh/id_ci]
  except: [~/.ssh/id_ci]
"""
LOOK = "for name in .ssh/id_ci .ssh/id_ed25519 .npmrc; do cat ~/$name 2>/dev/null || echo refused; done; echo x >> ~/.ssh/id_ci"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    need_root()
    # Below the temporary directory everything is open, so the home must lie elsewhere.
    for name in ("home/.ssh", "guard/config/profiles", "project", "tmp"):
        (tmp_path / name).mkdir(parents=True)
    for name in FILES:
        (tmp_path / "home" / name).write_text(f"{name}\n")
    return tmp_path


def run(world: Path, *words: str) -> subprocess.CompletedProcess[str]:
    places = {"HOME": world / "home", "MCPGUARD_HOME": world / "guard", "TMPDIR": world / "tmp"}
    return subprocess.run(
        [sys.executable, "-m", "mcpguard", "run", *words, "--", "sh", "-c", LOOK],
        env=dict(os.environ) | {name: str(place) for name, place in places.items()},
        cwd=world / "project",
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def denied(world: Path) -> set[str]:
    """What the latest run refused by a rule, of the user's files."""
    places = {"HOME": world / "home", "MCPGUARD_HOME": world / "guard", "TMPDIR": world / "tmp"}
    told = subprocess.run(
        [sys.executable, "-m", "mcpguard", "log", "--verdict", "deny", "--format", "json"],
        env=dict(os.environ) | {name: str(place) for name, place in places.items()},
        capture_output=True,
        check=True,
    ).stdout.splitlines()
    events = [event for event in map(json.loads, told) if event.get("path", "").startswith(f"{world}/home/")]
    assert all(event["rule"]["text"] for event in events), events
    return {event["path"] for event in events}


def test_an_exception_opens_its_path_for_what_is_allowed_and_nothing_else(world: Path) -> None:
    unguarded = [(world / "home" / name).read_text() for name in FILES]
    assert unguarded == [f"{name}\n" for name in FILES]
    assert run(world).stdout.split() == ["refused"] * 3
    assert denied(world) == {str(world / "home" / name) for name in FILES}
    (world / "guard/config/profiles/default.yaml").write_text(EXCEPTION)
    assert run(world).stdout.split() == [".ssh/id_ci", "refused", "refused"]
    assert denied(world) == {str(world / "home" / name) for name in FILES}  # the first one for the writing
    assert (world / "home/.ssh/id_ci").read_text() == ".ssh/id_ci\n"


def test_a_profile_that_a_project_brings_excepts_nothing(world: Path) -> None:
    brought = world / "project/default.yaml"
    brought.write_text(EXCEPTION.replace("default", "theirs"))
    record = world / "guard/state/trusted-profiles.json"
    record.parent.mkdir()
    record.write_text(json.dumps({hashlib.sha256(brought.read_bytes()).hexdigest(): str(brought)}))
    refused = run(world, "-p", str(brought))
    assert refused.returncode == 125 and "files.except is only for profiles of your own" in refused.stderr
