"""The process table: who a PID was, and under whom."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from events_help import AGENT, SECOND, ended, executed, forked, head

from mcpguard.events import processes
from mcpguard.events.processes import LATE_NS, ProcessTable


def test_a_child_runs_its_parents_program_until_it_executes_another() -> None:
    table = ProcessTable(AGENT)
    table.forked(forked(1001))
    assert table.get(1001) is not None and table.get(1001).exe == AGENT.exe  # type: ignore[union-attr]
    table.executed(executed(1001, "/usr/bin/git", "git", "status"))
    git = table.get(1001)
    assert git is not None
    assert (git.exe, git.argv, git.comm, git.ppid) == ("/usr/bin/git", ("git", "status"), "git", AGENT.pid)
    table.executed(executed(1001, "/usr/bin/less", "less"))
    assert git.executed == 1 and table.forked(forked(1002)).executed == 0
    assert [one.executed for one in (table.get(1001), table.get(1002)) if one] == [2, 0]


def test_what_a_child_executed_is_seen_before_the_record_of_it_is_read() -> None:
    table = ProcessTable(AGENT)
    with subprocess.Popen(["sleep", "100"], stdout=subprocess.PIPE) as child:
        while not Path(f"/proc/{child.pid}/cmdline").read_bytes():
            time.sleep(0.01)  # its descriptors are closed a moment before its words are there
        table.forked(forked(child.pid))
        assert table.get(child.pid) == table._alive[child.pid]
        found = table.running(child.pid)
        told = table.executed(executed(child.pid, "/bin/other", "other"))
        assert table.running(child.pid) is told, "the record counts once it is read"
        table = ProcessTable(AGENT)
        table.forked(forked(child.pid))
        child.kill()
    assert found is not None and (found.exe, found.argv) == (str(Path("/bin/sleep").resolve()), ("sleep", "100"))
    gone = table.running(child.pid)
    assert gone is not None and gone.argv == AGENT.argv, "what cannot be seen is what the records say"
    assert table.running(AGENT.pid) is AGENT and table.running(99_999_999) is None


def test_the_chain_goes_up_to_the_first_process() -> None:
    table = ProcessTable(AGENT)
    table.forked(forked(1001))
    table.forked(forked(1002, parent=1001))
    assert [process.pid for process in table.chain(1002)] == [1002, 1001, AGENT.pid]


def test_a_chain_that_is_a_circle_ends() -> None:
    table = ProcessTable(processes.Process(5, 5))
    assert [process.pid for process in table.chain(5)] == [5]


def test_an_ended_process_is_still_known_to_late_records_and_then_forgotten() -> None:
    table = ProcessTable(AGENT)
    table.forked(forked(1001))
    table.forked(forked(1002))
    table.exited(ended(1001, when_ns=200 * SECOND))
    assert table.seen(head(1001, when_ns=200 * SECOND + 1)).ppid == AGENT.pid
    table.exited(ended(1002, when_ns=200 * SECOND + LATE_NS + 1))
    assert 1001 not in table


def test_a_pid_that_is_used_again_does_not_inherit_the_dead_ones_program() -> None:
    table = ProcessTable(AGENT)
    table.executed(executed(1001, "/usr/bin/git", when_ns=100 * SECOND))
    table.exited(ended(1001, when_ns=101 * SECOND))
    assert table.seen(head(1001, comm="new", when_ns=101 * SECOND + LATE_NS + 1)).exe == ""


def test_a_fork_storm_stays_within_the_bound_and_keeps_the_newest(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(processes, "MAX_PROCESSES", 50)
    table = ProcessTable(AGENT)
    for pid in range(2000, 2500):
        table.forked(forked(pid))
    assert len(table) == 50
    assert 2499 in table
