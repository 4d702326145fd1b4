"""Which processes of a session are agents, whoever started them: by where agents are installed, and by what they are made of.

Launchers stand before many agents (codex from npm is a script that starts a native program; gemini-cli starts itself
again), and an agent may be started by another's shell. Of a process that is taken for an agent too many, the servers that
it starts itself are ended. What the tree can change of a process (its words, the name and place of its file) makes it no
less an agent: files are compared as well, and who was one stays one.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mcpguard.catalogue import scripts
from mcpguard.kernel import proc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mcpguard.events.processes import Process

# What the files of agents are called, with what wrappers and releases put around that: `.claude-wrapped`, `codex-x86_64-linux`.
_NAMES = re.compile(
    r"\.?(?:claude|codex|gemini|opencode|qwen)"
    r"(?:-(?:cli|code|wrapped|unwrapped|real|orig|original|bin|native))*"
    r"(?:-(?:x86_64|aarch64|arm64|x64|linux)[\w-]*)?"
    r"(?:\.(?:[cm]?js|exe|bin|real|orig))?\Z"
)
# A script of such a name is one where programs are installed or built, not among somebody's sources.
_SCRIPTS = re.compile(r"\.[cm]?js\Z")
_INSTALLED = re.compile(r"/(?:node_modules|nodejs|bin|lib|libexec|share|bundle)/")
# Their packages, of which each file counts, and where installers keep versions.
_PLACES = re.compile(
    r"/(?:@anthropic-ai/claude-(?:code|agent-sdk)|@openai/codex|@google/gemini-cli|@qwen-code/qwen-code|opencode-ai|opencode-linux)"
    r"(?:-[^/]*)?/|/claude/versions/[^/]+\Z"
)
_COMPARED_BYTES = 1 << 20
_MOST_WORDS_BYTES = 1 << 18
_MOST_REMEMBERED = 1_024

# Size, and digest of the first bytes.
_Print = tuple[int, bytes]


def is_agent(path: str) -> bool:
    """Whether a program or script of this path is an agent, by its name and place."""
    named = _NAMES.match(path.rpartition("/")[2]) and (not _SCRIPTS.search(path) or _INSTALLED.search(path))
    return bool(named or _PLACES.search(path))


class Agents:
    """Of one session. Two threads may ask at once.

    Attributes:
        who: the process with a PID as it was executed, as far as that is known: its words may be others now.
    """

    def __init__(self, program: str | None = None) -> None:
        """
        Args:
            program: path of what the session's agent was started as; None: it is not known.
        """
        self.who: Callable[[int], Process | None] = lambda _pid: None
        self._prints: set[_Print] = set()
        self._since: dict[int, str] = {}
        self._looked: dict[int, tuple[object, bool]] = {}
        self._asking = threading.Lock()
        if program is not None:
            self._remember(program)

    def has(self, pid: int, exe: str | None = None) -> bool:
        """Whether a process is an agent, or was one when it was asked about before.

        Args:
            exe: what it is known to have executed; it may have ended.
        """
        with self._asking:
            return self._has(pid, exe)

    def _has(self, pid: int, exe: str | None) -> bool:
        began = proc.stat_of(pid)[proc.START :][:1]
        if began and self._since.get(pid) == began[0]:
            return True
        state = (began, exe, self.who(pid), _link(pid), _words(pid))
        looked = self._looked.get(pid)
        if looked is None or looked[0] != state:
            looked = state, any(self._is_one(path, place) for path, place in self._files(pid, exe))
            self._looked[pid] = looked
            if len(self._looked) > _MOST_REMEMBERED:
                self._looked.pop(next(iter(self._looked)))
        if looked[1] and began:
            self._since[pid] = began[0]
        return looked[1]

    def is_by_itself(self, pid: int) -> bool:
        """Whether what a process executes is an agent without an interpreter; or it has ended, or hides that."""
        exe = _link(pid)
        return exe is None or self._is_one(exe, f"/proc/{pid}/exe")

    def _is_one(self, path: str, place: str) -> bool:
        """
        Args:
            path: what it is called.
            place: where it can be opened.
        """
        if is_agent(path) or is_agent(os.path.realpath(path)):
            self._remember(place)
            return True
        if _size_of(place) not in {size for size, _ in self._prints}:  # to read it takes a thousand times as long
            return False
        return _print_of(place) in self._prints

    def _remember(self, place: str) -> None:
        if len(self._prints) < _MOST_REMEMBERED and (found := _print_of(place)) is not None:
            self._prints.add(found)

    def _files(self, pid: int, exe: str | None) -> Iterator[tuple[str, str]]:
        """What a process may run: its program and the script of that, as they are now and as they were executed."""
        cwd = Path("/")
        with contextlib.suppress(OSError):
            cwd = Path(f"/proc/{pid}/cwd").readlink()
        live, known = _link(pid), self.who(pid)
        words = _words(pid)
        if live is not None:
            yield live, f"/proc/{pid}/exe"
        elif words and words[0]:  # one that hides its memory from its own user, too
            yield str(cwd / words[0]), str(cwd / words[0])
        yield from _scripts(live or "", words, cwd)
        if exe:
            yield exe, exe
        if known is not None and known.exe:
            yield known.exe, known.exe
            yield from _scripts(known.exe, known.argv, cwd)


def _link(pid: int) -> str | None:
    with contextlib.suppress(OSError):
        return str(Path(f"/proc/{pid}/exe").readlink()).removesuffix(" (deleted)")
    return None


def _words(pid: int) -> tuple[str, ...]:
    with contextlib.suppress(OSError):
        with Path(f"/proc/{pid}/cmdline").open("rb") as words:
            text = words.read(_MOST_WORDS_BYTES)
        return tuple(os.fsdecode(word) for word in text.removesuffix(b"\0").split(b"\0"))
    return ()


def _scripts(exe: str, words: Sequence[str], cwd: Path) -> Iterator[tuple[str, str]]:
    """What an interpreter was told to run, and to load before; a program of another name may be an interpreter, too."""
    name, args = exe.rpartition("/")[2], words[1:]
    with contextlib.suppress(OSError, ValueError):
        if scripts.is_interpreter(name):
            found = [path for _role, path in scripts.find(name, Path(exe), args, {}, cwd).files]
        else:
            files = (cwd / word for word in args if word and not word.startswith("-"))
            found = list(itertools.islice((path for path in files if path.is_file()), 1))
        for path in map(str, found):
            yield path, path


def _size_of(place: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return os.stat(place).st_size
    return None


def _print_of(place: str) -> _Print | None:
    """None: it is no file with something in it. Whatever lies there, nothing is waited for."""
    with contextlib.suppress(OSError, ValueError):
        file = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            state = os.fstat(file)
            if stat.S_ISREG(state.st_mode) and state.st_size:
                return state.st_size, hashlib.sha256(os.pread(file, _COMPARED_BYTES, 0)).digest()
        finally:
            os.close(file)
    return None
