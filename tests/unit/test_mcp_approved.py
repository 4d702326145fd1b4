"""The catalogue: nothing is approved but what the user approved exactly, and a file that is not understood approves nothing."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import threading
from pathlib import Path

import pytest
from mcp_files import write

from mcpguard.catalogue import approved, identity
from mcpguard.catalogue.identity import Identity
from mcpguard.catalogue.server import of as server_of
from mcpguard.catalogue.starting import identify
from mcpguard.errors import HostError
from mcpguard.gate import pins

pytestmark = pytest.mark.usefixtures("mcpguard_home")
REST = '"declared_in": "", "digest": "", "approved": ""'
ENV = {"PATH": "/usr/bin:/bin"}


def local(tmp_path: Path, text: str = "1", *args: str) -> Identity:
    write(tmp_path / "x.sh", text)
    return identity.of("sh", ["x.sh", *args], ENV, str(tmp_path))


def test_only_what_was_approved_is_and_what_changed_is_told(tmp_path: Path) -> None:
    first = local(tmp_path)
    assert approved.load().state("x", first).word == "not approved"
    approved.approve("x", "file", first, ["B", "A"])
    catalogue = approved.load()
    assert catalogue.state("x", first).allowed
    assert not catalogue.state("y", first).allowed
    assert catalogue.entries[0].environment == ("A", "B")

    changed = catalogue.state("x", local(tmp_path, "2"))
    assert (changed.word, changed.allowed) == ("changed", False)
    assert [text.split(":")[0] for text in changed.differences] == ["script sha256"]
    (told,) = catalogue.state("x", local(tmp_path, "1", "--more")).differences
    assert told == "command: sh x.sh -> sh x.sh --more"
    hidden = catalogue.state("x", identity.of("sh", ["x.sh"], {**ENV, "BASH_ENV": "/x"}, str(tmp_path)))
    assert hidden.differences[0].startswith("BASH_ENV sha256: none -> ")


def declared(tmp_path: Path, **more: object) -> Identity:
    server = server_of("x", {"command": "sh", **more}, client="c", scope="user", file="/f")
    known = identify(server, {**ENV, "TOKEN": "from the environment"}, tmp_path)
    assert known is not None
    return known


def test_what_a_configuration_declares_is_approved_as_it_is_written(tmp_path: Path) -> None:
    """A variable can lead an approved program to other files and other hosts."""
    first = declared(tmp_path, env={"API": "https://a.example", "TOKEN": "${TOKEN}", "KEY": ""})
    approved.approve("x", "file", first, [])
    catalogue = approved.load()
    assert catalogue.state(
        "x", declared(tmp_path, env={"KEY": "", "TOKEN": "${TOKEN}", "API": "https://a.example"})
    ).allowed
    (told,) = catalogue.state(
        "x", declared(tmp_path, env={"API": "https://evil.example", "TOKEN": "${TOKEN}", "KEY": ""})
    ).differences
    assert told == "variable API: https://a.example -> https://evil.example"
    more = declared(
        tmp_path, env={"API": "https://a.example", "TOKEN": "${TOKEN}", "KEY": "", "HTTPS_PROXY": "http://evil"}
    )
    assert catalogue.state("x", more).differences == ("variable HTTPS_PROXY: none -> http://evil",)
    elsewhere = declared(tmp_path, env={"API": "https://a.example", "TOKEN": "${TOKEN}", "KEY": ""}, cwd="/")
    assert catalogue.state("x", elsewhere).differences == ("folder: none -> /",)
    assert "from the environment" not in approved.file().read_text()


def test_a_remote_server_is_its_origin() -> None:
    approved.approve("r", "file", identity.of_remote("https://a.example/mcp"), [])
    catalogue = approved.load()
    assert catalogue.state("r", identity.of_remote("https://a.example/other")).allowed
    (told,) = catalogue.state("r", identity.of_remote("http://a.example/mcp")).differences
    assert told == "origin: https://a.example:443 -> http://a.example:80"
    assert not catalogue.state("r", identity.of_remote("https://a.example.evil/")).allowed


def test_one_declaration_has_one_approval_and_several_have_their_own(tmp_path: Path) -> None:
    old, new, other = local(tmp_path), local(tmp_path, "2"), local(tmp_path, "3")
    approved.approve("x", "file", old, [])
    approved.approve("x", "file", new, [])
    approved.approve("x", "elsewhere", other, [])
    catalogue = approved.load()
    assert [catalogue.state("x", one).word for one in (old, new, other)] == ["changed", "approved", "approved"]
    assert len(approved.revoke("x")) == 2
    assert approved.load().state("x", new).word == "not approved"
    assert approved.revoke("x") == ()


def test_the_file_is_the_users_alone(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        approved.approve("x", "file", local(tmp_path), [])
    finally:
        os.umask(previous)
    assert stat.S_IMODE(approved.file().stat().st_mode) == 0o600
    assert stat.S_IMODE(approved.file().parent.stat().st_mode) == 0o700
    assert [path.name for path in approved.file().parent.iterdir()] == [approved.file().name]


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "{}", "null", "[" * 10_000, '{"version": 2, "servers": []}', '{"version": 1}'),
        *(
            '{"version": 1, "servers": {}, "servers": []}',
            '{"version": 1, "servers": [1]}',
            '{"version": 1, "servers": [{}]}',
        ),
        f'{{"version": 1, "servers": [{{"name": 1, {REST}, "facts": [], "environment": []}}]}}',
        f'{{"version": 1, "servers": [{{"name": "", {REST}, "facts": 0, "environment": []}}]}}',
        b"\xff",
    ],
)
def test_a_file_that_is_not_understood_is_an_error_and_stays(tmp_path: Path, text: str | bytes) -> None:
    path = write(approved.file(), text)
    for act in (
        approved.load,
        lambda: approved.approve("x", "file", local(tmp_path), []),
        lambda: approved.revoke("x"),
    ):
        with pytest.raises(HostError) as problem:
            act()
        assert problem.value.code == "catalogue.unusable"
    assert path.read_bytes() == (text if isinstance(text, bytes) else text.encode())


def test_a_file_that_others_may_have_written_is_an_error(tmp_path: Path) -> None:
    approved.approve("x", "file", local(tmp_path), [])
    approved.file().chmod(0o666)
    with pytest.raises(HostError, match="cannot be used"):
        approved.load()
    approved.file().chmod(0o600)
    moved = approved.file().rename(tmp_path / "moved.json")
    approved.file().symlink_to(moved)
    with pytest.raises(HostError) as problem:
        approved.load()
    assert "link" in problem.value.why


def test_approvals_at_the_same_time_lose_none(tmp_path: Path) -> None:
    one = local(tmp_path)
    threads = [threading.Thread(target=approved.approve, args=(f"x{at}", "file", one, [])) for at in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(approved.load().entries) == 20


def test_a_lock_that_somebody_keeps_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    approved.approve("x", "file", local(tmp_path), [])
    monkeypatch.setattr(approved, "PATIENCE", 0.1)
    holder = os.open(approved.file().parent, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(HostError) as problem:
            approved.revoke("x")
        assert "locked" in problem.value.why
        assert approved.load().state("x", local(tmp_path)).allowed
    finally:
        os.close(holder)
    assert approved.revoke("x")


def test_names_may_be_anything(tmp_path: Path) -> None:
    for name in ("", "a\nb", "\x1b[31m", "\ud800", "é"):
        approved.approve(name, "file", local(tmp_path), [])
        assert approved.load().state(name, local(tmp_path)).allowed
    json.loads(approved.file().read_bytes())


def test_an_approval_does_not_count_where_what_comes_before_it_fails() -> None:
    def fails(_: approved.Entry) -> None:
        raise OSError

    with pytest.raises(OSError):
        approved.approve("s", "test", identity.of("sh", (), {}, "/"), (), before=fails)
    assert approved.load().entries == ()


def twice(tmp_path: Path, first: dict[str, str], last: dict[str, str]) -> tuple[Identity, tuple[approved.Entry, ...]]:
    """Two approvals of one server, as two commands at the same moment once made them, and what each was seen to say."""
    known = local(tmp_path)
    approved.approve("x", "file", known, ["A"])
    written = json.loads(approved.file().read_text())
    (one,) = written["servers"]
    later = {**one, "declared_in": "elsewhere", "approved": one["approved"].replace("20", "21", 1)}
    approved.file().write_text(json.dumps({**written, "servers": [one, later]}))
    same = approved.load().same("x", known)
    assert [entry.declared_in for entry in same] == ["elsewhere", "file"]
    for entry, said in zip(same, (last, first), strict=True):
        kept = pins.of_approval(entry.name, entry.digest, entry.approved)
        kept |= said
        kept.keep()
    return known, same


def test_of_two_approvals_of_one_server_what_both_pinned_has_to_hold(tmp_path: Path) -> None:
    first = {"tool:a": "old", "tool:b": "same", "tool:c": "only once"}
    known, same = twice(tmp_path, first, {"tool:a": "new", "tool:b": "same", "tool:d": "only here"})
    both = pins.of_approvals(same)
    assert both == {"tool:a": "", "tool:b": "same", "tool:c": "only once", "tool:d": "only here"}, (
        "none passes for tool:a"
    )
    assert approved.load().entry("x", known) == same[0]
    # What was never used pins nothing anew, as the other one had pinned it.
    both.others["tool:a"] = "seen"
    both.keep()
    others = pins.other_since(same[0])
    made = approved.approve("x", "third", known, [], before=lambda made: pins.renew(same, made, others))
    assert approved.load().entries == (made,), "it takes the place of both"
    now = pins.of_approvals(approved.load().same("x", known))
    assert now == {"tool:a": "seen", "tool:b": "same", "tool:c": "only once", "tool:d": "only here"}


def test_an_approval_that_was_never_used_takes_nothing_off_an_earlier_one(tmp_path: Path) -> None:
    known, same = twice(tmp_path, {"tool:a": "old"}, {})
    assert pins.of_approvals(same) == {"tool:a": "old"}
    approved.approve("x", "file", known, [])
    assert len(approved.load().entries) == 1
    other = local(tmp_path, "2")
    approved.approve("x", "elsewhere", other, [])
    approved.approve("y", "file", known, [])
    assert len(approved.load().entries) == 3, "what is another server, or has another name, stays"
