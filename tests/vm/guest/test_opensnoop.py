"""Another's eyes on the same tree: every open that BCC's opensnoop sees in it stands in our record.

opensnoop knows nothing of our leaf. The guarded run belongs to a user who has no other processes than mcpguard's own, so who
belongs to the tree is known without asking our record.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import arena
import pytest
from arena import Finished, Json, Sandbox, World
from asked import Lane

from mcpguard.broker.__main__ import NAME
from mcpguard.session.recording import SKIPPED

pytestmark = pytest.mark.kernel

OPENSNOOP = "/usr/sbin/opensnoop-bpfcc"
# It compiles its programs first.
START_SECONDS = 300
BUFFER_PAGES = 1024
O_PATH = 0o10000000
LINE = re.compile(
    r"(?P<uid>\d+) +(?P<pid>\d+) +(?P<comm>.+?) +-?(?P<fd>\d+) +(?P<err>\d+) (?P<flags>[0-7]+) (?P<path>.*)"
)
# What starts mcpguard, mcpguard itself, whom it asks for libraries, and what becomes the agent until it executes. Nothing
# in the tree has these names.
OURS = ("setpriv", "sudo", "ldconfig", NAME, Path(sys.executable).name, Path(sys.executable).resolve().name)
PROFILE = """\
name: matrix
extends: [dev-tools]
files:
  write: ["{workspace}"]
  readonly: ["{workspace}/locked"]
  deny: ["{workspace}/vault"]
"""
SCRIPT = """
cat app.py vault/key
head -n 1 ../project/app.py /etc/hostname /proc/self/status
python3 -c 'import json, pathlib; pathlib.Path("app.py").read_text(); open("made", "w").write("x")'
cp app.py copy.py
ln -s copy.py alias && cat alias
ls -la vault locked
for round in 1 2 3 4 5; do sh -c 'exec 3<app.py 4>>locked/file'; done
rm made; (echo again > made) & wait
git status --short
grep -rn greet sub
find sub -name none
true
"""


@dataclass(frozen=True)
class Seen:
    """One line of opensnoop's."""

    pid: int
    comm: str
    error: int
    path: str


@dataclass(frozen=True)
class Watched:
    """A guarded run, what opensnoop saw of it, and what we have on record."""

    world: World
    finished: Finished
    seen: list[Seen]
    events: list[Json]


class Witness:
    """A running opensnoop."""

    def __init__(self, folder: Path) -> None:
        self._marks = folder / "marks"
        self._marks.mkdir()
        self._output = folder / "output"
        command = [OPENSNOOP, "-U", "-e", "-b", str(BUFFER_PAGES)]  # user, flags, room for what it has not printed yet
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with self._output.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)

    def text(self) -> str:
        return self._output.read_text(errors="replace")

    def catch_up(self, name: str) -> None:
        """Wait until it tells of an open that begins now: then it has told of all before."""
        mark = str(self._marks / name)
        deadline = time.monotonic() + START_SECONDS
        while mark not in self.text():
            assert self._process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()[-3000:]
            Path(mark).write_bytes(b"")
            time.sleep(0.5)

    def end(self) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def watching(folder: Path) -> Iterator[Witness]:
    witness = Witness(folder)
    try:
        witness.catch_up("begin")
        yield witness
        witness.catch_up("end")
    finally:
        witness.end()


def lines_of(text: str, user: str) -> list[Seen]:
    """What opensnoop told of a user's processes but ours. An open that is no access (O_PATH) is not on record, and left out."""
    uid = subprocess.run(["id", "-u", user], check=True, capture_output=True, text=True).stdout.strip()
    found = [match for match in map(LINE.fullmatch, text.splitlines()) if match and match["uid"] == uid]
    chosen = [match for match in found if match["comm"] not in OURS and not int(match["flags"], 8) & O_PATH]
    return [Seen(int(match["pid"]), match["comm"], int(match["err"]), match["path"]) for match in chosen]


@pytest.fixture(scope="module")
def watched(lane: Lane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    if not lane.headers:
        lane.not_here("opensnoop compiles its programs, and this kernel's headers are not here")
    with arena.somebody() as user, arena.world_at(Path("/vmtmp/worlds")) as world:
        sandbox = Sandbox(world, prefix=arena.as_user(user))
        sandbox.write_profile("matrix", PROFILE)
        world.plant(world.project / "vault/key")
        for name in ("locked/file", "sub/greet.txt", "sub/deeper/greet.txt"):
            (world.project / name).parent.mkdir(parents=True, exist_ok=True)
            (world.project / name).write_text("greet\n")
        arena.give(world.root, user)
        with watching(tmp_path_factory.mktemp("witness")) as witness:
            finished = sandbox.run(["bash", "-c", SCRIPT], timeout=arena.RUN_SECONDS)
        arena.give(world.state, "root")
        yield Watched(world, finished, lines_of(witness.text(), user), arena.recorded(world))


def ends_of(watched: Watched, seen: Seen) -> tuple[set[str], str]:
    """What an open may be called in our record: whole names, and for a name below an unknown folder its end."""
    path = seen.path.replace("/proc/self/", f"/proc/{seen.pid}/")
    whole = os.path.normpath(watched.world.project / path)
    return {whole, os.path.realpath(whole)}, "" if path.startswith("/") else f"/{path.lstrip('./')}"


def is_about(event: Json, whole: set[str], end: str) -> bool:
    path = event.get("path", "")
    return path in whole or (bool(end) and path.endswith(end))


def test_the_witness_saw_the_work(watched: Watched) -> None:
    assert watched.finished.code == 0, watched.finished
    opened = Counter(seen.path for seen in watched.seen if not seen.error)
    refused = Counter(seen.path for seen in watched.seen if seen.error == errno.EACCES)
    assert len(watched.seen) > 100
    assert opened["app.py"] >= 7
    assert opened["made"] == 2
    assert refused["vault/key"] == 1
    assert {seen.comm for seen in watched.seen} >= {"cat", "cp", "git", "bash", "sh", "python3", "grep", "find", "ls"}


def test_every_open_that_succeeded_is_on_record_as_often_as_it_happened(
    watched: Watched, tier: int, lane: Lane
) -> None:
    # A hook that the kernel skips there is told, and takes no open from the record: that is made at the end of the call.
    inherent = {SKIPPED} if tier == 2 and lane.preempts else set()
    assert not [event for event in watched.events if event["kind"] == "loss" and event["detail"] not in inherent]
    told = [
        e for e in watched.events if e["kind"] == "file" and e["op"] in ("open", "create") and e["verdict"] != "deny"
    ]
    missing = []
    for seen, times in Counter(seen for seen in watched.seen if not seen.error).items():
        whole, end = ends_of(watched, seen)
        found = sum(e.get("count", 1) for e in told if e["pid"] == seen.pid and is_about(e, whole, end))
        if found < times:
            missing.append(f"{times} times {seen}, {found} on record")
    assert not missing, "\n".join(missing)


def test_every_open_that_was_refused_is_on_record(watched: Watched) -> None:
    told = [event for event in watched.events if event["kind"] == "file" and event["verdict"] == "deny"]
    refused = [seen for seen in watched.seen if seen.error in (errno.EACCES, errno.EPERM, errno.EROFS)]
    assert len([seen for seen in refused if seen.path == "locked/file"]) == 5
    missing = [
        seen
        for seen in refused
        if not [e for e in told if e["pid"] == seen.pid and is_about(e, *ends_of(watched, seen))]
    ]
    assert missing == []
