"""Has the session's broker keep servers to less than their agent has, before they are executed."""

from __future__ import annotations

import json
import select
import socket
import time

from mcpguard.errors import HostError

_PATIENCE_S = 10.0
_MOST_BYTES = 1024


class Keeper:
    """The gate's end of the line to the broker."""

    def __init__(self, line: socket.socket | None) -> None:
        """
        Args:
            line: None: there is nobody to ask.
        """
        self._line = line
        self._asked = time.monotonic_ns()  # another gate of the session asks with other numbers

    def keep(self, held: int, rule: int) -> None:
        """Have a process of the session kept to what a rule leaves, with all that it starts from now on.

        Args:
            held: a pidfd of it.

        Raises:
            HostError: it is not.
        """
        self._asked += 1
        try:
            refused = self._ask(held, rule)
        except (OSError, ValueError, KeyError, TypeError) as error:
            refused = str(error) or type(error).__name__
        if refused:
            raise HostError(
                "the MCP server was not started, because it could not be kept to its profile",
                why=refused,
                do="try again; if it stays so, end the session and begin anew",
                code="mcp.not-kept",
            )

    def _ask(self, held: int, rule: int) -> str:
        """Why it was refused; empty when it is done."""
        if self._line is None:
            return "nothing was made ready for it when the session began"
        request = json.dumps({"number": self._asked, "kept": rule}).encode()
        socket.send_fds(self._line, [request], [held], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        until = time.monotonic() + _PATIENCE_S
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        while poll.poll(max(until - time.monotonic(), 0) * 1000):
            data = self._line.recv(_MOST_BYTES)
            if not data:
                return "the session's broker has ended"
            answer = json.loads(data)
            if answer["number"] == self._asked:  # and not one that came too late for an earlier question
                return str(answer.get("refused", ""))
        return "the session's broker did not answer"
