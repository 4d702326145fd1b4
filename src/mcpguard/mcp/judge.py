"""What may pass between an agent and one server.

Every message is judged once, on the parsed message that is also what is forwarded. Order of rules never matters: a `deny` that
matches denies; else an `ask` that matches asks; else an `allow` that matches allows; else it is denied. Methods that no
revision of the protocol has are denied unless a rule names them: what we do not understand, we cannot judge.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from mcpguard.errors import McpguardError
from mcpguard.mcp import messages
from mcpguard.mcp.classes import classes_of
from mcpguard.mcp.conditions import Answer, holds
from mcpguard.mcp.hidden import hidden as hidden_characters
from mcpguard.mcp.masking import holds_credential
from mcpguard.mcp.messages import Kind, Message
from mcpguard.mcp.policy import UNKNOWN, McpPolicy, Pattern, Rule, server_word
from mcpguard.model.access import Effect, Verdict
from mcpguard.model.mcp import AfterTaint, McpKind
from mcpguard.model.rule import Origin
from mcpguard.model.values import dataclass, field, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# JSON-RPC leaves -32000 to -32019 to implementations.
BLOCKED = -32010
# What needs no rule: it begins or ends a connection, or asks what there is (the answer is filtered).
_ALWAYS = frozenset(
    ("initialize", "ping", "server/discover", "logging/setLevel", "subscriptions/listen", "resources/templates/list")
) | frozenset(("tools/list", "resources/list", "prompts/list"))
# About calls that were judged when they were made.
_TASKS = frozenset(("tasks/get", "tasks/list", "tasks/result", "tasks/cancel"))
_ASKED_BY_SERVERS = {"sampling/createMessage": McpKind.SAMPLING, "elicitation/create": McpKind.ELICITATION}
_NEEDS_NO_RULE_FROM_SERVERS = frozenset(("ping", "roots/list"))
# Member of a listing, what its entries are, and what names one.
_LISTINGS = {
    "tools/list": ("tools", McpKind.TOOL, "name"),
    "resources/list": ("resources", McpKind.RESOURCE, "uri"),
    "resources/templates/list": ("resourceTemplates", McpKind.RESOURCE, "uriTemplate"),
    "prompts/list": ("prompts", McpKind.PROMPT, "name"),
}
# Of which listings the entries are pinned, and under which word. Resources are data, which come, go and change.
_PINNED = {"tools": "tool", "prompts": "prompt", "resourceTemplates": "template"}
# Of one server; what is listed beyond is not shown.
MOST_PINS = 10_000
_MOST_TOLD = 20
_MOST_OTHERS = 100
_LONGEST_OTHER = 2000
# Of the name of something that was read: who reads it may choose that.
_LONGEST_SOURCE = 200
_INTRODUCTIONS = frozenset(("initialize", "server/discover"))
# What a server calls itself; since 2026-07-28 beside the result and not in it.
_INFO, _INFO_BESIDE = "serverInfo", "io.modelcontextprotocol/serverInfo"
# A version that is nothing but one: it changes with each release, and no words fit in.
_VERSION = re.compile(
    r"v?\d{1,8}(?:\.\d{1,8}){0,3}(?:[-+.][0-9a-f]{1,40}|[-+.]?(?:alpha|beta|rc|dev|pre|post)\d{0,8}){0,4}"
)
_DO_ASK = "start the session with `mcpguard run --ask`, open `mcpguard watch`, and answer there when it is called again"
# Of an error that says what the user has to be led to before the request can be answered (2025-11-25).
_ASKS_BY_ERROR = -32042
# What a server says without words of its own, and the members that such messages have.
_WITHOUT_WORDS = frozenset(
    f"notifications/{one}" for one in ("progress", "cancelled", "subscriptions/acknowledged")
) | frozenset(f"notifications/{one}/list_changed" for one in ("tools", "prompts", "resources"))
_WITHOUT_WORDS |= _NEEDS_NO_RULE_FROM_SERVERS
_WORDLESS_MEMBERS = frozenset(
    ("_meta", "io.modelcontextprotocol/subscriptionId", "progressToken", "progress", "total", "requestId", "resultType")
) | frozenset(("notifications", "toolsListChanged", "promptsListChanged", "resourcesListChanged"))
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Beside the entries of a listing and in introductions: a place to go on at, and names that the protocol gives to members. No
# sentence fits in, for there is no room between words.
_CURSOR, _MEMBER = re.compile(r"[!-~]{1,2000}"), re.compile(r"[!-~]{1,128}")
_CHANGING = frozenset(("write", "destructive", "open", UNKNOWN))

Resolve = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Judgement:
    """The answer to one message.

    Attributes:
        verdict: ALLOW or DENY.
        kind, name: what it is about; the method where it is about nothing that a server offers.
        reason: for the log and, where it was denied, for the agent: one line.
        origin: the rule that decided, where one did.
        classes: of a tool.
        ask: it is only denied until the user allows it.
    """

    verdict: Verdict
    kind: McpKind
    name: str
    reason: str = ""
    origin: Origin | None = None
    classes: frozenset[str] = frozenset()
    ask: bool = False

    @property
    def allowed(self) -> bool:
        return self.verdict is Verdict.ALLOW


@dataclass(slots=True)
class Taint:
    """What a whole session has read from sources that its user does not trust; shared by its servers.

    Attributes:
        sources: what was read, as `server/tool`, in order, each once.
        approved: tools as (server, tool) that the user lets change and send things all the same.
    """

    sources: dict[str, None]
    approved: set[tuple[str, str]] = field(default_factory=set)

    def note(self, source: str) -> None:
        """Remember a source."""
        self.sources.setdefault(source)


class Judge:
    """Judges the messages of one connection to one server.

    Args:
        policy: of the session.
        server: the server's name in the agent's configuration.
        tools: classes of its tools, as `classes.of_package` gives them.
        pins: digests of what a model reads of it, by `kind:name`; filled while it is empty, that is with the first listings of
            a server that was just approved. Later, what changed or is new is not shown and cannot be called.
        taint: of the session.
        resolve: makes an absolute path of one that an argument names, symlinks followed.
        others: digests of what was listed otherwise than it is pinned, or is not pinned, by `kind:name`; added to, and taken
            from when it is as approved again. For a person to look at, who may approve exactly that; nothing is decided here.
    """

    def __init__(
        self,
        policy: McpPolicy,
        server: str,
        tools: Mapping[str, Any],
        pins: dict[str, str],
        taint: Taint,
        resolve: Resolve,
        *,
        others: dict[str, str] | None = None,
    ) -> None:
        self._policy = policy
        self._server = server_word(server)
        self._tools = tools
        self._taint = taint
        self._resolve = resolve
        self.pins = pins
        self.others = {} if others is None else others
        self._pinned = bool(pins)
        self._changed: set[str] = set()

    def from_client(self, message: Message, *, approved: bool = False) -> Judgement:
        """Judge a request or notification of the agent. Its responses are the answers to what was let through.

        Args:
            approved: the user was asked for this very message, and said yes. What rules deny by themselves they still deny.
        """
        method, params = message.method, message.params
        if message.kind is Kind.NOTIFICATION:
            return self._notification(method)
        if method in _ALWAYS or method in _TASKS:
            return _allow(McpKind.METHOD, method)
        if method == "tools/call":
            return self._reading(self._call(params, approved=approved))
        if method in ("resources/read", "resources/subscribe", "resources/unsubscribe"):
            return self._reading(_answered(self._named(McpKind.RESOURCE, params.get("uri"), {}), approved=approved))
        if method == "prompts/get":
            judged = self._named(McpKind.PROMPT, params.get("name"), params.get("arguments"))
            return self._reading(_answered(self._as_defined(judged), approved=approved))
        if method == "completion/complete":
            return self._reading(self._completion(params))
        return self._reading(self._named(McpKind.METHOD, method, {}))

    def from_server(self, message: Message) -> Judgement:
        """Judge a request or notification of the server. What is let through of it counts as read."""
        judged = self._said(message)
        if not judged.allowed:
            return judged
        is_wordless = message.method in _WITHOUT_WORDS and _is_wordless(message.params)
        if not is_wordless and self._by_strangers(McpKind.METHOD, message.method):
            self._taint.note(f"what {self._server} {'asked' if message.kind is Kind.REQUEST else 'said'}")
        return self._seen(judged, message.params, "a message")

    def _said(self, message: Message) -> Judgement:
        method = message.method
        if message.kind is Kind.NOTIFICATION:
            asked = self._asked_within(message.params)
            return asked if asked is not None else self._notification(method)
        if method in _NEEDS_NO_RULE_FROM_SERVERS:
            return _allow(McpKind.METHOD, method)
        if kind := _ASKED_BY_SERVERS.get(method):
            return self._named(kind, _asked_name(method, message.params), {})
        return self._named(McpKind.METHOD, method, {})

    def answer(self, method: str, response: Message) -> tuple[bytes, Judgement]:
        """Judge the server's response to a request that was let through.

        Returns:
            (bytes, judgement): what the agent gets, a listing without what is denied in it; after a denial an error instead.
        """
        result = response.result
        shown, judged = result, _allow(McpKind.METHOD, method)
        if response.error is not None:
            denied = self._asked_by_error(response.error)
        else:
            denied = self._asked_within(result) if isinstance(result, dict) else None
            denied = denied or _unreadable(method, result)
        if denied is not None:
            return refusal(response.id, denied, ""), denied
        if isinstance(result, dict):
            if method in _LISTINGS:
                shown, judged = self._listing(method, result)
            elif method in _INTRODUCTIONS:
                shown, judged = self._introduction(result)
            judged = self._disguised(method, shown, judged)
        self._note_answer(method, response)
        judged = self._seen(judged, shown if response.error is None else response.error, "an answer")
        if shown is result:
            return response.raw, judged
        return messages.write({"jsonrpc": "2.0", "id": response.id, "result": shown}), judged

    def _note_answer(self, method: str, response: Message) -> None:
        """Words of a stranger in the answer to what needs no rule; the rest was noted when it was asked for."""
        if (method not in _ALWAYS and method not in _TASKS) or not self._by_strangers(McpKind.METHOD, method):
            return
        member = _LISTINGS[method][0] if method in _LISTINGS else ""
        result = response.result
        if response.error is not None:
            says_nothing = False
        elif isinstance(result, dict) and (method in _INTRODUCTIONS or member in result):
            says_nothing = not self._says_more(member, result)
        else:
            says_nothing = _is_wordless(result)
        if not says_nothing:
            self._taint.note(f"what {self._server} answered")

    def _says_more(self, member: str, result: Mapping[str, Any]) -> bool:
        """Whether there are words beside what is pinned or noted apart: beside a list, in the `_meta` of its entries, beside
        instructions. Some clients show these to the model, and nobody approved them."""
        metas = [result.get("_meta")] + [
            one.get("_meta") for one in result.get(member) or () if member in _PINNED and isinstance(one, dict)
        ]
        beside = {key: one for key, one in result.items() if key not in (member, "_meta", "nextCursor")}
        if not member:
            beside = {key: one for key, one in beside.items() if key not in (_INFO, "instructions")}
        cursor = result.get("nextCursor")
        has_words_to_go_on = isinstance(cursor, str) and not _CURSOR.fullmatch(cursor)
        return has_words_to_go_on or _holds_words(beside) or any(map(self._is_more, metas))

    def _is_more(self, meta: object) -> bool:
        """Whether a `_meta` holds words. What a server calls itself in it is pinned where it introduces itself."""
        if isinstance(meta, dict) and _INFO_BESIDE in meta:
            known = self.pins.get(f"server:{_INFO}") == _info_digest(meta[_INFO_BESIDE])
            meta = {key: one for key, one in meta.items() if not known or key != _INFO_BESIDE}
        return _holds_words(meta)

    def _disguised(self, method: str, shown: object, judged: Judgement) -> Judgement:
        """Say which characters of a definition or an introduction nobody sees. Of a stranger they count as read: what was
        pinned was not what a person saw."""
        if method not in _LISTINGS and method not in _INTRODUCTIONS:
            return judged
        odd = (text for text in _texts(shown) if not (text.isascii() and text.isprintable()))
        found = hidden_characters("\n".join(odd))
        if not found:
            return judged
        if self._by_strangers(McpKind.METHOD, method):
            self._taint.note(f"what {self._server} hides in its {method}")
        return _noted(judged, f"it holds characters that nobody sees: {found}")

    def _seen(self, judged: Judgement, value: object, what: str) -> Judgement:
        """A credential that the agent was shown may be sent on, whatever it was shown in."""
        if self._policy.after_taint is AfterTaint.ALLOW or not holds_credential(value):
            return judged
        self._taint.note(f"what looks like a credential, in {what} of {self._server},")
        return _noted(judged, "it holds what looks like a credential")

    def approve(self, tool: str) -> None:
        """The user lets this tool change and send things for the rest of the session."""
        self._taint.approved.add((self._server, tool))

    def _notification(self, method: str) -> Judgement:
        """A request that wants no answer would be one that nobody can tie to what it brings about."""
        if method.startswith("notifications/"):
            return _allow(McpKind.METHOD, method)
        return self._named(McpKind.METHOD, method, {})

    def _call(self, params: Mapping[str, Any], *, approved: bool) -> Judgement:
        judged = self._as_defined(self._named(McpKind.TOOL, params.get("name"), params.get("arguments")))
        if not (judged.allowed or judged.ask):
            return judged
        flowed = self._flow(judged)
        if not (flowed.allowed or flowed.ask):
            return flowed
        # What was approved for the session is the flow; a rule asks each time.
        is_approved = approved or (self._server, judged.name) in self._taint.approved
        return _answered(judged if is_approved else flowed, approved=approved)

    def _as_defined(self, judged: Judgement) -> Judgement:
        """What is defined otherwise than it was approved is not used."""
        key = f"{judged.kind.value}:{judged.name}"
        if not (judged.allowed or judged.ask) or not self._is_other(key):
            return judged
        why = "its definition is not one that was approved"
        return Judgement(Verdict.DENY, judged.kind, judged.name, why, None, judged.classes)

    def _reading(self, judged: Judgement) -> Judgement:
        """Note a source when it is asked: what it says may reach the model before its answer, or in an error."""
        if judged.allowed and self._by_strangers(judged.kind, judged.name, judged.classes):
            self._taint.note(f"{self._server}/{judged.name[:_LONGEST_SOURCE]}")
            return replace(judged, reason=judged.reason or "its answer counts as written by strangers")
        return judged

    def _by_strangers(self, kind: McpKind, name: str, classes: frozenset[str] = frozenset()) -> bool:
        """Whether the user marked it as a place for the words of others. A method is one where the whole server is."""
        kinds = (kind, McpKind.RESOURCE) if kind is McpKind.METHOD else (kind,)
        return any(one.covers(self._server, by, name, classes) for one in self._policy.untrusted for by in kinds)

    def _flow(self, judged: Judgement) -> Judgement:
        """After untrusted words were read, what changes or sends something is the agent's own no longer."""
        after = self._policy.after_taint
        if after is AfterTaint.ALLOW or not self._taint.sources or not judged.classes & _CHANGING:
            return judged
        first = next(iter(self._taint.sources))
        why = f"after {first} was read, calls that change or send something need the user's word"
        why = f"{judged.reason}; {why}" if judged.ask else why
        asks = after is AfterTaint.ASK
        origin = judged.origin if judged.ask and asks else self._policy.flow
        return Judgement(Verdict.DENY, judged.kind, judged.name, why, origin, judged.classes, asks)

    def _completion(self, params: Mapping[str, Any]) -> Judgement:
        ref = params.get("ref")
        # Nobody is asked about half a word: what needs an answer is not completed.
        if isinstance(ref, dict) and ref.get("type") == "ref/prompt":
            return replace(self._named(McpKind.PROMPT, ref.get("name"), {}), ask=False)
        if isinstance(ref, dict) and ref.get("type") == "ref/resource":
            return replace(self._named(McpKind.RESOURCE, ref.get("uri"), {}), ask=False)
        return Judgement(
            Verdict.DENY, McpKind.METHOD, "completion/complete", "it says of nothing known what to complete"
        )

    def _named(self, kind: McpKind, name: Any, arguments: Any) -> Judgement:
        if not isinstance(name, str) or not name:
            return Judgement(Verdict.DENY, kind, "", "it names nothing")
        arguments = {} if arguments is None else arguments  # null is what some clients write for none
        if not isinstance(arguments, dict):
            return Judgement(Verdict.DENY, kind, name, "its arguments are no object")
        classes = self._classes(name, arguments) if kind is McpKind.TOOL else frozenset()
        covering = [rule for rule in self._policy.rules if self._covers(rule.effect, rule.pattern, kind, name, classes)]
        for rule in covering:
            if rule.effect is Effect.DENY and self._may_hold(rule, arguments):
                return Judgement(Verdict.DENY, kind, name, _because(rule), rule.origin, classes)
        for rule in covering:
            if rule.effect is Effect.ASK and self._may_hold(rule, arguments):
                return Judgement(Verdict.DENY, kind, name, _because(rule), rule.origin, classes, ask=True)
        for rule in covering:
            if rule.effect is Effect.ALLOW and self._surely_holds(rule, arguments):
                return Judgement(Verdict.ALLOW, kind, name, "", rule.origin, classes)
        conditional = any(rule.effect is Effect.ALLOW for rule in covering)
        why = "its arguments are not what the rules allow" if conditional else "no rule allows it"
        return Judgement(Verdict.DENY, kind, name, why, None, classes)

    def _covers(self, effect: Effect, pattern: Pattern, kind: McpKind, name: str, classes: frozenset[str]) -> bool:
        """A rule that denies a class, or asks for it, covers what nobody described, too: it may be of that class."""
        if effect is not Effect.ALLOW and UNKNOWN in classes and pattern.tool_class:
            classes = classes | {pattern.tool_class}
        return pattern.covers(self._server, kind, name, classes)

    def _may_hold(self, rule: Rule, arguments: Mapping[str, Any]) -> bool:
        return all(holds(one, arguments, self._resolve) is not Answer.NO for one in rule.where)

    def _surely_holds(self, rule: Rule, arguments: Mapping[str, Any]) -> bool:
        return all(holds(one, arguments, self._resolve) is Answer.YES for one in rule.where)

    def _classes(self, tool: str, arguments: Mapping[str, Any]) -> frozenset[str]:
        """The user's word on a tool, else our own; without either it is unknown."""
        own = {
            one
            for one, pattern in self._policy.classes
            if pattern.covers(self._server, McpKind.TOOL, tool, frozenset())
        }
        return frozenset(own) or classes_of(self._tools, tool, arguments) or frozenset((UNKNOWN,))

    def _listing(self, method: str, result: Mapping[str, Any]) -> tuple[Mapping[str, Any], Judgement]:
        member, kind, naming = _LISTINGS[method]
        entries = result.get(member)
        if entries is None:
            return result, _allow(McpKind.METHOD, method)
        kept: list[Any] = []
        hidden: list[str] = []
        other: list[str] = []
        for one in entries:
            name = one.get(naming) if isinstance(one, dict) else None
            if isinstance(one, dict) and self._shown(kind, name, one, pinned=_PINNED.get(member, "")):
                kept.append(one)
            else:
                hidden.append(str(name)[:80])
                if self._is_other(f"{_PINNED.get(member, '')}:{name}"):
                    other.append(str(name)[:80])
        if member not in _PINNED and any(self._by_strangers(kind, one[naming]) for one in kept):
            self._taint.note(f"{self._server}/{method}")
        if not hidden:
            return result, _allow(McpKind.METHOD, method)
        more = f" and {len(hidden) - _MOST_TOLD} more" if len(hidden) > _MOST_TOLD else ""
        note = f"not shown to the agent: {', '.join(sorted(hidden[:_MOST_TOLD]))}{more}"
        if other:
            named = ", ".join(sorted(other[:_MOST_TOLD]))
            note += f"; changed or new since it was approved (mcpguard mcp approve {self._server}): {named}"
        return {**result, member: kept}, Judgement(Verdict.ALLOW, McpKind.METHOD, method, note)

    def _shown(self, kind: McpKind, name: Any, definition: Mapping[str, Any], *, pinned: str) -> bool:
        """Whether some call of it could be allowed, and it is what was approved, if it is `pinned` under such a word."""
        if not isinstance(name, str) or not name:
            return False
        if pinned and not self._is_as_approved(f"{pinned}:{name}", digest_of(definition)):
            return False
        classes = self._classes(name, {}) if kind is McpKind.TOOL else frozenset()
        by_arguments = kind is McpKind.TOOL and classes == {UNKNOWN} and isinstance(self._tools.get(name), dict)
        if by_arguments:  # what it does is only known when it is called
            return any(rule.effect is not Effect.DENY for rule in self._policy.rules)
        covering = [rule for rule in self._policy.rules if self._covers(rule.effect, rule.pattern, kind, name, classes)]
        if any(rule.effect is Effect.DENY and not rule.where for rule in covering):
            return False
        return any(rule.effect is not Effect.DENY for rule in covering)

    def _is_as_approved(self, key: str, digest: str) -> bool:
        known = self.pins.get(key)
        if known is None and not self._pinned:
            self._pinned = len(self.pins) >= MOST_PINS  # from here on, what is not among them is refused
            if not self._pinned:
                self.pins[key] = known = digest
        if known is not None:
            (self._changed.discard if known == digest else self._changed.add)(key)
        told = key[:_LONGEST_OTHER]
        if known == digest:
            self.others.pop(told, None)
        elif told in self.others or len(self.others) < _MOST_OTHERS:
            self.others[told] = digest
        return known == digest

    def _is_other(self, key: str) -> bool:
        """Whether it is known not to be what was listed when the server was approved, or was not listed then."""
        return key in self._changed or (self._pinned and key not in self.pins)

    def _introduction(self, result: Mapping[str, Any]) -> tuple[Mapping[str, Any], Judgement]:
        """The server's instructions go to the model as they are, and what it calls itself may: so both are pinned, too."""
        shown, other = dict(result), []
        text = result.get("instructions")
        if text is not None and not self._is_as_approved("server:instructions", digest_of({"instructions": text})):
            del shown["instructions"]
            other.append("instructions that are not those that were approved")
        beside = result.get("_meta")
        for holder, member in ((shown, _INFO), (dict(beside) if isinstance(beside, dict) else {}, _INFO_BESIDE)):
            info = holder.get(member)
            if info is not None and not self._is_as_approved(f"server:{_INFO}", _info_digest(info)):
                # Clients need one.
                holder[member] = {"name": self._server, "version": "0"}
                if holder is not shown:
                    shown["_meta"] = holder
                other.append("a name, title or description of itself that is not the approved one")
        if not other:
            return result, _allow(McpKind.METHOD, "instructions")
        note = f"not shown to the agent: {'; '.join(other)}"
        return shown, Judgement(Verdict.ALLOW, McpKind.METHOD, "instructions", note)

    def _asked_within(self, holder: Mapping[str, Any]) -> Judgement | None:
        """Since 2026-07-28 a server asks within a result, and the request is made again with the answers; tasks also tell it.

        Returns:
            The denial of what may not be asked; None where nothing is asked that is denied.
        """
        asks = holder.get("inputRequests")
        if asks is None:
            return None
        return self._refused_of(asks.values()) if isinstance(asks, dict) else _unreadable_asks()

    def _asked_by_error(self, error: Mapping[str, Any]) -> Judgement | None:
        """In 2025-11-25 a server can ask within an error; as `_asked_within`."""
        data = error.get("data")
        if error.get("code") != _ASKS_BY_ERROR or not isinstance(data, dict):
            return None
        asks = [one for key, one in data.items() if key.casefold() == "elicitations"]
        if not all(isinstance(one, list) for one in asks):
            return _unreadable_asks()
        return self._refused_of({"method": "elicitation/create", "params": one} for some in asks for one in some)

    def _refused_of(self, asks: Iterable[Any]) -> Judgement | None:
        for one in asks:
            method = one.get("method") if isinstance(one, dict) else None
            params = (one.get("params") or {}) if isinstance(one, dict) else {}
            if not isinstance(method, str) or not isinstance(params, dict):
                return _unreadable_asks()
            try:
                messages.refuse_look_alikes(one, {"method": "method", "params": "params"})
                messages.refuse_look_alikes(params)
            except messages.NotCanonical as bad:
                return Judgement(Verdict.DENY, McpKind.METHOD, "inputRequests", str(bad))
            judged = self.from_server(Message(Kind.REQUEST, b"", 0, method, params))
            if not judged.allowed:
                return judged
        return None


def digest_of(definition: Mapping[str, Any]) -> str:
    """Digest of everything that a model could read in a definition; `_meta` is left out, as it may hold times."""
    seen = {key: value for key, value in definition.items() if key != "_meta"}
    return hashlib.sha256(json.dumps(seen, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def refusal(id: str | int | None, judged: Judgement, call: str) -> bytes:
    """The answer to a denied request, as one line.

    Args:
        id: of the request.
        judged: the denial.
        call: what finds the call in the log; empty where it is not on record.
    """
    found = f" (mcpguard log --call {call})" if call else ""
    text = f"blocked by policy: {judged.name or judged.kind.value}: {judged.reason}{found}"
    if judged.ask:
        lines = McpguardError(
            f"blocked by policy: {judged.name} needs a person's word{found}",
            why=judged.reason,
            do=_DO_ASK,
            code="mcp.ask",
        ).lines()
        text = "\n".join(lines)
    return messages.write({"jsonrpc": "2.0", "id": id, "error": {"code": BLOCKED, "message": text}})


def _info_digest(info: object) -> str:
    """Of all that a server calls itself, but for a plain number of its version."""
    if isinstance(info, dict) and isinstance(version := info.get("version"), str) and len(version) <= 80:
        info = {**info, "version": 0} if _VERSION.fullmatch(version) else info
    return digest_of({"info": info})


def _texts(value: object) -> Iterator[str]:
    """All texts in a value, the names of members too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _noted(judged: Judgement, found: str) -> Judgement:
    return replace(judged, reason=f"{judged.reason}; {found}" if judged.reason else found)


def _unreadable(method: str, result: object) -> Judgement | None:
    """The denial of what is no listing or introduction, though it answers for one: nothing of it could be left out."""
    if method not in _LISTINGS and method not in _INTRODUCTIONS:
        return None
    member = _LISTINGS[method][0] if method in _LISTINGS else ""
    # Of nothing some servers make null.
    is_one = isinstance(result, dict) and isinstance(result.get(member), list | None)
    return None if is_one else Judgement(Verdict.DENY, McpKind.METHOD, method, "the answer is not what it should be")


def _unreadable_asks() -> Judgement:
    return Judgement(Verdict.DENY, McpKind.METHOD, "inputRequests", "what it asks for cannot be read")


def _holds_words(value: object) -> bool:
    """Whether a text in it has room for words; what the protocol says of versions and of what a server can do has none."""
    if isinstance(value, dict):
        return any(not _MEMBER.fullmatch(key) or _holds_words(one) for key, one in value.items())
    if isinstance(value, list):
        return any(map(_holds_words, value))
    return isinstance(value, str) and bool(value) and not _MEMBER.fullmatch(value)


def _is_wordless(value: Any) -> bool:
    """Whether there is nothing in it but what the protocol needs: numbers, ids, and members that it names."""
    if isinstance(value, dict):
        return all(key in _WORDLESS_MEMBERS and _is_wordless(one) for key, one in value.items())
    return not isinstance(value, str | list) or (isinstance(value, str) and bool(_ID.fullmatch(value)))


def _allow(kind: McpKind, name: str) -> Judgement:
    return Judgement(Verdict.ALLOW, kind, name)


def _answered(judged: Judgement, *, approved: bool) -> Judgement:
    """What was only denied until the user said yes, once they did."""
    return replace(judged, verdict=Verdict.ALLOW, ask=False) if judged.ask and approved else judged


def _because(rule: Rule) -> str:
    asks = rule.effect is Effect.ASK
    return rule.because or (
        f"each call needs your word: {rule.origin.text}" if asks else f"denied by {rule.origin.text}"
    )


def _asked_name(method: str, params: Mapping[str, Any]) -> str:
    """What a rule names in what a server asks: the mode of an elicitation; a model has no name in advance."""
    if method == "elicitation/create":
        mode = params.get("mode", "form")
        return mode if isinstance(mode, str) and mode else "?"
    return "createMessage"
