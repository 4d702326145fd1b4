"""What a tool call did: files, programs and destinations of the server's processes between request and response.

A process of the server is one that the server's process started, however far down, as the record tells it. Two calls of
one server that overlap share what happens meanwhile: the kernel cannot tell for which of them a process acts.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from mcpguard.errors import UsageError
from mcpguard.events import query
from mcpguard.events.ancestors import Ancestors
from mcpguard.events.finding import is_quiet
from mcpguard.events.store import Store
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.model.paths import is_below
from mcpguard.model.values import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_EFFECTS = (Kind.FILE, Kind.EXEC, Kind.NET, Kind.DNS, Kind.UNIX)
# What a program needs to run, whatever it is asked for.
_OF_PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/opt", "/nix", "/proc", "/sys", "/dev", "/run")
_INSTALLED = re.compile(
    r"/(?:node_modules|site-packages|dist-packages|\.npm|\.cache|\.nvm|\.pyenv|\.local/(?:bin|lib|share/uv))(?:/|$)"
)
_MANIFESTS = frozenset(("package.json", "pyvenv.cfg", ".npmrc", ".gitconfig", ".nvmrc"))
_CHANGES = frozenset(("write", "destructive"))
_MOST_NAMED = 200
# What programs write for themselves.
_SCRATCH = ("/dev/", "/proc/", "/tmp/", "/var/tmp/")
# Who the C library asks for a user's name, and where it logs.
_OF_THE_LIBRARY = ("/run/systemd/userdb/", "/run/systemd/journal/", "/run/nscd/", "/var/run/nscd/", "/dev/log")


class Mismatch(NamedTuple):
    """What a call did, and why that is not what it said, in words."""

    effect: Event
    words: str


@dataclass(slots=True)
class Call:
    """One request of a client, with what it brought about.

    Attributes:
        request: its event.
        response: that of its response; None: none was seen.
        effects: what the server's processes did meanwhile, by time.
        overlaps: other calls of the same server that were open at some time of this one.
        mismatches: where effects are not what the call said.
    """

    request: Event
    response: Event | None = None
    effects: list[Event] = field(default_factory=list)
    overlaps: list[str] = field(default_factory=list)
    mismatches: list[Mismatch] = field(default_factory=list)

    @property
    def id(self) -> str:
        """Its ten digits."""
        return (self.request.mcp and self.request.mcp.call) or ""

    @property
    def server(self) -> int | None:
        """PID of the server."""
        return self.request.mcp.peer.pid if self.request.mcp and self.request.mcp.peer else None


def calls(store: Store, session: str, *, only: str | None = None) -> list[Call]:
    """The calls of tools, prompts and resources of a session, in their order.

    Args:
        only: the one with this id.

    Raises:
        UsageError: there is no such call.
        StoreError: the record cannot be read.
    """
    found = _pairs(query.events(store, session, query.Filter(kind=Kind.MCP)))
    if only is not None:
        chosen = [call for call in found if call.id == only]
        if not chosen:
            raise UsageError(
                f'no call "{only}" in session {session}',
                why="a call is named by the ten digits that its request and response share",
                do=f"mcpguard log {session} --kind mcp --format json shows them",
                code="log.no-call",
            )
        chosen[0].overlaps = [call.id for call in found if call is not chosen[0] and _overlap(call, chosen[0])]
        found = chosen
    else:
        for call in found:
            call.overlaps = [other.id for other in found if other is not call and _overlap(call, other)]
    if any(call.server is not None for call in found):
        _find_effects(store, session, found)
        for call in found:
            call.mismatches = mismatches(call)
    return found


def mismatches(call: Call) -> list[Mismatch]:
    """Where what happened is not what was asked for: a file that the call does not name, a change by a tool that only reads.
    What was refused counts as well: a server does not know what a profile allows."""
    message = call.request.mcp
    if message is None or message.method != "tools/call":
        return []
    found = []
    named = list(_paths(json.loads(message.arguments or "null")))
    classes = set((message.classes or "").split("+")) - {""}
    only_reads = "read" in classes and not classes & _CHANGES
    for event in call.effects:
        if is_quiet(event):
            continue
        path, refused = event.path, event.verdict is Verdict.DENY
        what = ""
        if event.kind is Kind.FILE and path is not None:
            writes = "write" in (event.access or "")
            if only_reads and writes and not path.startswith(_SCRATCH):
                what = f"{path}: a tool that only reads {'tried to change' if refused else 'changed'} it"
            # Programs try many a name that no rule speaks of; one that a rule closes is what somebody is after.
            elif not (refused and event.rule is None) and _is_another(path, named, message.cut):
                what = f"{path}: the call does not name it{', refused' * refused}"
        elif only_reads and "open" not in classes:
            what = _sent(event, refused)
        if what:
            found.append(Mismatch(event, f"{event.op} {what}"))
    return found


def _is_another(path: str, named: list[str], cut: bool) -> bool:
    return bool(named) and not cut and _is_data(path, named) and not _is_named(path, named)


def _sent(event: Event, refused: bool) -> str:
    """Where a tool that only reads sent something, as a question for a name does, too; empty: it did not."""
    how = f"a tool that only reads {'tried to send' if refused else 'sent'} something"
    if event.kind is Kind.NET and event.op in ("connect", "sendmsg"):
        return f"{event.host or event.address or '?'}:{event.port}: {how}"
    if event.kind is Kind.DNS:
        return f"{event.host or '?'}: {how}"
    if event.kind is Kind.UNIX and event.op in ("connect", "sendmsg"):
        return "" if (event.path or "").startswith(_OF_THE_LIBRARY) else f"{event.path or '?'}: {how}"
    return ""


def _pairs(events: Iterable[Event]) -> list[Call]:
    found: dict[str, Call] = {}
    for event in events:
        message = event.mcp
        if message is None or message.call is None:
            continue
        if event.op == "request" and message.sender == "client":
            found[message.call] = Call(event)
        elif event.op == "response" and message.call in found:
            found[message.call].response = event
    return [call for call in found.values() if call.request.mcp and call.request.mcp.tool is not None]


def _end(call: Call) -> int:
    """When a call was over. One without a response goes on for as long as the session did."""
    return call.response.time_ns if call.response else 1 << 63


def _overlap(one: Call, other: Call) -> bool:
    same = one.server is not None and one.server == other.server
    return same and one.request.time_ns < _end(other) and other.request.time_ns < _end(one)


def _find_effects(store: Store, session: str, found: list[Call]) -> None:
    """One pass over the record: the open calls of each server are few, and begin in the order of time."""
    ancestors = Ancestors.of_session(store, session)
    by_server: dict[int, list[Call]] = {}
    for call in sorted(found, key=lambda call: call.request.time_ns):
        if call.server is not None and (call.request.verdict is not Verdict.DENY):
            by_server.setdefault(call.server, []).append(call)
    if not by_server:
        return
    starts = {server: [call.request.time_ns for call in held] for server, held in by_server.items()}
    first = min(held[0] for held in starts.values())
    for kind in _EFFECTS:
        for event in query.events(store, session, query.Filter(kind=kind, since_ns=first)):
            if event.pid is None:
                continue
            for server in ancestors.of(event.pid, event.time_ns) & by_server.keys():
                until = bisect_right(starts[server], event.time_ns)
                for call in by_server[server][:until]:
                    if event.time_ns <= _end(call):
                        call.effects.append(event)
    for held in by_server.values():
        for call in held:
            call.effects.sort(key=lambda event: (event.time_ns, event.seq))


def _paths(value: Any) -> Iterator[str]:
    """What may be a path in the arguments of a call; a bounded number."""
    waiting, count = [value], 0
    while waiting and count < _MOST_NAMED:
        one = waiting.pop()
        if isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, str) and "\n" not in one and 0 < len(one) < 4096:
            text = one.removeprefix("file://")
            if "/" in text or "." in text.strip(".") or text.startswith("~"):
                count += 1
                yield text


def _is_named(path: str, named: list[str]) -> bool:
    """Whether it is what the call names, below it, or on the way to it."""
    return any(_is_meant(path, text) for text in named)


def _is_meant(path: str, text: str) -> bool:
    text = text.rstrip("/") or "/"
    if text.startswith("~"):
        text = text[1:].lstrip("/")
    if text.startswith("/"):
        return is_below(path, text) or is_below(text, path)
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        parts = parts[len(parts) - parts[::-1].index("..") :]
    if not parts:
        return True
    wanted = "/" + "/".join(parts)
    return path.endswith(wanted) or f"{wanted}/" in path


def _is_data(path: str, named: list[str]) -> bool:
    """Not what a server is made of: programs, libraries, packages, settings of the system. Where the call names something among
    packages, what lies beside that is data as well."""
    folders = (text.rpartition("/")[0] for text in named if text.startswith("/"))
    rest = min((path[len(folder) :] for folder in folders if is_below(path, folder or "/")), key=len, default=path)
    if any(is_below(path, folder) for folder in _OF_PROGRAMS) or _INSTALLED.search(rest):
        return False
    name = path.rsplit("/", 1)[-1]
    return name not in _MANIFESTS
