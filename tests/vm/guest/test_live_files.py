"""Files that a person allows while a session runs: they are open at the next attempt, in tier 2 as well.

All else is kept, although there the programs alone keep what merely no rule allows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import arena
import pytest
from arena import Duel, Outside, Sandbox, Task, World
from asked import Lane
from puppet import puppet

from mcpguard.session.coverage import HOOKS_ALONE

pytestmark = pytest.mark.kernel

PROFILE = """\
name: matrix
extends: [dev-tools]
files:
  write: ["{workspace}"]
  execute: ["{workspace}"]
  readonly: ["~/notes/locked"]
  deny: ["~/notes/private", "{workspace}/vault"]
"""
READERS = ("python", "cat", "mmap", "openat2", "static")
ALIASES = ("symlink", "hard-link", "dots", "proc-root", "proc-fd", "renamed-parent", "bind-mount")
HOWS = (
    *("create", "overwrite", "append", "truncate", "fallocate", "rename-over", "rename-away", "rename-exchange"),
    *("rename-folder", "unlink", "rmdir", "mkdir", "link-into", "symlink", "mknod"),
    *("chmod", "chmod-folder", "chown", "setxattr", "utimes"),
)
# Kept by nothing but the hooks where those stand alone; by a cover as well.
PLACES = ("unnamed", "private")
THREADS, ASKS = 8, 250


def reads(place: str) -> list[str]:
    return [f"{place} {reader} direct" for reader in READERS] + [f"{place} python {alias}" for alias in ALIASES]


def folder_of(world: World, place: str) -> Path:
    return {"unnamed": world.root / "elsewhere", "private": world.home / "notes/private"}[place]


def tasks(world: World, outside: Outside) -> Sequence[Task]:
    wanted = []
    for place in PLACES:
        folder = folder_of(world, place)
        world.plant(folder / "deep/key")
        for id in reads(place):
            _place, reader, alias = id.split()
            wanted.append(Task(id, "read", {"reader": reader, "alias": alias, "path": str(folder / "deep/key")}))
    for how in HOWS:
        changed, side = world.root / "elsewhere" / how, world.project / "side" / how
        (changed / "sub").mkdir(parents=True)
        (changed / "file").write_text("original\n")
        side.mkdir(parents=True)
        wanted.append(Task(how, "change", {"how": how, "folder": str(changed), "side": str(side)}))
    tool = world.root / "elsewhere/tool"
    arena.copy_program(Path("/bin/true"), tool)
    key = str(world.root / "elsewhere/deep/key")
    storm = ["./acts", "storm", key, str(THREADS), str(ASKS)]
    return [
        *wanted,
        Task("list", "list_folder", {"path": str(world.root / "elsewhere")}),
        Task("execute", "execute", {"path": str(tool)}),
        Task("plant", "create", {"path": str(world.home / ".config/autostart/evil.desktop")}),
        Task("move the home", "move_and_back", {"path": str(world.home)}),
        Task("storm", "run_storm", {"command": storm}),
        Task("free", "create", {"path": str(world.project / "made")}),
    ]


REFUSED = (*(id for place in PLACES for id in reads(place)), *HOWS, "list", "execute", "plant", "move the home")


@pytest.fixture(scope="module")
def asking(lane: Lane) -> Iterator[Duel]:
    parent = lane.places("ext4")[0] / "worlds"
    with arena.fight(PROFILE, tasks, parent) as fought:
        yield fought


def alone(tier: int, lane: Lane) -> bool:
    """Whether the hooks alone keep what no rule allows."""
    return tier == 1 or not lane.preempts


@pytest.mark.parametrize("id", REFUSED)
def test_what_no_rule_allows_is_refused_and_on_record(id: str, asking: Duel) -> None:
    asking.assert_refused(id)
    asking.assert_recorded(id, "private" if id.startswith("private") and "direct" in id else "")


def test_a_storm_gets_nothing(asking: Duel) -> None:
    assert f"opened {THREADS * ASKS} " in asking.control["storm"].out, asking.control["storm"]
    assert f"opened 0 refused {THREADS * ASKS} " in asking.guarded["storm"].out, asking.guarded["storm"]
    told = asking.denials("storm")
    lost = sum(event.get("count", 1) for event in asking.events if event["kind"] == "loss")
    assert sum(event.get("count", 1) for event in told if event["kind"] == "file") + lost >= THREADS * ASKS


def test_nothing_outside_changed_and_no_secret_came_out(asking: Duel) -> None:
    for how in HOWS:
        folder = asking.caged.root / "elsewhere" / how
        assert sorted(path.name for path in folder.iterdir()) == ["file", "sub"], how
        assert (folder / "file").read_text() == "original\n", how
        assert (folder / "file").stat().st_mtime > 1, how
        assert (folder / "file").stat().st_mode & 0o777 != 0o777, how
    told = "\n".join(outcome.out for outcome in asking.guarded.values())
    assert not [canary for canary in asking.caged.canaries.values() if canary in told]
    assert asking.guarded["free"].ok


def test_the_record_says_what_it_rests_on(asking: Duel, tier: int, lane: Lane) -> None:
    held = {part.kind: part for part in arena.session_of(asking.caged).coverage}
    assert (held["files"].by == HOOKS_ALONE) == (tier == 2 and alone(tier, lane)), held["files"]
    assert held["files"].by == held["execute"].by or not alone(tier, lane)
    assert HOOKS_ALONE not in held["processes"].by


def test_what_a_person_allows_is_open_at_the_next_attempt(lane: Lane, tier: int) -> None:
    """But for what a rule takes away, and what a mount or Landlock keeps whatever the rules say."""
    with arena.world_at(lane.places("ext4")[0]) as world:
        sandbox = Sandbox(world)
        sandbox.write_profile("matrix", PROFILE)
        notes = world.home / "notes"
        for name in ("list", "other", "private/diary", "locked/kept"):
            world.plant(notes / name)
        with puppet(sandbox) as held:
            before = [held.ask("read", notes / "list"), held.ask("write", notes / "new")]
            outcome = held.approve(
                ("files", "read", str(notes / "list")),
                ("files", "write", str(notes / "new")),
                ("files", "read", f"{notes}/private*"),
                ("files", "read", "/dev/nothing"),
            )
            after = [held.ask("read", notes / "list"), held.ask("write", notes / "new")]
            still = [
                held.ask(*words)
                for words in (
                    ("read", notes / "other"),
                    ("write", notes / "list"),
                    ("read", notes / "private/diary"),
                    ("write", notes / "locked/kept"),
                    ("write", world.home / ".bashrc"),
                )
            ]
            _code, said = held.end()
        events = arena.recorded(world, held.session)
        print(said, json.dumps(outcome.later), outcome.why)
        wrote = (notes / "new").exists()
    narrow = not alone(tier, lane)
    assert before == ["EACCES", "EROFS" if narrow else "EACCES"]
    assert set(still) <= {"EACCES", "EROFS"}, still
    rules = (f"read {notes}/list", f"write {notes}/new")
    reads = [e for e in events if e.get("path") == f"{notes}/list" and e["access"] == "read"]
    assert {e["path"] for e in events if e["verdict"] == "deny"} >= {f"{notes}/other", f"{notes}/private/diary"}
    if narrow:
        assert after == before
        assert not wrote
        assert not outcome.now
        assert "preempts at will" in outcome.why
        assert {e["verdict"] for e in reads} == {"deny"}
        return
    assert after == ["", ""]
    assert wrote
    assert set(rules) <= set(outcome.now)
    assert ("read /dev/nothing" in outcome.later) == (tier == 2), outcome
    assert [e["verdict"] for e in reads] == ["deny", "allow"]
    assert (reads[1]["rule"]["file"], reads[1]["rule"]["text"]) == ("approved in watch", rules[0])
