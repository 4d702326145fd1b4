"""The shared engine: loaded once, one slot a session, nothing of one session in another, and whole without any of us."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bpf_tree import Tree, allow, deny, errno_of, in_child
from harness import SYSTEM_PYTHON, mcpguard_command, sandbox

from mcpguard.backends import cgroup_bpf, tracing
from mcpguard.backends.engine import ANY_CALL, ANY_SEND, LAYOUT, Engine
from mcpguard.errors import HostError, KernelError
from mcpguard.kernel import bpf, cgroup, pins
from mcpguard.kernel.beside import Beside
from mcpguard.kernel.cgroup import Leaf
from mcpguard.model.access import Verdict
from mcpguard.session import recording
from mcpguard.wire import _abi
from mcpguard.wire.records import OpenRecord, PathCallRecord

pytestmark = pytest.mark.kernel

V4 = "127.0.0.1"
BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]


@pytest.fixture
def other(other_leaf: Leaf) -> Iterator[Tree]:
    planted = Tree.plant(other_leaf)
    yield planted
    planted.close()


@pytest.fixture
def tcp() -> Iterator[int]:
    with socket.create_server((V4, 0)) as server:
        yield server.getsockname()[1]


def connect(port: int) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        return errno_of(lambda: sock.connect((V4, port)))


def program_ids(engine: Engine) -> dict[str, int]:
    return {name: bpf.program_id(engine.program(name)) for name in (*cgroup_bpf.NETWORK, *tracing.programs(engine))}


def known(engine: Engine) -> set[int]:
    """The leaves that the engine knows."""
    return {int.from_bytes(key, "little") for key in engine.map("mg_sessions").keys(8)}


def another_build(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    """From now on the package's objects are those of another build; returns where its engine will be."""
    shutil.copytree(bpf.OBJECTS, folder)
    (folder / "more.bpf.o").write_bytes(os.urandom(16))
    monkeypatch.setattr(bpf, "OBJECTS", folder)
    return f"{pins.ROOT}/{pins.version(folder, LAYOUT)}"


# --- several at once ---


def test_two_sessions_with_opposite_rules_do_not_see_each_other(tree: Tree, other: Tree, tcp: int) -> None:
    tree.guard(connect=(allow(V4, 32, 3),))
    other.guard(connect=(deny(V4, 32, 4),))
    for _ in range(3):
        assert tree.run(lambda: connect(tcp)) == 0
        assert other.run(lambda: connect(tcp)) == errno.EPERM
    assert tree.session.slot != other.session.slot
    assert tree.net_denials() == []
    assert {record.rule for record in tree.activity() if hasattr(record, "rule")} == {3}
    assert {record.rule for record in other.net_denials()} == {4}
    assert other.activity() == []


def test_new_rules_of_one_session_change_nothing_for_the_other(tree: Tree, other: Tree, tcp: int) -> None:
    tree.guard(connect=(allow(V4, 32, 3),))
    other.guard()
    assert tree.network is not None and other.network is not None
    tree.network.update_connect([])
    other.network.update_connect([allow(V4, 32, 5)])
    assert tree.run(lambda: connect(tcp)) == errno.EPERM
    assert other.run(lambda: connect(tcp)) == 0
    assert [[said.rule for said in one.net_denials()] for one in (tree, other)] == [[0], []]


def test_audit_of_one_session_is_no_audit_of_the_other(tree: Tree, other: Tree, tcp: int) -> None:
    tree.guard(audit=True)
    other.guard()
    assert tree.run(lambda: connect(tcp)) == 0
    assert other.run(lambda: connect(tcp)) == errno.EPERM
    told = [[said.verdict for said in one.net_denials()] for one in (tree, other)]
    assert told == [[Verdict.AUDIT], [Verdict.DENY]]


def test_what_one_session_opens_is_on_its_record_alone(tree: Tree, other: Tree, tmp_path: Path) -> None:
    tree.trace()
    other.trace()
    for planted, name in ((tree, "one"), (other, "two")):
        (tmp_path / name).touch()
        planted.run(lambda name=name: os.close(os.open(tmp_path / name, os.O_RDONLY)))
    for planted, name in ((tree, "one"), (other, "two")):
        ours = {r.path for r in planted.activity() if isinstance(r, OpenRecord) and r.path.startswith(str(tmp_path))}
        assert ours == {str(tmp_path / name)}


def test_the_listener_of_one_session_is_not_the_others_own(tree: Tree, other: Tree) -> None:
    tree.guard(listen=(allow(V4, 32, 1),))
    other.guard()
    reader, writer = os.pipe()

    def serve() -> None:
        with socket.create_server((V4, 0)) as server:
            port = server.getsockname()[1]
            assert connect(port) == 0, "its own listener"
            os.write(writer, json.dumps(port).encode())
            signal.pause()

    pid = os.fork()
    if pid == 0:
        try:
            tree.leaf.enter()
            serve()
        finally:
            os._exit(1)
    try:
        port = json.loads(os.read(reader, 64))
        assert connect(port) == 0, "outside"
        assert other.run(lambda: connect(port)) == errno.EPERM
        assert [(one.port, one.rule) for one in other.net_denials()] == [(port, 0)]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)


def test_what_asks_a_table_that_is_not_in_its_slot_yet_is_refused(tree: Tree, tcp: int) -> None:
    """A launch says what the session is before all of its maps are in their slots."""
    tree.guard(connect=(allow(V4, 32, 1),))
    assert tree.run(lambda: connect(tcp)) == 0
    outer, slot = tree.engine.map("mg_connect"), tree.session.slot.to_bytes(4, sys.byteorder)
    outer.delete(slot)
    tree.session.set_state(tree.flags, early=True)
    assert tree.run(lambda: connect(tcp)) == errno.EPERM
    assert connect(tcp) == 0, "outside"
    outer.set_fd(slot, tree.session.maps["mg_connect"].fd)
    assert tree.run(lambda: connect(tcp)) == 0


def test_maps_that_are_in_their_slots_are_not_waited_for_and_one_that_is_not_is(tree: Tree) -> None:
    """The kernel goes on waiting for programs when a map is there already."""

    def refuse() -> None:
        raise KernelError("bpf_map_update_elem", errno.ENOMEM, do="")

    tree.session._moving = Beside(refuse)
    tree.session.await_maps()
    outer, slot = tree.engine.map("mg_connect"), tree.session.slot.to_bytes(4, sys.byteorder)
    for other in (None, tree.session.another("mg_connect")):
        outer.delete(slot)
        if other is not None:  # what a session that was killed has left there
            outer.set_fd(slot, other.fd)
            other.close()
        with pytest.raises(KernelError, match="bpf_map_update_elem"):
            tree.session.await_maps()
    outer.set_fd(slot, tree.session.maps["mg_connect"].fd)
    tree.session.await_maps()
    tree.session._moving = None


# --- loaded once ---


def test_a_second_run_loads_nothing(tree: Tree) -> None:
    loaded = program_ids(tree.engine)
    again = Engine.open()
    try:
        assert program_ids(again) == loaded
        assert bpf.map_id(again.map("mg_sessions").fd) == bpf.map_id(tree.engine.map("mg_sessions").fd)
    finally:
        again.close()


def runs_of_any_call(engine: Engine) -> int:
    """How often the programs at the end of every call are asked while a few calls are made here."""
    programs = [engine.program(name) for name in (ANY_CALL, ANY_SEND) if engine.has(name)]
    with bpf.counting():
        before = sum(bpf.program_facts(program).runs for program in programs)
        for _ in range(20):
            os.getppid()
        return sum(bpf.program_facts(program).runs for program in programs) - before


def test_the_links_live_as_long_as_a_session(tree: Tree, other: Tree) -> None:
    assert tracing.detach_verify(tree.engine) == []
    other.close()
    assert tracing.detach_verify(tree.engine) == []
    tree.leaf.kill()
    assert tree.leaf.await_empty()
    assert runs_of_any_call(tree.engine) > 0, "the control"
    assert tree.session.remove()
    if not known(tree.engine):  # somebody else's session keeps them
        # A kernel may let go of what was pinned a moment later, whoever held it last.
        assert any(runs_of_any_call(tree.engine) == 0 for _ in range(500))
        assert tree.engine.linked() == set()


def test_another_build_comes_beside_a_session_that_lives_and_replaces_it_later(
    tree: Tree, tcp: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tree.guard()
    old = tree.engine._folder
    with monkeypatch.context() as patched:
        new = another_build(patched, tmp_path / "objects")
        Engine.open().close()
        assert os.path.isdir(new)
        tree.let_go()
        Engine.open().close()
        assert os.path.isdir(old), "a process lives in its session"
        assert tree.run(lambda: connect(tcp)) == errno.EPERM
        tree.leaf.kill()
        assert tree.leaf.await_empty()
        os.rmdir(tree.leaf.path)
        Engine.open().close()
        assert not os.path.exists(old) or _has_other_users(old)
    Engine.open().close()
    assert not os.path.exists(new)


def _has_other_users(folder: str) -> bool:
    """Tests of the same build may run beside us."""
    sessions = bpf.Map("mg_sessions", bpf.pinned(f"{folder}/maps/mg_sessions"))
    try:
        return pins.is_held(folder) or bool(sessions.keys(8))
    finally:
        sessions.close()


def test_what_a_killed_loader_left_is_cleared_away(tree: Tree) -> None:
    with pins.locked():
        unfinished = pins.begin("0123")
    Engine.open().close()
    assert not os.path.exists(unfinished)


def test_a_directory_that_somebody_else_made_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_the_way = tmp_path / "mcpguard"
    in_the_way.mkdir(mode=0o755)
    monkeypatch.setattr(pins, "ROOT", str(in_the_way))
    with pytest.raises(HostError) as caught:
        pins.prepare()
    assert caught.value.code == "host.pins-not-ours"


def test_many_links_are_taken_away_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel stands still when its queue is full of links that wait for what comes after them in the queue."""
    monkeypatch.setattr(pins, "_AT_ONCE", 4)
    most, unlink = [0], os.unlink
    programs: list[int] = []
    leaving: list[int] = []
    monkeypatch.setattr(pins, "_leaving", leaving)

    def count(path: str) -> None:
        unlink(path)
        most.append(sum(map(bpf.program_exists, leaving)))

    with pins.locked():
        pins.prepare()
        folder = pins.begin("many")
        for number in range(3):
            opened = bpf.Object("trace")
            opened.load()
            for name in opened.programs:
                fd = opened.program(name)
                programs.append(bpf.program_id(fd))
                link = bpf.attach_raw_tracepoint("sched_process_exec", fd)
                bpf.pin(fd, f"{folder}/{pins.PROGRAMS}/{name}-{number}")
                bpf.pin(link, f"{folder}/{pins.LINKS}/{name}-{number}")
                os.close(link)
            opened.close()
        monkeypatch.setattr(os, "unlink", count)
        pins.remove(folder)
    assert len(programs) == 12
    assert max(most) <= 4
    assert not os.path.exists(folder)
    pins._await_leaving()
    assert not any(map(bpf.program_exists, programs))


def test_an_object_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = another_build(monkeypatch, tmp_path / "objects")
    monkeypatch.setattr(_abi, "ABI_VERSION", _abi.ABI_VERSION + 1)
    with pytest.raises(HostError) as caught:
        Engine.open()
    assert caught.value.code == "host.object-version"
    assert not os.path.exists(place), "nothing half-made is left"


# --- slots ---


def test_too_many_sessions_are_refused_with_a_reason(
    tree: Tree, other_leaf: Leaf, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = {slot: _abi.MG_SESSION.pack(slot, 1, 0, 0, 0, 0) for slot in range(1, _abi.MG_SESSIONS_LIMIT)}
    monkeypatch.setattr(tree.engine, "_sessions", lambda: full)
    with pytest.raises(HostError) as caught:
        tree.engine.add_session(other_leaf.fd, other_leaf.id)
    assert caught.value.code == "host.too-many-sessions"


def test_the_lowest_free_slot_is_taken_again(tree: Tree, other_leaf: Leaf) -> None:
    second = tree.engine.add_session(other_leaf.fd, other_leaf.id)
    slot = second.slot
    other_leaf.kill()
    assert other_leaf.await_empty()
    assert second.remove()
    second.close()
    third = tree.engine.add_session(other_leaf.fd, other_leaf.id)
    assert third.slot <= slot
    assert third.remove()
    third.close()


def test_a_slot_that_is_emptied_apart_is_nobodys_meanwhile(tree: Tree, tmp_path: Path) -> None:
    """Whoever ends a run need not wait for the kernel, and the next run cannot get the slot before it is empty."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    tree.guard()
    slot = tree.session.slot
    tree.session.at_removal(lambda: fifo.read_bytes() and None)
    tree.leaf.kill()
    assert tree.leaf.await_empty()
    assert tree.session.remove(apart=True)
    assert tree.leaf.id not in known(tree.engine)
    with open(pins.LOCK) as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fifo.write_bytes(b"go on")
    with pins.locked(), pytest.raises(KernelError) as missing:
        bpf.inner_map(tree.engine.map("mg_counters"), slot)
    assert missing.value.errno == errno.ENOENT


# --- what fails, fails closed ---


def place_of(leaf: Leaf) -> bytes:
    return (leaf.id % _abi.MG_PLACES).to_bytes(4, sys.byteorder)


FREE, TAKEN = (number.to_bytes(4, sys.byteorder) for number in (0, 1))


def test_the_place_of_a_leaf_is_taken_as_long_as_one_of_those_that_have_it_lives(tree: Tree) -> None:
    sessions, places = tree.engine.map("mg_sessions"), tree.engine.map("mg_leaf_places")
    twin = (tree.leaf.id + _abi.MG_PLACES).to_bytes(8, sys.byteorder)
    assert places.get(place_of(tree.leaf), 4) == TAKEN
    with pins.locked():  # nobody clears away what lives nowhere
        sessions.set(twin, _abi.MG_SESSION.pack(_abi.MG_SESSIONS_LIMIT - 1, 0, 0, 0, 0, 0))
        try:
            tree.engine._end(tree.leaf.id)
            assert places.get(place_of(tree.leaf), 4) == TAKEN, "the twin has the same"
        finally:
            sessions.delete(twin)
        tree.engine._end(tree.leaf.id)
        assert places.get(place_of(tree.leaf), 4) == FREE


def test_a_run_whose_place_is_free_is_noticed_by_what_the_canary_leaves(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has no place is taken for somebody outside: the programs on the leaf refuse, and those on calls see nothing."""
    monkeypatch.setattr(recording, "_CANARY_WAIT_S", 0.5)
    tree.guard().trace()
    read = recording.Recording.__new__(recording.Recording)
    read._rings, read._before = dict(tree.rings), set()
    places = tree.engine.map("mg_leaf_places")

    def canary() -> int:
        assert connect(1) == errno.EPERM
        return os.getpid()

    places.set(place_of(tree.leaf), FREE)
    pid = tree.run(canary)
    with pytest.raises(HostError) as refused:
        read._expect_canary(pid)
    assert refused.value.why.endswith("came out of mg_activity")
    places.set(place_of(tree.leaf), TAKEN)
    read._expect_canary(tree.run(canary))


def test_a_session_without_a_state_is_refused_everything(tree: Tree, tcp: int) -> None:
    cgroup_bpf.attach(tree.session)
    assert tree.run(lambda: errno_of(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))) == errno.EPERM
    tree.session.set_state(_abi.MG_SESSION_LIVE | _abi.MG_SESSION_AUDIT)
    assert tree.run(lambda: connect(tcp)) == 0
    tree.session.set_state(0)
    assert tree.run(lambda: errno_of(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))) == errno.EPERM


def test_a_session_that_somebody_lives_in_cannot_be_removed(tree: Tree, tcp: int) -> None:
    tree.guard()
    assert not tree.session.remove()
    assert tree.leaf.id in known(tree.engine)
    assert connect(tcp) == 0, "outside"
    assert tree.run(lambda: connect(tcp)) == errno.EPERM
    assert [(one.port, one.rule) for one in tree.net_denials()] == [(tcp, 0)]


def test_a_socket_outlives_its_session_only_to_finish(tree: Tree, tcp: int) -> None:
    """A process outside may hold a socket of the tree: what was approved goes on, nothing new begins."""
    tree.guard(connect=(allow(V4, 32, 3),))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with socket.create_server((V4, 0)) as server:
        port = server.getsockname()[1]

        def act() -> None:
            connected = socket.create_connection((V4, port))
            fresh = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            socket.send_fds(theirs, [b"x"], [connected.fileno(), fresh.fileno()])

        tree.run(act)
        _, fds, _, _ = socket.recv_fds(ours, 1, 2)
        peer, _ = server.accept()
        connected, fresh = (socket.socket(fileno=fd) for fd in fds)
        with ours, theirs, peer, connected, fresh:
            tree.leaf.kill()
            assert tree.leaf.await_empty()
            assert tree.session.remove()
            connected.sendall(b"last words")
            peer.settimeout(20)
            assert peer.recv(64) == b"last words"
            assert errno_of(lambda: fresh.connect((V4, port))) == errno.EPERM


# --- without any of us ---


def test_a_stale_session_is_swept_and_takes_the_links_with_it(leaf: Leaf) -> None:
    tree = Tree.plant(leaf).guard().trace()
    tree.let_go()
    leaf.kill()
    assert leaf.await_empty()
    engine = Engine.open()
    try:
        assert leaf.id in known(engine), "its leaf is there, so it is somebody's"
    finally:
        engine.close()
    os.rmdir(leaf.path)
    engine = Engine.open()
    try:
        assert leaf.id not in known(engine)
        if not known(engine):
            assert engine.linked() == set()
    finally:
        engine.close()
        for ring in tree.rings.values():
            ring.close()
            os.close(ring.fd)


def test_what_a_killed_session_of_another_tier_attached_goes_with_the_next_run(leaf: Leaf) -> None:
    """Every process of the host pays for it, and there may never be a run in that tier again."""
    tree = Tree.plant(leaf, Engine.open(kind="-of-another-tier")).guard().trace()
    folder = tree.engine._folder
    attached = tree.engine.linked()
    tree.let_go()
    try:
        Engine.open().close()
        assert set(os.listdir(f"{folder}/{pins.LINKS}")) == attached != set(), "its leaf is there, so it is somebody's"
        leaf.kill()
        assert leaf.await_empty()
        os.rmdir(leaf.path)
        Engine.open().close()
        assert os.listdir(f"{folder}/{pins.LINKS}") == []
    finally:
        for ring in tree.rings.values():
            ring.close()
            os.close(ring.fd)
        with pins.locked():
            pins.remove(folder)


def test_a_leaf_is_known_to_exist_by_its_id_alone(leaf: Leaf) -> None:
    mount = cgroup.unified_mount()
    assert mount is not None
    fd = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert cgroup.exists(fd, leaf.id)
        assert not cgroup.exists(fd, leaf.id + (1 << 40))
    finally:
        os.close(fd)


def test_a_killed_guard_leaves_enforcement_and_record_in_place(leaf: Leaf, tcp: int, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    pid = os.fork()
    if pid == 0:
        Tree.plant(leaf).guard().trace()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    engine = Engine.open()
    try:
        assert leaf.id in known(engine)
        assert tracing.detach_verify(engine) == []

        def act() -> int:
            os.close(os.open(tmp_path / "f", os.O_RDONLY))
            return connect(tcp)

        assert in_child(act, leaf.enter) == errno.EPERM
        slot = _abi.MG_SESSION.unpack(engine._sessions()[leaf.id])[0]
        counters = bpf.inner_map(engine.map("mg_counters"), slot)
        series = _abi.MG_COUNTERS.unpack(counters.get(bytes(4), _abi.MG_COUNTERS.size) or b"")[0]
        counters.close()
        assert series >= 2, "the open and the refusal are on record"
    finally:
        engine.close()


WAITING = """
import os, socket, sys, time
open("ready", "w").write(str(os.getpid()))
while not os.path.exists("go"):
    time.sleep(0.01)
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5)
    said = "connected"
except OSError as error:
    said = str(error.errno)
open("answer.new", "w").write(said)
os.rename("answer.new", "answer")
"""


def test_kill_of_the_broker_leaves_the_network_refused_and_the_session_known(tcp: int) -> None:
    with sandbox() as box:
        box.write_profile("own", "name: own\nextends: [default]\n")
        project = box.world.project
        (project / "wait.py").write_text(WAITING)
        command = [
            *mcpguard_command(),
            "run",
            "-p",
            "own",
            "-w",
            str(project),
            "--",
            SYSTEM_PYTHON,
            "wait.py",
            str(tcp),
        ]
        quiet = subprocess.DEVNULL
        run = subprocess.Popen(
            command, cwd=project, env=box.world.environment(), stdin=quiet, stdout=quiet, stderr=quiet
        )
        try:
            _await(project / "ready")
            guarded = int((project / "ready").read_text())
            leaf = cgroup.cgroup_id(_leaf_of(guarded))
            for pid in _brokers_of(run.pid):
                os.kill(pid, signal.SIGKILL)
            run.kill()
            engine = Engine.open()
            try:
                assert leaf in known(engine)
                assert tracing.detach_verify(engine) == []
            finally:
                engine.close()
            (project / "go").touch()
            _await(project / "answer")
            assert (project / "answer").read_text() == str(errno.EPERM)
        finally:
            run.kill()
            run.wait()


def _await(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.01)


def _leaf_of(pid: int) -> str:
    line = next(x for x in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if x.startswith("0::"))
    return f"{cgroup.unified_mount()}{line.removeprefix('0::')}"


def _brokers_of(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in children]


# --- from inside ---

INSIDE = """
import ctypes, json, os, sys
root, number = sys.argv[1], int(sys.argv[2])
def tried(act):
    try:
        act()
        return 0
    except OSError as error:
        return error.errno
def obj_get():
    path = ctypes.create_string_buffer((sys.argv[3] + "/maps/mg_sessions").encode())
    attributes = (ctypes.c_uint64 * 16)(ctypes.addressof(path))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, 7, attributes, 128) < 0:
        raise OSError(ctypes.get_errno(), "bpf")
print(json.dumps({
    "list": tried(lambda: os.listdir(root)),
    "make": tried(lambda: os.mkdir(root + "/x")),
    "unlink": tried(lambda: os.unlink(sys.argv[3] + "/maps/mg_sessions")),
    "rename": tried(lambda: os.rename(sys.argv[3], root + "/gone")),
    "get": tried(obj_get),
}))
"""


def test_the_pins_cannot_be_read_or_removed_from_inside(tree: Tree) -> None:
    with sandbox() as box:
        (box.world.project / "inside.py").write_text(INSIDE)
        folder = tree.engine._folder
        command = [SYSTEM_PYTHON, "inside.py", pins.ROOT, str(BPF), folder]
        finished = box.run(command)
        assert finished.code == 0, finished.err
        (tried,) = finished.json_lines()
        assert all(tried.values()), tried
        assert set(tried.values()) <= {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT}
        told = box.denials()
        assert [event["rule"]["text"] for event in told if event["op"] == "bpf"] == ["system: no BPF"], told
        places = [event for event in told if event.get("path", "").startswith(pins.ROOT)]
        assert {"open", "mkdir", "unlink", "rename"} <= {event["op"] for event in places}, told
        assert {event["rule"]["text"] for event in places} == {"deny /sys/fs/bpf"}
    assert os.path.exists(f"{folder}/maps/mg_sessions")
    assert os.listdir(pins.ROOT), "the control: outside, root reads it"
    os.mkdir(f"{pins.ROOT}/new-control-0")
    os.rmdir(f"{pins.ROOT}/new-control-0")


# --- records ---


def test_a_refusal_that_a_hook_told_of_is_not_told_again(tree: Tree, tmp_path: Path) -> None:
    tree.flags |= _abi.MG_SESSION_FILES  # as where hooks judge
    tree.trace()
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    spoken = tree.engine.map("mg_spoken")
    ours, theirs = socket.socketpair()
    ours.settimeout(20)

    def act() -> None:
        os.setresuid(65534, 65534, 65534)
        theirs.sendall(os.getpid().to_bytes(4, "little"))
        while theirs.recv(1) == b"x":
            theirs.sendall(bytes([errno_of(lambda: os.open(secret, os.O_RDONLY))]))

    def refused() -> bool:
        ours.sendall(b"x")
        return ours.recv(1)[0] == errno.EACCES

    def told() -> int:
        return sum(isinstance(r, PathCallRecord) and r.path == str(secret) for r in tree.denials())

    pid = os.fork()
    if pid == 0:
        try:
            tree.leaf.enter()
            act()
        finally:
            os._exit(0)
    with ours:
        tid = ours.recv(4)
        assert refused()
        assert told() == 1
        spoken.set(tid, bytes(4))
        place = int.from_bytes(tid, "little") % _abi.MG_SPOKEN_PLACES
        tree.engine.map("mg_spoken_places").set(place.to_bytes(4, "little"), b"\1\0\0\0")
        assert refused()
        assert spoken.get(tid, 4) is None, "a word counts once"
        assert refused()
        ours.sendall(b".")
        os.waitpid(pid, 0)
    # The first is sent, the second was told by the hook, the third makes two of the same kind.
    assert sum(r.count for r in tree.denials() if isinstance(r, PathCallRecord) and r.path == str(secret)) == 2
