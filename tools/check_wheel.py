"""Build the wheel and prove that it is whole: every object, profile and library inside, and it runs without a compiler.

For CI and releases. Installs into a throw-away environment; leaves nothing behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import build_objects

ROOT = build_objects.ROOT


class Incomplete(Exception):
    """The wheel is not what it should be."""


def build(folder: Path) -> tuple[Path, Path]:
    """Build the source distribution, and from it the wheel: what a release does."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True, stdout=sys.stderr)
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def check_contents(wheel: Path) -> None:
    """Every BPF program, shipped profile, library and licence is inside; the tag names this architecture."""
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"mcpguard/_bpf/{source.name.replace('.bpf.c', '.bpf.o')}" for source in build_objects.sources()}
    wanted |= {f"mcpguard/data/profiles/{profile.name}" for profile in (ROOT / "profiles").glob("*.yaml")}
    wanted |= {f"mcpguard/_lib/{name}" for name in build_objects.LIBRARY_NAMES}
    wanted |= {f"mcpguard/{path.relative_to(ROOT / 'src/mcpguard')}" for path in (ROOT / "src/mcpguard").rglob("*.py")}
    if missing := sorted(wanted - names):
        raise Incomplete(f"{wheel.name} lacks {', '.join(missing)}")
    if not any("/licenses/LICENSES/" in name for name in names):
        raise Incomplete(f"{wheel.name} carries no licences of the bundled libraries")
    if build_objects.machine() not in wheel.name or "manylinux" not in wheel.name:
        raise Incomplete(f"{wheel.name} does not name its platform")


def check_runs(wheel: Path, folder: Path) -> None:
    """Install into a fresh environment and use it with a PATH that holds no compiler."""
    python = folder / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True, stdout=sys.stderr)
    tools = folder / "tools"
    tools.mkdir()
    for name in ("true", "sudo", "sh", "uname"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    environment = {**os.environ, "PATH": f"{folder}/venv/bin:{tools}", "MCPGUARD_HOME": str(folder / "home")}
    workspace = folder / "workspace"
    workspace.mkdir()
    for arguments in (["doctor", "--format", "json"], ["profile", "list"], ["run", "--", "true"]):
        command = [str(folder / "venv/bin/mcpguard"), *arguments]
        done = subprocess.run(
            command, cwd=workspace, env=environment, check=False, timeout=120, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise Incomplete(f"installed from the wheel, mcpguard {' '.join(arguments)} exits {done.returncode}")


def main() -> int:
    """Exit 0: the wheel is whole and runs."""
    with tempfile.TemporaryDirectory(prefix="mcpguard-wheel-") as name:
        folder = Path(name)
        try:
            wheel, _ = build(folder)
            check_contents(wheel)
            check_runs(wheel, folder)
        except (Incomplete, subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"check_wheel: {error}", file=sys.stderr)
            return 1
        print(f"{wheel.name}: complete, and runs without a compiler")
    return 0


if __name__ == "__main__":
    sys.exit(main())
