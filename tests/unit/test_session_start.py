"""Through sudo: what goes on while it may be asking for a password."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from mcpguard.broker import client
from mcpguard.broker.channel import Channel
from mcpguard.errors import PrivilegeError
from mcpguard.session import start
from mcpguard.session.options import RunOptions


class Sudo:
    """Asks until `typed`; then the broker comes, or it says no."""

    def __init__(self, connection: socket.socket, refuses: bool) -> None:
        self.process = SimpleNamespace(pid=1, poll=lambda: 0)
        self.typed = threading.Event()
        self._connection = connection
        self._refuses = refuses

    def broker(self) -> client.Broker:
        assert self.typed.wait(60)
        if self._refuses:
            raise PrivilegeError("sudo did not start the broker", why="", do="", code="privilege.sudo")
        return client.Broker(self.process, Channel(self._connection))  # type: ignore[arg-type]


@pytest.fixture(params=[False, True], ids=["it comes", "it is refused"])
def asked(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[start.Start, Sudo, socket.socket]]:
    ours, theirs = socket.socketpair()
    sudo = Sudo(ours, request.param)
    monkeypatch.setattr(client, "start", lambda _program: sudo)
    monkeypatch.setattr(start, "_broker_program", lambda: None)
    made = start.Start.__new__(start.Start)
    made._broker = made._coming = None
    made._options = RunOptions(None, None, False, False, None, (), (), (), True, ("true",), True)
    made.watch = SimpleNamespace(start=lambda _pid: None)  # type: ignore[assignment]
    made.resolver = SimpleNamespace(port=7)  # type: ignore[assignment]
    with ours, theirs:
        made.ask()
        try:
            yield made, sudo, theirs
        finally:
            sudo.typed.set()
            made.close()


def test_the_broker_is_told_to_load_as_soon_as_it_is_there_and_not_when_it_is_needed(
    asked: tuple[start.Start, Sudo, socket.socket],
) -> None:
    made, sudo, theirs = asked
    assert made.asking(), "nothing else is written meanwhile"
    sudo.typed.set()
    if sudo._refuses:
        with pytest.raises(PrivilegeError):
            made.broker()
        return
    theirs.settimeout(60)
    assert theirs.recv(8) == bytes((0, 0, 0, 7))  # nobody has asked for it yet
    assert made.broker().process is sudo.process
    assert not made.asking()


def test_the_end_waits_for_a_sudo_that_still_asks(asked: tuple[start.Start, Sudo, socket.socket]) -> None:
    made, sudo, theirs = asked
    closing = threading.Thread(target=made.close)
    closing.start()
    sudo.typed.set()
    closing.join(60)
    assert not closing.is_alive()
    if not sudo._refuses:
        theirs.settimeout(60)
        assert theirs.recv(8) == bytes((0, 0, 0, 7))
        assert theirs.recv(8) == b"", "it came, and was let go"
