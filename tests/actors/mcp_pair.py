"""An MCP client and a server that speak as told.

usage: mcp_pair.py client WAY SIZES...   the client starts the server over WAY: pipes, one (a socketpair for both directions),
                                         three (one for each stream, as Bun does), http, sse
       mcp_pair.py server                answers on its standard output
The client makes one call for each size, large ones in one piece with others and small ones byte by byte. The server asks
one thing for each.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def line(**message: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"


def call(id: int, size: int) -> dict[str, Any]:
    return {"id": id, "method": "tools/call", "params": {"name": f"tool-{id}", "arguments": {"text": "x" * size}}}


def answer(message: dict[str, Any]) -> dict[str, Any]:
    text = message.get("params", {}).get("arguments", {}).get("text", "")
    return {"id": message["id"], "result": {"content": [{"type": "text", "text": text}]}}


def serve() -> None:
    for number, text in enumerate(sys.stdin.buffer):
        message = json.loads(text)
        if "method" in message and "id" in message:
            os.write(1, line(id=number, method="roots/list") + line(**answer(message)))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    events = False

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = line(**answer(message))
        if self.events:
            body = b"event: message\ndata: " + body + b"\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if self.events else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def ask_over_http(sizes: list[int], *, events: bool) -> None:
    import http.client

    Handler.events = events
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    child = os.fork()
    if child == 0:
        server.serve_forever()
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1])
    for id, size in enumerate(sizes):
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        connection.request("POST", "/mcp", line(**call(id, size)), headers)
        assert b"result" in connection.getresponse().read()
    os.kill(child, 9)


def ends(way: str) -> tuple[int, int, int, int]:
    """The server's standard input and output, and the client's ends."""
    if way == "pipes":
        (asked, asks), (answers, answered) = os.pipe(), os.pipe()
        return asked, answered, asks, answers
    client, server = socket.socketpair()
    if way == "one":
        both, mine = server.detach(), client.detach()
        return both, both, mine, mine
    back, out = socket.socketpair()
    return server.detach(), out.detach(), client.detach(), back.detach()


def ask_over_stdio(way: str, sizes: list[int]) -> None:
    stdin, stdout, asks, answers = ends(way)
    child = subprocess.Popen([sys.executable, __file__, "server"], stdin=stdin, stdout=stdout)
    for fd in {stdin, stdout}:
        os.close(fd)
    texts = [line(**call(id, size)) for id, size in enumerate(sizes)]

    def write() -> None:
        for at in range(0, len(texts), 2):
            together, alone = texts[at], texts[at + 1 : at + 2]
            for text in alone:
                if len(text) < 300:
                    for byte in text:
                        os.write(asks, bytes([byte]))
                else:
                    together = text + together
            while together:
                together = together[os.write(asks, together) :]

    writer = threading.Thread(target=write)
    writer.start()
    waiting, rest, owed = set(range(len(sizes))), b"", list[int]()
    while waiting:
        *lines, rest = (rest + os.read(answers, 1 << 20)).split(b"\n")
        for message in map(json.loads, lines):
            if "method" in message:
                owed.append(message["id"])
            else:
                waiting.remove(message["id"])
    writer.join()
    for id in owed:
        os.write(asks, line(id=id, result={"roots": []}))
    os.close(asks)
    child.wait()


if __name__ == "__main__":
    if sys.argv[1] == "server":
        serve()
    else:
        way, sizes = sys.argv[2], [int(word) for word in sys.argv[3:]]
        if way in ("http", "sse"):
            ask_over_http(sizes, events=way == "sse")
        else:
            ask_over_stdio(way, sizes)
        print("done")
