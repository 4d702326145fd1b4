"""The entry point: what it imports, how it fails, and what shells complete."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from mcpguard.cli import commands, main, run, run_words
from mcpguard.errors import HostError, StoreError
from mcpguard.session import start

HEAVY = ("typer", "click", "rich", "textual")


def python(code: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, **more},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("words", [("run", "--help"), ("run",), ("run", "--no-such-option")])
def test_run_is_reached_without_importing_a_screen(words: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom mcpguard.cli.main import main\n"
        "try:\n main()\nexcept SystemExit:\n pass\n"
        f"print([name for name in {HEAVY!r} + ('yaml',) if name in sys.modules], file=sys.stderr)"
    )
    assert python(code, *words).stderr.splitlines()[-1] == "[]"


def test_a_wrong_command_is_a_misuse() -> None:
    code = "import sys\nfrom mcpguard.cli.main import main\nsys.exit(main())"
    assert python(code, "fly").returncode == 2
    assert python(code, "--version").returncode == 0


def test_every_command_of_the_contract_is_listed_with_help() -> None:
    group = get_command(commands.build())
    listed = {name: command.help for name, command in group.commands.items()}  # type: ignore[attr-defined]
    assert {"run", "log", "sessions", "profile", "why", "doctor"} <= set(listed)
    assert all(listed.values())
    assert listed["run"].startswith(run_words.HELP.splitlines()[0])


def test_run_completes_exactly_the_options_that_it_takes() -> None:
    group = get_command(commands.build())
    shown = {name for option in group.commands["run"].params for name in option.opts if name.startswith("-")}  # type: ignore[attr-defined]
    taken = {name for action in run_words.parser()._actions for name in action.option_strings}
    assert shown == taken - {"-h", "--help"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mcpguard run cla", ["claude-code"]),
        ("mcpguard run -p dev", ["dev-tools"]),
        ("mcpguard profile show qw", ["qwen-code"]),
        ("mcpguard why -p gem", ["gemini-cli"]),
        ("mcpguard profile di", ["diff"]),
    ],
)
def test_a_shell_completes_names_of_profiles_and_commands(mcpguard_home: Path, line: str, expected: list[str]) -> None:
    done = python(
        "import sys\nfrom mcpguard.cli.main import main\nsys.argv = ['mcpguard']\nsys.exit(main())",
        _MCPGUARD_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(line.split()) - 1),
    )
    assert done.stdout.split() == expected


@pytest.mark.parametrize(("guarded", "code"), [(True, "run.nested"), (False, "store.unusable")])
def test_a_closed_store_is_explained_by_the_session_around_it(
    monkeypatch: pytest.MonkeyPatch, guarded: bool, code: str
) -> None:
    def refuse() -> None:
        if guarded:
            raise HostError("already inside", why="-", do="-", code="run.nested")

    monkeypatch.setattr(start, "refuse_nesting", refuse)
    closed = StoreError("the event store cannot be used", why="read-only", do="-", code="store.unusable")
    assert main._in_a_session(closed).code == code


def test_another_error_is_not_explained_by_the_session_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "refuse_nesting", lambda: pytest.fail("asked"))
    wrong = StoreError("no such session", why="-", do="-", code="store.no-session")
    assert main._in_a_session(wrong) is wrong


MAIN = "import sys\nfrom mcpguard.cli.main import main\nsys.exit(main())"
PAGES = ["run", "log", "sessions", "why", "doctor", "setup", "profile check", "profile show", "profile new", ""]


@pytest.mark.parametrize("page", PAGES)
def test_help_fits_80_columns_and_names_no_python_types(page: str) -> None:
    shown = python(MAIN, *page.split(), "--help", COLUMNS="80").stdout
    assert shown
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    assert [word for word in ("<str>", "<bool>", "list[") if word in shown] == []


@pytest.mark.parametrize(
    ("shell", "words"), [("zsh", "#compdef mcpguard"), ("bash", "complete -o"), ("fish", "--command mcpguard")]
)
def test_the_script_of_the_named_shell_is_shown(shell: str, words: str) -> None:
    done = python(MAIN, "--show-completion", shell)
    assert (done.returncode, words in done.stdout) == (0, True)


def test_a_shell_without_completion_is_refused() -> None:
    done = python(MAIN, "--show-completion", "cmd")
    assert (done.returncode, "usage.shell" in done.stderr) == (2, True)


@pytest.mark.parametrize("words", [["--help"], ["-p", "default", "-h"]])
def test_who_asks_for_help_with_run_starts_no_broker(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also inside a session, where nothing can be started."""
    monkeypatch.setattr(run, "Start", None)
    try:
        with pytest.raises(SystemExit) as end:
            run.main(words)
    finally:
        gc.enable()
    assert end.value.code == 0
