"""The protocol's own library as the judge of ours: its client and server at both ends of a real gate, in both eras, and its
reader beside ours on frames that nobody would write."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from gate_help import PYTHON, SHIM, World, gate, rule
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from mcpguard.gate import ledger, serving
from mcpguard.model.access import Effect, Verdict
from mcpguard.model.mcp import McpKind

pytestmark = pytest.mark.timeout(300)

SERVER = """
import sys
sys.path[:0] = PATHS
from typing import Annotated
from mcp.server import MCPServer
from mcp.server.mcpserver.resolve import Elicit, Resolve, Sample
from mcp_types import CreateMessageResult, SamplingMessage, TextContent
from pydantic import BaseModel

class Name(BaseModel):
    name: str

def who() -> Elicit[Name]:
    return Elicit("who are you?", Name)

def thought() -> Sample:
    return Sample([SamplingMessage(role="user", content=TextContent(type="text", text="think"))], max_tokens=9)

server = MCPServer("s", instructions="be kind")

@server.tool()
def echo(text: str) -> str:
    return text

@server.tool()
def forbidden(text: str) -> str:
    return "done: " + text

@server.tool()
async def greet(name: Annotated[Name, Resolve(who)]) -> str:
    return f"hello {name.name}"

@server.tool()
async def think(said: Annotated[CreateMessageResult, Resolve(thought)]) -> str:
    return f"it said {said.content.text}"

server.run("stdio")
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for module in (ledger, serving):
        monkeypatch.setattr(module, "SOON_S", 0.005)  # each example looks at the record
    with gate(tmp_path) as made:
        yield made


async def use(words: list[str], mode: str) -> dict[str, Any]:
    """What a client gets from a server that is started by these words."""

    async def elicited(_context: Any, _params: Any) -> types.ElicitResult:
        return types.ElicitResult(action="accept", content={"name": "Ada"})

    async def sampled(_context: Any, _params: Any) -> types.CreateMessageResult:
        said = types.TextContent(type="text", text="42")
        return types.CreateMessageResult(role="assistant", content=said, model="m")

    transport = stdio_client(StdioServerParameters(command=words[0], args=words[1:]))
    found: dict[str, Any] = {}
    async with Client(
        transport, mode=mode, elicitation_callback=elicited, sampling_callback=sampled, read_timeout_seconds=60
    ) as client:
        found["era"] = client.protocol_version
        found["tools"] = sorted(tool.name for tool in (await client.list_tools()).tools)
        calls: list[tuple[str, dict[str, Any]]] = [
            ("echo", {"text": "é\u2028\u2029\u0085 \U0001f600" + "x" * 100_000}),
            ("forbidden", {"text": "a"}),
            ("greet", {}),
            ("think", {}),
            ("echo", {"text": "after"}),
        ]
        for number, (tool, arguments) in enumerate(calls):
            try:
                result = await client.call_tool(tool, arguments)
                text = "".join(getattr(one, "text", "") for one in result.content)
                found[f"{number} {tool}"] = f"error: {text}" if result.is_error else text
            except Exception as error:
                found[f"{number} {tool}"] = f"error: {error}"
    return found


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
def test_client_and_server_of_the_library_in_both_eras(mode: str, world: World, tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    paths = [path for path in sys.path if path.endswith("-packages")]
    script.write_text(SERVER.replace("PATHS", repr(paths)))
    # What the server asks of the user and of the model needs a rule of its own, in whatever way it asks.
    rules = (rule(Effect.ALLOW, "loose", "*", kind) for kind in (McpKind.SAMPLING, McpKind.ELICITATION))
    world.policy = type(world.policy)((*world.policy.rules, *rules))

    async def all_of_them() -> list[dict[str, Any]]:
        server = [PYTHON, str(script)]
        shims = [[PYTHON, "-I", "-S", SHIM, world.address, name, "--", *server] for name in ("strict", "loose")]
        return await asyncio.gather(*(use(words, mode) for words in (server, *shims)))

    direct, strict, loose = asyncio.run(all_of_them())
    assert direct["1 forbidden"] == "done: a" and direct["2 greet"] == "hello Ada" and direct["3 think"] == "it said 42"
    assert strict["era"] == direct["era"] and strict["tools"] == ["echo", "greet", "think"]
    assert strict["0 echo"] == direct["0 echo"] and strict["4 echo"] == "after"
    for refused in ("1 forbidden", "2 greet", "3 think"):
        assert strict[refused].startswith("error"), strict
    assert "blocked by policy" in strict["1 forbidden"]
    world.settle()
    mine = [one for one in world.events("request") if one.mcp.tool and one.mcp.server == "strict"]
    asked = {one.mcp.tool: one.verdict for one in mine if one.mcp.sender == "client"}
    assert asked == {"echo": Verdict.ALLOW, "forbidden": Verdict.DENY, "greet": Verdict.ALLOW, "think": Verdict.ALLOW}
    assert loose == {**direct, "tools": strict["tools"], "1 forbidden": loose["1 forbidden"]}
    assert "blocked by policy" in loose["1 forbidden"]


# --- frames ----------------------------------------------------------------------------------------------------------

_NAMES = st.sampled_from(["echo", "forbidden", "forbıdden", "Forbidden", "other"])
_TEXT = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["\ud800", "\\ud800\\udc00", "\u2028", "\u0085", "\x00", "\r", "\n", "é" * 40_000, "[" * 70]),
)
_VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=True), _TEXT, st.just(10**400), st.just(1 << 53)
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)
_NUMBERS = itertools.count(1)


@st.composite
def _objects(draw: st.DrawFn) -> bytes:
    """A message or nearly one; members in any order, some of them twice or nearly twice."""
    name, more = draw(_NAMES), draw(_VALUES)
    params = [("name", name), ("arguments", draw(st.one_of(st.just({"text": "x"}), _VALUES)))]
    if draw(st.booleans()):
        params.append(
            (draw(st.sampled_from(["name", "Name", "n\u0061me", "NAME", "_meta", "arguments"])), draw(_NAMES))
        )
    members: list[tuple[str, Any]] = [
        ("jsonrpc", "2.0"),
        ("id", draw(st.one_of(st.just(next(_NUMBERS)), st.just(f"a{next(_NUMBERS)}"), _VALUES))),
        ("method", draw(st.sampled_from(["tools/call", "tools/list", "Tools/call", "ping", "x/y", "notifications/x"]))),
        ("params", _Pairs(draw(st.permutations(params)))),
    ]
    extra = draw(st.sampled_from(["", "", "", "id", "method", "Method", "result", "jsonrpc", "x", "params"]))
    if extra:
        members.append((extra, draw(st.sampled_from([more, "tools/call", {"name": "forbidden"}]))))
    ascii = draw(st.booleans())
    text = _dump(_Pairs(draw(st.permutations(members))), ascii)
    if draw(st.integers(0, 9)) == 0:
        text = f"[{text}]"
    return text.encode("utf-8", "surrogatepass")


class _Pairs(list[tuple[str, Any]]):
    """An object whose members may stand twice."""


def _dump(value: Any, ascii: bool) -> str:
    if isinstance(value, _Pairs):
        return "{" + ",".join(f"{json.dumps(key, ensure_ascii=ascii)}:{_dump(one, ascii)}" for key, one in value) + "}"
    return json.dumps(value, ensure_ascii=ascii)


_FRAMES = st.one_of(
    _objects(),
    _objects(),
    st.binary(max_size=60),
    st.sampled_from(
        [b"", b" ", b"null", b"[]", b"{}", b'{"jsonrpc":"2.0"}', b"\xef\xbb\xbf{}", b"{" * 3000, b"[" * 70 + b"]" * 70]
    ),
)


def _pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


def _read_as_the_library_does(data: bytes) -> list[Any]:
    found = []
    for line in io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="replace"):
        try:
            found.append(types.jsonrpc_message_adapter.validate_json(line, by_name=False))
        except ValueError:
            found.append(None)
    return found


class Line:
    """One server that only writes down what it hears, and the client's end of it."""

    def __init__(self, world: World, folder: Path) -> None:
        script, self._heard = folder / "mirror.py", folder / "heard"
        script.write_text(
            "import os, sys\nout = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
            "while data := os.read(0, 1 << 18): os.write(out, data)"
        )
        self._heard.touch()
        self.process = world.start("m", [PYTHON, str(script), str(self._heard)], stderr=subprocess.DEVNULL)
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self._at = 0

    def send(self, pieces: list[bytes]) -> bytes:
        """What arrived of these pieces; returns when all of them were judged."""
        assert self.process.stdin is not None and self.process.stdout is not None
        for piece in pieces:
            self.process.stdin.write(piece)
            self.process.stdin.flush()
            self.process.stdout.read()  # refusals: nobody is held up by them
        number = next(_NUMBERS)
        self.process.stdin.write(b'\n{"jsonrpc":"2.0","method":"notifications/end","params":{"n":%d}}\n' % number)
        self.process.stdin.flush()
        end = b'{"jsonrpc":"2.0","method":"notifications/end","params":{"n":%d}}\n' % number

        def came() -> bytes:
            self.process.stdout.read()  # type: ignore[union-attr]
            return self._heard.read_bytes()[self._at :]

        found = _until(came, lambda data: data.endswith(end))
        self._at += len(found)
        return found.removesuffix(end)


def _until(look: Callable[[], bytes], holds: Callable[[bytes], bool]) -> bytes:
    until = time.monotonic() + 60
    while not holds(found := look()):
        assert time.monotonic() < until, found[-500:]
        time.sleep(0.001)
    return found


def test_what_the_librarys_reader_sees_is_what_was_judged(world: World, tmp_path: Path) -> None:
    line = Line(world, tmp_path)

    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(_FRAMES, max_size=6), st.lists(st.integers(0, 1 << 20), max_size=6))
    def hold(frames: list[bytes], cuts: list[int]) -> None:
        assert world.ledger is not None
        before = len(world.events())
        sent = [frame.replace(b"\n", b" ") for frame in frames]
        arrived = line.send(_pieces(b"\n".join(sent), cuts))
        seen = _read_as_the_library_does(arrived)
        assert None not in seen, "what the library cannot read went on"
        for message in seen:
            assert message.method in ("tools/call", "tools/list", "ping") or isinstance(
                message, types.JSONRPCNotification
            )
            if message.method == "tools/call":
                assert (message.params or {}).get("name") in ("echo", "other", "forbıdden", "Forbidden"), arrived
        world.settle()
        told = [one for one in world.events()[before:] if one.verdict is Verdict.ALLOW and one.op != "start"]
        judged = [(one.mcp.method, one.mcp.id, one.mcp.tool) for one in told if one.mcp.method != "notifications/end"]
        parsed = [
            (
                message.method,
                json.dumps(message.id) if isinstance(message, types.JSONRPCRequest) else None,
                (message.params or {}).get("name") if message.method == "tools/call" else None,
            )
            for message in seen
        ]
        assert parsed == judged

    try:
        hold()
    finally:
        line.process.kill()
        line.process.communicate(timeout=60)


def test_what_a_client_of_the_library_sees_of_answers_is_what_was_asked_and_shown(world: World, tmp_path: Path) -> None:
    """The server says whatever it likes; only answers to what was asked arrive, and listings without what is denied."""
    script = tmp_path / "said.py"
    said = tmp_path / "said"
    os.mkfifo(said)
    script.write_text(
        "import os, sys, threading\n"
        "threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(0, 1 << 16), b'')], daemon=True).start()\n"
        "fifo = os.open(sys.argv[1], os.O_RDWR)\nwhile data := os.read(fifo, 1 << 16): os.write(1, data)\n"
    )
    process = world.start("m", [PYTHON, str(script), str(said)], stderr=subprocess.DEVNULL)
    assert process.stdin is not None and process.stdout is not None
    out = os.open(said, os.O_RDWR)
    hidden = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in ("echo", "forbidden")]}

    @st.composite
    def answers(draw: st.DrawFn) -> bytes:
        id = draw(st.sampled_from(["ID", "ID", "OTHER", None, True, 1.0, "x"]))
        kind = draw(st.sampled_from(["result", "error", "Result", "method"]))
        value = draw(
            st.sampled_from([hidden, {**hidden, "Tools": hidden["tools"]}, {"tools": "x"}, {"code": 1, "message": "m"}])
        )
        members = draw(st.permutations([("jsonrpc", "2.0"), ("id", id), (kind, value)]))
        if draw(st.booleans()):
            members = [*members, draw(st.sampled_from([("id", "OTHER"), ("result", hidden), ("x", 1), ("error", {})]))]
        return _dump(_Pairs(members), True).encode()

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(st.one_of(answers(), st.binary(max_size=20)), max_size=4),
        st.lists(st.integers(0, 1 << 12), max_size=4),
    )
    def hold(frames: list[bytes], cuts: list[int]) -> None:
        assert process.stdin is not None and process.stdout is not None
        number = next(_NUMBERS)
        process.stdin.write(json.dumps({"jsonrpc": "2.0", "id": number, "method": "tools/list"}).encode() + b"\n")
        process.stdin.flush()
        world.settle(asked=str(number))
        end = b'{"jsonrpc":"2.0","method":"notifications/end","params":{"n":%d}}\n' % number
        lines = [frame.replace(b"\n", b" ").replace(b'"ID"', str(number).encode()) for frame in frames]
        for piece in _pieces(b"\n".join(lines) + b"\n" + end, cuts):
            os.write(out, piece)
        arrived = b""
        while not arrived.endswith(end):
            arrived += process.stdout.readline()
        seen = _read_as_the_library_does(arrived.removesuffix(end))
        said_so = [json.loads(line) for line in arrived.removesuffix(end).splitlines()]
        # An error may hold anything; the library reads no other than its own kind.
        assert all(one is not None or "error" in told for one, told in zip(seen, said_so, strict=True)), arrived
        assert [told["id"] for told in said_so] in ([], [number]), arrived
        assert not [one for one in seen if isinstance(one, types.JSONRPCResponse) and "forbidden" in str(one.result)]

    try:
        hold()
    finally:
        os.close(out)
        process.kill()
        process.communicate(timeout=60)
