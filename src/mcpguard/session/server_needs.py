"""What an MCP server did in sessions, as what it needs besides what a profile leaves to it.

Programs come with thousands of files: an environment of Python and a folder of Node's modules are each meant as a whole, to
be read and executed. They are never to be changed. Where it made names that come and go, it needs their folder: what a kept
server may change has to be there when the run begins.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from mcpguard.events import served
from mcpguard.events.finding import is_quiet, system_rule
from mcpguard.events.store import Store
from mcpguard.model.access import Access, Verdict
from mcpguard.model.event import Event
from mcpguard.model.paths import is_below
from mcpguard.model.policy import Policy
from mcpguard.policy.decide import decide_file
from mcpguard.session.needs import Need, joined, of_event
from mcpguard.session.propose import belongs_to_many

_ACCESS = {"read": Access.READ, "write": Access.WRITE, "execute": Access.EXECUTE}
_OF_PYTHON = re.compile(r"(?P<environment>.+?)(?P<modules>/lib(?:64)?/python[0-9.]+)/(?:site|dist)-packages(?:/|$)")
_OF_NODE = re.compile(r"(.+?/node_modules)(?:/|$)")
_TAKE_NAMES = frozenset(("rename", "exchange", "unlink", "rmdir", "link"))


def of_server(store: Store, sessions: Sequence[str], server: str, floor: Policy) -> list[Need]:
    """Everything that it did, or was refused for the profile that it is kept to, and that is not allowed already, in the order
    of objects.

    Args:
        floor: what allows it already. Of the network nothing: a server that is kept has its own profile's alone.

    Raises:
        StoreError: the record cannot be read, or there is no such session.
    """
    did = (event for session in sessions for event in served.acts(store, session, server))
    asked = [_with_its_names(need, event.op, floor) for event in did if _counts(event) for need in of_event(event)]
    programs = {place for need in asked if need.kind != "net" and (place := _installation(need.object, floor))}
    wholes = (_as_a_whole(need, programs) for need in asked)
    return joined(need for need in wholes if not _is_allowed(need, floor))


def _counts(event: Event) -> bool:
    if is_quiet(event):
        return False
    return event.verdict is not Verdict.DENY or (event.rule is not None and event.rule.confines)


def _with_its_names(need: Need, op: str, floor: Policy) -> Need:
    if need.kind != "file" or need.access != "write" or not (op in _TAKE_NAMES or not os.path.lexists(need.object)):
        return need
    folder = need.object.rpartition("/")[0]
    if folder not in (floor.workspace, floor.tmp) and _holds_more(folder, floor):
        return need
    return replace(need, object=folder, made=True, partners=set())


def _holds_more(folder: str, floor: Policy) -> bool:
    """Whether it is no folder of one thing."""
    return belongs_to_many(folder) or any(is_below(one, folder) for one in (floor.user.home, floor.workspace))


def _installation(path: str, floor: Policy) -> str | None:
    """The folder of all modules that a file is one of; None: it is none."""
    if found := _OF_NODE.match(path):
        return found[1]
    if found := _OF_PYTHON.match(path):
        environment = found["environment"]
        # Without that file it is the folder of many things: ~/.local, /usr/local.
        whole = Path(environment, "pyvenv.cfg").is_file() and not _holds_more(environment, floor)
        return environment if whole else environment + found["modules"]
    return None


def _as_a_whole(need: Need, programs: Collection[str]) -> Need:
    if need.kind == "net" or not (place := next((one for one in programs if is_below(need.object, one)), None)):
        return need
    if need.access == "write":
        why = "it would be another program the next time"
        return replace(need, refused=(system_rule("an installed program is not changed"), why))
    return replace(need, object=place, made=True)


def _is_allowed(need: Need, policy: Policy) -> bool:
    if need.kind == "net":
        return False
    try:
        return decide_file(policy, need.object, _ACCESS[need.access])[0] is Verdict.ALLOW
    except ValueError:
        return False
