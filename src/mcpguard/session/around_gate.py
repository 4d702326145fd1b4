"""MCP servers that the agent starts around the gate are ended, as soon as what they are has been seen.

Nobody judges what an agent and such a server say to each other. What is seen tells it: the first message of the protocol
between the agent's own process and another process of the tree that the gate does not know. Whom a first question is for is
told by who has the other end of its pipe or socket as standard input, so that nothing waits for the answer. A program of the
tree that talks to a server of its own, as the tests of a server do, is left alone: it has the same rights as any other there.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from mcpguard.kernel import cgroup
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind, McpMessage, Peer
from mcpguard.model.rule import Origin
from mcpguard.model.values import replace
from mcpguard.session.gate import SHIM_WORDS

RULE = Origin("mcpguard", "builtin", 0, "mcp gate: servers start by way of the gate")
# Revisions of MCP are dates; other protocols that begin with `initialize` count theirs.
_REVISION = re.compile(r"\d{4}-\d\d-\d\d")
_MOST_LOOKS = 100
_METHODS = ("tools/", "resources/", "prompts/", "server/discover")


class AroundGate:
    """Of one session.

    Args:
        agent: PID of its first process.
        leaf: path of its cgroup leaf.
    """

    def __init__(self, session: str, agent: int, leaf: str) -> None:
        self._session = session
        self._agent = agent
        self._leaf = leaf
        self._living: Callable[[], list[int]] = partial(cgroup.processes, leaf)
        self._ended: set[int] = set()

    def look(self, events: Iterable[Event]) -> list[Event]:
        """End the servers that messages are from or for; what is to be told of it."""
        found = []
        for event in events:
            message = event.mcp
            if message is None or message.transport != "stdio" or message.peer is None or not _is_mcp(message):
                continue
            server = message.peer.pid
            if message.client is not None and self._is_agent(message.client.pid) and server not in self._ended:
                self._ended.add(server)
                if self._end(server):
                    found.append(self._told(message, server))
        return found

    def ahead(self, asked: Iterable[tuple[Event, tuple[int, int]]]) -> list[Event]:
        """End whoever is to answer these requests: nobody has said who that is, and the gate has not said that it knows them.

        Args:
            asked: each with device, as the kernel numbers it, and inode of the pipe or socket where it arrives.
        """
        found = []
        for event, end in asked:
            message = event.mcp
            if (
                message is None
                or message.client is None
                or not _is_mcp(message)
                or not self._is_agent(message.client.pid)
            ):
                continue
            for server in self._reading(end):
                if (
                    server not in (self._agent, message.client.pid)
                    and server not in self._ended
                    and not _is_shim(server)
                ):
                    exe = _exe_of(server)
                    if self._end(server):
                        self._ended.add(server)
                        found.append(self._told(replace(message, server=_name_of(exe), peer=Peer(server, exe)), server))
        return found

    def _reading(self, end: tuple[int, int]) -> Iterator[int]:
        """Processes of the session that have this end as their standard input, each once.

        It looks again until there is no other: who is about to be ended may have started one that inherits it.
        """
        seen: set[int] = set()
        for _ in range(_MOST_LOOKS):
            found = [pid for pid in self._have(end) if pid not in seen]
            if not found:
                break
            seen.update(found)
            yield from found

    def _have(self, end: tuple[int, int]) -> list[int]:
        found = []
        with contextlib.suppress(OSError, ValueError):
            for pid in self._living():
                with contextlib.suppress(OSError):
                    state = Path(f"/proc/{pid}/fd/0").stat()
                    if (os.major(state.st_dev) << 20 | os.minor(state.st_dev), state.st_ino) == end:
                        found.append(pid)
        return found

    def _is_agent(self, pid: int) -> bool:
        """The first process, or one that runs the same program as its child: some agents start themselves again."""
        if pid == self._agent:
            return True
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            same = Path(f"/proc/{pid}/exe").readlink() == Path(f"/proc/{self._agent}/exe").readlink()
            return parent == self._agent and same and self._is_again(pid)
        return False

    def _is_again(self, pid: int) -> bool:
        """The same script or module, too: of two programs of one interpreter the other is no agent."""
        mine, its = (_programs(Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0")) for one in (self._agent, pid))
        return not mine or bool(mine & its)

    def _end(self, pid: int) -> bool:
        """Only a process of this session, and surely the one that was looked at."""
        try:
            held = os.pidfd_open(pid)
        except OSError:
            return False
        try:
            if not cgroup.is_in(cgroup.in_tree(cgroup.place_of(pid)), cgroup.in_tree(self._leaf)):
                return False
            signal.pidfd_send_signal(held, signal.SIGKILL)
        except OSError:
            return False
        finally:
            os.close(held)
        return True

    def _told(self, message: McpMessage, pid: int) -> Event:
        exe = message.peer.exe if message.peer else None
        why = f"the agent started the MCP server {message.server} around the gate; it was ended"
        return Event(
            *(time.time_ns(), self._session, Kind.PROCESS, "end", Verdict.DENY),
            pid=pid,
            exe=exe,
            comm=exe.rsplit("/", 1)[-1][:15] if exe else None,
            rule=RULE,
            detail=why,
        )


def _programs(words: Sequence[bytes]) -> set[bytes]:
    """What a command line may have an interpreter run: words that are paths, and what follows `-m`."""
    paths = {word for word in words[1:] if b"/" in word and not word.startswith(b"-")}
    return paths | {word for before, word in itertools.pairwise(words) if before == b"-m"}


def _is_shim(pid: int) -> bool:
    """Whether it is about to ask the gate: then it becomes an approved server, or ends."""
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/exe").samefile(SHIM_WORDS[0]):
            words = _words_of(pid)
            return words[1 : len(SHIM_WORDS)] == [os.fsencode(word) for word in SHIM_WORDS[1:]]
    return False


def _words_of(pid: int) -> list[bytes]:
    """Of its command line, which is empty for a moment in the midst of an exec; nobody gets more time than that."""
    path = Path(f"/proc/{pid}/cmdline")
    for _ in range(10):
        if words := path.read_bytes():
            return words.split(b"\0")
        time.sleep(0.001)
    return []


def _exe_of(pid: int) -> str | None:
    with contextlib.suppress(OSError):
        return str(Path(f"/proc/{pid}/exe").readlink())
    return None


def _name_of(exe: str | None) -> str:
    return exe.rsplit("/", 1)[-1] if exe else "unknown"


def _is_mcp(message: McpMessage) -> bool:
    method = message.method or ""
    if method != "initialize":
        return method.startswith(_METHODS)
    params = {}
    with contextlib.suppress(ValueError):
        params = json.loads(message.arguments or "{}")
    said = params.get("protocolVersion") if isinstance(params, dict) else None
    return isinstance(said, str) and _REVISION.fullmatch(said) is not None
