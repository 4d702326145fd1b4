"""Rules for MCP servers and their tools, as a person wrote them."""

from __future__ import annotations

import enum

from mcpguard.model.access import Effect
from mcpguard.model.rule import Origin
from mcpguard.model.values import dataclass


class McpKind(enum.StrEnum):
    """What a server offers or asks. METHOD: a request that no revision of the protocol which we know has."""

    TOOL = "tool"
    RESOURCE = "resource"
    PROMPT = "prompt"
    SAMPLING = "sampling"
    ELICITATION = "elicitation"
    METHOD = "method"


class ToolClass(enum.StrEnum):
    """What a tool does, by our own catalogue or the user's word, never by what the server says of itself.

    OPEN: it reaches the world outside of this host, so what it is given leaves. UNTRUSTED: its results hold what
    strangers wrote.
    """

    READ = "read"
    WRITE = "write"
    DESTRUCTIVE = "destructive"
    OPEN = "open"
    UNTRUSTED = "untrusted"


class Test(enum.StrEnum):
    """What a condition asks of an argument."""

    EQUALS = "equals"
    GLOB = "glob"
    REGEX = "regex"
    INSIDE = "inside"
    HOST = "host"


class AfterTaint(enum.StrEnum):
    """What happens to calls that change or send something once a session has read from an untrusted source."""

    ALLOW = "allow"
    ASK = "ask"
    REFUSE = "refuse"


class Clients(enum.StrEnum):
    """Whose MCP servers have to start by way of the gate: those of agents, or of every program."""

    AGENTS = "agents"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a rule.

    Attributes:
        argument: name of an argument of the call; `a.b` for a member of an object.
        test: what is asked of it.
        values: as written, variables not yet expanded; one of them has to hold.
    """

    argument: str
    test: Test
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class McpRule:
    """A server, or something that servers offer, and what happens to it.

    Attributes:
        effect: ALLOW, ASK or DENY.
        text: as written: `SERVER`, `SERVER/NAME`, `SERVER/@CLASS` or `SERVER/KIND:NAME`, with wildcards.
        where: conditions on the arguments; every one has to hold.
        because: the person's reason; may be empty.
    """

    effect: Effect
    text: str
    origin: Origin
    where: tuple[Condition, ...] = ()
    because: str = ""


@dataclass(frozen=True, slots=True)
class Confinement:
    """Servers that may reach less than their agent.

    Attributes:
        server: name of a server, wildcards allowed.
        profile: name of the profile whose `files` and `network` are all that is left of the agent's own.
    """

    server: str
    profile: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class Starting:
    """Servers that may start, once the user approved them; wildcards allowed."""

    server: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class McpRules:
    """What a profile says of MCP; joining two is a union.

    Attributes:
        rules: what may be used, what needs a person's word each time, and what may not.
        classes: what the user says that tools do: (class, rule whose `text` names the tools).
        untrusted: what is named here makes a session tainted as soon as its result is read.
        after_taint: what then happens to calls of the classes write, destructive and open. The strictest word wins.
        gate: False: servers are started as the agent's configuration says, and only seen.
        confined: which servers may reach less; of several that match each counts.
        flow: where `after_taint` is written.
        servers: which of the approved servers may start; None: every one.
        all_clients: where it is written that every program counts as an agent does; None: nowhere.
    """

    rules: tuple[McpRule, ...] = ()
    classes: tuple[tuple[ToolClass, McpRule], ...] = ()
    untrusted: tuple[McpRule, ...] = ()
    after_taint: AfterTaint | None = None
    gate: bool | None = None
    confined: tuple[Confinement, ...] = ()
    flow: Origin | None = None
    servers: tuple[Starting, ...] | None = None
    all_clients: Origin | None = None
