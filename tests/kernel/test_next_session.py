"""What one session leaves behind opens nothing to the next one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Sandbox, need_root, sandbox

pytestmark = pytest.mark.kernel

# Names beside its own may be made in the home, as by agents that write siblings there.
SIBLINGS = """\
name: agent
extends: [dev-tools]
files:
  write: ["~/.agent.json*"]
"""
# The kernel's clock for files is up to a second behind, so a link this long after the end is the user's.
AFTERWARDS_SECONDS = 1.5


@pytest.fixture
def box() -> Iterator[Sandbox]:
    need_root()
    with sandbox("dev-tools") as made:
        made.write_profile("agent", SIBLINGS)
        yield made


def elsewhere(box: Sandbox) -> Path:
    """A file in the home that no rule speaks of."""
    place = box.world.home / "docs/letter"
    place.parent.mkdir(exist_ok=True)
    place.write_text("a letter")
    return place


def test_a_rule_does_not_follow_a_link_that_a_session_left(box: Sandbox) -> None:
    letter, link = elsewhere(box), box.world.home / ".nvm"
    box.run(["ln", "-s", str(letter.parent), str(link)])
    if not link.is_symlink():  # tiers that hook the kernel stop that already
        link.symlink_to(letter.parent)
    assert box.control(["cat", str(letter)]).out == "a letter"
    ran = box.run(["cat", str(letter)])
    assert ran.code != 0
    assert letter.read_text() not in ran.out
    assert [event["path"] for event in box.denials()] == [str(letter)]


def test_a_link_of_the_users_own_is_followed(box: Sandbox) -> None:
    letter, link = elsewhere(box), box.world.home / ".nvm"
    box.run(["ln", "-s", str(letter.parent), str(link)])
    link.unlink(missing_ok=True)
    time.sleep(AFTERWARDS_SECONDS)
    link.symlink_to(letter.parent)
    time.sleep(AFTERWARDS_SECONDS)
    ran = box.run(["cat", str(letter)])
    assert (ran.code, ran.out) == (0, "a letter"), ran.err


def test_a_profile_that_is_kept_in_a_project_cannot_be_changed_there(box: Sandbox) -> None:
    kept = box.world.project / "mine.yaml"
    kept.write_text("name: mine\nextends: [dev-tools]\n")
    (box.world.state / "config/profiles/mine.yaml").symlink_to(kept)
    for command in ("echo >> mine.yaml", "rm mine.yaml", "mv mine.yaml other"):
        assert box.run(["sh", "-c", command]).code != 0, command
        assert str(kept) in {event.get("path") for event in box.denials()}
    assert box.control(["sh", "-c", "echo >> mine.yaml"]).code == 0


def test_an_exception_for_a_file_that_is_missing_opens_nothing_else(box: Sandbox) -> None:
    folder = box.world.home / ".aws"
    folder.mkdir(exist_ok=True)
    (folder / "credentials").write_text("a key")
    box.write_profile(
        "agent", "name: agent\nextends: [dev-tools]\nfiles: {write: [~/.aws/new], except: [~/.aws/new]}\n"
    )
    other = ["sh", "-c", "echo planted > ~/.aws/config"]
    assert box.run(other).code != 0
    assert [event["path"] for event in box.denials()] == [str(folder / "config")]
    assert not (folder / "config").exists()
    assert box.control(other).code == 0
    (folder / "new").touch()
    assert box.run(["sh", "-c", "echo kept > ~/.aws/new"]).code == 0
    assert (folder / "new").read_text() == "kept\n"
    assert os.listdir(folder).count("config") == 1
