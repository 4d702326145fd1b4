"""Agents that make sandboxes of their own: namespaces, bind mounts, a new root. It works, and opens nothing.

Only in tier 1: below Landlock, which tier 2 stands on, no mount can be made at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import arena
import pytest
from arena import Duel, Outside, Task, World
from asked import Lane

pytestmark = pytest.mark.kernel

PROFILE = """\
name: matrix
extends: [dev-tools]
files:
  write:
    - "{workspace}"
    # What makes a namespace usable; the kernel lets only its maker write them, once.
    - "/proc/*/uid_map"
    - "/proc/*/gid_map"
    - "/proc/*/setgroups"
  execute: ["{workspace}"]
  readonly: ["{workspace}/locked"]
  deny: ["{workspace}/vault"]
system:
  user_namespaces: true
  memory_programs: true
"""
WORKS = (
    *("tmpfs", "use tmpfs", "read tmpfs", "bind of everything", "new proc", "read new proc", "pivot"),
    *("free after pivot", "cat after pivot", "bind of the vault", "bind of locked", "overlay"),
)
OPENS_NOTHING = (
    *("vault by bind", "vault by bound file", "vault by new proc", "vault by new root's name"),
    *("vault after pivot", "vault by old root", "write locked by bind", "create in locked by bind"),
    *("write locked after pivot", "vault by overlay"),
)
BWRAP = ("bwrap", "--dev-bind", "/", "/", "--proc", "/proc", "--tmpfs", "/tmp", "--unshare-all")
REFUSED = {"bwrap vault": "vault", "bwrap vault bound": "vault", "bwrap locked": "locked"}
ALLOWED = ("bwrap true", "bwrap free", "bwrap write", "memory program")


def tasks(world: World, outside: Outside) -> Sequence[Task]:
    project = world.project
    for folder in ("locked", "vault", "own", "own/bound", "own/bound2", "own/root", "own/new", "own/layered"):
        (project / folder).mkdir()
    (project / "own/onto").write_text("")
    (project / "locked/file").write_text("original\n")
    (project / "free").write_text("free\n")
    world.plant(project / "vault/key")
    vault, locked = f"{project}/vault/key", f"{project}/locked/file"
    bound = ["--bind", f"{project}/vault", f"{project}/own/bound"]
    commands = {
        "bwrap true": [*BWRAP, "true"],
        "bwrap free": [*BWRAP, "cat", f"{project}/free"],
        "bwrap write": [*BWRAP, "sh", "-c", f"echo x >{project}/written && echo y >/tmp/scratch && cat /tmp/scratch"],
        "bwrap vault": [*BWRAP, "cat", vault],
        "bwrap vault bound": [*BWRAP, *bound, "cat", f"{project}/own/bound/key"],
        "bwrap locked": [*BWRAP, "sh", "-c", f"echo planted >>{locked}"],
    }
    acts = [Task(id, "run_program", {"command": command}) for id, command in commands.items()]
    sandbox = Task("own", "own_sandbox", {"folder": f"{project}/own", "vault": vault, "locked": locked})
    return [*acts, sandbox, Task("memory program", "execute_memory", {"program": "/usr/bin/true"})]


@pytest.fixture(scope="module")
def boxes(lane: Lane) -> Iterator[Duel]:
    if lane.lsm != "bpf":
        lane.not_here("tier 2 stands on Landlock, and below that nothing can be mounted")
    # Who was root outside may not be root inside without a capability.
    with arena.somebody() as user, arena.fight(PROFILE, tasks, Path("/vmtmp/worlds"), user=user) as fought:
        yield fought


def told(boxes: Duel, *, guarded: bool) -> dict[str, str]:
    outcome = (boxes.guarded if guarded else boxes.control)["own"]
    assert outcome.ok, outcome
    found: dict[str, str] = json.loads(outcome.out)
    return found


@pytest.mark.parametrize("id", WORKS)
def test_what_an_own_sandbox_is_made_of_works(id: str, boxes: Duel) -> None:
    for guarded in (False, True):
        answer = told(boxes, guarded=guarded)[id]
        assert answer in ("done", "planted", "Name:"), answer


@pytest.mark.parametrize("id", OPENS_NOTHING)
def test_an_own_sandbox_opens_nothing(id: str, boxes: Duel) -> None:
    canaries = boxes.free.canaries.values()
    answer = told(boxes, guarded=False)[id]
    assert answer == "done" or any(canary in answer for canary in canaries), answer
    assert told(boxes, guarded=True)[id].startswith("Permission denied"), told(boxes, guarded=True)[id]


def test_the_refusals_inside_are_on_record(boxes: Duel) -> None:
    family = boxes.descendants(boxes.guarded["own"].pid)
    rules = [
        e["rule"]["text"] for e in boxes.events if e["verdict"] == "deny" and e.get("pid") in family if "rule" in e
    ]
    assert [text for text in rules if "vault" in text]
    assert [text for text in rules if "locked" in text]
    assert (boxes.caged.project / "locked/file").read_text() == "original\n"


@pytest.mark.parametrize("id", REFUSED)
def test_bubblewrap_opens_nothing(id: str, boxes: Duel) -> None:
    boxes.assert_refused(id)
    boxes.assert_recorded(id, REFUSED[id])


@pytest.mark.parametrize("id", ALLOWED)
def test_bubblewrap_and_programs_in_memory_work(id: str, boxes: Duel) -> None:
    assert boxes.control[id].ok, boxes.control[id]
    assert boxes.guarded[id].ok, (boxes.guarded[id], boxes.denials(id))
