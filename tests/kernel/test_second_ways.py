"""Second ways to the same thing: another mount of a file system, another terminal, shared memory, limits of a process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import SYSTEM_PYTHON, Sandbox, need_root, sandbox
from matrix import equip

pytestmark = pytest.mark.kernel

RULES = """name: second
extends: [dev-tools]
files:
  deny: ["{workspace}/vault"]
  readonly: ["{workspace}/fixed"]
"""


@pytest.fixture
def box() -> Iterator[Sandbox]:
    need_root()
    with sandbox() as made:
        made.write_profile("second", RULES)
        for name in ("vault", "fixed"):
            (made.world.project / name).mkdir()
            (made.world.project / name / "file").write_text("CONTENT")
        yield made


def mounted(what: Path, where: Path) -> tuple[str, ...]:
    """Words that run a program where `what` is bind-mounted on `where`, in a namespace that leaves no trace."""
    where.mkdir(exist_ok=True)
    return ("unshare", "-m", "sh", "-ec", f"mount --bind '{what}' '{where}'; exec \"$@\"", "sh")


@pytest.mark.parametrize(
    ("act", "place"),
    [("cat {}/vault/file", "vault/file"), ("echo x > {}/fixed/file", "fixed/file")],
    ids=["read hidden", "write readonly"],
)
def test_a_second_mount_of_the_project_opens_nothing(box: Sandbox, act: str, place: str) -> None:
    alias = box.world.root / "alias"
    box.prefix = mounted(box.world.project, alias)
    command = ["sh", "-c", act.format(alias)]
    assert box.control(command).code == 0
    assert box.run(command).code != 0
    box.assert_told(place)
    assert box.run(["sh", "-c", "echo honest > made && cat made"]).out == "honest\n"


@pytest.mark.parametrize("act", ["cat mnt/.ssh/id_ed25519", "echo x >> mnt/.bashrc"])
def test_the_home_bound_into_the_project_stays_the_home(box: Sandbox, act: str) -> None:
    box.prefix = mounted(box.world.home, box.world.project / "mnt")
    assert box.control(["sh", "-c", act]).code == 0
    assert box.run(["sh", "-c", act]).code != 0
    box.assert_told(act.rpartition("mnt")[2])


def test_what_the_host_mounted_read_only_stays_so(box: Sandbox) -> None:
    inner = box.world.project / "inner"
    inner.mkdir()
    words = f"mount --bind '{inner}' '{inner}'; mount -o remount,bind,ro '{inner}'; exec \"$@\""
    assert box.run(["sh", "-c", "echo x > inner/file"]).code == 0
    box.prefix = ("unshare", "-m", "sh", "-ec", words, "sh")
    finished = box.run(["sh", "-c", "echo honest; echo x > inner/other"])
    assert finished.code != 0 and finished.out == "honest\n", finished
    box.assert_told("inner/other", None)


WAITS = """touch ready; while [ ! -e replaced ]; do sleep 0.05; done
for _ in $(seq 100); do {act} 2>/dev/null || {{ echo refused; exit; }}; sleep 0.1; done; echo open"""


# Who takes orphans in is woken by the end of each, many times in the second after which it would look at its covers.
ORPHANS = "(while kill -0 $$; do sh -c 'sleep 0.02 &'; sleep 0.02; done) >/dev/null 2>&1 & "


@pytest.mark.parametrize(
    ("place", "act", "before"),
    [
        ("vault/file", "cat vault/file > copy", ""),
        (".env", "cat .env > copy", ORPHANS),
        (".git/config", "echo x >> .git/config", ""),
    ],
)
def test_a_protected_file_that_is_replaced_outside_is_covered_again(
    box: Sandbox, place: str, act: str, before: str
) -> None:
    project = box.world.project
    script = ["sh", "-c", before + WAITS.format(act=act)]

    def replace() -> None:
        while not (project / "ready").exists():
            time.sleep(0.05)
        fresh = project / "fresh"
        fresh.write_text((project / place).read_text())
        fresh.replace(project / place)
        (project / "replaced").touch()

    (project / ".env").write_text("TOKEN=1")
    for run, expected in ((box.control, "open"), (box.run, "refused")):
        for name in ("ready", "replaced"):
            (project / name).unlink(missing_ok=True)
        outside = threading.Thread(target=replace)
        outside.start()
        assert run(script).out.split()[-1:] == [expected]
        outside.join()
    box.assert_told(place)


def test_another_terminal_of_the_user_cannot_be_opened(box: Sandbox) -> None:
    master, slave = os.openpty()
    try:
        act = ["sh", "-c", f"echo fake prompt > {os.ttyname(slave)}"]
        assert box.control(act).code == 0
        assert box.run(act).code != 0
        box.assert_told(os.ttyname(slave), None)
        own = (
            "import os,pty; pty.spawn(['true']); m, s = os.openpty(); os.write(s, b'x'); print(os.read(m, 1).decode())"
        )
        assert box.run([SYSTEM_PYTHON, "-c", own]).out.strip().endswith("x")
    finally:
        os.close(master)
        os.close(slave)


def test_shared_memory_of_others_is_out_of_sight(box: Sandbox) -> None:
    outside = Path(f"/dev/shm/mcpguard-test-{os.getpid()}")
    outside.write_text("shared")
    try:
        act = ["cat", str(outside)]
        assert box.control(act).out == "shared"
        hidden = box.run(act)
        # There is no such name inside, so nothing is refused.
        assert hidden.code != 0 and "No such file" in hidden.err, hidden
        assert box.run(["sh", "-c", "echo mine > /dev/shm/own && cat /dev/shm/own"]).out == "mine\n"
    finally:
        outside.unlink()


def test_a_process_outside_is_not_killed_when_something_arrives_in_a_pipe(box: Sandbox) -> None:
    equip(box.world)
    for run, alive in ((box.control, False), (box.run, True)):
        with subprocess.Popen(["sleep", "60"]) as victim:
            args = {"pid": victim.pid, "number": int(signal.SIGKILL)}
            (box.world.project / "plan.json").write_text(
                json.dumps([{"id": "x", "act": "signal_by_arrival", "args": args}])
            )
            run([SYSTEM_PYTHON, "-B", "acts.py", "plan.json"])
            # What was sent has arrived when the sender has ended.
            assert (victim.poll() is None) is alive
            victim.kill()


def test_limits_of_a_process_outside_cannot_be_set(box: Sandbox) -> None:
    act = "import resource, sys; resource.prlimit(int(sys.argv[1]), resource.RLIMIT_CORE, (0, 0))"
    with subprocess.Popen(["sleep", "60"]) as victim:
        try:
            assert box.control([SYSTEM_PYTHON, "-c", act, str(victim.pid)]).code == 0
            refused = box.run([SYSTEM_PYTHON, "-c", act, str(victim.pid)])
            assert refused.code != 0
            assert "PermissionError" in refused.err
            (told,) = [event for event in box.denials() if event["op"] == "process"]
            assert told["rule"]["text"] == "system: no control of other processes"
            # Its own it may look at and lower; what the kernel refuses is no refusal of ours.
            own = "import resource as r; r.prlimit(0, r.RLIMIT_CORE, (0, 0)); r.prlimit(0, r.RLIMIT_CORE, (1, 1))"
            assert "PermissionError" in box.run([SYSTEM_PYTHON, "-c", own]).err
            assert box.denials() == []
        finally:
            victim.kill()


def test_a_server_that_starts_later_is_hidden_from_links_too(box: Sandbox) -> None:
    """Its own name is refused at once; through a link in the project it is out of reach as soon as it has been seen."""
    place = box.world.home / "later.sock"
    project = box.world.project
    (project / "link").symlink_to(place)
    attempt = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    act = f"{SYSTEM_PYTHON} -c '{attempt}' {project}/link"
    script = ["sh", "-c", WAITS.format(act=act)]
    for run, expected in ((box.control, "open"), (box.run, "refused")):
        for name in (project / "ready", project / "replaced", place):
            name.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as server:

            def serve(server: socket.socket = server) -> None:
                while not (project / "ready").exists():
                    time.sleep(0.05)
                server.bind(str(place))
                server.listen(1000)
                (project / "replaced").touch()

            outside = threading.Thread(target=serve)
            outside.start()
            assert run(script).out.split()[-1:] == [expected]
            outside.join()
    names = (str(project / "link"), str(place))
    told = [event for event in box.events(None, "--kind", "unix") if event["path"] in names]
    # In tier 3 the record cannot tell from when on it was hidden, and says the worse.
    assert told and {event["verdict"] for event in told} <= {"deny", "audit"}, told
    assert {event["rule"]["text"] for event in told} == {"no rule allows it"}
