"""A scratch world: a home with planted secrets and a project under git, for the demo and for the tests.

Every secret holds a random canary, so that a leak is recognised wherever it turns up. The world lies in the project's
cache folder, because a sandbox opens the temporary folder to its programs; nothing outside the world is touched.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

WORLDS = Path(__file__).parents[1] / ".cache" / "worlds"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
APP = 'def greet(name: str) -> str:\n    return f"Hello, {name}"\n'


@dataclass
class World:
    """Folders and canaries of one scratch world; used as a context manager, it is removed at the end.

    Attributes:
        root: holds everything below.
        home, project, tmp: what HOME, the workspace and TMPDIR are.
        state: what MCPGUARD_HOME is.
        canaries: the random text in each planted secret, by the path of the file.
    """

    root: Path
    home: Path
    project: Path
    tmp: Path
    state: Path
    canaries: dict[Path, str] = field(default_factory=dict)

    @classmethod
    def create(cls, parent: Path = WORLDS) -> World:
        """Build a world under `parent`, with its secrets planted and its project committed."""
        parent.mkdir(parents=True, exist_ok=True)
        root = Path(tempfile.mkdtemp(prefix="world-", dir=parent)).resolve()
        world = cls(root, root / "home", root / "project", root / "tmp", root / "mcpguard")
        for folder in (world.home, world.project, world.tmp, world.state):
            folder.mkdir()
        world._furnish_home()
        world._furnish_project()
        return world

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, what: BaseException | None, where: TracebackType | None
    ) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def environment(self, **more: str) -> dict[str, str]:
        """The variables a program in this world gets, and no others."""
        return {
            "PATH": f"{self.home}/.local/bin:{SYSTEM_PATH}",
            "HOME": str(self.home),
            "USER": os.environ.get("USER", "root"),
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "TMPDIR": str(self.tmp),
            "MCPGUARD_HOME": str(self.state),
            **more,
        }

    def plant(self, path: Path, before: str = "", after: str = "\n", mode: int = 0o600) -> str:
        """Write a file with a new canary in it and return the canary."""
        canary = f"canary-{secrets.token_hex(12)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{before}{canary}{after}")
        path.chmod(mode)
        self.canaries[path] = canary
        return canary

    def git(self, *arguments: str) -> None:
        """Run git in the project, as a program of this world."""
        subprocess.run(
            ["git", *arguments], cwd=self.project, env=self.environment(), check=True, capture_output=True, text=True
        )

    def _furnish_home(self) -> None:
        ssh = self.home / ".ssh"
        ssh.mkdir(mode=0o700)
        self.plant(ssh / "id_ed25519", "-----BEGIN OPENSSH PRIVATE KEY-----\n", "\n-----END OPENSSH PRIVATE KEY-----\n")
        (ssh / "known_hosts").write_text("host.example ssh-ed25519 AAAA\n")
        self.plant(self.home / ".aws/credentials", "[default]\naws_secret_access_key = ")
        (self.home / ".bashrc").write_text("# the user's shell settings\n")
        (self.home / ".gitconfig").write_text(
            "[user]\n\tname = A Developer\n\temail = dev@example.org\n[init]\n\tdefaultBranch = main\n"
        )

    def _furnish_project(self) -> None:
        self.git("init")
        (self.project / "app.py").write_text(APP)
        (self.project / ".gitignore").write_text(".env\n__pycache__/\n")
        self.git("add", ".")
        self.git("commit", "-m", "Start")
        self.plant(self.project / ".env", "API_TOKEN=")
        (self.project / ".env.example").write_text("API_TOKEN=put-yours-here\n")
