"""The other notations in which agents speak with a model: each request is read as a Messages one, each reply written from one.

OpenAI Responses (codex), OpenAI Chat Completions (opencode) and Gemini's generateContent (gemini-cli); streams only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Api:
    """One notation.

    Attributes:
        path: how the path of its requests ends.
        read: its request as one of the Messages API.
        events: a Messages reply as the data of its server-sent events.
    """

    path: str
    read: Callable[[Json], Json]
    events: Callable[[Json, Json], Iterator[Json]]


def _said(role: str, text: str) -> Json:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _used(identifier: str, name: str, arguments: Json) -> Json:
    return {"type": "tool_use", "id": identifier, "name": name, "input": arguments}


def _got(identifier: str, content: object, *, error: bool = False) -> Json:
    block = {"type": "tool_result", "tool_use_id": identifier, "content": content, "is_error": error}
    return {"role": "user", "content": [block]}


def _words(content: object) -> str:
    """Text that is given as such, or in parts."""
    parts = content if isinstance(content, list) else [{"text": content or ""}]
    return "\n".join(str(part.get("text", "")) for part in parts)


def _together(messages: list[Json]) -> list[Json]:
    """Calls that follow each other are one turn of the model."""
    joined: list[Json] = []
    for message in messages:
        if joined and message["role"] == joined[-1]["role"] == "assistant":
            joined[-1]["content"] += message["content"]
        else:
            joined.append(message)
    return joined


def _read_responses(request: Json) -> Json:
    messages = []
    for item in request.get("input", []):
        kind = item.get("type", "message")
        if kind == "message":
            messages.append(_said(item["role"], _words(item["content"])))
        elif kind == "function_call":
            name = "__".join(filter(None, (item.get("namespace"), item["name"])))
            call = _used(item["call_id"], name, json.loads(item["arguments"]))
            messages.append({"role": "assistant", "content": [call]})
        elif kind == "function_call_output":
            messages.append(_got(item["call_id"], item["output"]))
    return {"messages": _together(messages), "tools": request.get("tools")}


def _events_of_responses(request: Json, message: Json) -> Iterator[Json]:
    """A tool of a namespace is called by both names, with `__` between them."""
    spaces = [tool["name"] + "__" for tool in request.get("tools", []) if tool.get("type") == "namespace"]
    yield {"type": "response.created", "response": {"id": message["id"]}}
    for block in message["content"]:
        if block["type"] == "text":
            content = [{"type": "output_text", "text": block["text"]}]
            item: Json = {"type": "message", "role": "assistant", "id": message["id"], "content": content}
        else:
            space = max((one for one in spaces if block["name"].startswith(one)), key=len, default="")
            item = {"type": "function_call", "call_id": block["id"], "name": block["name"].removeprefix(space)}
            item |= {
                "arguments": json.dumps(block["input"]),
                **({"namespace": space.removesuffix("__")} if space else {}),
            }
        yield {"type": "response.output_item.done", "item": item}
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    yield {"type": "response.completed", "response": {"id": message["id"], "usage": usage}}


def _read_chat(request: Json) -> Json:
    messages = []
    for said in request.get("messages", []):
        if said["role"] == "tool":
            messages.append(_got(said["tool_call_id"], _words(said["content"])))
            continue
        message = _said(said["role"], _words(said.get("content")))
        for call in said.get("tool_calls") or ():
            function = call["function"]
            message["content"].append(_used(call["id"], function["name"], json.loads(function["arguments"])))
        messages.append(message)
    return {"messages": messages, "tools": request.get("tools")}


def _events_of_chat(request: Json, message: Json) -> Iterator[Json]:
    calls: list[Json] = []
    delta: Json = {"role": "assistant"}
    for block in message["content"]:
        if block["type"] == "text":
            delta["content"] = block["text"]
        else:
            function = {"name": block["name"], "arguments": json.dumps(block["input"])}
            calls.append({"index": len(calls), "id": block["id"], "type": "function", "function": function})
    chunk = {"id": message["id"], "object": "chat.completion.chunk", "created": 0, "model": request.get("model")}
    yield {**chunk, "choices": [{"index": 0, "delta": {**delta, **({"tool_calls": calls} if calls else {})}}]}
    reason = "tool_calls" if calls else "stop"
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    yield {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}], "usage": usage}


def _read_gemini(request: Json) -> Json:
    """Calls and answers need not bear an id; then they are in the same order."""
    messages = []
    calls = answers = 0
    for said in request.get("contents", []):
        message: Json = {"role": "assistant" if said.get("role") == "model" else "user", "content": []}
        for part in said["parts"]:
            if "functionCall" in part:
                call = part["functionCall"]
                message["content"].append(_used(call.get("id", str(calls)), call["name"], call.get("args", {})))
                calls += 1
            elif "functionResponse" in part:
                answer = part["functionResponse"]
                response = answer["response"]
                text = (
                    response["output"]
                    if isinstance(response.get("output"), str)
                    else json.dumps(response, ensure_ascii=False)
                )
                got = _got(answer.get("id", str(answers)), text, error="error" in response)
                message["content"] += got["content"]
                answers += 1
            elif "text" in part:
                message["content"].append({"type": "text", "text": part["text"]})
        messages.append(message)
    return {"messages": messages, "tools": request.get("tools")}


def _events_of_gemini(request: Json, message: Json) -> Iterator[Json]:
    parts = [
        {"text": block["text"]}
        if block["type"] == "text"
        else {"functionCall": {"id": block["id"], "name": block["name"], "args": block["input"]}}
        for block in message["content"]
    ]
    candidate = {"index": 0, "content": {"role": "model", "parts": parts}, "finishReason": "STOP"}
    usage = {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}
    yield {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "fake"}


APIS = (
    Api("/responses", _read_responses, _events_of_responses),
    Api("/chat/completions", _read_chat, _events_of_chat),
    Api(":streamGenerateContent", _read_gemini, _events_of_gemini),
)
