"""No guarded tree approves a server: the catalogue is closed to it under every shipped profile, however much more is opened."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from harness import REPOSITORY, assert_names_rule, mcpguard_command, need_root, sandbox

from mcpguard.profile import store

pytestmark = pytest.mark.kernel

# Every act is tried, and those that were done are named. FILE is the catalogue, FOLDER holds it.
ACTS = """
cd / || exit 1
echo evil >> "$FILE" && echo append
true > "$FILE" && echo truncate
echo evil > "$FOLDER/new" && echo create
echo evil > "$HOME/other" && mv -f "$HOME/other" "$FILE" && echo replace
ln -f "$FILE" "$HOME/link" && echo link
chmod 666 "$FILE" && echo chmod
rm -f "$FILE" && echo remove
mv "$FOLDER" "$FOLDER.old" && echo move
true
"""
DONE = ["append", "truncate", "create", "replace", "link", "chmod", "remove", "move"]
CONTENT = '{"version": 1, "servers": []}\n'


def prepared(folder: Path) -> Path:
    """A catalogue in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "mcp-servers.json"
    file.write_text(CONTENT)
    file.chmod(0o600)
    return file


@pytest.mark.parametrize("profile", sorted(path.stem for path in store.builtin_directory().glob("*.yaml")))
def test_no_guarded_tree_writes_the_catalogue(profile: str) -> None:
    need_root()
    with sandbox(profile) as box:
        root = box.world.root
        other = prepared(root / "other" / "config")
        box.variables = {"FILE": str(other), "FOLDER": str(other.parent)}
        assert box.control(["sh", "-c", ACTS]).out.split() == DONE

        file = prepared(box.world.state / "config")
        box.variables = {"FILE": str(file), "FOLDER": str(file.parent)}
        # As much as a person may open: everything around the catalogue, but not the folder that holds it. Nothing runs by the
        # profiles for servers alone.
        parents = f"{profile}, base" if profile.startswith("mcp-") else profile
        box.write_profile(
            "open",
            f'name: open\nextends: [{parents}]\nfiles:\n  write: ["{root}"]\n  execute: ["/usr"]\n',
        )
        finished = box.run(["sh", "-c", ACTS])
        assert finished.code == 0, finished.err
        assert finished.out.split() == []
        assert file.read_text() == CONTENT
        denied = [event for event in box.denials() if event.get("path") == str(file)]
        assert denied
        for event in denied:
            assert_names_rule(event, str(file.parent))


def test_an_agent_cannot_approve_or_revoke_by_mcpguard_itself() -> None:
    need_root()
    with sandbox("dev-tools") as box:
        (box.world.project / ".mcp.json").write_text(
            '{"mcpServers": {"mine": {"command": "cat"}, "other": {"command": "ls"}}}'
        )
        approve, revoke = ("mcp", "approve", "--yes", "mine"), ("mcp", "revoke", "other")
        assert box.mcpguard("mcp", "approve", "--yes", "other").code == 0
        before = (box.world.state / "config/mcp-servers.json").read_bytes()
        box.write_profile(
            "open",
            "name: open\nextends: [dev-tools]\nfiles:\n"
            f'  write: ["{box.world.root}"]\n'
            f'  read: ["{REPOSITORY}", "{sys.prefix}", "{sys.base_prefix}"]\n'
            f'  execute: ["{sys.prefix}", "{sys.base_prefix}"]\n',
        )
        for words in (approve, revoke):
            finished = box.run([*mcpguard_command(), *words])
            assert finished.code != 0, finished.out
            assert "inside" in finished.err, finished.err
        assert (box.world.state / "config/mcp-servers.json").read_bytes() == before
        assert box.mcpguard(*approve).code == 0
        assert box.mcpguard(*revoke).code == 0
