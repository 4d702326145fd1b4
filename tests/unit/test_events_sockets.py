"""Requests to unix sockets that the kernel's table lets through and the policy does not."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from events_help import OPEN_POLICY, make_policy, refused, unix

from mcpguard.events.finding import QUIET, UNEXPLAINED, Finding
from mcpguard.events.judge import Judge
from mcpguard.events.sockets import HIDDEN, NO_SUCH_SOCKET, SocketJudge
from mcpguard.model.access import Access, Effect, Verdict
from mcpguard.model.event import Kind
from mcpguard.model.policy import SocketEntry
from mcpguard.policy.automaton import Automaton


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "tmux-1" / "x"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        yield path


def judge_of(folder: Path, *, audit: bool = False, own: bool = False, began_ns: int = 0) -> SocketJudge:
    rules = (SocketEntry(f"{folder}/**", Effect.ALLOW, 1, own), SocketEntry(f"{folder}/tmux-*", Effect.DENY, 2))[
        : 2 - own
    ]
    policy = replace(make_policy(*OPEN_POLICY, audit=audit), sockets=rules)
    return SocketJudge(policy, Judge(Automaton.from_bytes(policy.tables), policy.paths), began_ns)


def judged(folder: Path, path: Path | str, *, later_ns: int = 0, audit: bool = False, own: bool = False) -> Finding:
    """What comes of an allowed connect to `path`; the session began `later_ns` after the folder's last change."""
    judge = judge_of(folder, audit=audit, own=own, began_ns=(folder / "tmux-1").stat().st_ctime_ns + later_ns)
    return judge.finding(replace(unix(str(path), Verdict.ALLOW), rule=1))


def test_a_socket_that_a_glob_denies_and_that_was_there_is_denied_because_it_is_hidden(listening: Path) -> None:
    found = judged(listening.parents[1], listening, later_ns=60 * 10**9)
    assert (found.verdict, found.detail) == (Verdict.DENY, HIDDEN)
    assert found.rule is not None and found.rule.text == "deny: /ws/secret", "rule 2 of the policy"


def test_a_symlink_to_a_hidden_socket_does_not_make_it_an_allowed_one(listening: Path) -> None:
    folder = listening.parents[1]
    (folder / "link").symlink_to(listening)
    assert judged(folder, folder / "link", later_ns=60 * 10**9).verdict is Verdict.DENY


def test_a_socket_that_was_made_later_is_on_record_as_not_stopped(listening: Path) -> None:
    found = judged(listening.parents[1], listening, later_ns=-60 * 10**9)
    assert (found.verdict, found.detail) == (Verdict.AUDIT, "not stopped: it did not exist at launch")


def test_a_look_at_a_socket_that_is_not_there_is_quiet_in_audit_mode_too(listening: Path) -> None:
    found = judged(listening.parents[1], "/run/no-such-daemon/socket", audit=True)
    assert (found.verdict, found.detail) == (Verdict.AUDIT, NO_SUCH_SOCKET)


def test_in_audit_mode_nothing_is_hidden_and_no_alarm_is_given(listening: Path) -> None:
    found = judged(listening.parents[1], listening, later_ns=60 * 10**9, audit=True)
    assert (found.verdict, found.detail) == (Verdict.AUDIT, None)


def test_where_the_session_may_have_its_own_what_was_there_before_is_hidden(listening: Path) -> None:
    found = judged(listening.parents[1], listening, later_ns=60 * 10**9, own=True)
    assert (found.verdict, found.detail) == (Verdict.DENY, HIDDEN)
    assert found.rule is not None and found.rule.line == 0, "no rule allows it"
    assert judged(listening.parents[1], listening, later_ns=-60 * 10**9, own=True).verdict is Verdict.ALLOW
    assert judged(listening.parents[1], listening, later_ns=60 * 10**9, own=True, audit=True).verdict is Verdict.AUDIT


def test_a_denied_socket_that_never_was_is_quiet(listening: Path) -> None:
    found = judged(listening.parents[1], listening.with_name("missing"))
    assert found.verdict is Verdict.DENY
    assert (found.detail or "").startswith(QUIET)


@pytest.mark.parametrize("name", ["own", "tmuxes/x"])
def test_a_socket_that_the_policy_allows_stays_allowed(listening: Path, name: str) -> None:
    folder = listening.parents[1]
    found = judged(folder, folder / name)
    assert (found.verdict, found.detail) == (Verdict.ALLOW, None)
    assert found.rule is not None and found.rule.line == 11


def test_a_link_that_nobody_may_follow_leaves_the_kernels_verdict(
    listening: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> str:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.path.realpath", refuse)
    assert judged(listening.parents[1], listening, later_ns=60 * 10**9).verdict is Verdict.ALLOW


def test_a_connect_that_a_cover_refused_names_the_socket_and_the_rule(listening: Path) -> None:
    folder = listening.parents[1]
    (folder / "link").symlink_to(listening)
    for name in (listening, "link", "tmux-1/../link"):
        record = refused("connect", name, errno.EACCES, access=Access.WRITE, base=str(folder))
        found = judge_of(folder).unreached(record)
        assert found is not None
        assert (found.kind, found.verdict, found.path, found.detail) == (
            Kind.UNIX,
            Verdict.DENY,
            str(listening),
            HIDDEN,
        )
        assert found.rule is not None and found.rule.text == "deny: /ws/secret", "rule 2 of the policy"


def test_a_cover_of_a_socket_that_is_none_of_the_sessions_own_names_the_rule(listening: Path) -> None:
    folder = listening.parents[1]
    record = refused("connect", listening, errno.EACCES, access=Access.WRITE)
    found = judge_of(folder, own=True, began_ns=listening.stat().st_ctime_ns + 1).unreached(record)
    assert found is not None and (found.verdict, found.detail) == (Verdict.DENY, HIDDEN)
    assert found.rule is not None and found.rule.line == 0, "no rule allows it"


def test_a_refused_connect_to_an_allowed_socket_is_told_unless_permissions_explain_it(listening: Path) -> None:
    folder = listening.parents[1]
    allowed = folder / "own"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(allowed))
        record = refused("connect", allowed, errno.EACCES, access=Access.WRITE)
        found = judge_of(folder).unreached(record)
        assert found is not None and found.detail == UNEXPLAINED
        allowed.chmod(0o400)
        assert judge_of(folder).unreached(record) is None
