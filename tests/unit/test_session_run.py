"""The small pure parts of a run: options, environment, exit codes, messages across the privilege line."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
from typing import Any

import pytest

from mcpguard.broker import client
from mcpguard.broker.channel import Channel
from mcpguard.broker.protocol import LaunchRequest, guard_to_json
from mcpguard.cli.run_words import parse
from mcpguard.errors import HostError, PrivilegeError, UsageError
from mcpguard.model.access import Access
from mcpguard.model.coverage import Coverage, Strength
from mcpguard.model.plan import FilesPlan, Grant, GuardPlan, MaskEntry, MountStep, TablePlan
from mcpguard.model.policy import User
from mcpguard.session import coverage
from mcpguard.session.environment import scrub
from mcpguard.session.run import exit_code
from mcpguard.wire import _abi


@pytest.mark.parametrize(
    ("words", "profile", "command", "separated"),
    [
        (["claude-code"], None, ("claude-code",), False),
        (["claude-code", "-p", "fix it"], None, ("claude-code", "-p", "fix it"), False),
        (["claude-code", "-p", "--", "x"], None, ("claude-code", "-p", "--", "x"), False),
        (["-p", "mine", "--", "make", "-j2"], "mine", ("make", "-j2"), True),
        (["--", "env", "--", "x"], None, ("env", "--", "x"), True),
        (["--audit", "-w", "/w", "codex"], None, ("codex",), False),
    ],
)
def test_words_after_the_agent_belong_to_it(
    words: list[str], profile: str | None, command: tuple[str, ...], separated: bool
) -> None:
    options = parse(words)
    assert (options.profile, options.command, options.after_separator) == (profile, command, separated)


@pytest.mark.parametrize("words", [[], ["--"], ["-p"], ["--tier", "9", "x"], ["--nonsense", "x"]])
def test_a_command_line_that_cannot_be_understood_is_refused(words: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        parse(words)
    assert refused.value.code == "usage.run"


def test_secrets_leave_the_environment_unless_they_are_kept() -> None:
    given = {"AWS_SECRET": "1", "GITHUB_TOKEN": "2", "ANTHROPIC_API_KEY": "3", "HOME": "/h", "npm_token": "4"}
    assert scrub(given, ["AWS_*", "*_TOKEN", "*_API_KEY"], ["ANTHROPIC_*"]) == {"ANTHROPIC_API_KEY": "3", "HOME": "/h"}


@pytest.mark.parametrize(("status", "code"), [(0, 0), (3 << 8, 3), (9, 137), (11 | 0x80, 139)])
def test_exit_codes_are_a_shells(status: int, code: int) -> None:
    assert exit_code(status) == code


def test_rules_that_nothing_enforces_stop_the_run_unless_that_is_accepted() -> None:
    holds = (
        Coverage("files", Strength.PARTIAL, "Landlock"),
        Coverage("network", Strength.NONE, "nothing", ("no BPF",)),
    )
    with pytest.raises(HostError) as refused:
        coverage.insist(holds, best_effort=False)
    assert refused.value.code == "run.not-enforceable"
    coverage.insist(holds, best_effort=True)
    coverage.insist(holds[:1], best_effort=False)


# One line, no mount point but the root's.
TABLE = TablePlan(
    lines=bytes(16),
    head=bytes(_abi.MG_POLICY.size),
    roots=bytes(_abi.MG_ROOT_KEY.size - 4 + _abi.MG_PLACE.size),
    branches=b"",
    shared_memory=bytes(_abi.MG_PLACE.size),
    terminals=bytes(_abi.MG_PLACE.size),
)


def tables(**changes: bytes) -> list[list[str]]:
    """Two tables as they cross the line, one of them changed."""
    return guard_to_json(GuardPlan(TABLE, dataclasses.replace(TABLE, **changes)))


def request(**changes: Any) -> dict[str, Any]:
    steps = (MountStep("mask", "/h/.ssh", True, entries=(MaskEntry("known_hosts", "keep", False),)),)
    made = LaunchRequest(
        session="s",
        user=User(1000, 1000, (1000, 27), "user", "/h"),
        argv=("sh", "-c", "x"),
        environment={"A": "b", "BYTES": os.fsdecode(b"\xff")},
        cwd="/w",
        umask=0o022,
        files=FilesPlan((Grant("/w", Access.READ | Access.WRITE),), steps, wide=True),
        guard=GuardPlan(TABLE, TABLE),
        switches=_abi.MG_SESSION_NAMESPACES,
        network={"connect": [], "listen": [], "unix": []},
        seccomp=bytes(8),
    )
    return {**made.to_json(), **changes}


def test_a_request_survives_the_privilege_line() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull, "rb") as file:
        Channel(ours).send(request(), (file.fileno(),))
        received = Channel(theirs).receive()
        assert received is not None
        message, descriptors = received
        assert LaunchRequest.from_json(message).to_json() == request()
        assert len(descriptors) == 1
        assert not os.get_inheritable(descriptors[0])
        os.close(descriptors[0])
        ours.close()
        assert Channel(theirs).receive() is None


@pytest.mark.parametrize(
    "changes",
    [
        {"guard": tables(lines=b"")},
        {"guard": tables(lines=bytes(17))},
        {"guard": tables(head=bytes(4))},
        {"guard": tables(roots=bytes(3))},
        {"guard": tables(branches=bytes(100))},
        {"guard": tables(shared_memory=b"")},
        {"guard": tables(terminals=b"")},
        {"guard": tables()[:1]},
        {"guard": [["*"] * 6] * 2},
        {"switches": -1},
        {"version": 0},
        {"cwd": "relative"},
        {"cwd": "/w/../etc"},
        {"grants": [["/w/../etc", 1]]},
        {"wide": 1},
        {"wide": None},
        {"steps": [["format", "/w", True, "", []]]},
        {"steps": [["mask", "/w", True, "", [["../x", "keep", False]]]]},
        {"steps": [["mask", "/w", True, "", [["x", "open", False]]]]},
        {"user": {"uid": -1, "gid": 0, "groups": [], "name": "", "home": "/"}},
        {"argv": []},
        {"argv": ["a\0b"]},
        {"environment": []},
        {"seccomp": "not base64!"},
        {"network": None},
    ],
)
def test_the_broker_refuses_a_malformed_request(changes: dict[str, Any]) -> None:
    with pytest.raises(HostError):
        LaunchRequest.from_json(request(**changes))


def test_without_sudo_a_user_gets_the_four_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_SUDO", ("/nowhere/sudo",))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PrivilegeError) as refused:
        client.start(client.BrokerProgram("/usr/bin/python3", "/nowhere"))
    assert refused.value.code == "privilege.sudo"


def test_a_broker_that_is_gone_before_the_word_to_go_is_no_success() -> None:
    ours, theirs = socket.socketpair()
    ended = subprocess.Popen(["true"])
    ended.wait()
    broker = client.Broker(ended, Channel(ours))
    theirs.close()
    with pytest.raises(HostError) as failed:
        broker.go()
    assert failed.value.code == "broker.died"
