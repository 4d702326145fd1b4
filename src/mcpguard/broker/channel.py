"""How messages cross between the user's process and the broker: bytes, descriptors, and who is at the other end.

One stream socket; each message is a 4-byte little-endian length and a JSON object; descriptors ride on the first byte.
What the messages mean is `protocol`'s business.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_MESSAGE = 32 * 1024 * 1024
MAX_DESCRIPTORS = 64
_LENGTH = struct.Struct("<I")


class Channel:
    """One end of the conversation."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        # Several threads of the user's process have news to send.
        self._sending = threading.Lock()

    def fileno(self) -> int:
        return self.connection.fileno()

    def send(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        from mcpguard.model import plain_json as json  # not before the broker is started

        # Names of files and arguments can hold bytes that are no UTF-8; they travel as lone surrogates.
        body = json.dumps(message, separators=(",", ":")).encode()
        data = _LENGTH.pack(len(body)) + body
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        with self._sending:
            sent = self.connection.sendmsg([data], ancillary)
            self.connection.sendall(data[sent:])

    def receive(self) -> tuple[dict[str, Any], tuple[int, ...]] | None:
        """The next message with its descriptors (close-on-exec); None when the other side is gone.

        Raises:
            ValueError: what came is not a message.
        """
        from mcpguard.model import plain_json as json

        descriptors: list[int] = []
        head = self._exactly(_LENGTH.size, descriptors)
        if head is None:
            return None
        (length,) = _LENGTH.unpack(head)
        if length > MAX_MESSAGE:
            raise ValueError("message too large")
        body = self._exactly(length, descriptors)
        if body is None:
            return None
        message = json.loads(body)
        if not isinstance(message, dict):
            raise ValueError("not a message")
        return message, tuple(descriptors)

    def _exactly(self, length: int, descriptors: list[int]) -> bytes | None:
        data = bytearray()
        while len(data) < length:
            size = array.array("i").itemsize * MAX_DESCRIPTORS
            try:
                part, ancillary, _flags, _address = self.connection.recvmsg(
                    length - len(data), socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC
                )
            except ConnectionResetError:
                return None
            for level, kind, payload in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    found = array.array("i")
                    found.frombytes(payload[: len(payload) - len(payload) % found.itemsize])
                    descriptors.extend(found)
            if not part:
                for fd in descriptors:
                    os.close(fd)
                return None
            data += part
        return bytes(data)

    def close(self) -> None:
        self.connection.close()


def opened(descriptor: int) -> Channel:
    """A channel on a copy of the descriptor of a connected socket."""
    return Channel(socket.socket(fileno=os.dup(descriptor)))


def peer_uid(connection: socket.socket) -> int:
    """Who is at the other end, by the kernel's word."""
    return _peer(connection)[1]


def peer_pid(connection: socket.socket) -> int:
    """The process that made or connected the other end, by the kernel's word."""
    return _peer(connection)[0]


def _peer(connection: socket.socket) -> tuple[int, int]:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _gid = struct.unpack("iII", credentials)
    return pid, uid
