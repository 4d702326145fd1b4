"""A remote server, as far as the way to it has to know it."""

from __future__ import annotations

from collections.abc import Mapping

from mcpguard.model.values import dataclass, field


@dataclass(frozen=True, slots=True)
class Remote:
    """A server that was approved, or why it may not be used.

    Attributes:
        headers: what its configuration has the client send, variables in place of their names.
        old: it speaks HTTP+SSE of 2024-11-05.
        refused: why it may not be used, in words for the agent; empty: it may.
        client, file: what declares it, and where; empty where nobody knows.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    old: bool = False
    refused: str = ""
    client: str = ""
    file: str = ""
