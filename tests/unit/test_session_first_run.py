"""The agent's own folders: made where that is safe, taken away where nothing was put into them."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from events_help import OPEN_POLICY, make_policy

from mcpguard.model.policy import Policy
from mcpguard.session.first_run import own_folders


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = Path(os.path.realpath(tmp_path))
    (place / "home").mkdir()
    monkeypatch.setenv("MCPGUARD_HOME", str(place / "guard"))
    return place / "home"


def policy(home: Path, *names: str, audit: bool = False) -> Policy:
    return replace(make_policy(*OPEN_POLICY), folders=tuple(str(home / name) for name in names), audit=audit)


def test_what_is_missing_is_made_for_the_user_alone_and_taken_away_when_empty(home: Path) -> None:
    with own_folders(policy(home, ".config", ".config/agent")):
        assert stat.S_IMODE((home / ".config/agent").stat().st_mode) == 0o700
    assert list(home.iterdir()) == []


def test_what_holds_something_stays_and_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with own_folders(policy(home, ".config", ".config/agent", ".other")):
        (home / ".config/agent/a").touch()
    assert sorted(home.rglob("*")) == [home / ".config", home / ".config/agent", home / ".config/agent/a"]
    assert capsys.readouterr().err.endswith(f"it was not there: {home}/.config, {home}/.config/agent\n")


def test_a_quiet_run_says_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with own_folders(policy(home, ".agent"), quiet=True):
        (home / ".agent/a").touch()
    assert capsys.readouterr().err == ""


def test_a_folder_that_was_there_stays(home: Path) -> None:
    (home / ".agent").mkdir()
    with own_folders(policy(home, ".agent")):
        pass
    assert (home / ".agent").exists()


def test_a_failed_launch_leaves_nothing(home: Path) -> None:
    with pytest.raises(RuntimeError), own_folders(policy(home, ".agent")):
        raise RuntimeError
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("link", [".agent", ".config"])
def test_no_symlink_is_followed(home: Path, link: str) -> None:
    target = home.parent / "elsewhere"
    target.mkdir()
    (home / link).symlink_to(target if link == ".config" else target / "agent")
    with own_folders(policy(home, ".agent", ".config", ".config/agent")):
        assert list(target.iterdir()) == []


def test_without_its_parent_nothing_is_made(home: Path) -> None:
    with own_folders(policy(home, ".deep/agent")):
        assert list(home.iterdir()) == []


def test_audit_makes_nothing(home: Path) -> None:
    with own_folders(policy(home, ".agent", audit=True)):
        assert list(home.iterdir()) == []


def test_a_folder_that_another_session_counts_on_stays(home: Path) -> None:
    """Locks belong to processes: the other session is another process."""
    (told, tell), (waits, end) = os.pipe(), os.pipe()
    with own_folders(policy(home, ".agent"), quiet=True):
        pid = os.fork()
        if pid == 0:
            with own_folders(policy(home, ".agent")):
                os.write(tell, b"x")
                os.read(waits, 1)
            os._exit(0)
        os.read(told, 1)
    assert (home / ".agent").exists()
    os.write(end, b"x")
    os.waitpid(pid, 0)
