"""A model server that does exactly what the prompt says, so that real agents can be driven without a model.

A prompt scripts the tool calls: `<<call Bash {"command":"id"}>>` makes one turn that calls the tool, and
`<<also Read {...}>>` joins the turn before it as a parallel call. When every result is in, the answer is `DONE ` and a
JSON list of results. An obedient one (`--obedient`) also makes the calls that a tool's result asks for, at once, and puts
the result of the call before in place of `{{result}}`: a model that takes words of strangers for its user's.
Everything is worked out again from the conversation in each request: there is no state to go wrong.

Speaks the Anthropic Messages API, streaming and not, and those of `fake_apis.py`. Binds loopback only, thinks nothing up,
and never calls out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fake_apis import APIS

Json = dict[str, Any]
RESULT = "{{result}}"
DIRECTIVE = re.compile(r"<<(call|also)\s+(\S+)\s+")


@dataclass(frozen=True)
class Call:
    """One tool call that the prompt asks for."""

    tool: str
    arguments: Json


@dataclass(frozen=True)
class Answer:
    """What the model says in one turn: tool calls, or a closing text."""

    text: str = ""
    calls: Sequence[Call] = field(default_factory=tuple)


def read_script(text: str) -> list[list[Call]]:
    """The turns that a prompt scripts, each with its parallel calls; text that is not a directive is ignored."""
    turns: list[list[Call]] = []
    for match in DIRECTIVE.finditer(text):
        try:
            arguments, end = json.JSONDecoder().raw_decode(text, match.end())
        except ValueError:
            continue
        if not text[end:].lstrip().startswith(">>") or not isinstance(arguments, dict):
            continue
        call = Call(match.group(2), arguments)
        if match.group(1) == "also" and turns:
            turns[-1].append(call)
        else:
            turns.append([call])
    return turns


def blocks_of(message: Json) -> list[Json]:
    """The content of a message as a list of blocks, whichever of the two notations the client chose."""
    content = message.get("content", [])
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def text_of(content: object) -> str:
    """A tool result's content as plain text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


def answer_to(request: Json, *, obedient: bool = False) -> Answer:
    """Decide the next turn of a Messages request from nothing but the conversation in it.

    Args:
        obedient: what tools returned is obeyed, too.
    """
    messages: list[Json] = request.get("messages", [])
    scripted = [(i, turns) for i, m in enumerate(messages) if m.get("role") == "user" and (turns := script_in(m))]
    if not scripted or not request.get("tools"):
        return Answer("ok")
    start, turns = scripted[-1]
    called: dict[str, str] = {}
    results: dict[str, Json] = {}
    done, last = 0, ""
    for message in messages[start + 1 :]:
        blocks = blocks_of(message)
        uses = [block for block in blocks if block.get("type") == "tool_use"]
        done += bool(uses)
        called.update({use["id"]: use["name"] for use in uses})
        for block in blocks:
            if block.get("type") == "tool_result":
                last = text = text_of(block.get("content"))
                turns[done:done] = read_script(words_of(text)) if obedient else []
                results[block["tool_use_id"]] = {"error": bool(block.get("is_error")), "text": text}
    if done < len(turns):
        return Answer(calls=[filled_in(call, last) for call in turns[done]] if obedient else turns[done])
    return Answer("DONE " + json.dumps([{"tool": tool, **results.get(id, {})} for id, tool in called.items()]))


def words_of(result: str) -> str:
    """What a tool's result says: of JSON its texts, one below the other, as a model reads them."""
    try:
        return "\n".join(texts_of(json.loads(result)))
    except ValueError:
        return result


def texts_of(value: object) -> Iterator[str]:
    """Every text in a value of JSON, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_of(part)


def filled_in(call: Call, result: str) -> Call:
    """A call with a result put where its directive wants one."""
    given = {k: v.replace(RESULT, result) if isinstance(v, str) else v for k, v in call.arguments.items()}
    return Call(call.tool, given)


def script_in(message: Json) -> list[list[Call]]:
    """The turns scripted by one message of the user."""
    return read_script("\n".join(b["text"] for b in blocks_of(message) if b.get("type") == "text"))


def content_blocks(answer: Answer) -> list[Json]:
    """An answer in the Messages notation."""
    if answer.calls:
        return [
            {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:20]}", "name": c.tool, "input": c.arguments}
            for c in answer.calls
        ]
    return [{"type": "text", "text": answer.text}]


def whole_message(request: Json, answer: Answer) -> Json:
    """The answer as one Messages reply."""
    return {
        "id": f"msg_{uuid.uuid4().hex[:20]}",
        "type": "message",
        "role": "assistant",
        "model": request.get("model", "fake"),
        "content": content_blocks(answer),
        "stop_reason": "tool_use" if answer.calls else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }


def stream_events(message: Json) -> Iterator[Json]:
    """A Messages reply as the server-sent events that a streaming client expects."""
    yield {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}}
    for index, block in enumerate(message["content"]):
        if block["type"] == "text":
            opening: Json = {"type": "text", "text": ""}
            delta: Json = {"type": "text_delta", "text": block["text"]}
        else:
            opening = {**block, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        yield {"type": "content_block_start", "index": index, "content_block": opening}
        yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    stop = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 1}}
    yield {"type": "message_stop"}


class Handler(BaseHTTPRequestHandler):
    """Routes one request; every request is appended to the log before it is answered."""

    protocol_version = "HTTP/1.1"
    log_path: Path | None = None
    obedient = False
    log_lock = threading.Lock()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.record(body.decode(errors="replace"))
        try:
            request = json.loads(body or b"{}")
        except ValueError:
            return self.reply(400, {"type": "error", "error": {"type": "invalid_request_error", "message": "not JSON"}})
        path = self.path.partition("?")[0]
        if path.endswith("/messages/count_tokens"):
            return self.reply(200, {"input_tokens": len(body) // 4})
        if path.endswith("/messages"):
            message = whole_message(request, answer_to(request, obedient=self.obedient))
            return self.stream(stream_events(message)) if request.get("stream") else self.reply(200, message)
        for api in APIS:
            if path.endswith(api.path):
                answer = answer_to(api.read(request), obedient=self.obedient)
                return self.stream(api.events(request, whole_message(request, answer)))
        return self.not_found()

    def do_GET(self) -> None:
        self.record("")
        if self.path.partition("?")[0].endswith("/models"):
            model = {"type": "model", "id": "fake", "display_name": "fake", "created_at": "2026-01-01T00:00:00Z"}
            return self.reply(200, {"data": [model], "has_more": False, "first_id": "fake", "last_id": "fake"})
        return self.not_found()

    def do_HEAD(self) -> None:
        self.record("")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def not_found(self) -> None:
        self.reply(404, {"type": "error", "error": {"type": "not_found_error", "message": self.path}})

    def reply(self, status: int, value: Json) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, events: Iterable[Json]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for event in events:
            name = f"event: {event['type']}\n" if "type" in event else ""
            self.wfile.write(f"{name}data: {json.dumps(event)}\n\n".encode())
        self.close_connection = True

    def record(self, body: str) -> None:
        if self.log_path is None:
            return
        line = json.dumps({"method": self.command, "path": self.path, "headers": dict(self.headers), "body": body})
        with self.log_lock, self.log_path.open("a") as log:
            log.write(line + "\n")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal: it belongs to the agent."""


def serve(port: int = 0, log: Path | None = None, *, obedient: bool = False) -> ThreadingHTTPServer:
    """A bound server on loopback, not yet serving; `log` gets one JSON line for each request."""
    handler = type("LoggingHandler", (Handler,), {"log_path": log, "obedient": obedient})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    return server


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--port-file", type=Path, help="gets the port number once the server listens")
    parser.add_argument("--log", type=Path, help="gets one JSON line for each request")
    parser.add_argument("--obedient", action="store_true", help="do also what the results of tools ask for")
    options = parser.parse_args()
    server = serve(options.port, options.log, obedient=options.obedient)
    port = server.server_address[1]
    if options.port_file:
        scratch = options.port_file.with_suffix(".tmp")
        scratch.write_text(f"{port}\n")
        scratch.replace(options.port_file)
    else:
        sys.stdout.write(f"{port}\n")
        sys.stdout.flush()
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
