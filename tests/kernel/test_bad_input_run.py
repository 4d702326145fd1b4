"""What cannot be run is refused in four clear lines or with the shell's own exit codes, and nothing ever hangs."""

from __future__ import annotations

import contextlib
import os
import pty
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import SYSTEM_PYTHON, TERMINAL_LEADER, Finished, Sandbox, execute, mcpguard_command, need_root, sandbox

pytestmark = pytest.mark.kernel

READY_AND_WAIT = "echo ready; while read line; do :; done; exit 1"
STARTS = ("mcpguard: ", "  why   ", "  do    ", "  code  ")
SMALL_STORE_BYTES = 256 * 1024


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    need_root()
    with sandbox() as made:
        made.write_profile("plain", "name: plain\nextends: [dev-tools]\nfiles:\n  write: ['{workspace}']\n")
        yield made


def assert_four_lines(finished: Finished, *pieces: str) -> None:
    """mcpguard failed before the child, and says what, why, do and code."""
    assert finished.code == 125, finished
    assert finished.out == ""
    lines = finished.err.splitlines()
    assert len(lines) == 4, finished.err
    for line, begin in zip(lines, STARTS, strict=True):
        assert line.startswith(begin), finished.err
    for piece in pieces:
        assert piece in finished.err, finished.err


def test_a_command_that_does_not_exist_ends_with_127(box: Sandbox) -> None:
    assert box.run(["no-such-command-here"]).code == 127
    assert box.run(["./no-such-file"]).code == 127


def test_a_file_that_is_not_executable_ends_with_126(box: Sandbox) -> None:
    (box.world.project / "text").write_text("not a program\n")
    assert box.run(["./text"]).code == 126
    assert box.run([str(box.world.project)]).code == 126


def test_the_commands_own_exit_code_comes_through(box: Sandbox) -> None:
    assert box.run(["sh", "-c", "exit 0"]).code == 0
    assert box.run(["sh", "-c", "exit 73"]).code == 73
    assert box.run(["sh", "-c", "kill -TERM $$"]).code == 143


def test_a_workspace_that_is_missing_is_refused(box: Sandbox) -> None:
    gone = box.world.root / "gone"
    assert_four_lines(box.mcpguard("run", "-p", "plain", "-w", str(gone), "--", "true"), str(gone))


def test_the_root_of_everything_is_no_workspace(box: Sandbox) -> None:
    assert_four_lines(box.mcpguard("run", "-p", "plain", "-w", "/", "--", "true"))


def test_the_home_is_no_workspace(box: Sandbox) -> None:
    """With the home as workspace every dotfile in it would be writable."""
    finished = box.mcpguard("run", "-p", "plain", "-w", str(box.world.home), "--", "sh", "-c", "echo >> ~/.bashrc")
    assert finished.code != 0
    assert (box.world.home / ".bashrc").read_text() == "# the user's shell settings\n"


def test_a_file_is_no_workspace(box: Sandbox) -> None:
    assert_four_lines(box.mcpguard("run", "-p", "plain", "-w", str(box.world.project / "app.py"), "--", "true"))


def test_a_link_is_no_workspace_and_the_place_itself_is_named(box: Sandbox) -> None:
    link = box.world.root / "link"
    link.symlink_to(box.world.project)
    assert_four_lines(box.mcpguard("run", "-p", "plain", "-w", str(link), "--", "true"), str(box.world.project))


BROKEN_PROFILES = {
    "an unknown key": ("name: broken\nfiles:\n  alow: [/usr]\n", "broken.yaml:3", "alow"),
    "a key twice": ("name: broken\nfiles:\n  read: [/usr]\n  read: [/etc]\n", "broken.yaml:4", "read"),
    "a wrong type": ("name: broken\nfiles: [/usr]\n", "broken.yaml:2", "files"),
    "an unknown parent": ("name: broken\nextends: [no-such]\n", "broken.yaml:2", "no-such"),
    "itself as parent": ("name: broken\nextends: [broken]\n", "broken.yaml:2", "broken"),
    "a word that YAML takes for a switch": ("name: broken\nenvironment:\n  remove: [no]\n", "broken.yaml:3", "no"),
    "every host": ("name: broken\nnetwork:\n  allow: ['*']\n", "broken.yaml:3", "*"),
    "every host of a top domain": ("name: broken\nnetwork:\n  allow: ['*.com']\n", "broken.yaml:3", "*.com"),
    "a tab": ("name: broken\nfiles:\n\tread: [/usr]\n", "broken.yaml:3", ""),
    "no YAML at all": ("name: [broken\n", "broken.yaml:", ""),
}


@pytest.mark.parametrize("case", BROKEN_PROFILES)
def test_a_broken_profile_stops_the_run_with_its_line(case: str, box: Sandbox) -> None:
    text, *pieces = BROKEN_PROFILES[case]
    path = box.write_profile("broken", text)
    try:
        assert_four_lines(box.run(["true"]), *pieces)
    finally:
        path.unlink()
        box.profile = "plain"


def test_an_unknown_profile_stops_the_run(box: Sandbox) -> None:
    assert_four_lines(box.mcpguard("run", "-p", "no-such-profile", "--", "true"), "no-such-profile")


def test_a_profile_that_the_workspace_brings_is_not_obeyed(box: Sandbox) -> None:
    path = box.world.project / "theirs.yaml"
    path.write_text("name: theirs\nfiles:\n  read: [/]\n  execute: [/]\n")
    assert_four_lines(box.mcpguard("run", "-p", str(path), "--", "true"), "theirs.yaml")


def test_a_broken_store_is_kept_aside_and_told(box: Sandbox) -> None:
    with sandbox() as fresh:
        fresh.write_profile("plain", "name: plain\nextends: [dev-tools]\n")
        assert fresh.run(["true"]).code == 0
        noise = b"this is not a database, it is a text of some length\n" * 100
        for path in (fresh.world.state / "state").rglob("*.db*"):
            path.write_bytes(noise)
        finished = fresh.run(["true"])
        assert finished.code == 0
        assert "the event store was broken" in finished.err
        assert [
            path for path in (fresh.world.state / "state").rglob("*") if path.is_file() and path.read_bytes() == noise
        ]
        assert fresh.events()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system that is full soon."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_STORE_BYTES}", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_under_the_store_is_reported_and_hangs_nothing() -> None:
    need_root()
    with sandbox() as box, small_disk(box.world.state / "state") as disk:
        box.write_profile("plain", "name: plain\nextends: [dev-tools]\n")
        filling = "for i in $(seq 400); do cat /etc/hostname > /dev/null; done; cat ~/.ssh/id_ed25519; echo done"
        (disk / "ballast").write_bytes(bytes(SMALL_STORE_BYTES // 2))
        with contextlib.suppress(OSError), (disk / "more").open("wb") as ballast:
            ballast.write(bytes(SMALL_STORE_BYTES))
        finished = box.run(["bash", "-c", filling])
        if finished.code == 125:
            assert_four_lines(finished)
        else:
            assert finished.out == "done\n"
            assert "lost" in finished.err or "full" in finished.err, finished.err


def test_a_terminal_that_goes_away_ends_the_session(box: Sandbox) -> None:
    master, slave = pty.openpty()
    words = [*mcpguard_command(), "run", "-p", "plain", "-w", str(box.world.project), "--", "sh", "-c", READY_AND_WAIT]
    process = subprocess.Popen(
        [SYSTEM_PYTHON, "-c", TERMINAL_LEADER, *words],
        cwd=box.world.project,
        env=box.world.environment(),
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    seen = b""
    while b"ready" not in seen:
        seen += os.read(master, 4096)
    os.close(master)
    assert process.wait(timeout=30) != 0


def test_help_and_misuse_are_told_apart(box: Sandbox) -> None:
    helped = execute([*mcpguard_command(), "run", "--help"], box.world.project, box.world.environment())
    assert helped.code == 0
    assert "mcpguard run" in helped.out
    assert_four_lines(box.mcpguard("run"))


def test_a_folder_with_braces_in_its_name_stops_no_launch_and_its_hooks_stay(box: Sandbox) -> None:
    """The tree can make one: a rule for what is in it is written with its name."""
    hooks = box.world.project / "a{b}" / "{{c}}" / ".git" / "hooks"
    hooks.mkdir(parents=True)
    (hooks.parent / "HEAD").write_text("ref: refs/heads/main\n")
    hook = hooks / "pre-commit"
    hook.write_text("#!/bin/sh\n")
    script = f"echo planted > '{hook}' || echo refused; echo fine > '{hooks.parent.parent}/notes' && echo written"
    finished = box.run(["sh", "-c", script])
    assert finished.code == 0, finished.err
    assert finished.out.split() == ["refused", "written"]
    assert hook.read_text() == "#!/bin/sh\n"
    told = [event for event in box.events() if event.get("path") == str(hook) and event["verdict"] == "deny"]
    assert told and ".git/hooks" in told[0]["rule"]["text"], told
    assert subprocess.run(["sh", "-c", f"echo x >> '{hook}'"], check=False).returncode == 0, "the control, unguarded"


@pytest.mark.parametrize("name", ["a[b]", "a*", "a?", "{tmp}", "[{]"])
def test_a_workspace_whose_name_means_something_in_a_pattern_is_that_one(box: Sandbox, name: str) -> None:
    """It runs, and no folder beside it is opened: neither for files nor for the sockets that others serve there."""
    project, beside = box.world.root / name, box.world.root / "ab"
    for folder in (project, beside):
        folder.mkdir(exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    served = beside / "s.sock"
    served.unlink(missing_ok=True)
    with listener:
        listener.bind(str(served))
        listener.listen()
        ask = f"import socket; socket.socket(socket.AF_UNIX).connect({str(served)!r}); print('connected')"
        script = f"echo x > '{project}/new' && echo written; echo x > '{beside}/new' || echo refused"
        words = ["run", "-p", "plain", "-w", str(project), "--", "sh", "-c", f'{script}; "$@"', "sh", SYSTEM_PYTHON]
        finished = box.mcpguard(*words, "-c", ask)
        assert finished.out.split() == ["written", "refused"], finished
        assert any(event["kind"] == "unix" for event in box.denials())
        assert box.control([SYSTEM_PYTHON, "-c", ask]).out.split() == ["connected"]
    assert not (beside / "new").exists()
