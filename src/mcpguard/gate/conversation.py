"""What one agent and one server say to each other: each message read, judged and on record before it goes on.

A message that cannot be read without doubt never goes on. Where it is plain whose request it is, its sender gets an error;
the connection goes on, for the next line is a message of its own. Only a line too long to be judged ends it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping

from mcpguard.errors import HostError, McpguardError, StoreError
from mcpguard.events.mcp import Talk, call_id, only_names
from mcpguard.events.told_errors import detail_of
from mcpguard.gate.held import ONCE, SESSION, Decided
from mcpguard.gate.ledger import Ledger
from mcpguard.gate.relay import CLIENT, SERVER
from mcpguard.mcp import messages
from mcpguard.mcp.framing import TooLong
from mcpguard.mcp.judge import Judge, Judgement, refusal
from mcpguard.mcp.masking import LOOKED_AT, beginning
from mcpguard.mcp.messages import Batch, Kind, Message, NotCanonical
from mcpguard.mcp.pairs import Pairs, Waiting
from mcpguard.mcp.policy import UNKNOWN
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event
from mcpguard.model.mcp import McpKind
from mcpguard.model.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Requests of one side that may wait for their answers.
MOST_REQUESTS = 4096
# JSON-RPC's number for what a server could not do.
FAILED = -32000
MOST_IN_BATCH = 1000
# So many requests of a refused batch are on record one by one.
_MOST_TOLD = 20
_NAMES = ("client", "server")
_NO_ANSWER = "nobody asked for this answer"
_LATE = "its request was cancelled"
_Passage = tuple[bytes | None, bytes | None]
_Later = Callable[[bytes | None, bytes | None], None]
_Hold = Callable[[Event, str, Decided], str]


class Conversation:
    """One connection.

    Attributes:
        between: who talks, in plain values.
    """

    def __init__(
        self,
        judge: Judge,
        talk: Talk,
        ledger: Ledger,
        now_ns: Callable[[], int] = time.time_ns,
        keep_pins: Callable[[], None] | None = None,
        hold: _Hold | None = None,
        drop: Callable[[str], None] = lambda _call: None,
    ) -> None:
        """
        Args:
            keep_pins: writes down what the judge has pinned; raises HostError.
            hold, drop: as `held.Held` has them; None: nobody can be asked.
        """
        ends = [one and [one.pid, one.exe] for one in (talk.client, talk.peer)]
        self.between = {"server": talk.server, "transport": talk.transport, "client": ends[0], "peer": ends[1]}
        self._hold = hold
        self._drop = drop
        # Requests that wait for a person's word: the server does not know of them, so it cannot answer them.
        self._held: dict[tuple[type, str | int | None], tuple[Message, str]] = {}
        self._judge = judge
        self._keep_pins = keep_pins
        self._talk = talk
        self._ledger = ledger
        self._now_ns = now_ns
        self._asked = (Pairs(MOST_REQUESTS), Pairs(MOST_REQUESTS))

    def take(self, side: int, line: bytes, later: _Later | None = None) -> _Passage:
        """What goes on to the other side, and what goes back; where a batch was refused what goes on may be several lines.

        Args:
            later: called once with what this would return, for a request of the client that is held: then this returns neither.
        """
        try:
            message = messages.read(line)
        except Batch as batch:
            return self._batch(side, batch)
        except NotCanonical as bad:
            return self._unreadable(side, bad)
        if message.kind is Kind.RESPONSE:
            return self._response(side, message), None
        judged = self._judge.from_client(message) if side == CLIENT else self._judge.from_server(message)
        if message.kind is Kind.NOTIFICATION:
            return self._notification(side, message, judged), None
        if judged.ask and later is not None:
            why = self._ask(message, judged, later)
            if not why:
                return None, None
            judged = replace(judged, reason=f"{judged.reason}; {why}")
        return self._request(side, message, judged, call_id())

    def end(self) -> None:
        """Whoever asked is gone: what is held is not decided any more."""
        for message, call in list(self._held.values()):
            self._give_up(message, call, "its connection has ended")

    def let_go(self, id: str | int | None) -> None:
        """Nobody waits for the answer to this request any more, if it is held."""
        if (held := self._held.get((type(id), id))) is not None:
            self._give_up(*held, "nobody waits for it any more")

    def failed(self, id: str | int | None, error: McpguardError) -> bytes | None:
        """The server did not do what it was asked, and why is for a person.

        Args:
            id: of the request; None: it was none, and is only put on record.

        Returns:
            The answer; None where nobody waits for one.
        """
        said = detail_of(error)
        waiting = self._asked[CLIENT].answer(Message(Kind.RESPONSE, b"", id))
        if waiting is None:
            self._ledger.note(self._refused(SERVER, "", said))
            return None
        lines = {"code": FAILED, "message": "\n".join(error.lines())}
        message = Message(Kind.RESPONSE, b"", id, error={**lines, "message": error.what})
        judged = Judgement(Verdict.ALLOW, McpKind.METHOD, waiting.method, said)
        self._note_answer(waiting.note, message, judged)
        return messages.write({"jsonrpc": "2.0", "id": id, "error": lines})

    def broken(self, side: int, why: str) -> None:
        """The connection ends, for what comes from there cannot be judged."""
        self._ledger.note(self._refused(side, "", f"the connection was ended: {why}"[:300]))

    def _ask(self, message: Message, judged: Judgement, later: _Later) -> str:
        """Hold a request for a person's word; why not, or nothing."""
        if self._hold is None:
            return "nobody can be asked"
        key = (type(message.id), message.id)
        if key in self._held or self._asked[CLIENT].waits(message):
            return "its id waits for an answer already"
        call = call_id()

        def decided(answer: str, words: str) -> None:
            if self._held.get(key) == (message, call):
                del self._held[key]
                later(*self._decided(message, call, answer, words))

        self._held[key] = message, call
        why = self._hold(self.event(CLIENT, message, judged, call), judged.reason, decided)
        if why:
            del self._held[key]
        return why

    def _decided(self, message: Message, call: str, answer: str, words: str) -> _Passage:
        """Judged anew: since then, what it names may have become something else."""
        if answer == SESSION and message.method == "tools/call":
            self._judge.approve(str(message.params.get("name")))
        judged = self._judge.from_client(message, approved=answer in (ONCE, SESSION))
        reason = words if judged.allowed else f"{judged.reason}; {words}"
        return self._request(CLIENT, message, replace(judged, reason=reason), call)

    def _give_up(self, message: Message, call: str, why: str) -> None:
        del self._held[type(message.id), message.id]
        self._drop(call)
        self._ledger.note(self.event(CLIENT, message, _denied(message, why), call))

    def _request(self, side: int, message: Message, judged: Judgement, call: str) -> _Passage:
        asked = _Asked(self, self._now_ns(), side, message, judged, call)
        if judged.allowed and (
            (side == CLIENT and (type(message.id), message.id) in self._held)
            or not self._asked[side].ask(message, 0.0, asked)
        ):
            judged = _denied(message, "its id waits for an answer already, or too many do")
            asked = _Asked(self, self._now_ns(), side, message, judged, call)
        try:
            self._ledger.write(asked.decision, asked.event, len(message.raw))
        except StoreError as error:
            if judged.allowed:  # else another one may wait under its id
                self._asked[side].answer(message)
            judged = _denied(message, f"it cannot be put on record ({error.why})")
            call = ""
        return (message.raw, None) if judged.allowed else (None, refusal(message.id, judged, call))

    def _notification(self, side: int, message: Message, judged: Judgement) -> bytes | None:
        self._ledger.note(self.event(side, message, judged, None))
        if message.method == "notifications/cancelled" and judged.allowed:
            cancelled = message.params.get("requestId")
            if side == CLIENT and isinstance(cancelled, str | int) and (type(cancelled), cancelled) in self._held:
                self.let_go(cancelled)
                return None
            if isinstance(cancelled, str | int):
                self._asked[side].cancel(cancelled)
        return message.raw if judged.allowed else None

    def _response(self, side: int, message: Message) -> bytes | None:
        waiting = self._asked[1 - side].answer(message)
        if waiting is None:
            late = self._asked[1 - side].late(message)
            self._ledger.note(self._refused(side, "", _LATE if late else _NO_ANSWER))
            return None
        onward, judged = message.raw, None
        if side == SERVER:
            onward, judged = self._judge.answer(waiting.method, message)
            if not self._pinned():
                judged = Judgement(
                    Verdict.DENY, McpKind.METHOD, waiting.method, "what was approved cannot be written down"
                )
        asked: _Asked = waiting.note
        self._note_answer(asked, message, judged)
        if judged is not None and not judged.allowed:
            return refusal(message.id, judged, asked.call)
        return onward

    def _pinned(self) -> bool:
        """Definitions are shown once they are written down; else another session would take others for approved ones."""
        try:
            if self._keep_pins is not None:
                self._keep_pins()
        except HostError:
            return False
        return True

    def _note_answer(self, asked: _Asked, message: Message, judged: Judgement | None) -> None:
        """Put an answer on record soon. What it said is let go at once: of megabytes that wait, others would have to be fetched
        from the kernel for the next."""
        error = None
        if message.error is not None:
            code = message.error.get("code")
            error = (code if isinstance(code, int) else None, str(message.error.get("message", ""))[:LOOKED_AT])
        elif isinstance(message.result, dict) and message.result.get("isError") is True:
            error = (None, _first_text(message.result)[:LOOKED_AT])
        result_bytes = None if message.error is not None else len(message.raw) or None
        self._ledger.note(functools.partial(self._answer, self._now_ns(), asked, result_bytes, error, judged))

    def _answer(
        self,
        now_ns: int,
        asked: _Asked,
        result_bytes: int | None,
        error: tuple[int | None, str] | None,
        judged: Judgement | None,
    ) -> Event:
        return self._talk.response(
            now_ns,
            asked.event(),
            result_bytes=result_bytes,
            error=error,
            verdict=judged.verdict if judged else Verdict.ALLOW,
            rule=judged.origin if judged else None,
            detail=(judged.reason or None) if judged else None,
        )

    def event(
        self, side: int, message: Message, judged: Judgement, call: str | None, now_ns: int | None = None
    ) -> Event:
        """A request or notification as it is on record."""
        return self._talk.request(
            self._now_ns() if now_ns is None else now_ns,
            _NAMES[side],
            message.method,
            message.params,
            id=message.id,
            call=call,
            classes=judged.classes - {UNKNOWN},
            verdict=judged.verdict,
            rule=judged.origin,
            detail=judged.reason or None,
        )

    def _unreadable(self, side: int, bad: NotCanonical) -> _Passage:
        judged = Judgement(Verdict.DENY, McpKind.METHOD, "message", str(bad))
        # The other side waits for this answer, if it asked; what came instead it never sees.
        waiting = self._asked[1 - side].answer(Message(Kind.RESPONSE, b"", bad.id)) if bad.answers else None
        if waiting is not None:
            return self._refused_answer(waiting, bad.id, judged), None
        self._ledger.note(self._refused(side, "", judged.reason))
        return None, None if bad.id is None or bad.answers else refusal(bad.id, judged, "")

    def _refused_answer(self, waiting: Waiting, id: str | int | None, judged: Judgement) -> bytes:
        """What whoever asked gets in place of an answer that is not passed on; on record it is the answer all the same."""
        asked: _Asked = waiting.note
        self._note_answer(asked, Message(Kind.RESPONSE, b"", id), judged)
        return refusal(id, judged, asked.call)

    def _batch(self, side: int, batch: Batch) -> _Passage:
        """Nothing of it goes on. Whoever waits for an answer to one of its messages, or for one that is in it, gets an error.

        Raises:
            TooLong: it is more than can be answered.
        """
        self._ledger.note(self._refused(side, "", f"{batch}: {len(batch.parts)} messages"))
        if len(batch.parts) > MOST_IN_BATCH:
            raise TooLong(f"a batch of more than {MOST_IN_BATCH} messages")
        why = f"{batch}; each has to be sent by itself"
        whole = Judgement(Verdict.DENY, McpKind.METHOD, "message", why)
        back: list[bytes] = []
        onward: list[bytes] = []
        for one in batch.parts:
            id, answers = messages.waits(one)
            if answers and (waiting := self._asked[1 - side].answer(Message(Kind.RESPONSE, b"", id))):
                onward.append(self._refused_answer(waiting, id, whole))
            elif id is not None and not answers:
                back.append(self._request_in_batch(side, one, id, why, told=len(back) < _MOST_TOLD))
        # Whoever sends several in one can read several answers in one; who is answered so was asking one by one.
        answer = b"[" + b",".join(back) + b"]" if back else None
        return b"\n".join(onward) or None, answer if back or onward else refusal(None, whole, "")

    def _request_in_batch(self, side: int, one: Mapping[str, Any], id: str | int, why: str, *, told: bool) -> bytes:
        """The answer to a request that is denied, as it came in a batch."""
        params = one.get("params")
        message = Message(Kind.REQUEST, b"", id, one["method"], params if isinstance(params, dict) else {})
        denied = _denied(message, why)
        return (self._request(side, message, denied, call_id())[1] if told else None) or refusal(id, denied, "")

    def _refused(self, side: int, method: str, why: str) -> Event:
        return self._talk.request(self._now_ns(), _NAMES[side], method, verdict=Verdict.DENY, detail=why)


class _Asked:
    """A request on its way. Its event is made when nobody waits for it.

    Attributes:
        call: its name in the log.
    """

    def __init__(
        self, conversation: Conversation, now_ns: int, side: int, message: Message, judged: Judgement, call: str
    ) -> None:
        self.call = call
        self._made: Event | None = None
        # Without its bytes, and of what is long only what comes on record: memory that waits is not there for the next message.
        params = message.params
        if len(message.raw) > LOOKED_AT:
            params = {name: beginning(one) for name, one in params.items()}
        message = Message(message.kind, b"", message.id, message.method, params)
        self._of: tuple[Conversation, int, int, Message, Judgement] | None = (
            *(conversation, now_ns, side),
            *(message, judged),
        )

    def event(self) -> Event:
        """All that is on record of it; what it was made of is let go."""
        if self._of is not None:
            conversation, now_ns, side, message, judged = self._of
            self._made, self._of = conversation.event(side, message, judged, self.call, now_ns), None
        if self._made is None:
            raise ValueError("an event that could not be made")
        return self._made

    def decision(self) -> Mapping[str, Any]:
        """What has to be on record before it goes on; see `journal`."""
        if self._of is None:
            raise ValueError("its event is made already")
        conversation, now_ns, side, message, judged = self._of
        rule = judged.origin
        return {
            **conversation.between,
            "time_ns": now_ns,
            "sender": _NAMES[side],
            "method": message.method,
            "names": only_names(message.method, message.params),
            "id": message.id,
            "call": self.call,
            "classes": [*judged.classes - {UNKNOWN}],
            "verdict": judged.verdict.value,
            "rule": rule and [rule.profile, rule.file, rule.line, rule.text],
            "detail": judged.reason,
        }


def _denied(message: Message, why: str) -> Judgement:
    return Judgement(Verdict.DENY, McpKind.METHOD, message.method, why)


def _first_text(result: dict[str, object]) -> str:
    content = result.get("content")
    for one in content if isinstance(content, list) else ():
        if isinstance(one, dict) and isinstance(one.get("text"), str):
            return str(one["text"])
    return ""
