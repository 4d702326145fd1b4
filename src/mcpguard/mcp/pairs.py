"""Requests that wait for their response, of one direction of one connection.

Both sides number as they like, so ids are only good within a direction: what a server asks of a client is in another table.
"""

from __future__ import annotations

from mcpguard.model.digests import blake2b
from mcpguard.model.values import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mcpguard.mcp.messages import Message

# Of one direction of one connection; 16 bytes each, however long the id.
MOST_CANCELLED = 1 << 16


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request without its response yet. What it said is let go: thousands may wait, of megabytes each.

    Attributes:
        method: its method.
        since: when it was seen, in seconds of whatever clock the caller uses.
        note: what the caller wants to know when the response comes.
    """

    method: str
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
        self._cancelled: set[bytes] = set()

    def ask(self, request: Message, since: float, note: Any = None) -> bool:
        """Note a request. False: its id waits already, or there is no room; it may not be forwarded."""
        key = (type(request.id), request.id)
        if key in self._waiting or len(self._waiting) >= self._room or _sum(key) in self._cancelled:
            return False
        self._waiting[key] = Waiting(request.method, since, note)
        return True

    def waits(self, request: Message) -> bool:
        """Whether a request with its id waits already."""
        return (type(request.id), request.id) in self._waiting

    def answer(self, response: Message) -> Waiting | None:
        """The request that a response belongs to, which then waits no more; None: nobody asked."""
        return self._waiting.pop((type(response.id), response.id), None)

    def cancel(self, id: str | int | None) -> None:
        """Nobody waits for the response to this request any more; whatever comes under its id is dropped from now on.

        The id stays taken, for what is answered late must not be judged as the answer to something else; but it
        takes no room, as long as not very many are.
        """
        key = (type(id), id)
        if key in self._waiting and len(self._cancelled) < MOST_CANCELLED:
            del self._waiting[key]
            self._cancelled.add(_sum(key))

    def late(self, response: Message) -> bool:
        """Whether it answers a request that was cancelled; its id is free then."""
        key = _sum((type(response.id), response.id))
        if key not in self._cancelled:
            return False
        self._cancelled.remove(key)
        return True

    def __len__(self) -> int:
        return len(self._waiting)


def _sum(key: tuple[type, str | int | None]) -> bytes:
    return blake2b(repr(key).encode("utf-8", "surrogatepass"), digest_size=16).digest()
