"""More rules for a session that runs: what holds at once, what waits, what cannot be had, and who may not ask."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Sandbox, need_root, sandbox
from puppet import puppet

from mcpguard.errors import HostError
from mcpguard.session.approve import Outcome, Scope

pytestmark = pytest.mark.kernel

APPROVED = "approved in watch"
PROFILE = """\
name: puppet
extends: [base]
network:
  deny: ["127.0.0.1:1-1023"]
sockets:
  allow: ["{workspace}/**"]
"""
# Everything that a careless profile could open.
OPEN = """\
name: puppet
extends: [base]
files:
  read: [/]
  execute: [/]
sockets:
  allow: ["/**", "{workspace}/**"]
"""


@pytest.fixture
def box() -> Iterator[Sandbox]:
    need_root()
    with sandbox() as made:
        made.write_profile("puppet", PROFILE)
        yield made


@contextlib.contextmanager
def listener(address: object, family: int = socket.AF_INET) -> Iterator[socket.socket]:
    with socket.socket(family) as listening:
        listening.bind(address)
        listening.listen(64)
        yield listening


@pytest.fixture
def port() -> Iterator[int]:
    with listener(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def errno_outside(place: Path) -> int:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(place))


def connects(events: list[dict]) -> list[dict]:
    return [event for event in events if event["op"] == "connect"]


def test_a_destination_that_is_allowed_while_the_session_runs_is_reached(box: Sandbox, port: int) -> None:
    with puppet(box) as held:
        assert held.ask("connect", "127.0.0.1", port) == "EPERM"
        outcome = held.approve(("network", "allow", f"127.0.0.1:{port}"), scope=Scope.ONCE)
        assert held.ask("connect", "127.0.0.1", port) == ""
        assert held.ask("connect", "127.0.0.2", port) == "EPERM"
        code, said = held.end()
    assert outcome == Outcome((f"network allow 127.0.0.1:{port}",), (), "")
    assert code == 0
    assert f"  approved network allow 127.0.0.1:{port} (once)\n" in said
    denied, allowed = (
        next(event for event in connects(held.events("--kind", "net")) if event["verdict"] == verdict)
        for verdict in ("deny", "allow")
    )
    assert denied["rule"]["text"] == "no rule allows it"
    assert allowed["rule"] == {
        "profile": APPROVED,
        "file": APPROVED,
        "line": 0,
        "text": f"network allow 127.0.0.1:{port}",
    }
    (told,) = [event for event in held.events("--kind", "process") if event["op"] == "approve"]
    assert told["verdict"] == "allow"
    assert told["rule"]["text"] == f"network allow 127.0.0.1:{port}"
    assert told["detail"].startswith("once, by ")


def test_files_wait_for_the_next_run_where_they_are_fixed_at_launch(box: Sandbox, port: int) -> None:
    notes = box.world.home / "notes"
    notes.write_text("hello")
    with puppet(box, options=("--tier", "3")) as held:
        assert held.ask("read", notes) == "EACCES"
        outcome = held.approve(("files", "read", str(notes)), ("network", "allow", f"127.0.0.1:{port}"))
        assert held.ask("read", notes) == "EACCES"
        assert held.ask("connect", "127.0.0.1", port) == ""
        _code, said = held.end()
    assert outcome.now == (f"network allow 127.0.0.1:{port}",)
    assert outcome.later == (f"read {notes}",)
    assert "tier 3" in outcome.why
    assert f"  approved read {notes} (not in this session, nor written for the next run)\n" in said
    told = [event for event in held.events("--kind", "process") if event["op"] == "approve"]
    assert any(event.get("rule") is None and str(notes) in event["detail"] for event in told)


def test_what_the_profile_has_by_then_is_told_with_its_line(box: Sandbox, port: int) -> None:
    with puppet(box) as held:
        written = box.write_profile(
            "puppet", f"{PROFILE}\n  # later\n".replace("network:\n", f'network:\n  allow: ["127.0.0.1:{port}"]\n')
        )
        held.approve(("network", "allow", f"127.0.0.1:{port}"), scope=Scope.PROFILE)
        assert held.ask("connect", "127.0.0.1", port) == ""
        held.end()
    (allowed,) = connects(held.events("--kind", "net"))
    assert (allowed["rule"]["file"], allowed["rule"]["line"]) == (str(written), 4)


def test_a_rule_that_takes_away_wins_over_what_is_added(box: Sandbox, port: int) -> None:
    with listener(("127.0.0.1", 999)), puppet(box) as held:
        with pytest.raises(HostError, match="refuses it on purpose") as refused:
            held.approve(("network", "allow", "127.0.0.1:999"))
        assert refused.value.code == "allow.on-purpose"
        # One that names more opens the rest.
        held.approve(("network", "allow", "127.0.0.1"))
        assert held.ask("connect", "127.0.0.1", 999) == "EPERM"
        assert held.ask("connect", "127.0.0.1", port) == ""
        held.end()
    denied = [event for event in connects(held.events("--verdict", "deny")) if event["port"] == 999]
    assert [event["rule"]["text"] for event in denied] == ["network deny 127.0.0.1:1-1023"]


@pytest.mark.parametrize(
    ("addition", "code"),
    [
        (("network", "deny", "10.0.0.0/8"), "live.only-allow"),
        (("network", "allow", "10.0.0.0/99"), "policy.network"),
        (("files", "write", "~"), "usage.write-too-wide"),
        (("files", "write", "/"), "usage.write-too-wide"),
        (("files", "read", "\n"), "live.bad-question"),
        (("files", "read", ""), "live.bad-question"),
    ],
)
def test_what_cannot_be_added_is_said_and_the_session_goes_on(
    box: Sandbox, port: int, addition: tuple[str, str, str], code: str
) -> None:
    with puppet(box) as held:
        with pytest.raises(HostError) as refused:
            held.approve(addition)
        assert refused.value.code == code
        held.approve(("network", "allow", f"127.0.0.1:{port}"))
        assert held.ask("connect", "127.0.0.1", port) == ""
        assert held.end()[0] == 0


def test_other_settings_wait_for_the_next_run(box: Sandbox) -> None:
    with puppet(box) as held:
        outcome = held.approve(("environment", "keep", "TOKEN"), ("network", "allow", "*.example.com:443"))
        held.end()
    assert outcome.now == ("network allow *.example.com:443",)
    assert outcome.later == ("environment keep TOKEN",)


def test_what_the_kernel_has_no_room_for_changes_nothing_and_is_told(box: Sandbox, port: int) -> None:
    places = [box.world.home / f"s{number}" for number in range(64)]
    with puppet(box) as held:
        held.approve(("network", "allow", f"127.0.0.1:{port}"))
        with pytest.raises(HostError, match="too many unix socket rules"):
            held.approve(*(("sockets", "allow", str(place)) for place in places))
        assert held.ask("unix", places[0]) == "EPERM"
        assert held.ask("connect", "127.0.0.1", port) == ""
        assert held.approve(("sockets", "allow", str(places[0]))).now
        with listener(str(places[0]), socket.AF_UNIX):
            assert held.ask("unix", places[0]) == ""
        held.end()
    verdicts = [(event["verdict"], event["rule"]["text"]) for event in held.events("--kind", "unix")]
    assert verdicts == [("deny", "no rule allows it"), ("allow", f"sockets allow {places[0]}")]


def test_a_socket_that_was_hidden_at_launch_stays_so(box: Sandbox) -> None:
    old, new = box.world.home / "old", box.world.home / "new"
    with listener(str(old), socket.AF_UNIX), puppet(box, options=("--tier", "3")) as held:
        assert errno_outside(old) == 0
        outcome = held.approve(("sockets", "allow", str(old)), ("sockets", "allow", str(new)))
        with listener(str(new), socket.AF_UNIX):
            assert held.ask("unix", new) == ""
            assert held.ask("unix", old) in ("EPERM", "EACCES")
        held.end()
    assert outcome.now == (f"sockets allow {new}",)
    assert outcome.later == (f"sockets allow {old}",)
    assert [one["path"] for one in held.events("--kind", "unix", "--verdict", "deny")] == [str(old)]
    assert "hidden" in outcome.why
