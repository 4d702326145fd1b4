"""Which refusals are everyday habits, and which only look like one."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
from events_help import AGENT, OPEN_POLICY, Bench, connection, ended, head, make_policy, refused

from mcpguard.events.finding import QUIET, is_quiet
from mcpguard.events.habits import habit
from mcpguard.model.access import Access, Verdict
from mcpguard.model.plan import KEPT_CANARY
from mcpguard.model.rule import Origin
from mcpguard.wire.records import NetRecord, Record

POLICY = replace(make_policy(*OPEN_POLICY), workspace="/root/src/project")


def is_habit(exe: str, access: Access, path: str) -> bool:
    return (habit(POLICY, replace(AGENT, exe=exe, comm=""), access, path) or "").startswith(QUIET)


@pytest.mark.parametrize(
    ("exe", "name"),
    [
        ("/usr/bin/less", ".lesshst"),
        ("/usr/bin/less", ".lesshsQ"),
        ("/usr/bin/vim.basic", ".viminfo.tmp"),
        ("/usr/bin/python3.11", ".python_history-00123.tmp"),
        ("/usr/bin/bash", ".bash_history"),
        ("/opt/node/bin/node", ".node_repl_history"),
    ],
)
def test_a_program_that_cannot_keep_its_own_history_is_quiet(exe: str, name: str) -> None:
    assert is_habit(exe, Access.WRITE, f"/root/{name}")


@pytest.mark.parametrize(
    ("exe", "access", "path"),
    [
        ("/usr/bin/bash", Access.WRITE, "/root/.python_history"),
        ("/usr/bin/cat", Access.WRITE, "/root/.bash_history"),
        ("/usr/bin/bash", Access.READ, "/root/.bash_history"),
        ("/usr/bin/bash", Access.WRITE, "/home/bob/.bash_history"),
        ("/usr/bin/bash", Access.WRITE, "/root/.bashrc"),
    ],
)
def test_anybody_elses_hand_on_a_history_is_an_alarm(exe: str, access: Access, path: str) -> None:
    assert not is_habit(exe, access, path)


def test_a_run_time_that_looks_for_a_tracer_is_quiet() -> None:
    marker = "/sys/kernel/debug/tracing/trace_marker"
    assert is_habit("/usr/local/bin/bun", Access.WRITE, marker)
    assert not is_habit("/usr/bin/cat", Access.WRITE, marker)


@pytest.mark.parametrize("file", ["coredump_filter", "comm", "task/17/comm"])
def test_what_a_program_tells_the_kernel_of_itself_is_quiet(file: str) -> None:
    assert is_habit("/usr/bin/java", Access.WRITE, f"/proc/{AGENT.pid}/{file}")
    assert not is_habit("/usr/bin/java", Access.WRITE, f"/proc/{AGENT.pid + 1}/{file}")
    assert not is_habit("/usr/bin/java", Access.READ, f"/proc/{AGENT.pid}/{file}")
    assert not is_habit("/usr/bin/java", Access.WRITE, f"/proc/{AGENT.pid}/oom_score_adj")


@pytest.mark.parametrize("name", [".git", ".gitignore", "CLAUDE.md", "package.json"])
@pytest.mark.parametrize("folder", ["/root/src", "/root", ""])
def test_what_programs_look_for_above_the_workspace_is_quiet(folder: str, name: str) -> None:
    assert is_habit("/usr/bin/node", Access.READ, f"{folder}/{name}")


@pytest.mark.parametrize(
    ("access", "path"),
    [
        (Access.WRITE, "/root/package.json"),
        (Access.READ, "/root/.netrc"),
        (Access.READ, "/root/other/package.json"),
        (Access.READ, "/root/src/pro/package.json"),
    ],
)
def test_other_files_and_folders_are_no_habit(access: Access, path: str) -> None:
    assert not is_habit("/usr/bin/node", access, path)


def test_an_unknown_process_is_excused_nothing() -> None:
    assert habit(POLICY, None, Access.READ, "/root/package.json") is None


@pytest.mark.parametrize("folder", ["/", "/root", "/root/src", "/opt/agent/lib", "/opt/agent", "/opt"])
@pytest.mark.parametrize("exe", ["/usr/bin/node", "/opt/agent/bin/opencode.exe"])
def test_a_run_time_that_lists_the_folders_above_the_workspace_and_its_program_is_quiet(exe: str, folder: str) -> None:
    process = replace(AGENT, exe=exe, comm="", argv=("node", "/opt/agent/lib/agent.js"))
    assert (habit(POLICY, process, Access.READ, folder) or "").startswith(QUIET)


@pytest.mark.parametrize(
    ("exe", "access", "folder"),
    [
        ("/usr/bin/ls", Access.READ, "/root"),
        ("/usr/bin/node", Access.WRITE, "/root"),
        ("/usr/bin/node", Access.READ, "/root/Documents"),
        ("/usr/bin/node", Access.READ, "/root/src/other"),
        ("/usr/bin/node", Access.READ, "/opt/agent/lib/agent.js"),
    ],
)
def test_another_look_at_a_folder_is_no_habit(exe: str, access: Access, folder: str) -> None:
    process = replace(AGENT, exe=exe, comm="", argv=("node", "/opt/agent/lib/agent.js"))
    assert habit(POLICY, process, access, folder) is None


def test_a_rule_makes_a_habit_loud_except_a_built_in_one_on_the_tracer() -> None:
    marker, process = "/sys/kernel/debug/tracing/trace_marker", replace(AGENT, exe="/opt/opencode", comm="")
    built_in, own = Origin("base", "builtin:base.yaml", 1, "deny x"), Origin("own", "/own.yaml", 1, "deny x")
    assert habit(POLICY, process, Access.WRITE, marker, built_in)
    assert habit(POLICY, process, Access.WRITE, marker, own) is None
    assert habit(POLICY, process, Access.READ, "/root", built_in) is None


PEER = "203.0.113.7"


def datagram(port: int, *, op: str = "connect", rule: int = 0) -> NetRecord:
    return NetRecord(head(), op, Verdict.DENY, PEER, port, "udp", rule, "", 1)


def loud(bench: Bench, *records: Record) -> set[tuple[str, str | None, int | None]]:
    """(op, protocol, port) of the stored denials that a person is shown."""
    denials = [event for event in bench.all_events(*records) if event.verdict is Verdict.DENY]
    assert len(denials) == len(records), "all are on record"
    return {(event.op, event.protocol, event.port) for event in denials if not is_quiet(event)}


@pytest.mark.parametrize("port", [0, 9, 53, 443, 65535])
def test_a_datagram_socket_that_only_sorts_addresses_is_quiet(tmp_path: Path, port: int) -> None:
    tcp = replace(connection(PEER, Verdict.DENY), port=443)
    assert loud(Bench(tmp_path), datagram(port), tcp) == {("connect", "tcp", 443)}


def test_an_address_of_an_allowed_name_needs_no_connection(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.names[PEER] = "api.example.com"
    assert loud(bench, datagram(53), datagram(5353)) == {("connect", "udp", 5353)}


@pytest.mark.parametrize("port", [9, 53, 443, 65535])
def test_a_datagram_socket_of_a_process_that_never_connects_is_an_alarm(tmp_path: Path, port: int) -> None:
    assert loud(Bench(tmp_path), datagram(port)) == {("connect", "udp", port)}


def test_a_server_sorts_the_addresses_that_it_could_listen_on(tmp_path: Path) -> None:
    listens = NetRecord(head(), "bind", Verdict.ALLOW, "::", 8123, "tcp", 0, "", 1)
    own = [replace(datagram(8123), address="::1"), replace(datagram(8123), address="127.0.0.1")]
    bench = Bench(tmp_path)
    events = bench.all_events(*own, listens)
    assert [is_quiet(event) for event in events if event.verdict is Verdict.DENY] == [True, True]
    other = [replace(datagram(8124), address="::1"), datagram(8123)]
    events = bench.all_events(*other)
    assert not any(is_quiet(event) for event in events[-2:])


def test_nothing_can_be_sent_to_port_0(tmp_path: Path) -> None:
    assert loud(Bench(tmp_path), datagram(0)) == set()


def test_another_port_than_the_connections_is_an_alarm(tmp_path: Path) -> None:
    assert ("connect", "udp", 4444) in loud(Bench(tmp_path), datagram(4444), connection(PEER, Verdict.DENY))


def test_another_address_or_process_than_the_connections_is_an_alarm(tmp_path: Path) -> None:
    elsewhere = connection("203.0.113.8", Verdict.DENY)
    another = replace(connection(PEER, Verdict.DENY), head=head(1001))
    assert ("connect", "udp", 53) in loud(Bench(tmp_path), datagram(53), elsewhere, another)


@pytest.mark.parametrize("record", [datagram(53, op="sendmsg"), datagram(0, op="sendmsg"), datagram(53, rule=1)])
def test_what_was_to_be_sent_and_what_a_rule_denies_is_an_alarm(tmp_path: Path, record: NetRecord) -> None:
    assert (record.op, "udp", record.port or None) in loud(Bench(tmp_path), record, connection(PEER, Verdict.DENY))


def test_only_what_keeps_a_server_makes_the_refusal_of_its_canary_routine(tmp_path: Path) -> None:
    """A rule of the user's at that address is a rule like others."""
    address, port = KEPT_CANARY
    kept, own = Origin("x", "/x.yaml", 1, "mcp confine s kept"), Origin("x", "/x.yaml", 2, "deny 127.0.0.0/8")
    policy = replace(POLICY, rules=(*POLICY.rules, kept, own), reasons=(*POLICY.reasons, "", ""))
    for number, told in ((len(POLICY.rules), set()), (len(POLICY.rules) + 1, {("connect", "udp", port)})):
        refused = NetRecord(head(), "connect", Verdict.DENY, address, port, "udp", number, "", 1)
        assert loud(Bench(tmp_path / str(number), policy), refused) == told


@pytest.mark.parametrize("gone", [False, True])
def test_what_a_kept_server_was_refused_names_its_rule_though_it_has_ended_since(gone: bool, tmp_path: Path) -> None:
    """Nobody can look where it lived; its canary told before it began. What has its number later is another process."""
    server, (address, port) = 1 << 23, KEPT_CANARY  # a number that no process has
    kept = Origin("x", "/x.yaml", 1, "mcp confine s kept")
    policy = replace(POLICY, rules=(*POLICY.rules, kept), reasons=(*POLICY.reasons, ""))
    bench = Bench(tmp_path, policy)
    canary = NetRecord(head(server), "connect", Verdict.DENY, address, port, "udp", len(POLICY.rules), "", 1)
    asked = refused("open", "/ws/file", errno.EACCES, who=head(server))
    found = bench.all_events(canary, *([ended(server)] if gone else []), asked)
    (event,) = (one for one in found if one.path == "/ws/file")
    assert (event.verdict, event.rule) == (Verdict.DENY, None if gone else kept)
