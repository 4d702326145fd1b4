"""What people call a server that is known by its program alone. Pure; a name for a person, never an identity."""

from __future__ import annotations

import re
from collections.abc import Sequence

_RUNNERS = re.compile(
    r"(?:node|nodejs|bun|deno|python[0-9.]*|pypy[0-9.]*|ruby|perl|php|java|sh|bash|dash|env|uv|npx|npm|tsx)$"
)
# Files that are called alike in every package.
_PLAIN = re.compile(r"(?:index|main|__main__|server|cli|app|start|run|cmd|mod|src|dist|build|lib|bin|out)$")
_ENDING = re.compile(r"\.(?:[cm]?js|ts|py|pyz|rb|pl|php|jar|sh)$")
_WITH_VALUE = frozenset(("--import", "--require", "-r", "--loader", "--max-old-space-size", "-W", "-X", "--directory"))


def server_name(exe: str, argv: Sequence[str]) -> str:
    """`@scope/package` or `package` of what an interpreter runs, else the program's own name; `unknown` where nothing tells."""
    program = exe.rsplit("/", 1)[-1]
    words = [word for word in argv[1:] if word]
    if not _RUNNERS.match(program):
        return program or (argv[0].rsplit("/", 1)[-1] if argv else "") or "unknown"
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1].partition(".")[0]
    script = _script(words)
    return _of_script(script) if script else program


def _script(words: Sequence[str]) -> str:
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in _WITH_VALUE:
            skip = True
        elif word in ("-c", "-e", "--eval"):
            return ""
        elif not word.startswith("-") and word not in ("run", "exec"):
            return word
    return ""


def _of_script(script: str) -> str:
    parts = [part for part in script.split("/") if part not in ("", ".", "..")]
    if "node_modules" in parts:
        package = parts[len(parts) - parts[::-1].index("node_modules") :]
        if package[:1] == [".bin"]:
            package = package[1:]
        if package:
            return "/".join(package[: 2 if package[0].startswith("@") else 1])
    for part in reversed(parts):
        name = _ENDING.sub("", part)
        if name and not _PLAIN.match(name):
            return name
    return _ENDING.sub("", parts[-1]) if parts else "unknown"
