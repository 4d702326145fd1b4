"""What holds when the guard itself is killed, and what a program is born with."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from harness import SYSTEM_PYTHON, TERMINAL_LEADER, Sandbox, mcpguard_command, need_root, sandbox
from matrix import equip

pytestmark = pytest.mark.kernel

PROFILE = """\
name: matrix
extends: [dev-tools]
files:
  write: ["{workspace}"]
  execute: ["{workspace}"]
"""
PATIENCE_SECONDS = 90
CGROUPS = next(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if " cgroup2 " in line)


@pytest.fixture
def box() -> Iterator[Sandbox]:
    need_root()
    with sandbox() as made:
        equip(made.world)
        made.write_profile("matrix", PROFILE)
        yield made


def wait_until(fact: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not fact():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.01)


def waiting_reader(box: Sandbox) -> tuple[list[str], Path, Path, Path]:
    """A command that waits for a word and then reads the planted key, and its three message files."""
    project = box.world.project
    ready, go, result = (project / name for name in ("ready", "go", "result"))
    args = {"ready": str(ready), "go": str(go), "result": str(result), "path": str(box.world.home / ".ssh/id_ed25519")}
    plan = project / "plan.json"
    plan.write_text(json.dumps([{"id": "wait", "act": "wait_and_read", "args": args}]))
    return [SYSTEM_PYTHON, "-B", "acts.py", "plan.json"], ready, go, result


def start(box: Sandbox, command: list[str]) -> subprocess.Popen[bytes]:
    words = [*mcpguard_command(), "run", "-p", "matrix", "-w", str(box.world.project), "--", *command]
    return subprocess.Popen(
        words,
        cwd=box.world.project,
        env=box.world.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def guards_of(process: subprocess.Popen[bytes], guarded_pid: int) -> list[psutil.Process]:
    """Every process of mcpguard's own: the ones between the command and the guarded program, and their helpers."""
    family = psutil.Process(process.pid).children(recursive=True)
    tree = {guarded_pid, *(child.pid for child in psutil.Process(guarded_pid).children(recursive=True))}
    parent = psutil.Process(guarded_pid).parent()
    programs = {parent.pid} if parent and "acts.py" in parent.cmdline() else set()
    return [psutil.Process(process.pid), *(child for child in family if child.pid not in tree | programs)]


def test_killing_every_process_of_the_guard_leaves_the_tree_confined_or_ended(box: Sandbox) -> None:
    command, ready, go, result = waiting_reader(box)
    with start(box, command) as process:
        wait_until(ready.exists, "the guarded program")
        wait_until(lambda: bool(ready.read_text()), "its pid")
        pid = int(ready.read_text())
        for guard in guards_of(process, pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                guard.kill()
        process.wait()
        go.touch()
        wait_until(lambda: result.exists() or not psutil.pid_exists(pid), "the end of the read")
        key = box.world.canaries[box.world.home / ".ssh/id_ed25519"]
        assert not result.exists() or key not in result.read_text()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_the_reader_of_that_test_does_read_without_mcpguard(box: Sandbox) -> None:
    command, _, go, result = waiting_reader(box)
    go.touch()
    box.control(command)
    assert box.world.canaries[box.world.home / ".ssh/id_ed25519"] in result.read_text()


TICKS = "(while :; do date +%N > tick; done) & while [ ! -s tick ]; do :; done; echo $$ > ready; kill -STOP $$; wait"


def test_an_agent_that_stops_itself_stops_all_of_its_tree(box: Sandbox) -> None:
    """Else what it left running would act while nobody puts covers back or reads the record."""
    ready, tick = box.world.project / "ready", box.world.project / "tick"
    with start(box, ["sh", "-c", TICKS]) as process:
        try:
            wait_until(lambda: ready.exists() and ready.read_text().endswith("\n"), "the guarded program")
            agent = psutil.Process(int(ready.read_text()))
            guard = agent.parent()
            assert guard is not None
            wait_until(lambda: guard.status() == psutil.STATUS_STOPPED, "the stop of the guard")
            leaf = Path(f"/proc/{agent.pid}/cgroup").read_text().rpartition("0::")[2].strip()
            events = Path(f"{CGROUPS}{leaf}/cgroup.events")
            wait_until(lambda: "frozen 1" in events.read_text(), "the stillness of the tree")
            before = tick.read_text()
            for member in (guard, *guards_of(process, agent.pid)):
                member.send_signal(signal.SIGCONT)
            wait_until(lambda: tick.read_text() not in ("", before), "its going on")
        finally:
            # All of them are one process group, as in a shell's job.
            os.killpg(process.pid, signal.SIGKILL)


# A shell's job: stopped from the terminal only where somebody of the same session, in another group, waits for it.
JOB = """import os, signal, sys
if os.fork() == 0:
    os.setpgid(0, 0)
    os.execvp(sys.argv[1], sys.argv[1:])
signal.pause()"""
APART = (
    "setsid sh -c 'while :; do date +%N > tick; done' & while [ ! -s tick ]; do :; done; echo $$ > ready; sleep 300; :"
)


def test_a_stop_from_the_terminal_stops_what_has_left_the_job(box: Sandbox) -> None:
    """The guard lets the agent be stopped first: stopped before, it could not have the rest of the tree stand still."""
    ready, tick = box.world.project / "ready", box.world.project / "tick"
    words = [*mcpguard_command(), "run", "-p", box.profile, "-w", str(box.world.project), "--", "sh", "-c", APART]
    job = subprocess.Popen(
        [SYSTEM_PYTHON, "-c", JOB, *words],
        cwd=box.world.project,
        env=box.world.environment(**box.variables),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(lambda: ready.exists() and ready.read_text().endswith("\n"), "the guarded program")
        agent = int(ready.read_text())
        leaf = Path(f"/proc/{agent}/cgroup").read_text().rpartition("0::")[2].strip()
        os.killpg(os.getpgid(agent), signal.SIGTSTP)
        wait_until(
            lambda: "frozen 1" in Path(f"{CGROUPS}{leaf}/cgroup.events").read_text(), "the stillness of the tree"
        )
        before = tick.read_text()
        os.killpg(os.getpgid(agent), signal.SIGCONT)
        wait_until(lambda: tick.read_text() not in ("", before), "its going on")
    finally:
        for process in (*psutil.Process(job.pid).children(recursive=True), job):
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
        job.wait()


def test_a_descriptor_that_was_open_before_is_closed(box: Sandbox) -> None:
    key = box.world.home / ".ssh/id_ed25519"
    descriptor = os.open(key, os.O_RDONLY)
    try:
        words = ["bash", "-c", f"echo began; cat <&{descriptor}"]
        assert box.world.canaries[key] in box.control(words, pass_fds=[descriptor]).out
        os.lseek(descriptor, 0, os.SEEK_SET)
        guarded = box.run(words, pass_fds=[descriptor])
        assert guarded.code != 0
        # There is nothing to be refused: the number stands for nothing.
        assert guarded.out == "began\n" and "Bad file descriptor" in guarded.err, guarded
    finally:
        os.close(descriptor)


def test_the_first_instruction_of_the_program_is_already_confined(box: Sandbox) -> None:
    key = box.world.home / ".ssh/id_ed25519"
    words = ["./acts", "cat", str(key)]
    assert box.world.canaries[key] in box.control(words).out
    guarded = box.run(words)
    assert guarded.code == 13, guarded
    assert guarded.out == ""
    box.assert_told(str(key), "~/.ssh")


def on_a_terminal(box: Sandbox, words: list[str]) -> int:
    """The exit code of a program that has a terminal of its own as its controlling one."""
    master, slave = pty.openpty()
    try:
        return subprocess.run(
            [SYSTEM_PYTHON, "-c", TERMINAL_LEADER, *words],
            cwd=box.world.project,
            env=box.world.environment(),
            stdin=slave,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE_SECONDS,
            check=False,
        ).returncode
    finally:
        os.close(master)
        os.close(slave)


def test_nothing_can_be_typed_into_the_persons_terminal(box: Sandbox) -> None:
    typing = ["./acts", "type-ahead", "echo evil"]
    switch = Path("/proc/sys/dev/tty/legacy_tiocsti")
    if not switch.exists() or switch.read_text().strip() == "1":
        assert on_a_terminal(box, typing) == 0
    guarded = [*mcpguard_command(), "run", "-p", "matrix", "-w", str(box.world.project), "--", *typing]
    assert on_a_terminal(box, guarded) in (1, 13)
    (told,) = [e for e in box.denials() if e["op"] == "ioctl"]
    assert "typing" in told["rule"]["text"]


PASTE = """
import errno, fcntl, sys
try:
    fcntl.ioctl(0, 0x541C, bytearray([int(sys.argv[1])]))
except OSError as error:
    sys.exit(error.errno)
"""


@pytest.mark.parametrize("what", ["2", "3", "6"], ids=["select", "paste", "ask"])
def test_nothing_can_be_pasted_into_the_persons_console(what: str, box: Sandbox) -> None:
    """Only consoles know it; on another terminal the question comes to its driver without us. `guest/attacks` has a console."""
    pasting = [SYSTEM_PYTHON, "-c", PASTE, what]
    assert on_a_terminal(box, pasting) == errno.ENOTTY
    guarded = [*mcpguard_command(), "run", "-p", "matrix", "-w", str(box.world.project), "--", *pasting]
    assert on_a_terminal(box, guarded) == errno.EPERM
    (told,) = [e for e in box.denials() if e["op"] == "ioctl"]
    assert "typing" in told["rule"]["text"]


SNAPSHOT = """
import errno, fcntl, os, struct, sys
folder, name = sys.argv[1:]
try:
    at = os.open(folder, os.O_RDONLY)
    fcntl.ioctl(at, 0x50009417, bytearray(struct.pack("<qQQ32x4040s", at, 0, 0, name.encode())))
    print(open(f"{folder}/{name}/hidden/key").read())
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def test_no_snapshot_shows_what_is_covered(box: Sandbox) -> None:
    """A second view of a btrfs subvolume has no covers. Without us the question comes to the file system."""
    words = [SYSTEM_PYTHON, "-c", SNAPSHOT, box.world.project, "snap"]
    assert box.control(words).out.strip() in ("ENOTTY", "EINVAL", "EXDEV")
    assert box.run(words).out.strip() == "EPERM"
    (told,) = [e for e in box.denials() if e["op"] == "ioctl"]
    assert "snapshots" in told["rule"]["text"]


def need(kind: str) -> None:
    """Stop where the kernel has no such file system; where tests are required, that is a failure like every skip."""
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "-q", kind], check=False)
    if f"\t{kind}\n" not in Path("/proc/filesystems").read_text():
        pytest.skip(f"needs {kind}")


@contextlib.contextmanager
def btrfs(place: Path) -> Iterator[Path]:
    """A folder of a btrfs; a guest of the lanes has one that is mounted already."""
    if os.path.ismount("/vmbtrfs/a"):
        yield Path("/vmbtrfs/a")
        return
    need("btrfs")
    image, mounted = place / "image", place / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(128 << 20)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, mounted], check=True)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_in_tier_3_no_snapshot_of_a_real_subvolume_shows_what_is_covered(box: Sandbox, tmp_path: Path) -> None:
    """There the file is read by another name, as long as nobody is asked but the file system and Landlock."""
    box.write_profile("matrix", f'{PROFILE}  deny: ["{{workspace}}/hidden"]\n')
    with btrfs(tmp_path) as mounted:
        folder = mounted / "subvolume"
        make_subvolume(folder)
        (folder / "hidden").mkdir()
        (folder / "hidden/key").write_text("of the subvolume\n")
        command = [SYSTEM_PYTHON, "-c", SNAPSHOT, str(folder)]
        assert box.control([*command, "by-us"]).out.strip() == "of the subvolume"
        shutil.move(folder / "by-us", mounted / "by-us")
        guarded = ["run", "-p", "matrix", "-w", str(folder), "--tier", "3", "--"]
        ran = box.mcpguard(*guarded, "sh", "-c", 'echo here >"$0/made"; cat "$0/made" "$0/hidden/key"', str(folder))
        assert ran.out == "here\n", ran
        assert box.mcpguard(*guarded, *command, "by-the-tree").out.strip() == "EPERM"
        assert sorted(os.listdir(folder)) == ["hidden", "made"]
        (told,) = [e for e in box.denials() if e["op"] == "ioctl"]
        assert "snapshots" in told["rule"]["text"]


def make_subvolume(folder: Path) -> None:
    at = os.open(folder.parent, os.O_RDONLY)
    try:
        fcntl.ioctl(at, 0x5000940E, bytearray(struct.pack("<q4088s", 0, folder.name.encode())))
    finally:
        os.close(at)


def test_nothing_of_a_session_is_left_on_the_host(box: Sandbox) -> None:
    before = host_traces()
    assert box.run(["true"]).code == 0
    assert host_traces() == before
    killed = box.run(["sh", "-c", "kill -9 $$"])
    assert killed.code == 137
    assert host_traces() == before


def host_traces() -> tuple[str, list[str], list[str]]:
    """The mounts, the cgroups and the pinned BPF objects of the host, as far as they are mcpguard's."""
    mounts = Path("/proc/self/mountinfo").read_text()
    cgroup = next(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if " cgroup2 " in line)
    groups = sorted(str(path) for path in Path(cgroup).rglob("*") if path.is_dir() and "mcpguard" in path.name)
    pins = sorted(str(path) for path in Path("/sys/fs/bpf").rglob("*"))
    return mounts, groups, pins
