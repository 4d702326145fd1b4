"""Events of kind `mcp`: the one way to make them, for whoever sees a message or lets it pass.

    talk = Talk(session, "github", "stdio", client, server)
    asked = talk.request(now, "client", "tools/call", params, id=1, call=call_id())
    store.add(session, [asked])                    # before it is forwarded, where it is judged
    store.add(session, [talk.response(later, asked, result_bytes=120)])

`Store.add` may be called by several processes for one session. A process that has a recorder gives events to `Recorder.tell`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping

from mcpguard.mcp.masking import bounded, masked_text
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind, McpMessage, Peer
from mcpguard.model.rule import Origin
from mcpguard.model.values import dataclass, replace

REQUEST, RESPONSE, NOTIFICATION = "request", "response", "notification"
CLIENT, SERVER = "client", "server"
# The name of a server that nobody has shown yet.
UNKNOWN = "unknown"
# Names are chosen by whoever is guarded.
_LONGEST_NAME = 256
_LONGEST_ERROR = 300
# Which member of the params names what is asked for; the other members are the arguments.
_NAMED = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "resources/subscribe": "uri",
    "resources/unsubscribe": "uri",
}


# Revisions of MCP are dates; other protocols that begin with `initialize` count theirs.
_REVISION = re.compile(r"\d{4}-\d\d-\d\d")
_ASKED = ("tools/", "resources/", "prompts/", "server/discover")


def call_id() -> str:
    """A new name for a request and its response: ten hexadecimal digits."""
    return os.urandom(5).hex()


@dataclass(frozen=True, slots=True)
class Talk:
    """Between whom messages go.

    Attributes:
        server: what people call the server.
        transport: `stdio`, `http` or `sse`.
    """

    session: str
    server: str
    transport: str
    client: Peer | None = None
    peer: Peer | None = None

    def request(
        self,
        time_ns: int,
        sender: str,
        method: str,
        params: object = None,
        *,
        id: str | int | None = None,
        call: str | None = None,
        classes: frozenset[str] = frozenset(),
        verdict: Verdict = Verdict.ALLOW,
        rule: Origin | None = None,
        detail: str | None = None,
    ) -> Event:
        """A request, or a notification when it has no id.

        Args:
            sender: `client` or `server`.
            params: what `json.loads` gave.
            call: from `call_id`, for a request.
            classes: of the tool that is called, as far as they are known.
        """
        tool = named(method, params)
        arguments, cut = _arguments(method, params)
        message = McpMessage(
            *(_name(self.server), self.transport, sender, call, _name(method), None if id is None else _id(id)),
            *(None if tool is None else masked_text(_name(tool)), arguments, cut),
            classes="+".join(sorted(classes)) or None,
            client=self.client,
            peer=self.peer,
        )
        return self._event(time_ns, REQUEST if id is not None else NOTIFICATION, message, verdict, rule, detail)

    def response(
        self,
        time_ns: int,
        asked: Event,
        *,
        result_bytes: int | None = None,
        error: tuple[int | None, str] | None = None,
        verdict: Verdict = Verdict.ALLOW,
        rule: Origin | None = None,
        detail: str | None = None,
    ) -> Event:
        """The answer to a request.

        Args:
            asked: the request's event.
            result_bytes: size of the result as it was sent; None for an error.
            error: JSON-RPC's code and message; the code is None where a tool says in its result that it failed.
        """
        question = asked.mcp
        if question is None:
            raise ValueError("the event of a request has a message")
        return self._answer(
            time_ns,
            replace(
                question,
                # Who answers after long may not have been known when it was asked.
                server=_name(self.server) if question.server == UNKNOWN else question.server,
                transport=self.transport,
                sender=SERVER if question.sender == CLIENT else CLIENT,
                arguments=None,
                cut=False,
                duration_ns=max(0, time_ns - asked.time_ns),
                client=self.client,
                peer=self.peer,
            ),
            result_bytes,
            error,
            verdict,
            rule,
            detail,
        )

    def stray(
        self,
        time_ns: int,
        sender: str,
        id: str | int | None,
        *,
        result_bytes: int | None = None,
        error: tuple[int | None, str] | None = None,
    ) -> Event:
        """The answer to a request that was not seen."""
        message = McpMessage(
            *(_name(self.server), self.transport, sender),
            id=None if id is None else _id(id),
            client=self.client,
            peer=self.peer,
        )
        return self._answer(time_ns, message, result_bytes, error, Verdict.ALLOW, None, "its request was not seen")

    def _answer(
        self,
        time_ns: int,
        message: McpMessage,
        result_bytes: int | None,
        error: tuple[int | None, str] | None,
        verdict: Verdict,
        rule: Origin | None,
        detail: str | None,
    ) -> Event:
        code, words = error or (None, None)
        said = None if words is None else _name(masked_text(words[: 4 * _LONGEST_ERROR])[:_LONGEST_ERROR])
        message = replace(message, result_bytes=result_bytes, error=said, error_code=code)
        return self._event(time_ns, RESPONSE, message, verdict, rule, detail)

    def _event(
        self, time_ns: int, op: str, message: McpMessage, verdict: Verdict, rule: Origin | None, detail: str | None
    ) -> Event:
        process = self.client if message.sender == CLIENT else self.peer
        exe = process.exe if process else None
        return Event(
            *(time_ns, self.session, Kind.MCP, op, verdict),
            pid=process.pid if process else None,
            exe=exe,
            comm=exe.rsplit("/", 1)[-1][:15] if exe else None,
            rule=rule,
            detail=detail,
            mcp=message,
        )


def named(method: str, params: object) -> str | None:
    """The tool, prompt or resource that a request is about; None: it names none."""
    value = params.get(_NAMED.get(method, "")) if isinstance(params, Mapping) else None
    return value if isinstance(value, str) else None


def only_names(method: str, params: object) -> dict[str, str]:
    """Of params what says what a request is about, as it may be kept."""
    value = named(method, params)
    return {} if value is None else {_NAMED[method]: masked_text(_name(value))}


def _arguments(method: str, params: object) -> tuple[str | None, bool]:
    """Arguments where a method has such, else its params; what belongs to the protocol and not to the call is left out."""
    if isinstance(params, Mapping):
        if method in ("tools/call", "prompts/get"):
            params = params.get("arguments")
        else:
            params = {name: value for name, value in params.items() if name not in ("_meta", _NAMED.get(method))}
    return (None, False) if params in (None, {}, []) else bounded(params)


def _id(id: str | int) -> str:
    return json.dumps(id)[:_LONGEST_NAME] if len(str(id)) < _LONGEST_NAME else json.dumps("…")


def _name(text: str) -> str:
    """Bounded, and with halves of characters as JSON has them."""
    return text[:_LONGEST_NAME].encode("utf-8", "backslashreplace").decode("utf-8")


def asks(method: object, params: object) -> bool:
    """Whether a message of this method is what clients of MCP ask servers first, and no other protocol has."""
    if not isinstance(method, str):
        return False
    if method != "initialize":
        return method.startswith(_ASKED)
    said = params.get("protocolVersion") if isinstance(params, dict) else None
    return isinstance(said, str) and _REVISION.fullmatch(said) is not None
