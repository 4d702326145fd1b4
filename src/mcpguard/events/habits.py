"""Refusals that honest programs run into every day: on record as denied, left out of summaries.

Each habit of files names its program, its file and its access; that of addresses names how it is done. A rule that names the
object makes it an alarm again: quiet is only what no rule speaks of, and what a built-in rule refuses a program's run time at
every start. Nothing here changes a verdict.
"""

from __future__ import annotations

import posixpath
import re
import socket

from mcpguard.events.finding import QUIET
from mcpguard.events.processes import Process
from mcpguard.model.access import Access, Effect
from mcpguard.model.paths import is_below
from mcpguard.model.policy import Policy
from mcpguard.model.rule import Origin
from mcpguard.model.values import dataclass
from mcpguard.policy.network import name_matches

# Looks into this many processes are told as one.
SWEEP = 5
EVERY_PROCESS = f"{QUIET}: as ps does for every process"
# Before it connects, a program sorts the addresses of a name (RFC 6724): it connects a datagram socket to each, which sends
# nothing, and looks which of the host's own addresses the kernel chose.
SORTS = f"{QUIET}: a datagram socket chose the way to an address; nothing was sent"
# The same, if the program also connects to that address over TCP (see `tally.Quiet`); else it wanted to send datagrams.
MAY_SORT = f"{QUIET}: a datagram socket was to be connected"
KEPT_CANARY_REFUSED = f"{QUIET}: the canary of a server that is kept to a profile, before it starts"
# Go listens with it unasked, some programs connect with it.
MULTIPATH = f"{QUIET}: programs ask for MPTCP and do without"
# What resolvers take for the port where nothing else is at hand: glibc 0, Go 9, c-ares (curl, node) 53, musl 65535.
SORTING_PORTS = frozenset({0, 9, 53, 65535})
_LOOKS_AT_ALL = frozenset(
    {"ps", "pgrep", "pkill", "pidof", "killall5", "pstree", "top", "htop", "lsof", "fuser", "ss", "netstat"}
)
_SYSTEM_FOLDERS = ("/usr/bin", "/bin", "/usr/sbin", "/sbin")
# Beginning of a name in the home -> who keeps its history there.
_HISTORIES = {
    ".lesshs": "less",
    ".viminfo": r"vi|vim(\.\w+)?",
    ".python_history": r"python\d*(\.\d+)?",
    ".bash_history": "bash",
    ".node_repl_history": "node",
}
_BUILT_IN = "builtin:"
_TRACE_MARKERS = frozenset({"/sys/kernel/debug/tracing/trace_marker", "/sys/kernel/tracing/trace_marker"})
_RUN_TIMES = frozenset({"bun", "node", "claude", "opencode", "opencode.exe"})
# What a program tells the kernel about itself, which nobody but a debugger or an administrator ever sees.
_TOLD_OF_ITSELF = r"/proc/(\d+)/(coredump_filter|comm|task/\d+/comm)"
_CLIMBED_FOR = frozenset({".git", ".gitignore", "CLAUDE.md", "package.json"})


def habit(policy: Policy, process: Process | None, access: Access, path: str, rule: Origin | None = None) -> str | None:
    """The detail of a refusal, when it is such a habit.

    Args:
        rule: what refuses it; None: no rule speaks of it.
        process: who was refused; None: unknown, and then nothing is excused.
        access: what was refused.
        path: the object, symlinks followed.
    """
    if process is None:
        return None
    program = posixpath.basename(process.exe)
    folder, name = posixpath.split(path)
    if (
        path in _TRACE_MARKERS
        and {program, process.comm} & _RUN_TIMES
        and (not rule or rule.file.startswith(_BUILT_IN))
    ):
        return f"{QUIET}: the program's run time looks for a tracer and does without"
    if rule is not None:
        return None
    if access == Access.WRITE and (told := re.fullmatch(_TOLD_OF_ITSELF, path)) and int(told[1]) == process.pid:
        return f"{QUIET}: {program} names itself, or what its core dumps hold, and does without"
    if access == Access.WRITE and folder == policy.user.home and _keeps_history(program, name):
        return f"{QUIET}: {program} keeps a history and does without"
    if access == Access.READ and {program, process.comm} & _RUN_TIMES and _lies_above(path, policy, process):
        return f"{QUIET}: the program's run time lists every folder above the workspace and above its own program"
    if access == Access.READ and name in _CLIMBED_FOR and policy.workspace.startswith(folder.rstrip("/") + "/"):
        return f"{QUIET}: programs look for it in every folder above the workspace"
    return None


def of_sockets(op: str, protocol: str, port: int, *, known: bool) -> str | None:
    """The detail of a refused socket, or request to an address that no rule speaks of, when it is or may be such a habit.

    Args:
        known: the address is one of a name that the policy lets it reach.
    """
    if (op, protocol) == ("socket", "mptcp"):
        return MULTIPATH
    if op != "connect" or protocol != "udp":
        return None
    return SORTS if port == 0 or (known and port in SORTING_PORTS) else MAY_SORT


@dataclass(frozen=True, slots=True)
class OwnNames:
    """What programs of this host ask for without anybody wanting it.

    Attributes:
        host: its name, in lower case.
        search: the domains that its C library tries behind a name.
    """

    host: str
    search: tuple[str, ...]

    @staticmethod
    def of_this_host(path: str = "/etc/resolv.conf") -> OwnNames:
        found: list[str] = []
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                lines = file.read().splitlines()
        except OSError:
            lines = []
        for words in map(str.split, lines):
            if words and words[0] in ("search", "domain"):
                found = [word.strip(".").lower() for word in words[1:]]  # as for the C library, the last line counts
        return OwnNames(socket.gethostname().lower(), tuple(filter(None, found)))

    def asking(self, policy: Policy, name: str, kind: str) -> str | None:
        """The detail of a question that no rule allows, when it is such a habit.

        Args:
            name: lower case, without a trailing dot.
            kind: of record, such as `A`.
        """
        if kind == "PTR":
            from mcpguard.policy.addresses import inner

            address = _backwards(name)
            return f"{QUIET}: a program asks for the name of its own address" if address and inner(address) else None
        if kind not in ("A", "AAAA"):
            return None
        tried = next((name.removesuffix(f".{end}") for end in self.search if name.endswith(f".{end}")), "")
        own = {self.host, self.host.partition(".")[0], "localhost"}
        if name in own or tried in own:
            return f"{QUIET}: programs look up the name of their own host"
        allowed = any(entry.effect is Effect.ALLOW and name_matches(entry.pattern, tried) for entry in policy.names)
        if tried and allowed:
            return f"{QUIET}: the C library tried {tried} with a search domain behind it"
        return None


def _backwards(name: str) -> str:
    """The address that a PTR question is about; empty: it is no such name."""
    parts = name.split(".")[:-2][::-1]
    if name.endswith(".ip6.arpa"):
        digits = "".join(parts)
        parts = [digits[at : at + 4] for at in range(0, len(digits), 4)]
    written = (":" if name.endswith(".ip6.arpa") else ".").join(parts)
    import ipaddress  # nobody who starts an agent waits for it

    try:
        return str(ipaddress.ip_address(written)) if name.endswith((".in-addr.arpa", ".ip6.arpa")) else ""
    except ValueError:
        return ""


def looks_at_all_processes(exe: str | None) -> bool:
    """True for the system's own programs that list processes; a program elsewhere may only bear the name."""
    folder, name = posixpath.split(exe or "")
    return folder in _SYSTEM_FOLDERS and name in _LOOKS_AT_ALL


def _lies_above(path: str, policy: Policy, process: Process) -> bool:
    own = [word for word in (process.exe, *process.argv[:2]) if word.startswith("/")]
    return path == policy.user.home or any(
        path != place and is_below(place, path) for place in (policy.workspace, policy.user.home, *own)
    )


def _keeps_history(program: str, name: str) -> bool:
    return any(name.startswith(begin) and re.fullmatch(who, program) for begin, who in _HISTORIES.items())
