"""Listens at many addresses and tells what arrived.

`listener.py SPECS`: SPECS is a JSON list of `{"name", "family", "kind", "address"}`, where family and kind are the
numbers of the socket module and the address is `[host, port]` or a path, `@name` for an abstract one. Writes one line
`ready`, and when its standard input ends, what is still queued is taken in and one JSON object goes out: name to the
list of texts that arrived. Answers nothing, so that whatever arrives was sent by the client alone.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys

LAST_WORDS_SECONDS = 20


def bind(spec: dict[str, object]) -> socket.socket:
    server = socket.socket(int(str(spec["family"])), int(str(spec["kind"])))
    address = spec["address"]
    if isinstance(address, list):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address[0], address[1]))
    else:
        text = str(address)
        server.bind("\0" + text[1:] if text.startswith("@") else text)
    if server.type != socket.SOCK_DGRAM:
        server.listen(64)
    server.setblocking(False)
    return server


def take(server: socket.socket) -> str:
    """One arrival: a datagram, or all that a client sends before it closes."""
    if server.type == socket.SOCK_DGRAM:
        return server.recv(65536).decode(errors="replace")
    connection, _ = server.accept()
    with connection:
        connection.settimeout(LAST_WORDS_SECONDS)
        chunks = []
        try:
            while chunk := connection.recv(65536):
                chunks.append(chunk)
        except OSError:
            pass
        return b"".join(chunks).decode(errors="replace")


def main() -> int:
    arrived: dict[str, list[str]] = {}
    waiting = selectors.DefaultSelector()
    for spec in json.loads(sys.argv[1]):
        arrived[str(spec["name"])] = []
        waiting.register(bind(spec), selectors.EVENT_READ, str(spec["name"]))
    waiting.register(sys.stdin, selectors.EVENT_READ, "")
    print("ready", flush=True)
    ending = False
    while True:
        ready = [key for key, _ in waiting.select(0 if ending else None)]
        servers = [key for key in ready if isinstance(key.fileobj, socket.socket)]
        for key in servers:
            arrived[key.data].append(take(key.fileobj))  # type: ignore[arg-type]
        if len(servers) < len(ready):
            waiting.unregister(sys.stdin)
            ending = True
        elif ending and not servers:
            break
    print(json.dumps(arrived), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
