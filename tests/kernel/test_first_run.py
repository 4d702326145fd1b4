"""An agent's first run: its own folder is there for it, and gone again when it had no use for it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Sandbox, mcpguard_command, need_root, sandbox

pytestmark = pytest.mark.kernel

SAVE = ["sh", "-c", 'mkdir -p ~/.codex/sessions && echo "$0" > ~/.codex/sessions/a && cat ~/.codex/sessions/a', "kept"]
PROFILE = "name: agent\nextends: [dev-tools]\nfiles:\n  write: [{pattern}]\n"
PATIENCE_SECONDS = 90


@pytest.fixture
def box() -> Iterator[Sandbox]:
    need_root()
    with sandbox("codex") as made:
        assert not (made.world.home / ".codex").exists()
        yield made


def test_codex_makes_its_state_on_a_home_without_it(box: Sandbox) -> None:
    ran = box.run(SAVE)
    assert (ran.code, ran.out) == (0, "kept\n"), ran.err
    folder = box.world.home / ".codex"
    assert (folder / "sessions/a").read_text() == "kept\n"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "~/.codex" in ran.err.splitlines()[-1]
    assert box.denials() == []


def test_npx_runs_what_it_installs_on_a_home_without_its_cache(box: Sandbox) -> None:
    box.profile = "dev-tools"
    ran = box.run(["sh", "-c", "cp /usr/bin/printf ~/.npm/_npx/tool && ~/.npm/_npx/tool kept && test -d ~/.cache/uv"])
    assert (ran.code, ran.out) == (0, "kept"), ran.err
    assert "~/.npm/_npx" in ran.err.splitlines()[-1]
    assert box.denials() == []
    assert not (box.world.home / ".cache/uv").exists(), "what had no use is gone"


def test_uvx_gets_a_folder_for_tools_that_it_may_write(box: Sandbox) -> None:
    box.profile = "dev-tools"
    use = ["sh", "-c", 'mkdir -p "${UV_TOOL_DIR:-$HOME/.local/share/uv/tools}" && echo "$UV_TOOL_DIR"']
    ran = box.run(use)
    assert (ran.code, ran.out) == (0, f"{box.world.home}/.cache/uv/tools\n"), ran.err
    assert box.denials() == []


def test_a_profile_sets_variables_and_its_word_comes_last(box: Sandbox) -> None:
    text = "name: own\nextends: [dev-tools]\nenvironment:\n  remove: [FROM_*]\n  set:\n"
    box.write_profile("own", text + "    FROM_PROFILE: '{workspace}'\n    HISTFILE: '{tmp}/h'\n")
    ran = box.run(["sh", "-c", 'echo "$FROM_PROFILE $HISTFILE"'])
    assert ran.out.split()[0] == os.path.realpath(box.world.project), ran.err
    assert ran.out.split()[1].endswith("/h")


@pytest.mark.parametrize("used", [False, True])
def test_no_tool_is_installed_for_later(box: Sandbox, used: bool) -> None:
    """`uvx ruff` takes an installed ruff, unguarded as well."""
    box.profile = "dev-tools"
    tools = box.world.home / ".local/share/uv/tools"
    if used:
        tools.mkdir(parents=True)
    plant = [
        "sh",
        "-c",
        "mkdir -p ~/.local/share/uv/tools/ruff/bin && echo planted > ~/.local/share/uv/tools/ruff/bin/ruff",
    ]
    assert box.run(plant).code != 0
    assert [event["op"] for event in box.denials()] == ["mkdir"]
    assert not (tools / "ruff").exists()
    assert box.control(plant).code == 0


def test_without_the_slash_it_is_refused_and_without_mcpguard_it_is_not(box: Sandbox) -> None:
    box.write_profile("agent", PROFILE.format(pattern="~/.codex"))
    ran = box.run(SAVE)
    assert ran.code != 0
    assert not (box.world.home / ".codex").exists()
    assert str(box.world.home / ".codex") in {event.get("path") for event in box.denials()}
    assert box.control(SAVE).code == 0


def test_nothing_is_left_of_a_folder_that_stayed_empty(box: Sandbox) -> None:
    before = sorted(box.world.home.rglob("*"))
    box.profile = "opencode"
    ran = box.run(["ls", "-d", str(box.world.home / ".local/share/opencode")])
    assert ran.code == 0, ran.err
    assert sorted(box.world.home.rglob("*")) == before
    assert "made for the agent" not in ran.err


def test_nothing_is_left_when_the_run_could_not_start(box: Sandbox) -> None:
    assert box.run(["no-such-program"]).code == 127
    assert box.run(["true"], options=["--tier", "1"]).code == 125
    assert not (box.world.home / ".codex").exists()


def test_beside_the_agents_folder_the_home_stays_closed(box: Sandbox) -> None:
    for made, act in (
        (".local", ["mkdir", "-p", str(box.world.home / ".local/share/applications")]),
        ("x", ["touch", str(box.world.home / "x")]),
    ):
        assert box.run(act).code != 0
        box.assert_told(f"{box.world.home}/{made}", "no rule allows it")
        assert box.control(act).code == 0


def test_a_symlink_in_its_place_is_not_followed(box: Sandbox) -> None:
    elsewhere = box.world.root / "elsewhere"
    (box.world.home / ".codex").symlink_to(elsewhere)
    act = ["mkdir", "-p", str(elsewhere)]
    assert box.run(act).code != 0
    box.assert_told(str(elsewhere))
    assert not elsewhere.exists()
    assert box.control(act).code == 0


def test_a_second_session_keeps_the_folder_that_the_first_one_made(box: Sandbox) -> None:
    folder = box.world.home / ".codex"
    for name in ("fifo", "fifo2"):
        os.mkfifo(box.world.project / name)
    with start(box, ["cat", "fifo"]) as first:
        wait_for(folder)
        with start(box, ["sh", "-c", "echo > second; cat fifo2; echo late > ~/.codex/late"]) as second:
            wait_for(box.world.project / "second")
            (box.world.project / "fifo").write_text("end")
            assert first.wait(PATIENCE_SECONDS) == 0
            (box.world.project / "fifo2").write_text("end")
            assert second.wait(PATIENCE_SECONDS) == 0
    assert (folder / "late").exists()


def test_a_killed_mcpguard_leaves_at_most_an_empty_folder(box: Sandbox) -> None:
    os.mkfifo(box.world.project / "fifo")
    folder = box.world.home / ".codex"
    with start(box, ["sh", "-c", "echo > ready; cat fifo"]) as process:
        wait_for(box.world.project / "ready")
        process.send_signal(signal.SIGKILL)
    # The agent lives on, confined; it ends when it can read.
    (box.world.project / "fifo").write_text("end")
    assert list(folder.iterdir()) == []
    # A later session finds the folder there, uses it, and takes away nothing that it did not make.
    assert box.run(["ls", str(folder)]).code == 0
    assert folder.exists()


def test_why_and_show_tell_about_it(box: Sandbox) -> None:
    shown = box.mcpguard("profile", "show", "codex", "--format", "json")
    rules = {rule["rule"]: rule["because"] for rule in json.loads(shown.out)["rules"]}
    assert rules["file write ~/.codex/"] == "made for a run where it is not there"
    assert box.mcpguard("why", "-p", "codex", "write", str(box.world.home / ".codex/a")).code == 0


def start(box: Sandbox, command: list[str]) -> subprocess.Popen[bytes]:
    words = [*mcpguard_command(), "run", "-q", "-p", box.profile, "-w", str(box.world.project), "--", *command]
    return subprocess.Popen(
        words, cwd=box.world.project, env=box.world.environment(), stdin=subprocess.DEVNULL, start_new_session=True
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)
