"""Every way to change a file works in the workspace and is refused on what is readonly, denied, or not named at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from harness import assert_names_rule, need_root
from matrix import Duel, Task, duel
from world import World

pytestmark = pytest.mark.kernel

PROFILE = """\
name: matrix
extends: [dev-tools]
files:
  write: ["{workspace}"]
  execute: ["{workspace}"]
  readonly:
    - "{workspace}/locked"
  deny:
    - "{workspace}/vault"
"""
HOWS = (
    *(
        "create",
        "overwrite",
        "append",
        "truncate",
        "ftruncate",
        "fallocate",
        "mmap-shared",
        "rename-over",
        "rename-away",
    ),
    *("rename-exchange", "rename-folder", "unlink", "rmdir", "remove-tree", "mkdir", "link-into", "symlink", "mknod"),
    *("chmod", "chmod-folder", "chown", "setxattr", "utimes"),
)
PROTECTED = ("locked", "vault", "outside")
# Each is a file that some program obeys later; most of them do not exist when the session starts.
PERSISTENCE = {
    "a shell's settings": "{home}/.bashrc",
    "a login shell's settings": "{home}/.profile",
    "ssh's allowed keys": "{home}/.ssh/authorized_keys",
    "an autostart entry": "{home}/.config/autostart/evil.desktop",
    "a service of the user": "{home}/.config/systemd/user/evil.service",
    "a git hook": "{project}/.git/hooks/pre-commit",
    "git's settings": "{project}/.git/config",
}
# Missing names in a folder that the tree may write: without the kernel's own hooks these are told, not stopped.
MISSING = {
    "a tool server list": "{project}/.mcp.json",
    "an editor's tasks": "{project}/.vscode/tasks.json",
}

# Folders above what is protected: a new one in its place would hold whatever the tree wants.
ANCESTORS = {
    "of a hook": "{project}/.git",
    "of the workspace": "{project}",
    "of a key": "{home}/.ssh",
    "of all": "{home}",
}

TO_ANOTHER_MOUNT = "import os, tempfile; os.rename('leaving', tempfile.mkdtemp() + '/leaving')"

# What the protected folders of each world looked like before the acts, by the root of the world and the place.
remembered: dict[Path, dict[str, dict[str, tuple[object, ...]]]] = {}


def target(world: World, place: str) -> Path:
    return {"free": world.project, "locked": world.project, "vault": world.project, "outside": world.root}[
        place
    ] / place


def tasks(world: World) -> Sequence[Task]:
    wanted = []
    for place in ("free", *PROTECTED):
        for how in HOWS:
            folder = target(world, place) / how
            (folder / "sub").mkdir(parents=True)
            (folder / "file").write_text("original\n")
            side = world.project / "side" / place / how
            side.mkdir(parents=True)
            wanted.append(Task(f"{place} {how}", "change", {"how": how, "folder": str(folder), "side": str(side)}))
    for name, path in (PERSISTENCE | MISSING).items():
        filled = path.format(home=world.home, project=world.project)
        wanted.append(Task(name, "create", {"path": filled}))
    for name, path in ANCESTORS.items():
        filled = path.format(home=world.home, project=world.project)
        wanted.append(Task(name, "move_and_back", {"path": filled}))
    (world.project / "leaving").mkdir()
    wanted.append(Task("to another mount", "run_program", {"command": ["python3", "-c", TO_ANOTHER_MOUNT]}))
    remembered[world.root] = {place: snapshot(target(world, place)) for place in PROTECTED}
    return wanted


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything about the files below a folder that a program could have changed."""
    seen: dict[str, tuple[object, ...]] = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        text = path.read_bytes() if path.is_file() else b""
        seen[str(path.relative_to(folder))] = (status.st_mode, status.st_nlink, status.st_ctime_ns, status.st_ino, text)
    return seen


@pytest.fixture(scope="module")
def writers() -> Iterator[Duel]:
    need_root()
    with duel(PROFILE, tasks) as fought:
        yield fought


@pytest.mark.parametrize("how", HOWS)
def test_a_change_in_the_workspace_is_allowed(how: str, writers: Duel) -> None:
    writers.assert_allowed(f"free {how}")


@pytest.mark.parametrize("place", PROTECTED)
@pytest.mark.parametrize("how", HOWS)
def test_a_change_to_a_protected_file_is_refused(how: str, place: str, writers: Duel) -> None:
    writers.assert_refused(f"{place} {how}")
    writers.assert_recorded(f"{place} {how}", "" if place == "outside" else place)


@pytest.mark.parametrize("place", PROTECTED)
def test_nothing_about_the_protected_files_changed(place: str, writers: Duel) -> None:
    assert snapshot(target(writers.caged, place)) == remembered[writers.caged.root][place]


@pytest.mark.parametrize("name", ANCESTORS)
def test_a_folder_above_what_is_protected_stays_where_it_is(name: str, writers: Duel) -> None:
    writers.assert_refused(name)
    writers.assert_recorded(name)


def test_a_folder_that_does_not_move_to_another_mount_is_told(writers: Duel) -> None:
    assert writers.control["to another mount"].ok
    told = [e for e in writers.events if e["op"] == "rename" and e.get("path", "").endswith("/leaving")]
    stopped = not writers.guarded["to another mount"].ok
    assert [e["verdict"] for e in told] == ["deny" if stopped else "allow"]
    assert not stopped or "a protected path lies below it" in told[0]["detail"]


@pytest.mark.parametrize("name", PERSISTENCE)
def test_a_file_that_is_obeyed_later_cannot_be_planted(name: str, writers: Duel) -> None:
    path = Path(PERSISTENCE[name].format(home=writers.caged.home, project=writers.caged.project))
    writers.assert_refused(name)
    writers.assert_recorded(name)
    assert not path.exists() or "planted" not in path.read_text()


@pytest.mark.parametrize("name", MISSING)
def test_a_file_that_is_obeyed_later_and_was_not_there_is_refused_or_told(name: str, writers: Duel) -> None:
    assert writers.control[name].ok
    path = MISSING[name].format(home=writers.caged.home, project=writers.caged.project)
    # Where it is stopped, that is at the folder that had to be made first.
    places = (path, str(Path(path).parent))
    told = [e for e in writers.events if e["verdict"] in ("deny", "audit") and e.get("path") in places]
    assert told
    assert_names_rule(told[0], "readonly")
    assert told[0]["verdict"] == ("audit" if writers.guarded[name].ok else "deny")


def test_nothing_is_left_in_the_users_tree(writers: Duel) -> None:
    """Names that the guard had to cover in its own view of the tree never appear in the real one."""
    strange = [path for path in writers.caged.home.rglob("*") if "mcpguard" in path.name]
    assert not strange
    assert sorted(path.name for path in writers.caged.home.iterdir()) == sorted(
        (".aws", ".bashrc", ".gitconfig", ".ssh")
    )
    assert str(writers.caged.root) not in Path("/proc/self/mountinfo").read_text()
