"""MCP servers that the agent starts around the gate are ended, as soon as what they are has been seen.

Nobody judges what an agent and such a server say to each other. What is seen tells it: the first message of the protocol
between the agent's own process and another process of the tree that the gate does not know. A program of the tree that talks
to a server of its own, as the tests of a server do, is left alone: it has the same rights as any other program there.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind, McpMessage
from mcpguard.model.rule import Origin

RULE = Origin("mcpguard", "builtin", 0, "mcp gate: servers start by way of the gate")
# Revisions of MCP are dates; other protocols that begin with `initialize` count theirs.
_REVISION = re.compile(r"\d{4}-\d\d-\d\d")
_METHODS = ("tools/", "resources/", "prompts/", "server/discover")


class AroundGate:
    """Of one session.

    Args:
        agent: PID of its first process.
        leaf: path of its cgroup leaf, as /proc/PID/cgroup ends.
    """

    def __init__(self, session: str, agent: int, leaf: str) -> None:
        self._session = session
        self._agent = agent
        self._leaf = leaf
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
            if not Path(f"/proc/{pid}/cgroup").read_text().rstrip().endswith(self._leaf):
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


def _is_mcp(message: McpMessage) -> bool:
    method = message.method or ""
    if method != "initialize":
        return method.startswith(_METHODS)
    params = {}
    with contextlib.suppress(ValueError):
        params = json.loads(message.arguments or "{}")
    said = params.get("protocolVersion") if isinstance(params, dict) else None
    return isinstance(said, str) and _REVISION.fullmatch(said) is not None
