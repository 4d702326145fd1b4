"""Nothing is missing from a record without its reader being told, whatever happens to who writes it and where it is written."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from harness import RUN_SECONDS, Json, Sandbox, mcpguard_command, need_root, sandbox

from mcpguard.broker.__main__ import NAME
from mcpguard.kernel import cgroup

pytestmark = pytest.mark.kernel

PROFILE = "name: kept\nextends: [dev-tools]\nfiles:\n  write: ['{workspace}']\n"
# Says that it runs, waits for the word, and asks for something that it does not get.
ASKS = "touch ready; while [ ! -e go ]; do sleep 0.05; done; cat ~/.ssh/id_ed25519 .env; touch asked; true"

# More changes of names as long as they get than the ring of activity holds, and one look at a key half-way.
FLOODS = """
import os
for number in range(16_000):
    name = f"{number:0240}"
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600))
    os.unlink(name)
    if number == 8_000:
        try:
            os.open(os.path.expanduser("~/.ssh/id_ed25519"), os.O_RDONLY)
        except PermissionError:
            open("refused", "w").close()
"""


@pytest.fixture
def box() -> Iterator[Sandbox]:
    need_root()
    with sandbox() as made:
        made.write_profile("kept", PROFILE)
        yield made


def wait_until(fact: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + RUN_SECONDS
    while not fact():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.02)


@contextlib.contextmanager
def started(box: Sandbox, script: str = ASKS) -> Iterator[subprocess.Popen[str]]:
    """A guarded run on its way."""
    words = [*mcpguard_command(), "run", "-p", "kept", "-w", str(box.world.project), "--", "sh", "-c", script]
    with subprocess.Popen(
        words,
        cwd=box.world.project,
        env=box.world.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@contextlib.contextmanager
def running(box: Sandbox, script: str = ASKS) -> Iterator[subprocess.Popen[str]]:
    """A guarded run that waits for the word."""
    with started(box, script) as process:
        wait_until((box.world.project / "ready").exists, "the guarded program")
        yield process


def await_words(process: subprocess.Popen[str], words: str) -> None:
    """Read what it says until it says that."""
    assert process.stderr is not None
    assert any(words in line for line in iter(process.stderr.readline, "")), words


def go(box: Sandbox) -> None:
    (box.world.project / "go").touch()


def broker_of(process: subprocess.Popen[str]) -> psutil.Process:
    (broker,) = [child for child in psutil.Process(process.pid).children() if child.name() == NAME]
    return broker


def session_of(box: Sandbox) -> Json:
    """The latest session as `sessions` tells it."""
    found: Json = json.loads(box.mcpguard("sessions", "--format", "json").out.splitlines()[0])
    return found


def losses(box: Sandbox) -> list[str]:
    return [event["detail"] for event in box.events(None, "--kind", "loss")]


def key_was_refused(box: Sandbox) -> bool:
    return any(event.get("path") == str(box.world.home / ".ssh/id_ed25519") for event in box.denials())


@contextlib.contextmanager
def lock(box: Sandbox) -> Iterator[sqlite3.Connection]:
    """Another connection that has begun to write to the store."""
    other = sqlite3.connect(box.world.state / "state/events.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield other
    finally:
        other.close()


def test_an_undisturbed_run_is_complete(box: Sandbox) -> None:
    with running(box) as process:
        go(box)
        assert process.wait(RUN_SECONDS) == 0
    assert key_was_refused(box)
    assert losses(box) == []
    assert (session_of(box)["state"], session_of(box)["complete"]) == ("ended", True)


def test_a_run_ends_whose_broker_has_ended_while_the_tree_stood_still(box: Sandbox) -> None:
    """Nobody said that it does, and nobody would have it go on."""
    with running(box) as process:
        broker = broker_of(process)
        (agent,) = broker.children()
        place = Path(f"/proc/{agent.pid}/cgroup").read_text().rpartition("0::")[2].strip()
        leaf = Path(f"{cgroup.unified_mount()}{place}")
        (leaf / "cgroup.freeze").write_text("1")
        wait_until(lambda: "frozen 1" in (leaf / "cgroup.events").read_text(), "the standstill")
        broker.kill()
        try:
            assert process.wait(RUN_SECONDS) == 125
            await_words(process, "the broker ended while the agent was running")
        finally:
            (leaf / "cgroup.kill").write_text("1")


# Opens a readonly file for writing, by the name of a descriptor under another number.
REOPENS = """
import os
os.dup2(os.open(".git/config", os.O_RDONLY), 77)
os.open("/proc/self/fd/77", os.O_WRONLY)
"""


def test_a_refused_descriptor_is_told_by_its_file_and_rule_when_the_process_is_gone(box: Sandbox) -> None:
    (box.world.project / ".git").mkdir(exist_ok=True)
    config = box.world.project / ".git/config"
    config.touch()
    os.chown(config, box.world.project.stat().st_uid, box.world.project.stat().st_gid)
    (box.world.project / "reopen.py").write_text(REOPENS)
    assert box.control(["/usr/bin/python3", "reopen.py"]).code == 0
    with running(box, ASKS.replace("cat ~/.ssh/id_ed25519 .env", "/usr/bin/python3 reopen.py")) as process:
        process.send_signal(signal.SIGSTOP)
        try:
            go(box)
            wait_until((box.world.project / "asked").exists, "the end of the attempt")
        finally:
            process.send_signal(signal.SIGCONT)
        assert process.wait(RUN_SECONDS) == 0
    (denial,) = [event for event in box.denials() if event.get("op") == "open"]
    assert denial["path"] == str(config)
    assert ".git/config" in denial["rule"]["text"]


# Opens for writing what a link stands for in the folder where it is, and goes where the same name is nothing.
GOES_ELSEWHERE = """
import os, sys
home = os.getcwd()
for name in ("/proc/self/cwd/link", f"{home}/here/link"):
    os.chdir(home)
    try:
        os.open(name, os.O_WRONLY)
    except OSError:
        open("refused", "a").write(name)
    os.chdir("/proc/self/fd")
if sys.argv[1:]:
    open(f"{home}/gone", "w").close()
    open(f"{home}/end").read()
"""


def test_what_was_refused_below_ones_own_folder_is_told_when_the_process_has_gone_elsewhere(box: Sandbox) -> None:
    project = box.world.project
    (project / ".git").mkdir(exist_ok=True)
    config = project / ".git/config"
    config.touch()
    os.chown(config, project.stat().st_uid, project.stat().st_gid)
    (project / "link").symlink_to(".git/config")
    (project / "here").symlink_to("/proc/self/cwd")
    os.mkfifo(project / "end")
    (project / "elsewhere.py").write_text(GOES_ELSEWHERE)

    def opens_refused() -> list[Json]:
        return [event for event in box.denials() if event.get("op") == "open"]

    assert box.control(["/usr/bin/python3", "elsewhere.py"]).code == 0
    assert not (project / "refused").exists()
    with running(box, ASKS.replace("cat ~/.ssh/id_ed25519 .env", "/usr/bin/python3 elsewhere.py wait")) as process:
        process.send_signal(signal.SIGSTOP)
        try:
            go(box)
            wait_until((project / "gone").exists, "the end of the attempts")
        finally:
            process.send_signal(signal.SIGCONT)
        wait_until(lambda: sum(event.get("count", 1) for event in opens_refused()) > 1, "the record of the attempts")
        (project / "end").write_text("")
        assert process.wait(RUN_SECONDS) == 0
    assert (project / "refused").read_text() == f"/proc/self/cwd/link{project}/here/link"
    assert {event["path"] for event in opens_refused()} == {str(config)}


def test_a_flood_that_is_not_read_in_time_hides_no_denial(box: Sandbox) -> None:
    assert box.control(["cat", box.world.home / ".ssh/id_ed25519"]).code == 0
    (box.world.project / "flood.py").write_text(FLOODS)
    script = "touch ready; while [ ! -e go ]; do sleep 0.05; done; /usr/bin/python3 flood.py; touch asked"
    with running(box, script) as process:
        process.send_signal(signal.SIGSTOP)
        try:
            go(box)
            wait_until((box.world.project / "asked").exists, "the end of the flood")
        finally:
            process.send_signal(signal.SIGCONT)
        assert process.wait(RUN_SECONDS) == 0
    assert (box.world.project / "refused").exists()
    assert key_was_refused(box)
    told = losses(box)
    assert told and all("activity" in detail for detail in told), told
    assert session_of(box)["complete"] is False


def test_what_comes_after_the_recorder_was_killed_is_known_to_be_missing(box: Sandbox) -> None:
    with running(box) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(RUN_SECONDS)
        go(box)
        wait_until((box.world.project / "asked").exists, "the attempt of the tree that goes on")
    assert not key_was_refused(box), "the recorder was dead by then"
    assert ["mcpguard was killed" in detail for detail in losses(box)] == [True]
    assert (session_of(box)["state"], session_of(box)["complete"]) == ("interrupted", False)
    assert "+" in next(line for line in box.mcpguard("sessions").out.splitlines() if "interrupted" in line)
    assert "not complete" in box.mcpguard("log", "--verdict", "deny").err


def test_what_only_the_killed_broker_could_have_told_is_known_to_be_missing(box: Sandbox) -> None:
    script = f"(sleep 60 &) ; {ASKS}"
    with running(box, script) as process:
        broker_of(process).kill()
        go(box)
        assert process.wait(RUN_SECONDS) == 125
    assert key_was_refused(box), "the record goes on without it"
    told = losses(box)
    assert [detail for detail in told if "repeated acts" in detail], told
    assert [detail for detail in told if "went on after the record" in detail], told
    assert session_of(box)["complete"] is False
    box.run(["true"])  # clears away what the killed broker left


def test_a_lock_on_the_store_during_the_end_costs_nothing(box: Sandbox) -> None:
    with running(box) as process:
        with lock(box):
            go(box)
            await_words(process, "still writing the record")
        assert process.wait(RUN_SECONDS) == 0
    assert key_was_refused(box)
    assert losses(box) == []
    assert (session_of(box)["state"], session_of(box)["complete"]) == ("ended", True)


def test_a_lock_that_outlasts_the_run_is_known_to_the_next_reader(box: Sandbox) -> None:
    with running(box) as process:
        with lock(box):
            go(box)
            _out, err = process.communicate(timeout=RUN_SECONDS)
        assert process.returncode == 0
    assert "could not be stored" in err
    assert not key_was_refused(box), "there was no place for it"
    assert losses(box), "and the record says so"
    assert session_of(box)["complete"] is False


def test_a_lock_that_stands_before_the_run_is_waited_for(box: Sandbox) -> None:
    assert box.run(["true"]).code == 0
    go(box)
    with lock(box) as other, started(box) as process:
        await_words(process, "waiting for the event store")
        other.execute("ROLLBACK")
        assert process.wait(RUN_SECONDS) == 0
    assert [event["path"] for event in box.denials() if event.get("path", "").endswith(".env")]
    assert losses(box) == []


def test_a_run_without_a_store_is_known_to_the_next_reader(box: Sandbox) -> None:
    assert box.run(["true"]).code == 0
    with lock(box):
        finished = box.run(["cat", ".env"])
    assert "events are not stored" in finished.err
    for words in (("sessions",), ("log",)):
        assert "one run is not on record" in box.mcpguard(*words).err


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system that is full soon."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take all that is left on it."""
    ballast = disk / "ballast"
    fd = os.open(ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with contextlib.suppress(OSError):
        while True:
            os.write(fd, bytes(4096))
    os.close(fd)
    return ballast


def test_a_disk_that_is_full_until_the_end_is_known_to_the_next_reader(box: Sandbox) -> None:
    # More different refusals than may fit into what the store's own files have still free.
    script = f"{ASKS}; i=0; while [ $i -lt 300 ]; do i=$((i+1)); (: < ~/.ssh/no-such-name-$i); done 2>/dev/null; true"
    with small_disk(box.world.state / "state") as disk:
        with running(box, script) as process:
            ballast = fill(disk)
            go(box)
            _out, err = process.communicate(timeout=RUN_SECONDS)
        ballast.unlink()
        assert process.returncode == 0, err
        assert "could not be stored" in err
        assert losses(box)
        assert session_of(box)["complete"] is False
