"""One line of MCP to one message, so strictly that no other reader can understand another message.

Servers are written in many languages, and what one JSON reader rejects another takes in its own way: the last of two equal
keys, `Name` for `name`, a carriage return for the end of a line. A message that two readers could understand in two ways is
refused; the others are forwarded as they came.
"""

from __future__ import annotations

import contextlib
import enum
import json
import re
from collections.abc import Mapping, Sequence

from mcpguard.model.values import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_LONGEST_ID = 1024
_DEEPEST = 64
_LARGEST_ID = (1 << 53) - 1
# Names that the protocol gives a meaning, by what a reader that does not care for case would take for them.
_KNOWN = {name.casefold(): name for name in ("jsonrpc", "id", "method", "params", "result", "error")}
_KNOWN_INSIDE = {
    name.casefold(): name
    for name in (
        *("name", "arguments", "uri", "_meta", "ref", "task", "mode"),
        *("inputRequests", "inputResponses", "requestState"),
    )
}
_KNOWN_IN_RESULTS = {
    name.casefold(): name
    for name in ("tools", "resources", "resourceTemplates", "prompts", "instructions", "resultType", "inputRequests")
}
_KNOWN_IN_ERRORS = {name: name for name in ("code", "message", "data")}
# A string that does not end goes to the end of the text: were it looked for again from each of its quotes, that took hours.
_NO_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[^][{}"]+')
# Some readers end a line here; legal in a JSON text, and only inside of its strings.
_BATCH = "several messages in one (a batch)"
_LINE_ENDS = (("\u2028", "\\u2028"), ("\u2029", "\\u2029"), ("\u0085", "\\u0085"))


class NotCanonical(ValueError):
    """The bytes are no message that every reader understands alike; the text says why, in words for the log.

    Attributes:
        id: of the request, or of the one that it answers, where it could be read without doubt: somebody waits for an answer.
        answers: it is a response, so who waits is the other side.
    """

    answers = False

    def __init__(self, reason: str, id: str | int | None = None) -> None:
        super().__init__(reason)
        self.id = id


class Batch(NotCanonical):
    """Several messages in one, as revision 2025-03-26 has them. `id` is that of none of them.

    Attributes:
        parts: what they are, where that could be read without doubt.
    """

    def __init__(self, reason: str, parts: Sequence[Any] = ()) -> None:
        super().__init__(reason)
        self.parts = parts


class _BadNumber(NotCanonical):
    """A number that JSON does not have; the rest can be read, to find who waits for an answer."""


class Kind(enum.StrEnum):
    """What a message is."""

    REQUEST = "request"
    RESPONSE = "response"
    NOTIFICATION = "notification"


@dataclass(frozen=True, slots=True)
class Message:
    """One JSON-RPC 2.0 message of MCP.

    Attributes:
        kind: request, response or notification.
        raw: the bytes that were judged and may be forwarded, without newline.
        id: of a request, or of the one that a response answers; None for a notification, and an error that answers none.
        method: of a request or notification; empty for a response.
        params: of a request or notification; an empty object where there are none.
        result: of a response that is no error; any JSON value.
        error: of a response that is one; an object, else None.
    """

    kind: Kind
    raw: bytes
    id: str | int | None = None
    method: str = ""
    params: Mapping[str, Any] = {}
    result: Any = None
    error: Mapping[str, Any] | None = None


def read(line: bytes) -> Message:
    """Read one message.

    Args:
        line: one line without its newline.

    Raises:
        NotCanonical: it is none, or another reader could take it for another one.
        Batch: it is several.
    """
    try:
        text = _text(line)
        value = _parse(text)
    except _BadNumber as refused:
        value = None
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(text, object_pairs_hook=_object)
        if isinstance(value, list):
            raise Batch(f"{_BATCH}: {refused}", value) from None
        refused.id, refused.answers = waits(value)
        raise
    except NotCanonical as refused:
        if line.lstrip().startswith(b"["):
            raise Batch(f"{_BATCH}: {refused}") from None
        raise
    if isinstance(value, list):
        raise Batch(_BATCH, value)
    if not isinstance(value, dict):
        raise NotCanonical("not an object")
    id = _id(value)
    try:
        return _message(value, id, _forwarded(line, text))
    except NotCanonical as refused:
        refused.id, refused.answers = waits(value)
        raise


def waits(value: Any) -> tuple[str | int | None, bool]:
    """Who waits for an answer to what was refused: the id, None where nobody does; and whether that is the other side, as this
    is what it waits for."""
    if not isinstance(value, dict):
        return None, False
    asks = isinstance(value.get("method"), str)
    answers = not asks and ("result" in value or "error" in value)
    return (_id(value) if asks or answers else None), answers


def write(value: Mapping[str, Any]) -> bytes:
    """A message of ours as one line, without newline."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()


def _text(line: bytes) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        raise NotCanonical("not UTF-8") from None
    if text.startswith("\ufeff"):
        raise NotCanonical("a byte order mark")
    if "\r" in text or "\n" in text:
        raise NotCanonical("a carriage return or newline inside of a message")
    return text


def _parse(text: str) -> Any:
    _measure(text)
    try:
        value = _DECODER.decode(text)
    except NotCanonical:
        raise
    except (ValueError, RecursionError) as bad:
        reason = "not JSON" if isinstance(bad, json.JSONDecodeError) else "numbers or nesting beyond what can be judged"
        raise NotCanonical(reason) from None
    if "\\" in text and "\\u" in text:
        _refuse_surrogates(value)
    return value


def _measure(text: str) -> None:
    """Refuse deep nesting before the parser meets it: each round takes the innermost pairs away."""
    if not (_holds_more(text, "[", _DEEPEST // 2) or _holds_more(text, "{", _DEEPEST // 2)):
        return
    brackets = _NO_BRACKET.sub("", text)
    for _ in range(_DEEPEST):
        if not brackets:
            return
        brackets = brackets.replace("[]", "").replace("{}", "")
    if brackets:
        raise NotCanonical("nested too deep, or brackets without partners")


def _holds_more(text: str, char: str, most: int) -> bool:
    """Whether a character stands in a text more often: to find the next one takes a tenth of the time of a count."""
    at = -1
    for _ in range(most + 1):
        at = text.find(char, at + 1)
        if at < 0:
            return False
    return True


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise NotCanonical("a key that stands twice")
    return made


def _constant(name: str) -> NoReturn:
    raise _BadNumber(f"{name} is no number of JSON")


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise _BadNumber("a number that is too large")
    return value


# Made once: to make one takes as long as to read a short message.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)


def _refuse_surrogates(value: Any) -> None:
    """Half of a surrogate pair is text in some languages, an error in others and a question mark in the rest."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise NotCanonical("half of a surrogate pair") from None


def _forwarded(line: bytes, text: str) -> bytes:
    for char, escape in _LINE_ENDS:
        if char in text:
            text = text.replace(char, escape)
            line = b""
    return line or text.encode()


def _id(value: Mapping[str, Any]) -> str | int | None:
    """The id, where it is one."""
    id = value.get("id")
    if isinstance(id, str):
        return id if len(id) <= _LONGEST_ID else None
    if isinstance(id, int) and not isinstance(id, bool):
        return id if abs(id) <= _LARGEST_ID else None
    return None


def _message(value: Mapping[str, Any], id: str | int | None, raw: bytes) -> Message:
    if value.get("jsonrpc") != "2.0":
        raise NotCanonical("not JSON-RPC 2.0")
    refuse_look_alikes(value, _KNOWN)
    if "method" not in value:
        return _response(value, id, raw)
    method, params = value["method"], value.get("params")
    params = {} if params is None else params  # null is what some clients write for none
    if not isinstance(method, str) or not method:
        raise NotCanonical("a method that is no name")
    if "result" in value or "error" in value:
        raise NotCanonical("a request and a response in one")
    if not isinstance(params, dict):
        raise NotCanonical("params that are no object")
    refuse_look_alikes(params)
    if "id" not in value:
        return Message(Kind.NOTIFICATION, raw, None, method, params)
    if id is None:
        raise NotCanonical("an id that is neither a text nor a whole number")
    return Message(Kind.REQUEST, raw, id, method, params)


def _response(value: Mapping[str, Any], id: str | int | None, raw: bytes) -> Message:
    if ("result" in value) == ("error" in value) or "params" in value:
        raise NotCanonical("neither a request nor a response")
    if "id" not in value or (id is None and (value["id"] is not None or "result" in value)):
        raise NotCanonical("a response to nothing")
    error = value.get("error")
    if "error" in value and not isinstance(error, dict):
        raise NotCanonical("an error that is no object")
    if error is not None:
        refuse_look_alikes(error, _KNOWN_IN_ERRORS)
    if isinstance(value.get("result"), dict):
        refuse_look_alikes(value["result"], _KNOWN_IN_RESULTS)
    return Message(Kind.RESPONSE, raw, id, result=value.get("result"), error=error)


def refuse_look_alikes(members: Mapping[str, Any], known: Mapping[str, str] = _KNOWN_INSIDE) -> None:
    """Some readers take `Name` or `ſ` for what the protocol calls `name`, and the last of both wins.

    Args:
        members: of an object, by default of params.
        known: what it is judged by, by its case-folded name.

    Raises:
        NotCanonical: there is one.
    """
    for key in members:
        meant = known.get(key.casefold())
        if meant is not None and meant != key:
            raise NotCanonical(f"{key[:40]!r}, which some readers take for {meant!r}")
