"""Where mcpguard's own files lie, as text and without `pathlib`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mcpguard.profile import places, store


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/a//b/./c/", "/a/b/c"),
        ("/a/../b", "/a/../b"),
        ("/", "/"),
        ("b/c", "{here}/b/c"),
        ("./b", "{here}/b"),
        ("..", "{here}/.."),
    ],
)
def test_a_path_is_written_once_and_leads_where_it_led(
    given: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert places.absolute(given) == expected.format(here=tmp_path) == str(Path(given).absolute())


def test_a_link_is_not_left_by_the_two_dots_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "near").symlink_to("far/away")
    monkeypatch.setenv("MCPGUARD_HOME", f"{tmp_path}/near/..")
    os.makedirs(places.state())
    assert (tmp_path / "far/state").is_dir()


def test_text_and_paths_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for home in (str(tmp_path), "relative", ""):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MCPGUARD_HOME", home)
        assert store.config_directory() == Path(places.config()) and Path(places.config()).is_absolute()
        assert store.state_directory() == Path(places.state()) and Path(places.state()).is_absolute()
        assert (store.user_directory(), store.builtin_directory()) == (
            Path(places.profiles()),
            Path(places.builtin_profiles()),
        )
        assert (store.control_directory(), store.gate_directory()) == (Path(places.control()), Path(places.gate()))


def test_without_a_home_nothing_lands_in_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MCPGUARD_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for an account without an entry, with HOME unset
    with pytest.raises(RuntimeError, match="home directory"):
        places.state()
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert places.state() == "/state/mcpguard"
