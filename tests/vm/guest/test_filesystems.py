"""The same verdicts on every kind of file system, each known by where it is mounted.

One guarded run: its workspace is on tmpfs, its rules name places on all of them, by the paths that the host has for them.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import arena
import pytest
from arena import Duel, Outside, Task, World
from asked import PLACES, Lane

pytestmark = pytest.mark.kernel

SUBVOL_CREATE = 0x5000940E
STAGES = [place for places in PLACES.values() for place in places]
BTRFS = PLACES["btrfs"][0]
# The home is mounted a second time, before the run.
SECOND = "/run/vm/second-home"
PROFILE = f"""\
name: matrix
extends: [dev-tools]
files:
  read: ["{SECOND}", "~/open"]
  write: [{", ".join(f'"{stage}/stage"' for stage in STAGES)}]
  execute: ["{{workspace}}"]
  readonly: [{", ".join(f'"{stage}/stage/locked"' for stage in STAGES)}]
  deny:
    - "~/.ssh"
    - "{SECOND}/open/private"
    - "/vmbtrfs/a/stage/twin"
{"".join(f'    - "{stage}/stage/{name}"{chr(10)}' for stage in STAGES for name in ("vault", "free/single"))}
"""
REFUSED = {
    "read vault": "vault",
    "execute vault": "vault",
    "create in vault": "vault",
    "link out of vault": "vault",
    "rename out of vault": "vault",
    "write locked": "locked",
    "create in locked": "locked",
    "chmod locked": "locked",
    "rename over locked": "locked",
    "rename away in its folder": "single",
    "rename over in its folder": "single",
    "remove locked": "locked",
    "link out of locked": "locked",
    "move stage": "",
}
ALLOWED = ("read free", "write free", "create in free", "rename in free", "link in free", "execute free")
BY_ANOTHER_NAME = {
    "denied at home, read by the second name": ".ssh",
    "denied by the second name, read at home": "private",
    "denied by the second name, read so": "private",
    "snapshot": "",
    "clone of the vault": "vault",
    "clone into locked": "locked",
    "dedupe with the vault": "vault",
    "dedupe into the vault": "vault",
    "twin in a": "twin",
}
HARMLESS = ("open by the second name", "clone in the workspace", "twin in b")


def acts_at(stage: Path) -> dict[str, tuple[str, dict[str, object]]]:
    locked, vault, free = stage / "locked", stage / "vault", stage / "free"
    acts: dict[str, tuple[str, dict[str, object]]] = {
        "read vault": ("read_file", {"path": vault / "key"}),
        "execute vault": ("run_program", {"command": [f"{vault}/tool"]}),
        "create in vault": ("create", {"path": vault / "new"}),
        "link out of vault": ("link", {"source": vault / "key", "to": free / "l1"}),
        "rename out of vault": ("move", {"source": vault / "gem", "to": free / "gem"}),
        "write locked": ("write_file", {"path": locked / "file", "text": "planted"}),
        "create in locked": ("create", {"path": locked / "new"}),
        "chmod locked": ("change", {"how": "chmod", "folder": str(locked), "side": str(free)}),
        "rename over locked": ("move", {"source": free / "over", "to": locked / "file"}),
        "rename away in its folder": ("move", {"source": free / "single", "to": free / "plural"}),
        "rename over in its folder": ("move", {"source": free / "onto", "to": free / "single"}),
        "remove locked": ("remove", {"path": locked / "last"}),
        "link out of locked": ("link", {"source": locked / "held", "to": free / "l2"}),
        "read free": ("read_file", {"path": free / "file"}),
        "write free": ("write_file", {"path": free / "file", "text": "more"}),
        "create in free": ("create", {"path": free / "deep/new"}),
        "rename in free": ("move", {"source": free / "one", "to": free / "two"}),
        "link in free": ("link", {"source": free / "file", "to": free / "l3"}),
        "execute free": ("run_program", {"command": ["sh", f"{free}/script"]}),
        "move stage": ("move", {"source": stage, "to": f"{stage}-moved"}),
    }
    return {f"{stage.parent} {id}": (act, plain(args)) for id, (act, args) in acts.items()}


def plain(args: dict[str, object]) -> dict[str, object]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in args.items()}


def build(stage: Path, world: World) -> None:
    subprocess.run(["rm", "-rf", str(stage), f"{stage}-moved"], check=True)
    for folder in ("locked", "vault", "free"):
        (stage / folder).mkdir(parents=True)
    for name in (
        "locked/file",
        "locked/last",
        "locked/held",
        "free/file",
        "free/one",
        "free/over",
        "free/onto",
        "free/single",
        "free/alike",
        "vault/alike",
        "vault/gem",
    ):
        (stage / name).write_text("original\n")
    world.plant(stage / "vault/key")
    arena.copy_program(Path("/bin/true"), stage / "vault/tool")
    (stage / "free/script").write_text("exit 0\n")


def tasks(world: World, outside: Outside) -> Sequence[Task]:
    wanted: dict[str, tuple[str, dict[str, object]]] = {}
    for place in STAGES:
        build(Path(place) / "stage", world)
        wanted |= acts_at(Path(place) / "stage")
    twins(world)
    world.plant(world.home / "open/private")
    (world.home / "open/plain").write_text("plain\n")
    subprocess.run(["umount", "-l", SECOND], capture_output=True, check=False)
    Path(SECOND).mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", str(world.home), SECOND], check=True)
    stage, side = Path(BTRFS) / "stage", Path(BTRFS) / "stage/free"
    make_subvolume(side, b"inner")
    (side / "inner/file").write_text("in a subvolume\n")
    key, alike = f"{stage}/vault/key", f"{stage}/vault/alike"
    wanted |= {
        "denied at home, read by the second name": ("read_file", {"path": f"{SECOND}/.ssh/id_ed25519"}),
        "denied by the second name, read at home": ("read_file", {"path": f"{world.home}/open/private"}),
        "denied by the second name, read so": ("read_file", {"path": f"{SECOND}/open/private"}),
        "open by the second name": ("read_file", {"path": f"{SECOND}/open/plain"}),
        "snapshot": ("snapshot", {"subvolume": f"{side}/inner", "folder": str(side), "below": "file"}),
        "clone of the vault": ("clone_file", {"source": key, "to": f"{side}/c1"}),
        "clone into locked": ("clone_file", {"source": f"{side}/file", "to": f"{stage}/locked/file"}),
        "dedupe with the vault": ("dedupe_file", {"source": alike, "to": f"{side}/alike"}),
        "dedupe into the vault": ("dedupe_file", {"source": f"{side}/alike", "to": alike}),
        "dedupe with locked": ("dedupe_file", {"source": f"{side}/alike", "to": f"{stage}/locked/held"}),
        "clone in the workspace": ("clone_file", {"source": f"{side}/file", "to": f"{side}/c2"}),
        "twin in a": ("read_file", {"path": "/vmbtrfs/a/stage/twin"}),
        "twin in b": ("read_file", {"path": "/vmbtrfs/b/stage/twin"}),
    }
    # Last what would take away what the others need.
    ordered = sorted(wanted, key=lambda id: id.endswith("move stage"))
    return [Task(id, *wanted[id]) for id in ordered]


def twins(world: World) -> None:
    """Files with the same inode number in two subvolumes of one file system."""
    first, second = (Path(place) / "stage/twin" for place in PLACES["btrfs"])
    world.plant(first)
    while not second.exists() or second.stat().st_ino < first.stat().st_ino:
        second.unlink(missing_ok=True)
        second.write_text("the other\n")
    while first.stat().st_ino < second.stat().st_ino:
        first.unlink()
        world.plant(first)
    assert first.stat().st_ino == second.stat().st_ino


def make_subvolume(folder: Path, name: bytes) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, SUBVOL_CREATE, bytearray(struct.pack("<q4088s", 0, name)))
    finally:
        os.close(fd)


@pytest.fixture(scope="module")
def stages(lane: Lane) -> Iterator[Duel]:
    for disk in PLACES:
        lane.places(disk)
    try:
        with arena.fight(PROFILE, tasks, Path("/vmtmp/worlds")) as fought:
            yield fought
    finally:
        subprocess.run(["umount", "-l", SECOND], capture_output=True, check=False)


@pytest.mark.parametrize("id", REFUSED)
@pytest.mark.parametrize("place", STAGES)
def test_it_is_refused_on_every_file_system(place: str, id: str, stages: Duel) -> None:
    stages.assert_refused(f"{place} {id}")
    stages.assert_recorded(f"{place} {id}", REFUSED[id])


@pytest.mark.parametrize("id", ALLOWED)
@pytest.mark.parametrize("place", STAGES)
def test_it_works_on_every_file_system(place: str, id: str, stages: Duel) -> None:
    stages.assert_allowed(f"{place} {id}")


@pytest.mark.parametrize("place", STAGES)
def test_what_is_protected_is_as_it_was(place: str, stages: Duel) -> None:
    stage = Path(place) / "stage"
    for name in ("locked/file", "locked/last", "locked/held", "vault/gem"):
        assert (stage / name).read_text() == "original\n"
    assert sorted(path.name for path in (stage / "locked").iterdir()) == ["file", "held", "last"]


@pytest.mark.parametrize("id", BY_ANOTHER_NAME)
def test_another_name_opens_nothing(id: str, stages: Duel) -> None:
    stages.assert_refused(id)
    assert not any(canary in stages.guarded[id].out for canary in stages.caged.canaries.values())
    stages.assert_recorded(id, BY_ANOTHER_NAME[id])


@pytest.mark.parametrize("id", HARMLESS)
def test_another_name_closes_nothing(id: str, stages: Duel) -> None:
    stages.assert_allowed(id)


def test_what_is_alike_in_two_files_may_be_stored_once(tier: int, stages: Duel) -> None:
    """Whoever owns both may do that, and neither changes; the mounts of tier 2 refuse it."""
    assert stages.control["dedupe with locked"].out == "alike"
    guarded = stages.guarded["dedupe with locked"]
    assert guarded.out == "alike" if tier == 1 else guarded.errno == "EROFS"
    assert (Path(BTRFS) / "stage/locked/held").read_text() == "original\n"
