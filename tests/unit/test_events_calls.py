"""Which refused system calls without a path are our denials."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import socket
import threading

import pytest
from events_help import AGENT, call, forked

from mcpguard.events.calls import judge_call
from mcpguard.events.finding import QUIET, UNEXPLAINED, Finding
from mcpguard.events.processes import ProcessTable
from mcpguard.kernel import cgroup
from mcpguard.model.access import Verdict
from mcpguard.model.event import Kind
from mcpguard.model.profile import SystemSwitches
from mcpguard.wire.records import CallRecord

UID = os.geteuid()
CLOSED = SystemSwitches()
# Above the highest PID that Linux gives.
NO_PROCESS = 4_194_305


def judge(
    record: CallRecord,
    *,
    uid: int = UID,
    own: tuple[int, ...] = (),
    switches: SystemSwitches = CLOSED,
    keeps: bool = False,
) -> Finding | None:
    table = ProcessTable(AGENT)
    for pid in own:
        table.forked(forked(pid))
    return judge_call(record, table, uid, switches, keeps=keeps)


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("ptrace", "ptrace"),
        ("process-memory", "ptrace"),
        ("pidfd-getfd", "ptrace"),
        ("bpf", "bpf"),
        ("unshare", "unshare"),
        ("clone", "unshare"),
        ("mount", "mount"),
        ("chroot", "chroot"),
        ("setns", "setns"),
        ("keyctl", "keyctl"),
        ("perf", "perf"),
        ("module", "module"),
        ("host", "host"),
        ("ioctl", "ioctl"),
        ("process", "process"),
    ],
)
def test_what_the_filter_refuses_is_a_denial_by_a_system_rule(name: str, op: str) -> None:
    found = judge(call(name, errno.EPERM))
    assert found is not None and found.rule is not None
    assert (found.kind, found.op, found.verdict) == (Kind.PROCESS, op, Verdict.DENY)
    assert found.rule.text.startswith("system: ")
    assert (found.rule.profile, found.rule.file, found.rule.line) == ("mcpguard", "builtin", 0)


def test_where_debuggers_are_permitted_only_a_process_outside_is_a_denial() -> None:
    permitted = SystemSwitches(debuggers=True)
    for name in ("ptrace", "process-memory"):
        assert judge(call(name, errno.EPERM, 2000), own=(2000,), switches=permitted) is None
        assert judge(call(name, errno.EPERM, 0), switches=permitted) is None, "asks to be traced"
        found = judge(call(name, errno.EPERM, os.getpid()), switches=permitted)
        assert found is not None and found.detail == f"process {os.getpid()}"
        assert judge(call(name, errno.EPERM, NO_PROCESS), switches=permitted) is not None, "it cannot be told"
        assert judge(call(name, errno.EPERM, 1), uid=UID + 4321, switches=permitted) is None, "refused to everybody"
    assert judge(call("pidfd-getfd", errno.EPERM, 3), switches=permitted) is not None


def test_a_thread_of_a_process_of_the_tree_is_in_the_tree() -> None:
    started, done = threading.Event(), threading.Event()
    numbers: list[int] = []

    def wait() -> None:
        numbers.append(threading.get_native_id())
        started.set()
        done.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    started.wait()
    permitted = SystemSwitches(debuggers=True)
    try:
        assert judge(call("ptrace", errno.EPERM, numbers[0]), own=(os.getpid(),), switches=permitted) is None
        assert judge(call("ptrace", errno.EPERM, numbers[0]), switches=permitted) is not None
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ESRCH, errno.ENOSYS, errno.EBADF, errno.ENOTTY])
@pytest.mark.parametrize("name", ["ptrace", "clone", "ioctl", "signal", "socket"])
def test_an_ordinary_error_is_no_denial(name: str, error: int) -> None:
    assert judge(call(name, error, 17)) is None


def test_a_socket_of_a_closed_family_is_a_network_denial_with_its_name() -> None:
    found = judge(call("socket", errno.EPERM, socket.AF_VSOCK, socket.SOCK_STREAM))
    assert found is not None
    assert (found.kind, found.op, found.detail) == (Kind.NET, "socket", "socket (AF_VSOCK, SOCK_STREAM)")


@pytest.mark.parametrize(
    ("family", "kind", "name"),
    [
        (socket.AF_PACKET, socket.SOCK_RAW, "packet socket (AF_PACKET, SOCK_RAW)"),
        (socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, "packet socket (AF_PACKET, SOCK_DGRAM)"),
        (socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, "raw socket (AF_INET, SOCK_RAW)"),
    ],
)
def test_packet_and_raw_sockets_are_called_by_their_names(family: int, kind: int, name: str) -> None:
    found = judge(call("socket", errno.EPERM, family, kind))
    assert found is not None and found.detail == name


def test_a_family_without_a_name_is_told_by_its_number() -> None:
    found = judge(call("socket", errno.EPERM, 63, 14))
    assert found is not None and found.detail == "socket (family 63, type 14)"


def test_a_missing_io_uring_is_quiet() -> None:
    found = judge(call("io-uring", errno.ENOSYS))
    assert found is not None and (found.detail or "").startswith(QUIET)


def test_a_signal_to_a_process_of_the_same_user_outside_the_tree_is_a_denial() -> None:
    found = judge(call("signal", errno.EPERM, os.getpid(), signal.SIGTERM))
    assert found is not None
    assert (found.op, found.verdict) == ("signal", Verdict.DENY)
    assert found.detail == f"SIGTERM to process {os.getpid()}"


def test_a_signal_to_another_users_process_is_refused_to_everybody() -> None:
    assert judge(call("signal", errno.EPERM, os.getpid(), signal.SIGTERM), uid=UID + 4321) is None
    assert judge(call("signal", errno.EPERM, os.getpid(), 0), uid=UID + 4321) is None


def test_a_signal_inside_the_tree_is_refused_by_the_kernels_own_rules() -> None:
    assert judge(call("signal", errno.EPERM, os.getpid(), signal.SIGTERM), own=(os.getpid(),)) is None


def test_a_probe_of_a_process_of_the_same_user_is_a_quiet_denial() -> None:
    found = judge(call("signal", errno.EPERM, os.getpid(), 0))
    assert found is not None and (found.detail or "").startswith(QUIET)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_an_ordinary_socket_is_refused_only_to_servers_that_are_kept(family: int) -> None:
    """What keeps them is found by where they live. A raw one is refused to all; what a tree refuses itself is its own."""
    assert judge(call("socket", errno.EACCES, family, socket.SOCK_STREAM)) is None
    for kind, keeps, is_system in (
        (socket.SOCK_STREAM, True, False),
        (socket.SOCK_STREAM | socket.SOCK_CLOEXEC, True, False),
        (socket.SOCK_RAW, True, True),
        (socket.SOCK_RAW, False, True),
    ):
        found = judge(call("socket", errno.EACCES, family, kind), keeps=keeps)
        assert found is not None and (found.op, found.verdict) == ("socket", Verdict.DENY)
        assert (found.rule is not None) is is_system
    other = judge(call("socket", errno.EACCES, socket.AF_VSOCK, socket.SOCK_STREAM), keeps=True)
    assert other is not None and other.rule is not None


def test_a_signal_inside_the_tree_is_a_kept_servers_also_when_all_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a refusal is not on record where the host was too busy to read of it at once."""
    places = {AGENT.pid: "/mcpguard/s/kept-1", 7: "/mcpguard/s", 8: "/mcpguard/s/kept-1", 9: "/mcpguard/other"}
    monkeypatch.setattr(cgroup, "place_of", lambda pid: places.get(pid, ""))
    refused = call("signal", errno.EPERM, 7, signal.SIGWINCH)

    def kept(target: int, *, keeps: bool = True) -> bool:
        found = judge(dataclasses.replace(refused, argument=target), own=(target,), keeps=keeps)
        assert found is None or (found.rule is not None and "a server that is kept" in found.rule.text)
        return found is not None

    assert kept(7) and not kept(8) and not kept(9) and not kept(7, keeps=False)
    assert kept(6), "whom it was for has ended"
    places[AGENT.pid] = "/mcpguard/s"
    assert not kept(8) and not kept(6), "the agent is kept from nobody"
    places.clear()
    assert kept(7) and not kept(7, keeps=False)


def test_a_signal_to_a_process_that_is_gone_is_reported_because_it_cannot_be_told() -> None:
    found = judge(call("signal", errno.EPERM, NO_PROCESS, signal.SIGKILL))
    assert found is not None and found.op == "signal"


@pytest.mark.parametrize("argument", [-1, (1 << 32) - 1])
def test_a_signal_to_everybody_is_reported(argument: int) -> None:
    found = judge(call("signal", errno.EPERM, argument, signal.SIGKILL))
    assert found is not None and found.detail == "SIGKILL to process -1"


def test_a_refused_call_that_nobody_foresaw_is_reported_without_a_rule() -> None:
    found = judge(call("new_call_of_2031", errno.EPERM))
    assert found is not None
    assert (found.op, found.rule, found.detail) == ("new_call_of_2031", None, UNEXPLAINED)


@pytest.mark.parametrize(
    ("name", "error", "switches"),
    [
        ("unshare", errno.EPERM, SystemSwitches(user_namespaces=True)),
        ("clone", errno.EPERM, SystemSwitches(user_namespaces=True)),
        ("io-uring", errno.EPERM, SystemSwitches(io_uring=True)),
    ],
)
def test_what_the_profile_permits_was_refused_by_the_kernel_itself(
    name: str, error: int, switches: SystemSwitches
) -> None:
    assert judge(call(name, error)) is not None
    assert judge(call(name, error), switches=switches) is None


def test_a_descriptor_is_not_taken_for_a_process() -> None:
    record = dataclasses.replace(call("signal", errno.EPERM, AGENT.pid, signal.SIGKILL), number=424)
    found = judge(record)
    assert found is not None and found.detail == "SIGKILL to a process"


def test_a_thread_number_is_not_taken_for_a_signal() -> None:
    record = dataclasses.replace(call("signal", errno.EPERM, os.getpid(), 9), number=234)
    found = judge(record)
    assert found is not None and found.detail == f"a signal to process {os.getpid()}"
