"""What the gate knows of servers: which may start, as what, and what their messages may do.

Servers are what the agent's configuration declared when the session began, read outside of the tree; what a shim says counts
only for a name that none had. Either way exactly that has to be in the user's catalogue, which is read at every start.
"""

from __future__ import annotations

import base64
import fnmatch
import functools
import json
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcpguard.catalogue import approved, identity, starting
from mcpguard.catalogue.server import STDIO, Server
from mcpguard.events.mcp import CLIENT, Talk
from mcpguard.gate import containers, no_network
from mcpguard.gate.admission import Admission, Grants, Unvetted, forms_of
from mcpguard.gate.conversation import Conversation
from mcpguard.gate.held import Held
from mcpguard.gate.ledger import Ledger
from mcpguard.gate.peers import path_of
from mcpguard.gate.pins import Pins, of_approvals
from mcpguard.gate.relay import Judges
from mcpguard.gate.remote import Remote
from mcpguard.gate.words import by_place, may_write_by, words_of
from mcpguard.mcp import classes, policy
from mcpguard.mcp.judge import Judge, Taint
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind, McpMessage, Peer
from mcpguard.model.mcp import AfterTaint

# Stands for all that an earlier gate may have let the session read.
STARTED_AGAIN = "what an earlier gate of the session, before the gate was started again, let pass"

_LONGEST_DETAIL = 300


class Servers:
    """Of one session."""

    def __init__(self, facts: Mapping[str, Any], ledger: Ledger, held: Held | None = None) -> None:
        """
        Args:
            held: where calls may wait for a person's word; None: none does.
            facts: `session`; `environment` of the agent; `workspace`; `mcp`, the rules as `Policy.mcp` has them; `servers`, a
                list of the fields of `catalogue.server.Server`; `tables`, the policy's rules for files in base64, empty in
                audit; `engines`, as `containers.refuse` takes them; `confined`, of `session.confinement`; `web`, where there
                are remote servers: `listener`, `token`, and `remotes`, from their place in the address to the same fields;
                `again`, true where the session had a gate before.
        """
        self._session = facts["session"]
        self._environment: dict[str, str] = facts["environment"]
        self._workspace = Path(facts["workspace"])
        self._declared = {one["name"]: Server(**{**one, "args": tuple(one["args"])}) for one in facts["servers"]}
        self._policy = policy.load(json.loads(facts["mcp"]))
        self._confined: list[dict[str, Any]] = facts["confined"]
        # What an earlier gate of the session knew of it ended with that gate.
        forgot = facts.get("again") and self._policy.after_taint is not AfterTaint.ALLOW
        self._taint = Taint({STARTED_AGAIN: None} if forgot else {})
        self._ledger = ledger
        tables = base64.b64decode(facts["tables"])
        self._may_write = may_write_by(tables) if tables else None
        self._engines: dict[str, bool] = facts["engines"]
        self._held = held or Held()
        remotes = facts["web"]["remotes"] if facts.get("web") else {}
        self._remotes = {key: Server(**{**one, "args": tuple(one["args"])}) for key, one in remotes.items()}
        self._judges: dict[str, Judge] = {}

    def admit(self, name: str, argv: list[str], pid: int) -> Admission:
        """A server that may start.

        Raises:
            McpguardError: it may not.
        """
        if not self._policy.may_start(name):
            raise _not_in_profile(name)
        here = _folder_of(pid) or self._workspace
        server = self._declared.get(name) or Server(name, "", "", "", STDIO, command=argv[0], args=tuple(argv[1:]))
        catalogue = approved.load()
        # What nobody approved is not read either: whoever asks chooses how much there is to read.
        found = starting.identify(server, self._environment, here) if catalogue.named(name) else None
        if found is None:
            raise _not_approved(name, approved.State(approved.NOT_APPROVED))
        state = catalogue.state(name, found)
        if not state.allowed:
            raise _not_approved(name, state)
        if not found.found:
            raise _no_program(found.command)
        if found.installed is not None and not found.installed.words:
            raise _not_installed(name, found.installed.fetch)
        if runner := identity.unknown_runner(found):
            raise _only_the_runner_knows(name, runner, identity.in_place_of(runner, found))
        environment = starting.start_environment(server, self._environment)
        containers.refuse(name, found, environment, self._engines)
        cwd = starting.folder(server, self._environment, here)
        if found.installed is not None and found.installed.folder:  # as `uv run` does it
            cwd = Path(found.installed.folder)
            environment["VIRTUAL_ENV"] = found.installed.environment
            environment["PATH"] = f"{found.installed.environment}/bin:{environment.get('PATH', os.defpath)}"
        words = words_of(name, found, str(cwd), environment, self._may_write)
        program, words = by_place(name, words, found, environment, str(cwd))
        forms = forms_of(program, words, [code.path for code in found.code])
        pins = of_approvals(catalogue.same(name, found))
        tools = classes.of_package(found.package.name) if found.package is not None else {}
        narrowing = self._narrowing(name)
        return Admission(program, words, environment, forms, str(cwd), dict(tools), pins, *narrowing)

    def _narrowing(self, name: str) -> tuple[tuple[Grants, ...], bytes, int]:
        """What the server is kept to, by every rule that names it: files, a filter, and the rule whose network counts.

        Raises:
            Unvetted: two rules leave it something of the network, and the kernel asks one besides the agent's.
        """
        word = policy.server_word(name)
        mine = [one for one in self._confined if fnmatch.fnmatchcase(word, one["server"])]
        grants = tuple(tuple((path, rights) for path, rights in one["grants"]) for one in mine)
        none = [one for one in mine if not one["network"]]
        if not none and len(mine) > 1:
            raise _kept_twice(name)
        counts = (none or mine or [{"kept": 0}])[0]
        return grants, no_network.program() if none else b"", int(counts["kept"])

    def judge(self, name: str, admission: Admission, peer: int, client: int) -> Judges:
        """What judges the messages of a server that was admitted."""
        resolve = functools.partial(_real_path, admission.cwd)
        pins = admission.pins
        judge = Judge(self._policy, name, admission.tools, pins, self._taint, resolve, others=_others(pins))
        talk = Talk(self._session, name, "stdio", _peer(client), _peer(peer))
        held = self._held
        return Conversation(judge, talk, self._ledger, keep_pins=_keeper(pins), hold=held.hold, drop=held.drop)

    def remote(self, key: str) -> Remote | None:
        """A remote server by its place in the address; the catalogue is asked each time."""
        server = self._remotes.get(key)
        if server is None:
            return None
        if not self._policy.may_start(server.name):
            refusal = _not_in_profile(server.name)
            return Remote("", refused=f"{refusal.what}: {refusal.do}")
        found = starting.identify(server, self._environment, self._workspace)
        state = approved.State(approved.NOT_APPROVED) if found is None else approved.load().state(server.name, found)
        if not state.allowed:
            refusal = _not_approved(server.name, state)
            return Remote("", refused=f"{refusal.what}: {refusal.do}")
        url = starting.expanded(server.url, self._environment)
        return Remote(url, server.headers, server.old, client=server.client, file=server.file)

    def open_remote(self, key: str, transport: str, ledger: Ledger) -> Conversation:
        """A new conversation with a remote server. What it said of its tools is known from one to the next.

        Args:
            ledger: of the thread that asks.
        """
        server = self._remotes[key]
        judge = self._judges.get(key)
        if judge is None:
            found = starting.identify(server, self._environment, self._workspace)
            pins = of_approvals(approved.load().same(server.name, found) if found is not None else ())
            resolve = functools.partial(_real_path, str(self._workspace))
            tools = classes.of_package(found.origin if found is not None else "")
            judge = self._judges[key] = Judge(
                self._policy, server.name, tools, pins, self._taint, resolve, others=pins.others
            )
        talk = Talk(self._session, server.name, transport)
        hold, drop = self._held.hold_in_loop, self._held.drop
        return Conversation(judge, talk, ledger, keep_pins=_keeper(judge.pins), hold=hold, drop=drop)

    def turn_away(self, key: str, why: str, ledger: Ledger) -> None:
        """Put on record that a remote server was asked for that may not be used.

        Args:
            ledger: of the thread that asks.
        """
        message = McpMessage(self._remotes[key].name, "http", CLIENT)
        detail = " ".join(why.split())[:_LONGEST_DETAIL]
        ledger.note(Event(time.time_ns(), self._session, Kind.MCP, "refuse", Verdict.DENY, detail=detail, mcp=message))


def _keeper(pins: dict[str, str]) -> Callable[[], None] | None:
    return pins.keep if isinstance(pins, Pins) else None


def _others(pins: dict[str, str]) -> dict[str, str] | None:
    return pins.others if isinstance(pins, Pins) else None


def _real_path(cwd: str, path: str) -> str:
    return os.path.realpath(os.path.join(cwd, path))


def _folder_of(pid: int) -> Path | None:
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return None


def _not_approved(name: str, state: approved.State) -> Unvetted:
    if state.word == approved.CHANGED:
        return Unvetted(
            f"the MCP server {name} is not what was approved",
            why=_joined(state.differences),
            do=f"see whether that was you; then, outside of the session: mcpguard mcp approve {shlex.quote(name)}",
            code="mcp.changed",
        )
    return Unvetted(
        f"the MCP server {name} is not approved",
        why="nobody said yet that it may start here",
        do=f"outside of the session: mcpguard mcp show {shlex.quote(name)}, then mcpguard mcp approve {shlex.quote(name)}",
        code="mcp.not-approved",
    )


def _not_in_profile(name: str) -> Unvetted:
    return Unvetted(
        f"the MCP server {name} does not start in this profile",
        why="mcp.servers of the profile does not name it",
        do=f"outside of the session: add {policy.server_word(name)} to mcp.servers (mcpguard profile edit)",
        code="mcp.not-in-profile",
    )


def _no_program(command: str) -> Unvetted:
    return Unvetted(
        f"{command} cannot be executed",
        why="it is not there, or no program",
        do="install it, or correct the command in the agent's configuration",
        code="mcp.no-program",
    )


def _not_installed(name: str, fetch: str) -> Unvetted:
    return Unvetted(
        f"the MCP server {name} was not started",
        why="its package is not installed, so nobody knows what would run",
        do=f"outside of the session: {fetch}, then mcpguard mcp approve {shlex.quote(name)}",
        code="mcp.not-installed",
    )


def _only_the_runner_knows(name: str, runner: str, do: str) -> Unvetted:
    return Unvetted(
        f"the MCP server {name} was not started",
        why=f"only {runner} knows what it would fetch and run, so nobody can have approved that",
        do=do,
        code="mcp.runner",
    )


def _kept_twice(name: str) -> Unvetted:
    return Unvetted(
        f"the MCP server {name} is kept to two profiles at once",
        why="several rules of mcp.confine name it, and more than one of their profiles has a network",
        do="name it in one of them, with a profile that says all",
        code="mcp.kept-twice",
    )


def _joined(lines: Sequence[str]) -> str:
    return "; ".join(lines) or "something in it changed"


def _peer(pid: int) -> Peer | None:
    return Peer(pid, path_of(pid)) if pid else None
