"""The MCP servers of a session whose profile has a gate: what the agent is told of them, and what its user is."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mcpguard.catalogue import approved
from mcpguard.catalogue.server import STDIO
from mcpguard.errors import McpguardError
from mcpguard.events.format import printable
from mcpguard.gate import containers
from mcpguard.gate.line import SOCKET_VARIABLE
from mcpguard.mcp import policy as mcp_policy
from mcpguard.model.access import Effect, Verdict
from mcpguard.model.policy import PROTO_TCP, NetEntry, Policy
from mcpguard.model.rule import Origin
from mcpguard.model.values import dataclass, replace
from mcpguard.policy.decide import decide_unix
from mcpguard.policy.network import mapped
from mcpguard.session import known_servers
from mcpguard.session.agents import tell
from mcpguard.session.gate import Gate, plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from mcpguard.session.around_gate import AroundGate
    from mcpguard.session.confinement import Confined

_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Servers:
    """What a session is started with.

    Attributes:
        command, environment: of the agent, which learns by them to start its servers through the shim.
        policy: the session's, with the address of the gate where there are remote servers.
        known: the agent was told of the gate.
        kept: what rules leave to servers of their own.
        all_clients: rule by which the servers of every program start by way of the gate; None: those of agents.
        note: for the person: which servers wait for their word, or that nothing is guarded here; empty: all is well.
    """

    gate: Gate
    policy: Policy
    command: tuple[str, ...]
    environment: dict[str, str]
    note: str
    known: bool
    kept: tuple[Confined, ...] = ()
    all_clients: Origin | None = None

    def around(
        self, session: str, agent: int, leaf: str, paused: Callable[[], AbstractContextManager[None]]
    ) -> AroundGate:
        """What is to see every message that the gate does not judge. Where the command is no agent that was told of the gate,
        what it starts is its own, as the servers are that a suite of tests starts; what agents start below it is not, and
        nothing is where all programs count."""
        from mcpguard.session.around_gate import AroundGate  # nobody who starts an agent waits for it

        program = _found(self.command[0], self.environment.get("PATH", "")) if self.known else None
        known, every = self.known, self.all_clients
        return AroundGate(session, agent, leaf, program, told=known, all_clients=every, paused=paused)


def begin(policy: Policy, session: str, command: Sequence[str], environment: dict[str, str]) -> Servers:
    """Make the gate, and tell the agent.

    Raises:
        McpguardError: the gate cannot be had, the catalogue or a configuration that the command line names cannot be read.
    """
    catalogue = approved.load()
    rules = mcp_policy.load(json.loads(policy.mcp))
    gate = Gate(session)
    told = tell(command, {**environment, SOCKET_VARIABLE: gate.address}, policy.workspace, gate)
    names = {one.name for one in told.servers if one.kind == STDIO} if told.known else None
    policy, kept = _confined(policy, rules.confined)
    policy, by_default, failed = _known(policy, known_servers.kept(rules, catalogue, names, policy.workspace))
    kept += by_default
    if kept:
        gate.keep()
    gate.facts |= {
        "environment": environment,
        "workspace": policy.workspace,
        "mcp": policy.mcp,
        "tables": "" if policy.audit else base64.b64encode(policy.tables).decode(),
        "engines": {path: _may_connect(policy, path) for path in containers.sockets(policy.user.home)},
        "confined": [one.for_gate() for one in kept],
        "servers": [plain(one) for one in told.servers if one.kind == STDIO],
    }
    mine = [one.name for one in told.servers if rules.may_start(one.name)]
    waiting = _waiting(name for name in mine if not catalogue.named(name))
    unknown = _unknown(command[0], ended=rules.all_clients is not None)
    note = "; ".join(filter(None, (waiting if told.known else unknown, *failed)))
    policy, every = _reaching(policy, gate.port), rules.all_clients
    return Servers(gate, policy, told.command, told.environment, note, told.known, tuple(kept), every)


def _found(program: str, folders: str) -> str | None:
    """Where a program lies that is started by this name."""
    places = [program] if "/" in program else [f"{folder}/{program}" for folder in folders.split(":")]
    return next((place for place in places if os.access(place, os.X_OK)), None)


def _may_connect(policy: Policy, path: str) -> bool:
    return decide_unix(policy, os.path.realpath(path), foreign=True).verdict is not Verdict.DENY


def _reaching(policy: Policy, port: int | None) -> Policy:
    """With a rule for the one port on loopback."""
    if port is None:
        return policy
    origin = Origin("mcpguard", "builtin", 0, "the way to remote MCP servers")
    entry = NetEntry(mapped("127.0.0.1"), 128, port, port, PROTO_TCP, Effect.ALLOW, len(policy.rules))
    rules, reasons = (*policy.rules, origin), (*policy.reasons, "")
    return replace(policy, rules=rules, reasons=reasons, connect=(*policy.connect, entry))


def _confined(policy: Policy, rules: Sequence[mcp_policy.Kept]) -> tuple[Policy, list[Confined]]:
    wanted = [one for one in rules if one.profile != mcp_policy.AS_AGENT]
    if not wanted:
        return policy, []
    from mcpguard.session.confinement import confined  # it compiles profiles

    return confined(policy, wanted)


def _known(policy: Policy, rules: Sequence[mcp_policy.Kept]) -> tuple[Policy, list[Confined], list[str]]:
    """The same where nobody asked for it, and why some are not: a profile of the user's in the place of ours may not fit."""
    kept: list[Confined] = []
    failed = []
    for rule in rules:
        try:
            policy, one = _confined(policy, [rule])
            kept += one
        except McpguardError as problem:
            failed.append(f"the MCP server {rule.server} has what its agent has ({problem.why or problem.what})")
    return policy, kept, failed


def _unknown(program: str, *, ended: bool) -> str:
    name = printable(program.rpartition("/")[2])
    begins = f"{name} is no agent that mcpguard can tell of the gate: MCP servers that it starts by itself are"
    return f"{begins} ended" if ended else f"{begins} not judged, and those that an agent starts below it are ended"


def _waiting(names: Iterable[str]) -> str:
    """In one line; how each is looked at and approved is told by its own refusal."""
    found = sorted(names)
    if not found:
        return ""
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    shown = ", ".join(printable(name) for name in found[:_MOST_NAMED]) + more
    return f"MCP servers that nobody approved do not start: {shown} (mcpguard mcp list, then mcpguard mcp approve NAME)"
