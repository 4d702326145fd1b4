"""Git's settings are read as git itself reads them, whatever was written to have them read otherwise."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from mcpguard.session import git_settings

_PIECES = (
    *(
        "[core]",
        '[a "B\\c"]',
        '[core "X\0"]',
        "[A.b]",
        "[core ",
        "]",
        "hooksPath",
        "fsmonitor = x",
        "k=",
        "=",
        '"',
        "\\",
    ),
    *(
        "\n",
        "\n",
        "\r",
        "\r\n",
        "\x0b",
        "\x0c",
        "\x1c",
        "\x85",
        "\u2028",
        "\0",
        "#",
        ";",
        " ",
        "\t",
        "x",
        "1",
        "-",
        ".",
    ),
    *("\\\n", "\\t", '\\"', "\\x", "\ufeff", "\udcff"),
)


def told_by_git(file: Path) -> tuple[list[tuple[str, str]], bool]:
    """What git lists, and whether it could read all of it."""
    done = subprocess.run(["git", "config", "--file", str(file), "--list", "-z"], capture_output=True, check=False)
    rows = [row.decode("utf-8", "surrogateescape").partition("\n") for row in done.stdout.split(b"\0")[:-1]]
    return [(key, value if parted else "true") for key, parted, value in rows], done.returncode == 0


def alike(found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Versions of git differ in which space they keep inside a value."""
    return [(key, value.replace("\t", " ").replace("\r", " ")) for key, value in found]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=strategies.lists(strategies.sampled_from(_PIECES), max_size=14))
def test_whatever_is_in_a_file_git_reads_the_same(pieces: list[str], tmp_path: Path) -> None:
    text = "[core]\n" + "".join(pieces)
    (tmp_path / "config").write_bytes(text.encode("utf-8", "surrogateescape"))
    expected, whole = told_by_git(tmp_path / "config")
    found = git_settings.settings(text)
    # Where git stops, nothing of the file counts for it; here the rest is told as well.
    assert alike(found if whole else found[: len(expected)]) == alike(expected)


@pytest.mark.parametrize(
    "value", ["true", "yes", "ON", "1", "2k", "01", "false", "No", "off", "0", "00", "0k", '""', ""]
)
def test_git_takes_the_same_for_true(value: str, tmp_path: Path) -> None:
    text = f"[x]\ny = {value}\n[x]z"
    (tmp_path / "config").write_text(text)
    for key in ("x.y", "x.z"):
        command = ["git", "config", "--file", str(tmp_path / "config"), "--bool", key]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        assert git_settings.is_true(git_settings.value_of(key, text)) is (told == "true")
    assert not git_settings.is_true(git_settings.value_of("x.none", text))


def test_a_file_made_to_be_slow_is_not() -> None:
    """Would not end if any part of it were read again and again."""
    for piece in ("# x\r", '[a "', "[a]", "k=\\\n", 'k="', "k" + " " * 50, "\n", "k = v\n"):
        git_settings.settings("[core]\n" + piece * (300_000 // len(piece)))
