"""Destinations that change under a storm of requests: what both tables allow is never refused, what both deny never passes."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from bpf_tree import Tree, allow, deny
from harness import Sandbox, need_root, sandbox
from puppet import puppet

from mcpguard.model.access import Verdict

pytestmark = pytest.mark.kernel

SWAPS, PROCESSES, THREADS, ROUNDS = 400, 3, 3, 500
APPROVALS, REQUESTS = 30, 2000
HONEST, DENIED, THIRD, PORT = "127.0.0.1", "127.0.0.9", "127.0.0.3", 9
# The same for the first two by other rows: a reader that saw parts of both tables would judge them by none.
ONE = (allow(HONEST, 32, 1), deny(DENIED, 32, 2), allow("10.0.0.0", 8, 1))
OTHER = (allow("127.0.0.0", 8, 1), deny("127.0.0.8", 29, 2), *(allow(f"10.{n}.0.0", 16, 3) for n in range(200)))


def asks(address: str) -> int:
    """A datagram socket that is connected sends nothing; only the verdict is asked."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return sock.connect_ex((address, PORT))


def storm(wrong: list[str]) -> None:
    for _ in range(ROUNDS):
        if asks(HONEST):
            wrong.append("refused")
        if asks(DENIED) != errno.EPERM:
            wrong.append("passed")


def storming() -> int:
    """The end of one process with several threads: 0 when every verdict was right."""
    wrong: list[str] = []
    threads = [threading.Thread(target=storm, args=(wrong,)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(wrong)


def start(tree: Tree) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            tree.leaf.enter()
            os._exit(min(storming(), 100))
        finally:
            os._exit(101)
    return pid


def asker(tree: Tree) -> tuple[int, int]:
    """A process of the leaf that asks for the third whenever it is told to."""
    commands, answers = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(commands[1])
        tree.leaf.enter()
        while os.read(commands[0], 1):
            os.write(answers[1], b"n" if asks(THIRD) else b"y")
        os._exit(0)
    os.close(commands[0])
    os.close(answers[1])
    return commands[1], answers[0]


def test_no_destination_is_judged_wrongly_while_tables_change(tree: Tree) -> None:
    tree.guard(connect=ONE)
    assert tree.network is not None
    ask, answer = asker(tree)
    running, ended, swaps = [start(tree) for _ in range(PROCESSES)], 0, 0
    while swaps < SWAPS or ended < PROCESSES:
        swaps += 1
        tree.network.update_connect(OTHER if swaps % 2 else ONE)
        os.write(ask, b"?")
        assert os.read(answer, 1) == (b"y" if swaps % 2 else b"n"), f"after swap {swaps}"
        for at, pid in enumerate(running):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                assert os.waitstatus_to_exitcode(status) == 0, f"after swap {swaps}"
                ended += 1
                running[at] = start(tree)
    for pid in running:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(ask)
    os.close(answer)
    seen = {(record.address, record.verdict, record.rule) for record in tree.net_denials()}
    assert seen == {(DENIED, Verdict.DENY, 2), (THIRD, Verdict.DENY, 0)}


@pytest.fixture
def box() -> Iterator[Sandbox]:
    need_root()
    with sandbox() as made:
        profile = f'name: puppet\nextends: [base]\nnetwork:\n  allow: ["{HONEST}"]\n  deny: ["{DENIED}"]\n'
        made.write_profile("puppet", profile)
        yield made


def test_a_session_that_takes_rules_judges_no_request_wrongly_meanwhile(box: Sandbox) -> None:
    with puppet(box) as held:
        told: list[str] = []
        asking = threading.Thread(target=lambda: told.append(held.ask("storm", HONEST, DENIED, THREADS, REQUESTS)))
        asking.start()
        for number in range(APPROVALS):
            assert held.approve(("network", "allow", f"{THIRD}:{number + 1}")).now
        asking.join()
        assert told == [""]
        assert held.ask("datagram", THIRD, APPROVALS) == ""
        assert held.ask("datagram", THIRD, APPROVALS + 1) == "EPERM"
        held.end()
    events = held.events("--kind", "net")
    assert {(event["address"], event["verdict"]) for event in events} == {
        (HONEST, "allow"),
        (DENIED, "deny"),
        (THIRD, "allow"),
        (THIRD, "deny"),
    }
    last = next(event for event in events if event["address"] == THIRD and event["verdict"] == "allow")
    assert last["rule"]["text"] == f"network allow {THIRD}:{APPROVALS}"
    assert {event["rule"]["text"] for event in events if event["address"] == DENIED} == {f"network deny {DENIED}"}
    assert sum(event["count"] for event in events if event["address"] == DENIED) == THREADS * REQUESTS
