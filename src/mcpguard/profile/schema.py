"""The table of keys that a profile may hold. It drives the parser and the reference in `docs/profiles.md`."""

from __future__ import annotations

import enum

from mcpguard.model.values import dataclass


class Type(enum.StrEnum):
    """What may stand after a key."""

    TEXT = "text"
    WORDS = "list of words"
    SWITCH = "true or false"
    MODE = "check, require or off"
    SECTION = "keys"
    PATTERNS = "list of path patterns"
    PROTECTED = "list of path patterns, or of entries with path, existing and because"
    DENIED = "list of path patterns, or of entries with path, except and because"
    EXCEPTED = "list of paths, or of entries with path and because"
    NAMES = "list of profile names"
    TARGETS = "list of network targets"
    SOCKETS = "list of socket patterns"
    VARIABLES = "list of environment variable patterns"
    SETTINGS = "names of environment variables with values"
    TOOLS = "list of MCP servers and tools, or of entries with tool, where and because"
    NAMED_TOOLS = "list of MCP servers and tools"
    WORD = "one of a few words"
    CONFINED = "mapping of MCP servers to profiles"
    SERVERS = "list of MCP servers"


@dataclass(frozen=True, slots=True)
class Key:
    """One key; `path` is dotted, as in `files.read`."""

    path: str
    type: Type
    help: str

    @property
    def section(self) -> str:
        """The key it stands under; empty at the top."""
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


KEYS = (
    Key("name", Type.TEXT, "the profile's name; the same as the file's"),
    Key("description", Type.TEXT, "one line for lists"),
    Key("extends", Type.NAMES, "profiles whose rules are added to these"),
    Key("command", Type.WORDS, "what `mcpguard run NAME` executes; arguments are appended"),
    Key("files", Type.SECTION, "files and directories, with everything below them"),
    Key("files.read", Type.PATTERNS, "may be read and listed"),
    Key("files.write", Type.PATTERNS, "may be read and changed: created, renamed, removed, given other rights"),
    Key("files.execute", Type.PATTERNS, "programs from here may be started"),
    Key("files.readonly", Type.PROTECTED, "may not be changed, whatever `write` says"),
    Key("files.deny", Type.DENIED, "may not be touched, whatever any other rule says"),
    Key("files.except", Type.EXCEPTED, "left alone by what built-in profiles deny; only in a profile of your own"),
    Key("network", Type.SECTION, "destinations and own listening addresses"),
    Key("network.allow", Type.TARGETS, "may be connected to"),
    Key("network.deny", Type.TARGETS, "may not be connected to, whatever `allow` says"),
    Key("network.listen", Type.TARGETS, "addresses that programs may listen on"),
    Key("network.sni", Type.MODE, "whether TLS and HTTP to an address of a name must name a host that is allowed"),
    Key("sockets", Type.SECTION, "unix sockets, by path or by @name"),
    Key("sockets.allow", Type.SOCKETS, "may be connected to"),
    Key("sockets.own", Type.SOCKETS, "places where the session may connect to what it made itself"),
    Key("sockets.deny", Type.SOCKETS, "may not be connected to, whatever `allow` says"),
    Key("environment", Type.SECTION, "variables that the agent inherits"),
    Key("environment.remove", Type.VARIABLES, "not handed to the agent"),
    Key("environment.keep", Type.VARIABLES, "handed over although `remove` matches"),
    Key("environment.set", Type.SETTINGS, "given to the agent with this value"),
    Key("system", Type.SECTION, "kernel features that are closed unless a profile asks"),
    Key("system.user_namespaces", Type.SWITCH, "programs may make user namespaces"),
    Key("system.io_uring", Type.SWITCH, "programs may use io_uring"),
    Key(
        "system.memory_programs",
        Type.SWITCH,
        "programs that exist in memory only (memfd) may be started (tiers 1 and 2)",
    ),
    Key("system.debuggers", Type.SWITCH, "programs may trace one another, as gdb, strace and leak checkers do"),
    Key("mcp", Type.SECTION, "MCP servers and their tools"),
    Key("mcp.gate", Type.SWITCH, "servers start by way of the gate only, and only those that you approved"),
    Key("mcp.clients", Type.WORD, "whose servers that means: of agents, or of all programs of the session"),
    Key("mcp.servers", Type.SERVERS, "of the servers that you approved, those that may start; without it every one"),
    Key("mcp.allow", Type.TOOLS, "may be used: SERVER, SERVER/TOOL, SERVER/@CLASS or SERVER/KIND:NAME"),
    Key("mcp.ask", Type.TOOLS, "each call needs your word in `mcpguard watch`, whatever `allow` says"),
    Key("mcp.deny", Type.TOOLS, "may not be used, whatever `allow` and `ask` say"),
    Key("mcp.confine", Type.CONFINED, "servers that reach no more than another profile's files and network allow"),
    Key("mcp.classes", Type.SECTION, "what tools do, where mcpguard does not know it or you know better"),
    Key("mcp.classes.read", Type.NAMED_TOOLS, "they only read"),
    Key("mcp.classes.write", Type.NAMED_TOOLS, "they change something"),
    Key("mcp.classes.destructive", Type.NAMED_TOOLS, "what they change cannot be had back"),
    Key("mcp.classes.open", Type.NAMED_TOOLS, "what they are given leaves this host"),
    Key("mcp.classes.untrusted", Type.NAMED_TOOLS, "their results hold what strangers wrote"),
    Key("mcp.flow", Type.SECTION, "what an agent may do once it has read what strangers wrote"),
    Key("mcp.flow.untrusted", Type.NAMED_TOOLS, "whose results count as written by strangers"),
    Key("mcp.flow.then", Type.WORD, "calls of the classes write, destructive and open are then: allow, ask or refuse"),
)

SECTIONS = ("", *(key.path for key in KEYS if key.type is Type.SECTION))
_PATH = Key("path", Type.TEXT, "the pattern")
_BECAUSE = Key("because", Type.TEXT, "the reason, shown with a denial")
_EXISTING = Key("existing", Type.TEXT, "a beginning of path; the rule holds below what that names at launch")
_EXCEPT = Key("except", Type.PATTERNS, "patterns that the rule leaves alone")
# Keys of one entry in a list of file rules.
ENTRY_KEYS = {
    Type.PROTECTED: {key.name: key for key in (_PATH, _EXISTING, _BECAUSE)},
    Type.DENIED: {key.name: key for key in (_PATH, _EXCEPT, _BECAUSE)},
    Type.EXCEPTED: {key.name: key for key in (_PATH, _BECAUSE)},
    Type.TOOLS: {
        key.name: key
        for key in (
            Key("tool", Type.TEXT, "the server and tool"),
            Key("where", Type.SECTION, "conditions: argument, then one of equals, glob, regex, inside, host"),
            _BECAUSE,
        )
    },
}


def keys_of(section: str) -> dict[str, Key]:
    """The keys that may stand in a section; the empty section is the top."""
    return {key.name: key for key in KEYS if key.section == section}
