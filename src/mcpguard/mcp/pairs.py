"""Requests that wait for their response, of one direction of one connection.

Both sides number as they like, so ids are only good within a direction: what a server asks of a client is in another table.
"""

from __future__ import annotations

from mcpguard.model.values import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from mcpguard.mcp.messages import Message


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request without its response yet.

    Attributes:
        method: its method.
        params: its parameters.
        since: when it was seen, in seconds of whatever clock the caller uses.
        note: what the caller wants to know when the response comes.
    """

    method: str
    params: Mapping[str, Any]
    since: float
    note: Any = None


class Pairs:
    """The requests of one direction.

    Args:
        room: how many may wait at once.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._waiting: dict[tuple[type, str | int | None], Waiting] = {}

    def ask(self, request: Message, since: float, note: Any = None) -> bool:
        """Note a request. False: its id waits already, or there is no room; it may not be forwarded."""
        key = (type(request.id), request.id)
        if key in self._waiting or len(self._waiting) >= self._room:
            return False
        self._waiting[key] = Waiting(request.method, request.params, since, note)
        return True

    def waits(self, request: Message) -> bool:
        """Whether a request with its id waits already."""
        return (type(request.id), request.id) in self._waiting

    def answer(self, response: Message) -> Waiting | None:
        """The request that a response belongs to, which then waits no more; None: nobody asked."""
        return self._waiting.pop((type(response.id), response.id), None)

    def __len__(self) -> int:
        return len(self._waiting)
