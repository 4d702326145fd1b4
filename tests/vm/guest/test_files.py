"""What only verdicts of the kernel's own hooks can do: names made later, names moved, odd ways to a file.

One guarded run in a world on ext4, which has everything: flags, access lists, whiteouts, files without a name.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import arena
import pytest
from arena import Duel, Outside, Task, World
from asked import Lane

pytestmark = pytest.mark.kernel

LONG, NEAR = "d" * 255, "d" * 254 + "e"
DEEP, TOO_DEEP = "d/" * 300, "d/" * 1100
PROFILE = f"""\
name: matrix
extends: [dev-tools]
files:
  read: ["~/shelf"]
  write: ["{{workspace}}"]
  execute: ["{{workspace}}"]
  readonly:
    - "{{workspace}}/locked"
    - "{{workspace}}/holder/keep"
  deny:
    - "{{workspace}}/vault"
    - "{{workspace}}/gone"
    - "{{workspace}}/late/vault"
    - "{{workspace}}/**/secret.txt"
    - "{{workspace}}/long/{LONG}"
"""
STREAM, DGRAM = int(socket.SOCK_STREAM), int(socket.SOCK_DGRAM)
ATTRIBUTES = ("fchmod", "fchown", "futimes", "fsetxattr", "acl", "flags")
OTHERS = (
    *("kill", "setpriority", "sched_setaffinity", "sched_setscheduler", "ioprio_set"),
    *("setown", "setown_ex", "fiosetown", "siocspgrp"),
)
MEMORY, MAPPED = "a program that exists in memory only", "mapped as code"
BELOW, RECEIVED = "a protected path lies below it", "a descriptor that another process sent"
TOO_DEEP_TOLD = "it lies deeper than names can be followed"

# The act, and what its record must name: a part of the rule's text, or of the detail.
REFUSED: dict[str, str] = {
    "mcp list created": ".mcp.json",
    "env created": ".env",
    "hook created": "hooks",
    "nested hook created": "hooks",
    "shell settings replaced outside": ".bashrc",
    "recreated": "gone",
    "link out of vault": "vault",
    "link out of locked": "locked",
    "link of a descriptor": "locked",
    "holder moved": "",
    "exchange with locked": "locked",
    "exchange from locked": "locked",
    "exchange with vault": "vault",
    "whiteout": "locked",
    "nameless into locked": "locked",
    "nameless in locked": "locked",
    "nameless as settings": "settings.json",
    "reopened": "vault",
    "reopened for writing": "locked",
    "received": "vault",
    "received for writing": "locked",
    "executed by descriptor": "vault",
    "memory program": "",
    "loader": "",
    "not executable": "",
    "library": "",
    "script on the shelf": "",
    "script with denied interpreter": "vault",
    "script with interpreter on the shelf": "",
    "script of a script": "",
    "map mmap": "",
    "map mprotect": "",
    "map personality": "",
    **{f"locked {how}": "locked" for how in ATTRIBUTES},
    "splice": "locked",
    "watch": "vault",
    **{f"other {how}": "" for how in OTHERS},
    "long name": LONG,
    "deep secret": "secret.txt",
    "too deep": "",
    "not utf-8 in vault": "vault",
    "not utf-8 on the way": "secret.txt",
    "glob after rename": "secret.txt",
    "socket": "",
    "socket by symlink": "",
    "socket by relative name": "",
    "datagram": "",
    "socket among own": "",
    "later socket among own": "",
    "abstract": "",
    "abstract datagram": "",
}
DETAILS = {
    "holder moved": BELOW,
    "received": RECEIVED,
    "received for writing": RECEIVED,
    "memory program": MEMORY,
    "loader": MAPPED,
    "library": MAPPED,
    "map mmap": MAPPED,
    "map mprotect": MAPPED,
    "map personality": MAPPED,
    "too deep": TOO_DEEP_TOLD,
}
ALLOWED = (
    *("env example created", "link in the workspace", "folder with a glob below moved", "exchange in the workspace"),
    *("nameless in the workspace", "received harmless", "executed in the workspace", "map in the workspace"),
    *("long name nearby", "deep plain", "not utf-8 plain", "own socket", "own datagram", "own abstract", "watch free"),
    *(f"free {how}" for how in ATTRIBUTES),
    *("repository made", "repository cloned", "worktree made"),
)
LATE = "receive late"


def tasks(world: World, outside: Outside, pid: int) -> list[Task]:
    project, door = world.project, outside.door
    furnish(world)
    at = {name: str(project / name) for name in ("locked/file", "vault/key", "vault/tool", "free/file", "side")}
    locked, vault, tool, free, side = at.values()
    shelf = world.home / "shelf"
    services = world.root / "services"
    loader = next(str(path) for path in Path("/lib64").glob("ld-linux-*"))
    wanted: dict[str, tuple[str, dict[str, object]]] = {
        "mcp list created": ("create", {"path": f"{project}/.mcp.json"}),
        "env created": ("create", {"path": f"{project}/sub/.env.local"}),
        "env example created": ("create", {"path": f"{project}/sub/.env.example"}),
        "hook created": ("create", {"path": f"{project}/.git/hooks/pre-push"}),
        "nested hook created": ("create", {"path": f"{project}/nested/.git/hooks/post-checkout"}),
        # What the session makes itself is its own, hooks and settings included.
        "repository made": git(project, "init own && cd own && git config user.name x && cp $0 .git/hooks/pre-commit"),
        "repository cloned": git(project, "clone -q . cloned && git -C cloned config user.name x"),
        "worktree made": git(project, "worktree add -q linked && git -C linked commit -q --allow-empty -m x"),
        "shell settings replaced outside": after(
            door, "replace settings", "write_file", {"path": f"{world.home}/.bashrc", "text": "planted"}
        ),
        "recreated": after(door, "recreate", "read_file", {"path": f"{project}/gone/key"}),
        "link out of vault": ("link", {"source": vault, "to": f"{side}/l1"}),
        "link out of locked": ("link", {"source": locked, "to": f"{side}/l2"}),
        "link of a descriptor": ("link_descriptor", {"source": locked, "to": f"{side}/l3"}),
        "link in the workspace": ("link", {"source": free, "to": f"{side}/l4"}),
        "holder moved": ("move", {"source": f"{project}/holder", "to": f"{project}/moved"}),
        "folder with a glob below moved": ("move", {"source": f"{project}/globs", "to": f"{project}/globs2"}),
        "glob after rename": ("read_file", {"path": f"{project}/globs2/secret.txt"}),
        "exchange with locked": ("exchange", {"one": f"{side}/x1", "other": f"{project}/locked/x1"}),
        "exchange from locked": ("exchange", {"one": f"{project}/locked/x2", "other": f"{side}/x2"}),
        "exchange with vault": ("exchange", {"one": f"{side}/x3", "other": f"{project}/vault/x3"}),
        "exchange in the workspace": ("exchange", {"one": f"{side}/x4", "other": f"{side}/x5"}),
        "whiteout": ("whiteout", {"source": f"{project}/locked/white", "to": f"{side}/white"}),
        "nameless into locked": ("name_later", {"folder": side, "to": f"{project}/locked/n1"}),
        "nameless in locked": ("name_later", {"folder": f"{project}/locked", "to": f"{side}/n2"}),
        "nameless as settings": ("name_later", {"folder": side, "to": f"{project}/.claude/settings.json"}),
        "nameless in the workspace": ("name_later", {"folder": side, "to": f"{side}/n3"}),
        "reopened": ("reopen", {"path": vault, "flags": os.O_RDONLY}),
        "reopened for writing": ("reopen", {"path": locked, "flags": os.O_WRONLY}),
        "received": ("receive", {"door": door, "request": "send vault"}),
        "received harmless": ("receive", {"door": door, "request": "send free"}),
        "received for writing": ("receive_and_write", {"door": door, "request": "send locked"}),
        "executed by descriptor": ("execute_descriptor", {"path": tool}),
        "executed in the workspace": ("execute_descriptor", {"path": f"{project}/tool"}),
        "memory program": ("execute_memory", {"program": "/usr/bin/true"}),
        "loader": ("run_program", {"command": [loader, f"{shelf}/true"]}),
        "not executable": ("run_program", {"command": [f"{shelf}/true"]}),
        "library": ("load_library", {"path": f"{shelf}/library.so"}),
        "script on the shelf": ("run_program", {"command": [f"{shelf}/script"]}),
        "script with denied interpreter": ("run_program", {"command": [f"{project}/script1"]}),
        "script with interpreter on the shelf": ("run_program", {"command": [f"{project}/script2"]}),
        "script of a script": ("run_program", {"command": [f"{project}/script3"]}),
        "map in the workspace": ("map_code", {"path": f"{project}/tool", "how": "mmap"}),
        **{f"map {how}": ("map_code", {"path": f"{shelf}/true", "how": how}) for how in ("mmap", "mprotect")},
        "map personality": ("map_code", {"path": f"{shelf}/true", "how": "personality"}),
        **{f"locked {how}": ("set_attribute", {"how": how, "path": locked}) for how in ATTRIBUTES},
        **{f"free {how}": ("set_attribute", {"how": how, "path": free}) for how in ATTRIBUTES},
        "splice": ("splice_into", {"path": locked}),
        "watch": ("watch", {"path": vault}),
        "watch free": ("watch", {"path": free}),
        **{f"other {how}": ("touch_process", {"how": how, "pid": pid}) for how in OTHERS},
        "long name": ("read_file", {"path": f"{project}/long/{LONG}"}),
        "long name nearby": ("read_file", {"path": f"{project}/long/{NEAR}"}),
        "deep secret": ("read_file", {"path": f"{project}/deep/{DEEP}secret.txt"}),
        "deep plain": ("read_file", {"path": f"{project}/deep/{DEEP}plain.txt"}),
        "too deep": after(door, "dig", "read_file", {"path": f"{project}/pit/{TOO_DEEP}plain.txt"}),
        "not utf-8 in vault": ("read_file", {"path": f"{project}/vault/\udcff\udcfe"}),
        "not utf-8 on the way": ("read_file", {"path": f"{project}/odd\udcff/secret.txt"}),
        "not utf-8 plain": ("read_file", {"path": f"{project}/odd\udcff/plain\udc80"}),
        "socket": ("talk", {"address": f"{services}/stream", "kind": STREAM}),
        "socket by symlink": ("talk", {"address": f"{project}/to-stream", "kind": STREAM}),
        "socket by relative name": ("talk", {"address": "services/stream", "kind": STREAM, "folder": str(world.root)}),
        "datagram": ("talk", {"address": f"{services}/dgram", "kind": DGRAM}),
        "socket among own": ("talk", {"address": f"{project}/theirs", "kind": STREAM}),
        "later socket among own": after(door, "serve", "talk", {"address": f"{project}/late.sock", "kind": STREAM}),
        "abstract": ("talk", {"address": f"@{world.root.name}", "kind": STREAM}),
        "abstract datagram": ("talk", {"address": f"@{world.root.name}-d", "kind": DGRAM}),
        "own socket": ("talk_to_own", {"address": f"{side}/own", "kind": STREAM}),
        "own datagram": ("talk_to_own", {"address": f"{side}/own-d", "kind": DGRAM}),
        "own abstract": ("talk_to_own", {"address": f"@{world.root.name}-own", "kind": STREAM}),
        LATE: ("receive_late", {"door": door}),
    }
    return [Task(id, act, args) for id, (act, args) in wanted.items()]


def after(door: str, request: str, act: str, args: dict[str, object]) -> tuple[str, dict[str, object]]:
    return "after_outside", {"door": door, "request": request, "name": act, "args": args}


def git(project: Path, words: str) -> tuple[str, dict[str, object]]:
    return "run_program", {"command": ["sh", "-c", f"cd {project} && git {words}", "/bin/true"]}


def furnish(world: World) -> None:
    """The files that the acts are about."""
    project = world.project
    for folder in (
        "locked",
        "vault",
        "free",
        "side",
        "holder",
        "globs",
        "long",
        "gone",
        "late",
        "nested/.git",
        ".claude",
    ):
        (project / folder).mkdir(parents=True)
    for name in ("locked/file", "locked/white", "locked/x1", "locked/x2", "vault/x3", "holder/keep", "free/file"):
        (project / name).write_text("original\n")
    for name in ("x1", "x2", "x3", "x4", "x5"):
        (project / "side" / name).write_text("mine\n")
    for name in ("vault/key", "globs/secret.txt", "gone/key", f"long/{LONG}", f"long/{NEAR}", "vault/\udcff\udcfe"):
        world.plant(project / name)
    world.plant(project / "odd\udcff/secret.txt")
    (project / "odd\udcff/plain\udc80").write_text("plain\n")
    dig(project / "deep", DEEP.count("d"))
    shelf = world.home / "shelf"
    for program in (project / "tool", project / "vault/tool", shelf / "true", shelf / "sh"):
        arena.copy_program(Path("/bin/sh" if program.name == "sh" else "/bin/true"), program)
    arena.copy_program(next(Path("/lib/x86_64-linux-gnu").glob("libz.so.1")), shelf / "library.so")
    for number, interpreter in (
        (1, project / "vault/tool"),
        (2, shelf / "true"),
        (3, project / "script2"),
    ):
        script = project / f"script{number}"
        script.write_text(f"#!{interpreter}\n")
        script.chmod(0o755)
    (shelf / "script").write_text("#!/bin/sh\nexit 0\n")
    (shelf / "script").chmod(0o755)
    (project / "to-stream").symlink_to(world.root / "services/stream")


def dig(folder: Path, depth: int) -> None:
    """Folders in folders, and two files at the end; made step by step, as no path is so long."""
    script = (
        f"import os\nos.mkdir({str(folder)!r}); os.chdir({str(folder)!r})\n"
        f"for _ in range({depth}): os.mkdir('d'); os.chdir('d')\n"
        "open('plain.txt', 'w').write('plain'); open('secret.txt', 'w').write('secret')\n"
    )
    subprocess.run(["/usr/bin/python3", "-c", script], check=True)


def replace_settings(world: World) -> None:
    """As an editor does: a new file takes the name of the old one."""
    new = world.home / ".bashrc.new"
    new.write_text("# written anew\n")
    new.rename(world.home / ".bashrc")


def recreate(world: World) -> None:
    folder = world.project / "gone"
    (folder / "key").unlink()
    folder.rmdir()
    folder.mkdir()
    world.plant(folder / "key")


def mount_late(world: World) -> None:
    """Mount a file system while the process that watches the mount table stands still."""
    late = world.project / "late"
    arena.stand(world, "STOP")
    subprocess.run(["mount", "-t", "tmpfs", "late", str(late)], check=True)
    (late / "free").write_text("free\n")
    world.plant(late / "vault/key")


def serve(world: World) -> None:
    """Somebody else's server where the session may have its own, for as long as this process lives."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(world.project / "late.sock"))
    server.listen(8)
    threading.Thread(target=greet, args=(server,), daemon=True).start()


ANSWERS: dict[str, arena.Answer] = {
    "serve": serve,
    "replace settings": replace_settings,
    "recreate": recreate,
    # Not before the run: tier 2 walks the workspace then, and hides what is so deep.
    "dig": lambda world: dig(world.project / "pit", TOO_DEEP.count("d")),
    "send vault": lambda world: [os.open(world.project / "vault/key", os.O_RDONLY)],
    "send free": lambda world: [os.open(world.project / "free/file", os.O_RDONLY)],
    "send late": lambda world: [os.open(world.project / "late/free", os.O_RDONLY)],
    "send late vault": lambda world: [os.open(world.project / "late/vault/key", os.O_RDONLY)],
    "send locked": lambda world: [os.open(world.project / "locked/file", os.O_RDWR)],
    "mount while it stands": mount_late,
    "go on": lambda world: arena.stand(world, "CONT"),
}


@contextlib.contextmanager
def bystander() -> Iterator[int]:
    """A process outside with no more rights than the acts have."""
    with subprocess.Popen([*arena.CAPLESS, "sleep", "10000"]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@contextlib.contextmanager
def services(world: World) -> Iterator[None]:
    """Listeners outside of the tree and of what its profile names."""
    folder = world.root / "services"
    folder.mkdir()
    names = (str(folder / "stream"), STREAM), (str(folder / "dgram"), DGRAM), (f"{world.project}/theirs", STREAM)
    abstract = ("\0" + world.root.name, STREAM), (f"\0{world.root.name}-d", DGRAM)
    with contextlib.ExitStack() as stack:
        for name, kind in (*names, *abstract):
            server = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            server.bind(name)
            if kind == STREAM:
                server.listen(8)
                threading.Thread(target=greet, args=(server,), daemon=True).start()
        yield


def greet(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            line, _ = server.accept()
            with line:
                line.sendall(b"greetings")


@pytest.fixture(scope="module")
def files(lane: Lane) -> Iterator[Duel]:
    with contextlib.ExitStack() as stack:

        def prepare(world: World, outside: Outside) -> Sequence[Task]:
            stack.enter_context(services(world))
            stack.callback(subprocess.run, ["umount", "-l", str(world.project / "late")], check=False)
            return tasks(world, outside, stack.enter_context(bystander()))

        parent = lane.places("ext4")[0] / "worlds"
        yield stack.enter_context(arena.fight(PROFILE, prepare, parent, answers=ANSWERS))


@pytest.mark.parametrize("id", REFUSED)
def test_it_is_refused_and_on_record(id: str, files: Duel) -> None:
    files.assert_refused(id)
    files.assert_recorded(id, REFUSED[id])


@pytest.mark.parametrize("id", DETAILS)
def test_the_record_says_why(id: str, files: Duel, tier: int, lane: Lane) -> None:
    told = [event.get("detail", "") for event in files.denials(id)]
    assert any(DETAILS[id] in detail for detail in told), files.denials(id)


@pytest.mark.parametrize("id", ALLOWED)
def test_what_is_harmless_works_and_leaves_no_denial(id: str, files: Duel) -> None:
    files.assert_allowed(id)


def test_the_protected_files_are_as_they_were(files: Duel) -> None:
    project = files.caged.project
    for name in ("locked/file", "locked/white", "locked/x1", "locked/x2", "vault/x3", "holder/keep"):
        assert (project / name).read_text() == "original\n", name
    assert not (project / ".mcp.json").exists()
    assert not (project / ".git/hooks/pre-push").exists()
    assert (files.caged.home / ".bashrc").read_text() == "# written anew\n"
    assert (project / "locked/file").stat().st_mode & 0o777 == 0o644


def test_no_secret_came_out(files: Duel) -> None:
    told = "\n".join(outcome.out for id, outcome in files.guarded.items() if id != "long name nearby")
    secrets = {path: canary for path, canary in files.caged.canaries.items() if path.name != NEAR}
    assert not [path for path, canary in secrets.items() if canary in told]


def test_a_file_system_mounted_in_between_is_refused_until_the_guard_has_seen_it(files: Duel) -> None:
    control, guarded = files.control[LATE], files.guarded[LATE]
    assert json.loads(control.out) == {"first": "read", "later": "read", "vault": "read"}
    assert guarded.ok, guarded
    assert json.loads(guarded.out) == {"first": "nothing", "later": "read", "vault": "nothing"}
    told = files.denials(LATE)
    assert [event for event in told if "was not mounted" in event.get("detail", "")], told
    assert [event for event in told if "late/vault" in event.get("rule", {}).get("text", "")], told
