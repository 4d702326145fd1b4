"""No reader gets at a denied file, by whatever name it comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from harness import need_root
from matrix import Duel, Task, duel
from world import World

pytestmark = pytest.mark.kernel

PROFILE = """\
name: matrix
extends: [dev-tools]
files:
  write: ["{workspace}"]
  execute: ["{workspace}"]
  deny:
    - path: "{workspace}/vault"
      because: a secret inside the workspace
"""
PLACES = {"home": ".ssh", "vault": "vault"}
READERS = (
    *("python", "os_open", "mmap", "openat2", "copy_file_range", "cp", "cat", "head", "dd", "grep", "tar", "node"),
    *("static", "late", "vfork", "cat-32bit"),
)
ALIASES = (
    "symlink",
    "symlinks",
    "vanished-symlink",
    "hard-link",
    "dots",
    "proc-root",
    "proc-fd",
    "renamed-parent",
    "bind-mount",
)
# One reader in the interpreter, one program, one without libraries: an alias is about the name, not about the reader.
ALIAS_READERS = ("python", "cat", "static")
# Under these the object of the denial is the file itself. Elsewhere making the name is refused, or the name is gone.
NAMED = ("direct", "symlink", "symlinks", "dots", "proc-root")
# Refused as a whole: the kernel's 32-bit entry answers nobody in the tree, so there is no request to record.
UNRECORDED = ("cat-32bit",)
WAYS = [(reader, "direct") for reader in READERS] + [(r, alias) for alias in ALIASES for r in ALIAS_READERS]
ODD_WAYS = ("read_from_thread", "read_as_daemon", "read_swapped_symlink")


def tasks(world: World) -> Sequence[Task]:
    vault = world.project / "vault/deep/key"
    world.plant(vault)
    world.plant(world.project / "vault/tool", before="#!/bin/sh\necho ", mode=0o755)
    world.plant(world.root / "elsewhere/notes")
    world.plant(world.root / "project-2/notes")
    harmless = world.project / "harmless"
    harmless.write_text("nothing of interest\n")
    places = {"home": str(world.home / ".ssh/id_ed25519"), "vault": str(vault)}
    wanted = [Task("free", "read", {"reader": "cat", "alias": "direct", "path": str(harmless)})]
    for place, path in places.items():
        wanted += [
            Task(f"{place} {reader} {alias}", "read", {"reader": reader, "alias": alias, "path": path})
            for reader, alias in WAYS
        ]
        wanted += [Task(f"{place} {way}", way, {"path": path}) for way in ODD_WAYS[:2]]
        wanted.append(Task(f"{place} {ODD_WAYS[2]}", ODD_WAYS[2], {"path": path, "harmless": str(harmless)}))
    paths = {
        ".env": world.project / ".env",
        "unnamed": world.root / "elsewhere/notes",
        "sibling": world.root / "project-2/notes",
    }
    wanted += [Task(id, "read", {"reader": "cat", "alias": "direct", "path": str(path)}) for id, path in paths.items()]
    wanted.append(Task("execute", "execute", {"path": str(world.project / "vault/tool")}))
    wanted.append(Task("ring", "read", {"reader": "uring", "alias": "direct", "path": str(harmless)}))
    return wanted


@pytest.fixture(scope="module")
def readers() -> Iterator[Duel]:
    need_root()
    with duel(PROFILE, tasks) as fought:
        yield fought


def assert_secret_kept(readers: Duel, id: str) -> None:
    readers.assert_refused(id)
    assert any(canary in readers.control[id].out for canary in readers.free.canaries.values()), readers.control[id]
    assert not any(canary in readers.guarded[id].out for canary in readers.caged.canaries.values())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("reader", "alias"), WAYS)
def test_a_denied_file_cannot_be_read(place: str, reader: str, alias: str, readers: Duel) -> None:
    id = f"{place} {reader} {alias}"
    assert_secret_kept(readers, id)
    if alias == "proc-fd":
        # The descriptor may be closed when the log is written; that a denial happened is never lost.
        assert readers.denials(id)
    elif reader not in UNRECORDED:
        readers.assert_recorded(id, PLACES[place] if alias in NAMED else "")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", ODD_WAYS)
def test_a_denied_file_cannot_be_read_from_a_thread_a_daemon_or_through_a_flipping_link(
    place: str, way: str, readers: Duel
) -> None:
    assert_secret_kept(readers, f"{place} {way}")
    readers.assert_recorded(f"{place} {way}", PLACES[place])


@pytest.mark.parametrize("id", [".env", "unnamed", "sibling"])
def test_a_glob_and_the_default_deny_as_well(id: str, readers: Duel) -> None:
    assert_secret_kept(readers, id)
    readers.assert_recorded(id)


def test_a_denied_program_cannot_be_executed(readers: Duel) -> None:
    assert_secret_kept(readers, "execute")
    readers.assert_recorded("execute", "vault")


def test_io_uring_is_refused_unless_the_profile_asks_for_it(readers: Duel) -> None:
    readers.assert_refused("ring")
    readers.assert_recorded("ring", "io_uring: false")


def ring_tasks(world: World) -> Sequence[Task]:
    vault = world.project / "vault/deep/key"
    world.plant(vault)
    harmless = world.project / "harmless"
    harmless.write_text("nothing of interest\n")
    paths = {"free": harmless, "vault": vault, "home": world.home / ".ssh/id_ed25519"}
    return [Task(id, "read", {"reader": "uring", "alias": "direct", "path": str(path)}) for id, path in paths.items()]


@pytest.fixture(scope="module")
def rings() -> Iterator[Duel]:
    need_root()
    with duel(PROFILE + "system: {io_uring: true}\n", ring_tasks) as fought:
        yield fought


def test_io_uring_opens_what_the_profile_opens(rings: Duel) -> None:
    rings.assert_allowed("free")


@pytest.mark.parametrize("id", PLACES)
def test_io_uring_opens_no_denied_file(id: str, rings: Duel) -> None:
    assert_secret_kept(rings, id)
    rings.assert_recorded(id, PLACES[id])


def test_an_ordinary_file_is_read_as_ever(readers: Duel) -> None:
    readers.assert_allowed("free")
