"""`run --ask`: nothing waits for an answer, and nobody inside can give one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import need_root

pytestmark = pytest.mark.kernel

KNOCK = """\
import os, pathlib, socket, sys
address, answers = ("127.0.0.1", int(sys.argv[1])), pathlib.Path(sys.argv[2])
for attempt in range(2):
    try:
        socket.create_connection(address, 30).close()
        print("connected")
    except PermissionError:
        print("refused")
    forged = answers / f"{os.environ.get('MCPGUARD_SESSION', 'none')}.jsonl"
    for name in (forged, answers / "other.jsonl"):
        try:
            with open(name, "a") as file:
                file.write('["x", "session"]\\n')
            print("forged")
        except OSError:
            print("kept")
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture
def world(tmp_path: Path) -> Path:
    need_root()
    for name in ("home", "guard/state/questions", "project", "tmp"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "project/knock.py").write_text(KNOCK)
    return tmp_path


def mcpguard(world: Path, *words: str) -> subprocess.CompletedProcess[str]:
    places = {"HOME": world / "home", "MCPGUARD_HOME": world / "guard", "TMPDIR": world / "tmp"}
    return subprocess.run(
        [sys.executable, "-m", "mcpguard", *words],
        env=dict(os.environ) | {name: str(place) for name, place in places.items()},
        cwd=world / "project",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def events(world: Path, *words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in mcpguard(world, "log", "--format", "json", *words).stdout.splitlines()]


def test_what_no_rule_covers_is_refused_at_once_and_answered_by_nobody_inside(
    world: Path, listener: socket.socket
) -> None:
    answers = world / "guard/state/questions"
    knock = ("knock.py", str(listener.getsockname()[1]), str(answers))
    unguarded = subprocess.run(
        [sys.executable, *knock], cwd=world / "project", capture_output=True, text=True, check=True, timeout=60
    )
    assert unguarded.stdout.split() == ["connected", "forged", "forged"] * 2
    for made in answers.iterdir():
        made.unlink()
    done = mcpguard(world, "run", "--ask", "--", "python3", *knock)
    assert done.stdout.split() == ["refused", "kept", "kept"] * 2
    (kept,) = answers.iterdir()
    assert kept.read_text() == "" and kept.stem in done.stderr
    said = [line for line in done.stderr.splitlines() if f"a question in: mcpguard watch {kept.stem}" in line]
    assert len(said) == 2 and done.stderr.splitlines()[0] == said[0]
    refused = events(world, "--verdict", "deny", "--kind", "net")
    assert {event["rule"]["file"] for event in refused if event.get("port") == listener.getsockname()[1]} == {"default"}
    written = [event for event in events(world, "--verdict", "deny") if "questions" in event.get("path", "")]
    assert {Path(event["path"]).name for event in written} >= {kept.name}
    assert [
        json.loads(line)["modes"] for line in mcpguard(world, "sessions", "--format", "json").stdout.splitlines()
    ] == [["ask"]]


def test_without_ask_nothing_is_a_question(world: Path) -> None:
    done = mcpguard(world, "run", "--", "true")
    assert done.returncode == 0 and "question" not in done.stderr
    assert list((world / "guard/state/questions").iterdir()) == []


def test_where_answers_cannot_be_kept_nothing_is_started(world: Path) -> None:
    (world / "guard/state/questions").rmdir()
    (world / "guard/state/questions").write_text("")
    done = mcpguard(world, "run", "--ask", "--", "touch", "ran")
    assert done.returncode == 125 and "cannot be written" in done.stderr
    assert not (world / "project/ran").exists()
