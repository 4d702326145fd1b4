"""Unix sockets of services outside are closed to the tree, whatever the name they are reached by."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import SYSTEM_PYTHON, assert_names_rule, need_root, sandbox
from matrix import Duel, Task, duel
from netlab import Listener
from outside import SOCKETS, services, socket_paths
from world import World

pytestmark = pytest.mark.kernel

PROFILE = """\
name: matrix
extends: [dev-tools]
files:
  write: ["{workspace}"]
  execute: ["{workspace}"]
"""
ROADS = {
    "direct": "unix_connect",
    "link": "unix_connect_by_symlink",
    "held folder": "unix_connect_in_held_folder",
    "own folder": "unix_connect_from_its_folder",
}
# Somebody else's, where the session may have its own.
AMONG_OWN = {"a database in the temporary folder": "tmp/.s.PGSQL.5432", "an editor in the workspace": "project/nvim.1"}
OUTSIDE = (*SOCKETS, "abstract", "abstract datagrams", *AMONG_OWN)
GLOB_PROFILE = """\
name: glob
extends: [dev-tools]
files:
  write: ["{workspace}"]
sockets:
  allow: ["{workspace}/**"]
  deny: ["{workspace}/tmux-*"]
"""
CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
tokens: dict[Path, dict[str, str]] = {}


@dataclass
class Sockets:
    """The duel, and the listeners of its two worlds."""

    duel: Duel
    free: Listener
    caged: Listener

    def arrived(self, name: str, id: str, guarded: bool) -> bool:
        world, listener = (self.duel.caged, self.caged) if guarded else (self.duel.free, self.free)
        return listener.has(name, tokens[world.root][id])


def tasks(world: World) -> Sequence[Task]:
    tokens[world.root] = {}
    wanted = []
    for name, (path, kind) in socket_paths(world, AMONG_OWN).items():
        id = f"{name} direct"
        tokens[world.root][id] = secrets.token_hex(8)
        args = {"path": path, "kind": kind, "token": tokens[world.root][id]}
        wanted.append(Task(id, "unix_connect", args))
    for road in ("link", "held folder", "own folder"):
        path, _ = socket_paths(world)["docker"]
        tokens[world.root][f"docker {road}"] = secrets.token_hex(8)
        args = {"path": path, "token": tokens[world.root][f"docker {road}"]}
        wanted.append(Task(f"docker {road}", ROADS[road], args))
    for name in ("datagrams", "abstract datagrams"):
        tokens[world.root][f"{name} unconnected"] = secrets.token_hex(8)
        args = {"path": socket_paths(world)[name][0], "token": tokens[world.root][f"{name} unconnected"]}
        wanted.append(Task(f"{name} unconnected", "unix_send", args))
    own = str(world.project / "own.sock")
    wanted.append(Task("own", "unix_serve_itself", {"path": own}))
    wanted.append(Task("own in the temporary folder", "unix_serve_itself", {"path": str(world.tmp / "own.sock")}))
    wanted.append(Task("own abstract", "unix_serve_itself", {"path": f"@{world.root.name}-own"}))
    return wanted


@pytest.fixture(scope="module")
def sockets() -> Iterator[Sockets]:
    need_root()
    with contextlib.ExitStack() as stack:
        listeners: list[Listener] = []

        def prepare(world: World) -> Sequence[Task]:
            listeners.append(stack.enter_context(services(world, AMONG_OWN)))
            return tasks(world)

        fought = stack.enter_context(duel(PROFILE, prepare))
        for listener in listeners:
            listener.stop()
        yield Sockets(fought, *listeners)


CASES = (
    [(name, f"{name} direct") for name in OUTSIDE]
    + [("docker", f"docker {road}") for road in ROADS if road != "direct"]
    + [(name, f"{name} unconnected") for name in ("datagrams", "abstract datagrams")]
)


@pytest.mark.parametrize(("name", "id"), CASES)
def test_a_service_outside_is_out_of_reach(name: str, id: str, sockets: Sockets) -> None:
    sockets.duel.assert_refused(id)
    assert sockets.arrived(name, id, guarded=False)
    assert not sockets.arrived(name, id, guarded=True)


@pytest.mark.parametrize(("name", "id"), CASES)
def test_the_refusal_is_recorded(name: str, id: str, sockets: Sockets) -> None:
    sockets.duel.assert_recorded(id)


@pytest.mark.parametrize("id", ["own", "own in the temporary folder", "own abstract"])
def test_the_tree_talks_over_its_own_sockets(id: str, sockets: Sockets) -> None:
    sockets.duel.assert_allowed(id)
    assert sockets.duel.guarded[id].out == "hello"


def test_the_kinds_of_socket_are_all_there() -> None:
    assert {kind for _, kind in SOCKETS.values()} == {socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET}


@pytest.mark.parametrize("name", ["tmux-0/x", "link"])
def test_a_socket_that_a_glob_denies_is_recorded_as_denied_by_that_rule_whatever_leads_to_it(name: str) -> None:
    need_root()
    with sandbox() as caged:
        folder = caged.world.project / "tmux-0"
        folder.mkdir()
        (caged.world.project / "link").symlink_to("tmux-0/x")
        caged.write_profile("glob", GLOB_PROFILE)
        asked = str(caged.world.project / name)
        connect = [SYSTEM_PYTHON, "-c", CONNECT, asked]
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "x"))
            folder.chmod(0o777)
            (folder / "x").chmod(0o777)
            listener.listen()
            assert caged.control(connect).code == 0
            assert caged.run(connect).code != 0
        (event,) = [event for event in caged.events() if event["kind"] == "unix" and event["path"] == asked]
        assert event["verdict"] == "deny", event
        assert_names_rule(event, "tmux-*")
