"""Agents that make sandboxes of their own: namespaces, bind mounts, a new root. It opens nothing.

It works in tier 1. Below Landlock, which tier 2 stands on, no mount can be made, taken off or changed, in no namespace.
"""

from __future__ import annotations

import contextlib
import json
import pwd
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import arena
import pytest
from arena import Duel, Outside, Task, World
from asked import Lane
from terminals import TYPED, Terminals

pytestmark = pytest.mark.kernel

PROFILE = """\
name: matrix
extends: [dev-tools]
files:
  write: ["{workspace}", "/proc/*/oom_score_adj"]
  execute: ["{workspace}"]
  readonly: ["{workspace}/locked"]
  deny: ["{workspace}/vault"]
sockets:
  allow: ["{workspace}/**"]
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
    *("write locked after pivot", "vault by overlay", "vault without cover", "write locked mounted anew"),
)
# Where nothing can be mounted the other names lead nowhere, or into the workspace.
BY_OWN_NAME = ("vault without cover", "write locked mounted anew", "vault after pivot", "write locked after pivot")
MOUNTS = (
    *("private mounts", "bind of the vault", "bind of a file", "bind of locked", "tmpfs", "overlay"),
    *("bind of everything", "new proc", "pivot"),
)
# Nothing lies over these where nobody guards, or in tier 1.
COVERS = ("cover off", "locked mounted anew")
BWRAP = ("bwrap", "--dev-bind", "/", "/", "--proc", "/proc", "--tmpfs", "/tmp", "--unshare-all")
REFUSED = {
    "bwrap vault": "vault",
    "bwrap vault bound": "vault",
    "bwrap locked": "locked",
    "bwrap from memory vault": "vault",
}
ALLOWED = (
    *("bwrap true", "bwrap free", "bwrap write", "bwrap terminal", "bwrap from memory free"),
    *("memory program", "own oom_score_adj"),
)
# Files of processes of the same user that are outside of the tree: the kernel lets both be written.
OUTSIDERS = ("outside uid_map", "outside oom_score_adj")


def tasks(world: World, outside: Outside, unmapped: int, mapped: int, uid: int) -> Sequence[Task]:
    """
    Args:
        unmapped, mapped: processes outside of the same user: in a user namespace without ids yet, and in that of everybody.
    """
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
        "bwrap terminal": [
            "bwrap",
            "--bind",
            "/",
            "/",
            "--dev",
            "/dev",
            "--unshare-all",
            "script",
            "-qc",
            "tty",
            "/dev/null",
        ],
        "bwrap vault": [*BWRAP, "cat", vault],
        "bwrap vault bound": [*BWRAP, *bound, "cat", f"{project}/own/bound/key"],
        "bwrap locked": [*BWRAP, "sh", "-c", f"echo planted >>{locked}"],
    }
    acts = [Task(id, "run_program", {"command": command}) for id, command in commands.items()]
    # As codex does, which brings its own.
    for id, path in (("free", f"{project}/free"), ("vault", vault)):
        words = {"program": "/usr/bin/bwrap", "words": [*BWRAP[1:], "cat", path]}
        acts.append(Task(f"bwrap from memory {id}", "execute_memory", words))
    sandbox = Task("own", "own_sandbox", {"folder": f"{project}/own", "vault": vault, "locked": locked})
    written = {
        # A namespace that its maker has not mapped yet: whoever is the same user may do it first.
        "outside uid_map": (f"/proc/{unmapped}/uid_map", f"0 {uid} 1"),
        "outside oom_score_adj": (f"/proc/{mapped}/oom_score_adj", "100"),
        "outside mapped": (f"/proc/{mapped}/uid_map", f"0 {uid} 1"),
        "own oom_score_adj": ("/proc/self/oom_score_adj", "100"),
    }
    writes = [Task(id, "write_file", {"path": path, "text": text}) for id, (path, text) in written.items()]
    terminal = Task("terminal", "dig_for_terminal", {"door": outside.door, "folder": f"{project}/dug"})
    return [*acts, sandbox, terminal, *writes, Task("memory program", "execute_memory", {"program": "/usr/bin/true"})]


@pytest.fixture(scope="module")
def boxes(lane: Lane) -> Iterator[Duel]:
    # Who was root outside may not be root inside without a capability.
    with arena.somebody() as user, contextlib.ExitStack() as stack:
        others = stack.enter_context(Terminals(("setpriv", "--reuid", user, "--regid", user, "--init-groups")))

        def prepare(world: World, outside: Outside) -> Sequence[Task]:
            unmapped = stack.enter_context(sleeping(user, "unshare", "--user"))
            mapped = stack.enter_context(sleeping(user))
            return tasks(world, outside, unmapped, mapped, pwd.getpwnam(user).pw_uid)

        parent = Path("/vmtmp/worlds")
        yield stack.enter_context(arena.fight(PROFILE, prepare, parent, answers=others.answers, user=user))


@contextlib.contextmanager
def sleeping(user: str, *words: str) -> Iterator[int]:
    """A process of the user's that sleeps, outside of every session."""
    become = ("setpriv", "--reuid", user, "--regid", user, "--init-groups")
    with subprocess.Popen([*become, *words, "sleep", "10000"]) as process:
        try:
            while Path(f"/proc/{process.pid}/comm").read_text() != "sleep\n":
                assert process.poll() is None
                time.sleep(0.05)
            yield process.pid
        finally:
            process.kill()


def told(boxes: Duel, *, guarded: bool) -> dict[str, str]:
    outcome = (boxes.guarded if guarded else boxes.control)["own"]
    assert outcome.ok, outcome
    found: dict[str, str] = json.loads(outcome.out)
    return found


@pytest.fixture
def mountable(lane: Lane) -> None:
    """What is about mounts that are made inside."""
    if lane.lsm != "bpf":
        lane.not_here("tier 2 stands on Landlock, and below that nothing can be mounted")


@pytest.mark.parametrize("id", WORKS)
def test_what_an_own_sandbox_is_made_of_works(id: str, boxes: Duel, mountable: None) -> None:
    for guarded in (False, True):
        answer = told(boxes, guarded=guarded)[id]
        assert answer in ("done", "planted", "Name:"), answer


@pytest.mark.parametrize("id", OPENS_NOTHING)
def test_an_own_sandbox_opens_nothing(id: str, boxes: Duel, tier: int) -> None:
    canaries = boxes.free.canaries.values()
    answer = told(boxes, guarded=False)[id]
    assert answer == "done" or any(canary in answer for canary in canaries), answer
    guarded = told(boxes, guarded=True)[id]
    if tier == 1 or id in BY_OWN_NAME:
        assert guarded.startswith(("Permission denied", "Read-only file system")), guarded
    assert not any(canary in guarded for canary in boxes.caged.canaries.values())


@pytest.mark.parametrize("id", (*MOUNTS, *COVERS))
def test_mounts_are_made_in_tier_1_and_none_is_changed_in_tier_2(id: str, boxes: Duel, tier: int) -> None:
    expected = ("Operation not permitted",) if tier == 2 else ("Invalid argument",) if id in COVERS else ("done",)
    assert told(boxes, guarded=True)[id].startswith(expected), told(boxes, guarded=True)[id]
    assert id in COVERS or told(boxes, guarded=False)[id] == "done"


def test_the_refusals_inside_are_on_record(boxes: Duel) -> None:
    family = boxes.descendants(boxes.guarded["own"].pid)
    rules = [
        e["rule"]["text"] for e in boxes.events if e["verdict"] == "deny" and e.get("pid") in family if "rule" in e
    ]
    assert [text for text in rules if "vault" in text]
    assert [text for text in rules if "locked" in text]
    assert (boxes.caged.project / "locked/file").read_text() == "original\n"
    assert [path.name for path in (boxes.caged.project / "locked").iterdir()] == ["file"]


@pytest.mark.parametrize("id", REFUSED)
def test_bubblewrap_opens_nothing(id: str, boxes: Duel, tier: int) -> None:
    """Where it cannot mount it does not come so far as to ask for a file."""
    boxes.assert_refused(id)
    boxes.assert_recorded(id, REFUSED[id] if tier == 1 else "")


@pytest.mark.parametrize("id", ALLOWED)
def test_bubblewrap_and_programs_in_memory_work(id: str, boxes: Duel, mountable: None) -> None:
    assert boxes.control[id].ok, boxes.control[id]
    assert boxes.guarded[id].ok, (boxes.guarded[id], boxes.denials(id))


def test_permitted_programs_in_memory_are_told_as_that(boxes: Duel) -> None:
    told = [e for e in boxes.events if e["kind"] == "exec" and e["path"].startswith("/memfd:")]
    assert len(told) >= 3
    assert {(e["verdict"], e["rule"]["text"]) for e in told} == {("allow", "system: memory_programs: true")}


@pytest.mark.parametrize("id", OUTSIDERS)
def test_what_a_rule_opens_in_proc_is_open_for_processes_of_the_tree_only(id: str, boxes: Duel) -> None:
    boxes.assert_refused(id)
    boxes.assert_recorded(id, "no change of processes outside")


def test_a_process_outside_keeps_the_ids_that_it_has(boxes: Duel) -> None:
    """The kernel refuses that to everybody; no switch of a profile changes it."""
    assert boxes.control["outside mapped"].errno == "EPERM"
    assert not boxes.guarded["outside mapped"].ok


def test_no_terminal_of_others_comes_to_light(boxes: Duel) -> None:
    boxes.assert_refused("terminal")
    assert TYPED in boxes.control["terminal"].out
    assert TYPED not in boxes.guarded["terminal"].out
