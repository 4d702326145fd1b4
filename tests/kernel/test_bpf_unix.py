"""Unix sockets: paths and abstract names, streams and datagrams, by rule or refused with EPERM and on record."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest
from bpf_tree import Tree, each, errno_of, in_child

from mcpguard.model.access import Effect, Verdict
from mcpguard.wire.records import UnixRecord

pytestmark = pytest.mark.kernel

STREAM, DATAGRAM, PACKETS = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET


def guard(tree: Tree, *rules: tuple[str, Effect, int], **settings: bool) -> None:
    tree.guard(unix=rules, guard_unix=True, **settings)
    tree.trace()
    assert tree.network is not None
    if not tree.network.unix:
        pytest.skip("this kernel has no hooks for unix sockets (they came with 6.7)")


def serve(name: str, kind: int = STREAM) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, kind)
    server.bind(name)
    if kind != DATAGRAM:
        server.listen()
    return server


def connect(name: str, kind: int = STREAM) -> None:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.connect(name)


def send(name: str) -> None:
    with socket.socket(socket.AF_UNIX, DATAGRAM) as sock:
        sock.sendto(b"x", name)


def abstract() -> str:
    return f"\0mcpguard-test-{os.getpid()}-{os.urandom(4).hex()}"


@pytest.mark.parametrize("kind", [STREAM, DATAGRAM, PACKETS])
@pytest.mark.parametrize("named", ["path", "abstract"])
def test_a_foreign_socket_without_a_rule_is_refused(kind: int, named: str, tree: Tree, tmp_path: Path) -> None:
    name = str(tmp_path / "s") if named == "path" else abstract()
    guard(tree)
    with serve(name, kind):
        assert in_child(lambda: errno_of(lambda: connect(name, kind))) == 0
        assert tree.run(lambda: errno_of(lambda: connect(name, kind))) == errno.EPERM
    (record,) = tree.unix_denials()
    assert (record.op, record.verdict, record.rule) == ("connect", Verdict.DENY, 0)
    assert record.path == name.replace("\0", "@")
    assert record.head.ppid == os.getpid()


@pytest.mark.parametrize("named", ["path", "abstract"])
def test_a_datagram_without_a_connection_is_judged_too(named: str, tree: Tree, tmp_path: Path) -> None:
    name = str(tmp_path / "s") if named == "path" else abstract()
    guard(tree)
    with serve(name, DATAGRAM):
        assert in_child(lambda: errno_of(lambda: send(name))) == 0
        assert tree.run(lambda: errno_of(lambda: send(name))) == errno.EPERM
    assert [r.op for r in tree.unix_denials()] == ["sendmsg"]


def test_a_subtree_is_allowed_at_component_boundaries(tree: Tree, tmp_path: Path) -> None:
    inside, beside = tmp_path / "a", tmp_path / "ab"
    inside.mkdir()
    beside.mkdir()
    guard(tree, (f"{inside}/**", Effect.ALLOW, 3))
    with serve(str(inside / "s")), serve(str(beside / "s")):
        assert tree.run(lambda: errno_of(lambda: connect(str(inside / "s")))) == 0
        act = lambda: connect(str(beside / "s"))  # noqa: E731
        assert dict(each(tree, act)) == {"outside": 0, "inside": errno.EPERM}
    assert [(r.path, r.rule) for r in tree.unix_denials()] == [(str(beside / "s"), 0)]
    assert [r.rule for r in tree.activity() if isinstance(r, UnixRecord)] == [3]


def test_a_deny_inside_an_allow_wins_whatever_the_order(tree: Tree, tmp_path: Path) -> None:
    name = str(tmp_path / "s")
    guard(tree, (str(tmp_path), Effect.ALLOW, 3), (name, Effect.DENY, 4))
    with serve(name):
        assert dict(each(tree, lambda: connect(name))) == {"outside": 0, "inside": errno.EPERM}
    assert [r.rule for r in tree.unix_denials()] == [4]


def test_a_beginning_is_allowed_by_a_star(tree: Tree) -> None:
    name, other = abstract(), abstract()
    guard(tree, (f"@{name[1:-2]}*", Effect.ALLOW, 3))
    with serve(name), serve(other):
        assert tree.run(lambda: errno_of(lambda: connect(name))) == 0
        assert dict(each(tree, lambda: connect(other))) == {"outside": 0, "inside": errno.EPERM}
    assert [(r.path, r.rule) for r in tree.unix_denials()] == [(other.replace("\0", "@"), 0)]


def test_an_exact_abstract_name_is_not_a_beginning(tree: Tree) -> None:
    name = abstract()
    guard(tree, (f"@{name[1:-1]}", Effect.ALLOW, 3))
    with serve(name):
        assert dict(each(tree, lambda: connect(name))) == {"outside": 0, "inside": errno.EPERM}
    assert [(r.path, r.rule) for r in tree.unix_denials()] == [(name.replace("\0", "@"), 0)]


@pytest.mark.parametrize("twist", ["{0}/../{1}/s", "{0}/./s", "{0}//s", "/proc/self/root{0}/s", "s", "../{1}/s"])
def test_only_plain_paths_match_a_rule(twist: str, tree: Tree, tmp_path: Path) -> None:
    name = twist.format(tmp_path, tmp_path.name)
    guard(tree, ("/**", Effect.ALLOW, 3))
    with serve(str(tmp_path / "s")):

        def act() -> int:
            os.chdir(tmp_path)
            return errno_of(lambda: connect(name))

        assert in_child(act) == 0
        assert tree.run(act) == errno.EPERM
    assert [(r.path, r.detail) for r in tree.unix_denials()] == [(name, "not a plain path")]


def test_relative_paths_can_be_let_through(tree: Tree, tmp_path: Path) -> None:
    guard(tree, ("s", Effect.ALLOW, 3), allow_relative=True)
    with serve(str(tmp_path / "s")):

        def act(name: str) -> int:
            os.chdir(tmp_path)
            return errno_of(lambda: connect(name))

        assert tree.run(lambda: act("s")) == 0
        other = f"../{tmp_path.name}/s"
        assert in_child(lambda: act(other)) == 0
        assert tree.run(lambda: act(other)) == errno.EPERM
    assert [r.path for r in tree.unix_denials()] == [other]


@pytest.mark.parametrize("kind", [STREAM, DATAGRAM])
def test_the_tree_reaches_its_own_abstract_sockets_while_they_live(kind: int, tree: Tree) -> None:
    name = abstract()
    guard(tree)

    def act() -> list[int]:
        with serve(name, kind):
            alive = errno_of(lambda: connect(name, kind))
        return [alive, errno_of(lambda: connect(name, kind))]

    assert tree.run(act) == [0, errno.EPERM]
    assert [r.detail for r in tree.activity() if isinstance(r, UnixRecord)] == ["own"]
    with serve(name, kind):
        found = dict(each(tree, lambda: connect(name, kind)))
    assert found == {"outside": 0, "inside": errno.EPERM}, "the name is foreign now"
    assert [(r.path, r.rule) for r in tree.unix_denials()] == [(name.replace("\0", "@"), 0)] * 2


def test_own_names_of_one_type_say_nothing_about_another(tree: Tree) -> None:
    name = abstract()
    guard(tree)
    with serve(name, DATAGRAM):

        def act() -> int:
            with serve(name, STREAM):
                return errno_of(lambda: connect(name, DATAGRAM))

        assert in_child(act) == 0
        assert tree.run(act) == errno.EPERM
    assert [(r.path, r.rule) for r in tree.unix_denials()] == [(name.replace("\0", "@"), 0)]


def test_socket_pairs_need_no_rule(tree: Tree) -> None:
    guard(tree)

    def act() -> str:
        left, right = socket.socketpair()
        left.sendall(b"hello")
        return right.recv(9).decode()

    assert tree.run(act) == "hello"
    assert tree.unix_denials() == []


def test_audit_lets_unknown_sockets_through(tree: Tree) -> None:
    name = abstract()
    guard(tree, audit=True)
    with serve(name):
        assert tree.run(lambda: errno_of(lambda: connect(name))) == 0
    assert [r.verdict for r in tree.unix_denials()] == [Verdict.AUDIT]
