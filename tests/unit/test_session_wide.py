"""Rules for one run that open far more than can be meant are refused; wide reading is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mcpguard.errors import UsageError
from mcpguard.policy.patterns import expand, literal_path
from mcpguard.profile.parse import parse
from mcpguard.session.policy import load_policy, rule_errors, typed_pattern, wide_writes
from mcpguard.session.wide import read_notes


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = Path(os.path.realpath(tmp_path)) / "home"
    (place / "project").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.delenv("MCPGUARD_HOME", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / ".config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(place / ".local/state"))
    monkeypatch.chdir(place / "project")
    return place


@pytest.mark.parametrize("path", ["/", "~", "~/", "{home}", "..", "/**", "**", "~/*", "~/**"])
def test_writing_the_whole_home_is_refused(home: Path, path: str) -> None:
    with pytest.raises(UsageError) as refused:
        load_policy("default", write=["/opt/data", path])
    assert refused.value.code == "usage.write-too-wide"
    assert refused.value.what.startswith(f"--write {path} opens the whole home")


@pytest.mark.parametrize("path", ["~/.config", "~/.local/", "~/.local/state", "~/.*", "~/.config/mcpguard"])
def test_writing_a_folder_that_holds_our_own_is_refused(home: Path, path: str) -> None:
    with pytest.raises(UsageError) as refused:
        load_policy("default", write=[path])
    assert refused.value.code == "usage.write-too-wide"


def test_a_link_to_the_home_is_the_home(home: Path) -> None:
    link = home.parent / "link"
    link.symlink_to(home)
    with pytest.raises(UsageError):
        load_policy("default", write=[str(link)])


@pytest.mark.parametrize(
    "path", ["~/notes", "~/.config/tool", "~/.tool*", "~/*.log", "/opt", "{workspace}", "{tmp}", "**/out"]
)
def test_a_folder_of_its_own_is_taken(home: Path, path: str) -> None:
    assert any(rule.text == f"--write {path}" for rule in load_policy("default", write=[path]).rules)


def test_reading_the_whole_home_is_said(home: Path) -> None:
    notes = read_notes(["/", "~", "..", "~/notes", "/opt"])
    assert [note.split()[1] for note in notes] == ["/", "~", ".."]


def test_a_profile_that_opens_the_whole_home_is_noted_and_is_no_mistake(home: Path) -> None:
    profile = parse("files: {write: [~/notes, '~', '~/.tool*', '{home}']}\n", "p.yaml", name="p").profile
    assert rule_errors(profile) == []
    assert [rule.pattern for rule in wide_writes(profile)] == ["~", "{home}"]


@pytest.mark.parametrize("name", ["a*", "a[b]", "a?", "a{b}"])
def test_a_path_in_a_folder_with_an_odd_name_opens_nothing_beside_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / name / "below")
    for typed, place in (("out", f"{name}/below/out"), ("../out/", f"{name}/out")):
        absolute = expand(typed_pattern(typed), "command line", {"home": "/home/u", "workspace": "/w", "tmp": "/tmp"})
        assert literal_path(absolute) == str(tmp_path / place)
