"""What asks a running session for more rules: its words, and that it gives up."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcpguard.errors import HostError
from mcpguard.profile.amend import Addition
from mcpguard.profile.store import control_directory
from mcpguard.session import approve as approving
from mcpguard.session.approve import Outcome, Scope, address, approve

SESSION = "20261126-010101-abcd"
RULE = Addition("files", "read", "~/notes", "cat 1x")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path))
    control_directory().mkdir(parents=True)
    yield


class Answering:
    """The other end: says hello, keeps the question, gives one answer."""

    def __init__(self, answer: bytes, hello: bytes = b'{"nonce": "n"}') -> None:
        self.asked: dict[str, Any] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with address(SESSION) as name:
            self._listener.bind(name)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, args=(hello, answer))

    def _serve(self, hello: bytes, answer: bytes) -> None:
        line, _address = self._listener.accept()
        with line:
            line.send(hello)
            asked = line.recv(1 << 16)
            self.asked = json.loads(asked) if asked else {}
            if answer and asked:
                line.send(answer)

    def __enter__(self) -> Answering:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.join()
        self._listener.close()


def test_asks_and_tells_what_came_of_it() -> None:
    answer = {"now": ["network allow a.example"], "later": ["read ~/notes"], "why": "because"}
    with Answering(json.dumps(answer).encode()) as other:
        outcome = approve(SESSION, [RULE], Scope.SESSION)
    assert outcome == Outcome(("network allow a.example",), ("read ~/notes",), "because")
    assert other.asked == {
        "version": 1,
        "nonce": "n",
        "scope": "session",
        "additions": [["files", "read", "~/notes"]],
    }


def test_an_error_of_the_session_is_told_in_its_own_words() -> None:
    with Answering(b'{"error": ["no", "never", "stop", "live.x"]}'), pytest.raises(HostError) as failed:
        approve(SESSION, [RULE], Scope.ONCE)
    assert failed.value.lines() == ("mcpguard: no", "  why   never", "  do    stop", "  code  live.x")


def test_a_session_that_ended_is_told() -> None:
    with pytest.raises(HostError, match="does not take rules now") as failed:
        approve(SESSION, [RULE], Scope.ONCE)
    assert failed.value.code == "live.no-answer"


@pytest.mark.parametrize(
    ("hello", "answer"),
    [
        (b"", b""),
        (b"{}", b"{}"),
        (b"[]", b"{}"),
        (b"\xff", b"{}"),
        (b'{"nonce": "n"}', b""),
        (b'{"nonce": "n"}', b"{}"),
    ],
)
def test_nonsense_is_no_answer(hello: bytes, answer: bytes) -> None:
    with Answering(answer, hello), pytest.raises(HostError) as failed:
        approve(SESSION, [RULE], Scope.ONCE)
    assert failed.value.code == "live.no-answer"


def test_silence_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approving, "_HELLO_S", 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        with address(SESSION) as name:
            silent.bind(name)
        silent.listen()
        with pytest.raises(HostError, match="does not take rules now"):
            approve(SESSION, [RULE], Scope.ONCE)


def test_a_long_path_can_be_reached_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path / ("long" * 30)))
    control_directory().mkdir(parents=True)
    assert len(os.fsencode(control_directory())) > 108
    with Answering(b'{"now": [], "later": [], "why": ""}'):
        assert approve(SESSION, [], Scope.PROFILE) == Outcome((), (), "")
