"""Which refusals are everyday habits, and which only look like one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from events_help import AGENT, OPEN_POLICY, make_policy

from mcpguard.events.finding import QUIET
from mcpguard.events.habits import habit
from mcpguard.model.access import Access

POLICY = replace(make_policy(*OPEN_POLICY), workspace="/root/src/project")


def is_quiet(exe: str, access: Access, path: str) -> bool:
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
    assert is_quiet(exe, Access.WRITE, f"/root/{name}")


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
    assert not is_quiet(exe, access, path)


def test_a_run_time_that_looks_for_a_tracer_is_quiet() -> None:
    marker = "/sys/kernel/debug/tracing/trace_marker"
    assert is_quiet("/usr/local/bin/bun", Access.WRITE, marker)
    assert not is_quiet("/usr/bin/cat", Access.WRITE, marker)


@pytest.mark.parametrize("name", [".git", ".gitignore", "CLAUDE.md", "package.json"])
@pytest.mark.parametrize("folder", ["/root/src", "/root", ""])
def test_what_programs_look_for_above_the_workspace_is_quiet(folder: str, name: str) -> None:
    assert is_quiet("/usr/bin/node", Access.READ, f"{folder}/{name}")


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
    assert not is_quiet("/usr/bin/node", access, path)


def test_an_unknown_process_is_excused_nothing() -> None:
    assert habit(POLICY, None, Access.READ, "/root/package.json") is None
