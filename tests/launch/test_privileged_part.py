"""What runs as root is a copy that only root can change; without it, or without sudo, a run ends in four lines."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from accounts import install_for, make_user, remove_user
from launcher import Account, Done

from mcpguard.session import install, package

pytestmark = pytest.mark.kernel


def refused(done: Done, code: str) -> None:
    """Exit 125, the four lines, and nothing on stdout."""
    assert done.returncode == 125, (done.returncode, done.stderr.decode())
    assert done.stdout == b""
    lines = done.stderr.decode().rstrip().splitlines()[-4:]
    assert lines[0].startswith("mcpguard: "), lines
    assert [line.split()[0] for line in lines[1:]] == ["why", "do", "code"], lines
    assert lines[3].split()[1] == code, lines


@pytest.fixture
def place(user: Account) -> Iterator[Path]:
    folder = user.home / "place"
    folder.mkdir()
    os.chown(folder, user.entry.pw_uid, user.entry.pw_gid)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def installed() -> Path:
    (found,) = [kept for kept in install.installations() if "mgtest" in kept.source]
    return found.path


def test_before_setup_a_run_says_what_to_do(ordinary: Account) -> None:
    ordinary.do([*ordinary.mcpguard, "setup", "--remove"], cwd=ordinary.home)
    done = ordinary.guarded("true", cwd=ordinary.home)
    refused(done, "privilege.not-set-up")
    assert b"mcpguard setup" in done.stderr
    again = ordinary.do([*ordinary.mcpguard, "setup"], cwd=ordinary.home)
    assert again.returncode == 0, again.stderr.decode()


def test_every_part_of_the_copy_belongs_to_root_and_nobody_else_can_write_it(user: Account) -> None:
    copy = installed()
    for path in (copy, *copy.parents, *copy.rglob("*")):
        found = path.lstat()
        assert found.st_uid == 0, path
        assert not found.st_mode & 0o022, path
        assert stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode), path
    assert user.do(["sh", "-c", f"echo x >> {copy}/mcpguard/errors.py"], cwd=user.home).returncode != 0


def test_the_copy_is_the_running_code_and_holds_the_privileged_subset_only(user: Account) -> None:
    copy = installed()
    (source,) = user.home.glob("venv/lib/python3*/site-packages")
    assert package.digest_of(copy) == package.digest_of(source)
    tops = {path.name for path in (copy / "mcpguard").iterdir()} - {"__pycache__"}
    assert tops == set(package.PRIVILEGED)


def test_a_second_setup_changes_nothing(user: Account) -> None:
    before = {path: path.stat().st_mtime_ns for path in installed().rglob("*")}
    done = user.do([*user.mcpguard, "setup"], cwd=user.home)
    assert done.returncode == 0, done.stderr.decode()
    assert {path: path.stat().st_mtime_ns for path in installed().rglob("*")} == before


def test_changed_code_is_not_run_as_root_until_setup_is_done_again(user: Account) -> None:
    (source,) = user.home.glob("venv/lib/python3*/site-packages/mcpguard/errors.py")
    text = source.read_text()
    source.write_text(text + "\n# changed\n")
    try:
        refused(user.guarded("true", cwd=user.home), "privilege.stale")
        assert user.do([*user.mcpguard, "setup"], cwd=user.home).returncode == 0
        assert installed().joinpath("mcpguard/errors.py").read_text().endswith("# changed\n")
    finally:
        source.write_text(text)
        assert user.do([*user.mcpguard, "setup"], cwd=user.home).returncode == 0


def test_a_copy_that_others_could_write_is_not_run(user: Account, place: Path) -> None:
    copy = installed()
    copy.chmod(0o777)
    try:
        refused(user.guarded("true", cwd=place), "privilege.untrusted")
    finally:
        copy.chmod(0o755)
    assert user.guarded("true", cwd=place).returncode == 0


def test_a_sudo_that_the_path_puts_first_is_not_the_one_that_is_asked(user: Account, place: Path) -> None:
    tools = place / "tools"
    tools.mkdir()
    trap = tools / "sudo"
    trap.write_text(f"#!/bin/sh\ntouch {place}/trapped\n")
    trap.chmod(0o755)
    done = user.guarded("true", cwd=place, env=user.env(PATH=f"{tools}:/usr/bin:/bin"))
    assert done.returncode == 0, done
    assert not (place / "trapped").exists()


@pytest.fixture
def powerless(wheel: Path, user: Account) -> Iterator[Account]:
    """A user without a sudo rule, who shares the installed copy: the same wheel, the same digest."""
    name = f"mgnone{os.getpid()}"
    make_user(name, sudo=False)
    try:
        account = Account(name, (f"/home/{name}/venv/bin/mcpguard",))
        install_for(account, wheel)
        yield account
    finally:
        remove_user(name)


def test_when_sudo_refuses_the_run_is_refused_and_nothing_hangs(powerless: Account) -> None:
    refused(powerless.guarded("true", cwd=powerless.home), "privilege.sudo")


def test_a_module_in_the_workspace_is_never_imported(user: Account, place: Path) -> None:
    """Neither by the user's half nor by what sudo starts."""
    for name in ("mcpguard", "json", "typer", "ctypes"):
        (place / f"{name}.py").write_text("raise SystemExit('hijacked')\n")
    done = user.guarded("true", cwd=place)
    assert done.returncode == 0, done.stderr.decode()


def test_the_interpreter_that_root_runs_belongs_to_root(user: Account) -> None:
    record = json.loads((installed() / install.RECORD).read_text())
    assert package.writable_by_others(Path(record["python"])) == ""


def test_setup_refuses_a_prefix_that_others_could_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(install.HostError) as caught:
        install.install(tmp_path / "prefix")
    assert caught.value.code == "host.unsafe-prefix"


def test_a_broken_copy_is_replaced_and_a_half_made_one_never_seen() -> None:
    prefix = Path(f"/usr/local/lib/mcpguard-test-{os.getpid()}")
    try:
        made, _ = install.install(prefix)
        (made.path / "mcpguard/errors.py").write_text("damaged\n")
        again, removed = install.install(prefix)
        assert (again.path, removed) == (made.path, [])
        assert package.digest_of(again.path) == again.digest
        assert sorted(path.name for path in prefix.iterdir()) == [made.path.name]
    finally:
        shutil.rmtree(prefix, ignore_errors=True)


def test_an_older_copy_goes_unless_something_runs_from_it() -> None:
    prefix = Path(f"/usr/local/lib/mcpguard-test-{os.getpid()}")
    try:
        made, _ = install.install(prefix)
        for name in ("0.0.1-idle", "0.0.1-busy"):
            shutil.copytree(made.path, prefix / name)
        sleeper = subprocess.Popen(["/bin/sh", "-c", f"read line # {prefix}/0.0.1-busy/"], stdin=subprocess.PIPE)
        try:
            _, removed = install.install(prefix)
        finally:
            sleeper.communicate(b"\n")
        assert removed == [prefix / "0.0.1-idle"]
    finally:
        shutil.rmtree(prefix, ignore_errors=True)


def test_doctor_finds_the_host_able_through_sudo(user: Account, place: Path) -> None:
    done = user.do([*user.mcpguard, "doctor", "--format", "json"], cwd=place)
    report = json.loads(done.stdout)
    assert (done.returncode, report["enforced"]) == (0, True), report


def test_doctor_without_sudo_rights_says_so_and_does_not_hang(powerless: Account) -> None:
    done = powerless.do([*powerless.mcpguard, "doctor", "--format", "json"], cwd=powerless.home)
    report = json.loads(done.stdout)
    assert (done.returncode, report["enforced"]) == (1, False), report
    assert any(problem["stops"] and "sudo" in problem["what"] for problem in report["problems"]), report["problems"]
