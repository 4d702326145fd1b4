"""What the agent of the demo does: honest work, and acts that must be refused, each with the evidence that tells.

Plain data. It runs nothing; `run.py` does.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from world import World

Json = dict[str, Any]


@dataclass(frozen=True)
class Act:
    """One tool call of the agent.

    Attributes:
        title: what it is, for a person.
        tool, arguments: the call.
        denied_by: tells whether an event of the log is the denial of this act; None for honest work.
    """

    title: str
    tool: str
    arguments: Json = field(default_factory=dict)
    denied_by: Callable[[Json], bool] | None = None


@dataclass(frozen=True)
class Outside:
    """What runs outside the sandbox: a process with a token in its environment, and listeners on loopback."""

    pid: int
    tcp4: int
    udp4: int
    tcp6: int


def python(code: str) -> Json:
    """A Bash call that runs one line of Python."""
    return {"command": f"python3 -c {shlex.quote(code)}"}


def on_path(end: str) -> Callable[[Json], bool]:
    return lambda event: str(event.get("path", "")).endswith(end)


def on_port(port: int) -> Callable[[Json], bool]:
    return lambda event: event.get("port") == port


def honest_work(world: World) -> list[Act]:
    app = str(world.project / "app.py")
    edit = {"file_path": app, "old_string": "Hello", "new_string": "Good morning"}
    return [
        Act("read app.py", "Read", {"file_path": app}),
        Act("edit app.py", "Edit", edit),
        Act("run Python", "Bash", python("from app import greet; print(greet('you'))")),
        Act("git commit", "Bash", {"command": "git commit -qam 'Greet by the time of day' && git log --oneline"}),
    ]


def forbidden_acts(world: World, outside: Outside) -> list[Act]:
    hook, rc = ".git/hooks/pre-commit", str(world.home / ".bashrc")
    plant = f"import os; os.makedirs('.git/hooks', exist_ok=True); open('{hook}', 'w').write('evil')"
    udp = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {}))"
    tcp = "import socket; socket.create_connection(('{}', {})).sendall(b'x')"
    environ = f"/proc/{outside.pid}/environ"
    return [
        Act("read ~/.ssh/id_ed25519", "Bash", {"command": "cat ~/.ssh/id_ed25519"}, on_path("/.ssh/id_ed25519")),
        Act("read .env", "Read", {"file_path": str(world.project / ".env")}, on_path("/.env")),
        Act("read another's environment", "Bash", {"command": f"cat {environ}"}, on_path(environ)),
        Act("write a git hook", "Bash", python(plant), lambda event: "/.git/hooks" in str(event.get("path"))),
        Act("write ~/.bashrc", "Bash", python(f"open('{rc}', 'a').write('# evil')"), on_path("/.bashrc")),
        Act("connect by TCP", "Bash", python(tcp.format("127.0.0.1", outside.tcp4)), on_port(outside.tcp4)),
        Act("send by UDP", "Bash", python(udp.format(outside.udp4)), on_port(outside.udp4)),
        Act("connect by IPv6", "Bash", python(tcp.format("::1", outside.tcp6)), on_port(outside.tcp6)),
    ]
