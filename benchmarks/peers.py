"""The ways to run a command that benchmarks compare: bare, ours, and what people would use instead."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

NPM_PACKAGE = "@anthropic-ai/sandbox-runtime"
SANDLOCK = """
import sys
from sandlock import Sandbox
done = Sandbox(fs_readable=["/"], fs_writable=[sys.argv[1], "/tmp", "/dev"]).run(sys.argv[2:])
sys.stdout.buffer.write(done.stdout or b"")
sys.stderr.buffer.write(done.stderr or b"")
sys.exit(done.exit_code)
"""


@dataclass(frozen=True)
class Peer:
    """One way.

    Attributes:
        before: stands before the words of the command.
        joined: it takes the command as one text for a shell.
    """

    name: str
    before: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    joined: bool = False

    def run(self, words: list[str], workspace: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.before, *([shlex.join(words)] if self.joined else words)],
            cwd=workspace,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )


def peers(folder: Path, workspace: Path, *, strace: bool = True) -> tuple[list[Peer], list[str]]:
    """Those that run `true` here, and why the others do not.

    Args:
        folder: where peers may be installed, and where our own record goes.
        workspace: what the command may change.
    """
    home = {"MCPGUARD_HOME": str(folder / "home")}
    candidates: list[tuple[Peer | None, str]] = [
        (Peer("bare", ()), ""),
        (Peer("mcpguard", (*mcpguard(), "run", "-q", "-p", "dev-tools", "-w", str(workspace), "--"), home), ""),
        (_installed("bwrap", "bubblewrap", "--dev-bind", "/", "/", "--ro-bind", "/usr", "/usr", "--"), "bubblewrap"),
        (_installed("firejail", "firejail", "--quiet", "--noprofile", "--read-only=/usr"), "firejail"),
        (_sandlock(folder, workspace), "sandlock from the index"),
        (_sandbox_runtime(folder, workspace), f"npm and {NPM_PACKAGE}"),
    ]
    if strace:
        named = "strace -f (all file and network calls)"
        candidates.append(
            (_installed("strace", named, "-f", "-qq", "-e", "trace=%file,%network", "-o", "/dev/null"), "strace")
        )
    able, missing = [], []
    for peer, needs in candidates:
        if peer is None:
            missing.append(f"not installed: {needs}")
            continue
        done = peer.run(["true"], workspace)
        if done.returncode == 0:
            able.append(peer)
        else:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"status {done.returncode}"]
            missing.append(f"{peer.name}: {last[0]}")
    return able, missing


def mcpguard() -> list[str]:
    """The console script beside this interpreter: what a person starts."""
    script = Path(sys.executable).with_name("mcpguard")
    return [str(script)] if script.exists() else [sys.executable, "-P", "-m", "mcpguard"]


def _installed(program: str, name: str, *options: str) -> Peer | None:
    return Peer(name, (program, *options)) if shutil.which(program) else None


def sandlock_package(folder: Path) -> Path | None:
    """Install the package of the Python index below a scratch folder; where it is, None when that fails."""
    target = folder / "sandlock"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), "sandlock"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=300)
    return None if done.returncode else target


def _sandlock(folder: Path, workspace: Path) -> Peer | None:
    target = sandlock_package(folder)
    if target is None:
        return None
    words = (sys.executable, "-c", SANDLOCK, str(workspace))
    return Peer("sandlock", words, {"PYTHONPATH": str(target)})


def npm_runtime(folder: Path) -> Path | None:
    """Install the npm package below a scratch folder; its command, None when that fails."""
    command = ["npm", "install", "--silent", "--no-save", "--prefix", str(folder / "npm"), NPM_PACKAGE]
    if not shutil.which("npm") or subprocess.run(command, capture_output=True, check=False, timeout=300).returncode:
        return None
    script = folder / "npm/node_modules/.bin/srt"
    return script if script.exists() else None


def _sandbox_runtime(folder: Path, workspace: Path) -> Peer | None:
    """It may write what we may, and reach no host."""
    script = npm_runtime(folder)
    if script is None:
        return None
    settings = folder / "srt.json"
    rules = {
        "network": {"allowedDomains": [], "deniedDomains": []},
        "filesystem": {"denyRead": [], "allowWrite": [str(workspace), "/tmp"], "denyWrite": []},
    }
    settings.write_text(json.dumps(rules))
    return Peer("sandbox-runtime (npm)", (str(script), "--settings", str(settings), "-c"), joined=True)
