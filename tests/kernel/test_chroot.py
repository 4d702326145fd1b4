"""A root directory that somebody entered by chroot: it is a mount point, or nothing is started and it is said what to do."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import need_root

from mcpguard.session.start import names_leaf

pytestmark = pytest.mark.kernel

# In a mount namespace of its own: a folder that shows what the root directory does, as a mount point or not, entered by chroot.
ENTER = """\
set -e
root=$1; shift
[ "$1" = plain ] || mount --bind "$root" "$root"; shift
for one in /*; do
    if [ -L "$one" ]; then cp -P "$one" "$root/"; continue; fi
    [ -d "$one" ] || continue
    mkdir -p "$root$one"
    case "$root/" in "$one"/*) how=--bind;; *) how=--rbind;; esac
    mount $how "$one" "$root$one"
done
exec chroot "$root" "$@"
"""


@pytest.fixture
def root() -> Iterator[Path]:
    """An empty folder that no rule of the profile opens: Landlock looks above a root directory, too."""
    need_root()
    made = Path(tempfile.mkdtemp(prefix="mcpguard-test-", dir="/run"))
    yield made
    for one in made.iterdir():  # nothing is mounted here: that was in a namespace which is gone
        if one.is_symlink():
            one.unlink()
        else:
            one.rmdir()
    made.rmdir()


def in_chroot(root: Path, place: Path, how: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", ENTER, "sh", root, how, *command],
        env=dict(os.environ) | {"HOME": str(place / "home"), "MCPGUARD_HOME": str(place / "guard")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize(("how", "code"), [("plain", 125), ("mount point", 0)])
def test_a_root_that_is_no_mount_point_is_told_with_what_to_do(root: Path, tmp_path: Path, how: str, code: int) -> None:
    for name in ("home", "guard", "project"):
        (tmp_path / name).mkdir()
    secret = tmp_path / "home/.ssh/id_ed25519"
    secret.parent.mkdir(parents=True)
    secret.write_text("secret")
    assert in_chroot(root, tmp_path, how, "cat", str(secret)).stdout == "secret"
    words = (sys.executable, "-m", "mcpguard", "run", "-w", str(tmp_path / "project"), "--")
    done = in_chroot(root, tmp_path, how, *words, "sh", "-c", f"echo began; cat {secret}; true")
    assert (done.returncode, done.stdout) == (code, "" if code else "began\n"), done.stderr
    if code:
        lines = done.stderr.splitlines()
        assert len(lines) == 4 and lines[3] == "  code  run.chroot" and "mount --bind" in lines[2]


@pytest.mark.parametrize(
    ("groups", "inside"),
    [
        ("0::/mcpguard/20251009-085320-snap\n", True),
        ("0::/docker/0a1b/mcpguard/20251009-085320-snap\n", True),
        ("0::/../mcpguard/20251009-085320-snap\n", True),
        ("4:cpu:/\n0::/mcpguard/20251009-085320-snap/below\n", True),
        ("0::/user.slice/user-0.slice/session-1.scope\n", False),
        ("0::/mcpguard\n", False),
        ("1:name=systemd:/mcpguard/x\n0::/\n", False),
    ],
)
def test_a_leaf_is_known_wherever_the_tree_of_groups_begins(groups: str, inside: bool) -> None:
    assert names_leaf(groups.splitlines()) is inside
