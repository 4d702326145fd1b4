"""The way to remote servers: HTTP on loopback for the agent, the server's own HTTP outside, each message judged in between.

An agent has a token and a loopback address; what a server wants to know of the user (keys in headers) is added here, and is
never inside of the tree. Streams are passed on as they come. Nothing is followed to another origin.

    POST /NAME       Streamable HTTP (2025-03-26 and later): one message; the answer is a message or a stream of them
    GET /NAME        what the server says on its own; for servers of 2024-11-05 the stream that everything comes by
    POST /NAME/KEY   for those servers: what goes the other way
    DELETE /NAME     the end of a session
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp import web
from multidict import CIMultiDictProxy

from mcpguard.errors import McpguardError
from mcpguard.gate.ledger import SOON_S
from mcpguard.gate.login import login_wanted, wants_login
from mcpguard.gate.remote import Remote
from mcpguard.mcp import messages
from mcpguard.mcp.event_stream import Events, EventTooLong, StreamEvent, encode
from mcpguard.mcp.framing import TooLong
from mcpguard.mcp.judge import BLOCKED
from mcpguard.mcp.messages import Kind, NotCanonical
from mcpguard.model.values import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mcpguard.gate.conversation import Conversation

CLIENT, SERVER = 0, 1
# As the reference implementation has it.
LONGEST = 4 << 20
_MOST_TALKS = 256
_MOST_QUEUED = 256
_HEADER_MISMATCH = -32020
_CONNECT_S = 30.0
_MOST_CONNECTIONS = 128
_SILENT_S = 10.0
_REST_S = 0.5
_STREAM, _JSON = "text/event-stream", "application/json"
# What goes on in each direction; everything else belongs to one connection, or would tell the server of this host.
_ONWARD = (
    "accept",
    "last-event-id",
    "mcp-session-id",
    "mcp-protocol-version",
    "mcp-method",
    "mcp-name",
)
_ONWARD_BEGINNING = "mcp-param-"
_BACK = ("mcp-session-id", "mcp-protocol-version", "retry-after", "allow")


@dataclass(slots=True)
class _Talk:
    """What has to be known of a server's session beyond one request: whom its requests were sent to."""

    conversation: Conversation
    queue: asyncio.Queue[bytes] | None = None
    endpoint: str = ""


class Web:
    """Serves the remote servers of a session.

    Args:
        listener: bound to a loopback address.
        token: what a client has to show.
        find: a server by the name in the address.
        open_: a new conversation with a server of this name, over `http` or `sse`.
        flush: writes what is to be on record soon; called every `SOON_S`, and at the end.
        turn_away: puts on record that a server was asked for that may not be used, and why not.
    """

    def __init__(
        self,
        listener: socket.socket,
        token: str,
        find: Callable[[str], Remote | None],
        open_: Callable[[str, str], Conversation],
        flush: Callable[[], None],
        turn_away: Callable[[str, str], None],
    ) -> None:
        self._listener = listener
        self._token = token.encode()
        self._find = find
        self._open = open_
        self._flush = flush
        self._turn_away = turn_away
        self._talks: dict[tuple[str, str], _Talk] = {}
        address, port = listener.getsockname()[:2]
        self._hosts = {f"{address}:{port}", f"localhost:{port}"}
        self._client: aiohttp.ClientSession | None = None
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def run(self) -> None:
        """Serve until `end`; then all that was said is on record."""
        asyncio.run(self._serve())
        self._flush()

    def end(self) -> None:
        """Have `run` come to its end; from any thread."""
        os.eventfd_write(self._stop, 1)

    async def _serve(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
        async with aiohttp.ClientSession(
            timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=True, max_field_size=1 << 15
        ) as self._client:
            app = web.Application(client_max_size=LONGEST)
            app.router.add_route("*", "/{name}", self._answer)
            app.router.add_route("*", "/{name}/{key}", self._answer)
            runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
            await runner.setup()
            if runner.server is None:
                raise RuntimeError("a runner that was set up has a server")
            ending = asyncio.Event()
            asyncio.get_running_loop().add_reader(self._stop, ending.set)
            admitting = asyncio.create_task(self._admit(runner.server))
            while not admitting.done() and not ending.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ending.wait(), SOON_S)
                self._flush()
            if not ending.is_set():
                await admitting

    async def _admit(self, server: web.Server) -> None:
        """Let so many connections in, once they have said something: anybody on this host can connect and be silent."""
        loop = asyncio.get_running_loop()
        waiting: set[asyncio.Task[None]] = set()
        self._listener.setblocking(False)
        while True:
            try:
                line, _ = await loop.sock_accept(self._listener)
            except OSError:  # no descriptor is left, or whoever came has gone
                await asyncio.sleep(_REST_S)
                continue
            if len(waiting) + len(server.connections) >= _MOST_CONNECTIONS:
                line.close()
                continue
            task = asyncio.create_task(_let_in(line, server))
            waiting.add(task)
            task.add_done_callback(waiting.discard)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if not self._is_ours(request):
            return web.Response(status=403, text="this address answers the agent of one mcpguard session only\n")
        name = request.match_info["name"]
        if twice := _twice(request.headers):
            return web.Response(status=400, text=f"{twice} stands more than once\n")
        remote = self._find(name)
        if remote is None:
            return web.Response(status=404, text="no server of this name was declared when the session began\n")
        if remote.refused:
            self._turn_away(name, remote.refused)
            return await _refused(request, remote.refused)
        try:
            if request.method == "POST":
                return await self._post(request, name, remote)
            if request.method == "GET":
                return await self._get(request, name, remote)
            if request.method == "DELETE" and not remote.old:
                return await self._delete(request, name, remote)
        except McpguardError as error:  # what was pinned of it cannot be read
            return await _refused(request, "\n".join(error.lines()))
        except TooLong as error:
            return await _refused(request, f"blocked by policy: {error}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return web.Response(status=502, text=f"the server cannot be reached: {type(error).__name__}\n")
        return web.Response(status=405, headers={"Allow": "GET, POST, DELETE"})

    def _is_ours(self, request: web.Request) -> bool:
        """A page in a browser can reach loopback, too: it has no token, says where it is from, or names another host."""
        origin = request.headers.get("Origin")
        given = request.headers.get("Authorization", "").encode("utf-8", "replace")
        return (
            request.headers.get("Host") in self._hosts
            and (origin is None or origin.removeprefix("http://") in self._hosts)
            and hmac.compare_digest(given, b"Bearer " + self._token)
        )

    # -- from the agent

    async def _post(self, request: web.Request, name: str, remote: Remote) -> web.StreamResponse:
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return _error(None, BLOCKED, f"blocked by policy: a message has more than {LONGEST} bytes", status=413)
        talk = self._talk_of(request, name, remote)
        if talk is None:
            return web.Response(status=404, text="this stream has ended\n")
        conversation = talk.conversation
        asked = None
        with contextlib.suppress(NotCanonical):
            message = messages.read(body)
            asked = message.id if message.kind is Kind.REQUEST else None
            if wrong := _mismatch(request.headers, message):
                conversation.broken(CLIENT, wrong)
                return _error(asked, _HEADER_MISMATCH, wrong, status=400)
        onward, back = await _taken(conversation, body, asked)
        if onward is not None:
            # Of answers that came in a batch each is an error of its own; the server waits for one after the other.
            *first, onward = onward.split(b"\n")
            for one in first if back is None else (*first, onward):
                await self._say(talk, remote, request, one)
        if back is not None:
            if talk.queue is None:
                return web.Response(body=back, content_type=_JSON)
            await talk.queue.put(back)
            onward = None
        if onward is None:
            return web.Response(status=202)
        url = talk.endpoint or remote.url
        # What was judged is UTF-8; in another character set the same bytes would be another message.
        headers = _onward(request.headers, remote) | {"content-type": _JSON}
        async with self._upstream("POST", url, headers, onward) as reply:
            if wants_login(reply.status, reply.headers):
                error = login_wanted(_declared(name), remote, reply.status, reply.headers)
                told = conversation.failed(asked, error)
                if told is not None and talk.queue is not None:
                    await talk.queue.put(told)
                    return web.Response(status=202)
                return _no_login(error) if told is None else web.Response(body=told, content_type=_JSON)
            if talk.queue is not None:
                return web.Response(status=reply.status if reply.status < 500 else 502)
            return await self._reply(request, reply, talk, name, remote, asked)

    async def _get(self, request: web.Request, name: str, remote: Remote) -> web.StreamResponse:
        talk = self._talk_of(request, name, remote)
        if talk is None:
            return web.Response(status=404)
        async with self._upstream("GET", remote.url, _onward(request.headers, remote), None) as reply:
            if wants_login(reply.status, reply.headers):
                error = login_wanted(_declared(name), remote, reply.status, reply.headers)
                talk.conversation.failed(None, error)
                return _no_login(error)
            if remote.old and reply.content_type == _STREAM:
                return await self._old_stream(request, reply, name, remote)
            return await self._reply(request, reply, talk, name, remote, None)

    async def _delete(self, request: web.Request, name: str, remote: Remote) -> web.StreamResponse:
        self._talks.pop((name, request.headers.get("Mcp-Session-Id", "")), None)
        async with self._upstream("DELETE", remote.url, _onward(request.headers, remote), None) as reply:
            return web.Response(status=reply.status, headers=_back(reply.headers))

    def _talk_of(self, request: web.Request, name: str, remote: Remote) -> _Talk | None:
        """The talk that a request belongs to: of its session, of its stream, or one of its own."""
        key = request.match_info.get("key")
        if key is not None or (remote.old and request.method == "POST"):
            return self._talks.get((name, "/" + (key or "")))
        session = request.headers.get("Mcp-Session-Id")
        if session is None:
            # Clients of 2026-07-28 have no sessions, and each request is answered in its own response.
            return _Talk(self._open(name, "http"))
        talk = self._talks.get((name, session))
        return talk or self._keep((name, session), _Talk(self._open(name, "http")))

    def _keep(self, key: tuple[str, str], talk: _Talk) -> _Talk:
        self._talks[key] = talk
        while len(self._talks) > _MOST_TALKS:
            del self._talks[next(iter(self._talks))]
        return talk

    # -- from the server

    async def _reply(
        self,
        request: web.Request,
        reply: aiohttp.ClientResponse,
        talk: _Talk,
        name: str,
        remote: Remote,
        asked: str | int | None,
    ) -> web.StreamResponse:
        session = reply.headers.get("Mcp-Session-Id")
        if session is not None and (name, session) not in self._talks:
            self._keep((name, session), talk)
        if reply.content_type == _STREAM:
            return await self._stream(request, reply, talk, remote)
        if 300 <= reply.status < 400:
            return _error(
                asked, BLOCKED, "blocked by policy: the server sends its clients to another place", status=502
            )
        body = await _read(reply)
        if body is None:
            return _error(asked, BLOCKED, f"blocked by policy: an answer has more than {LONGEST} bytes", status=502)
        if not body.strip() or reply.content_type != _JSON:
            # Text that is no message is nothing that an agent has to read.
            return web.Response(status=reply.status, headers=_back(reply.headers))
        onward, back = talk.conversation.take(SERVER, body.strip())
        if back is not None:
            await self._say(talk, remote, request, back)
        if onward is not None and b"\n" in onward:
            onward = next((one for one in onward.split(b"\n") if messages.read(one).id == asked), None)
        if onward is None and asked is not None:
            return _error(asked, BLOCKED, "blocked by policy: the server's answer could not be judged")
        return web.Response(status=reply.status, body=onward or b"", content_type=_JSON, headers=_back(reply.headers))

    async def _stream(
        self, request: web.Request, reply: aiohttp.ClientResponse, talk: _Talk, remote: Remote
    ) -> web.StreamResponse:
        answer = web.StreamResponse(status=reply.status, headers={**_back(reply.headers), "Cache-Control": "no-store"})
        answer.content_type = _STREAM
        await answer.prepare(request)
        async for event in _events(reply, talk.conversation):
            await self._pass(event, answer, talk, remote, request)
        return answer

    async def _pass(
        self, event: StreamEvent, answer: web.StreamResponse, talk: _Talk, remote: Remote, request: web.Request
    ) -> None:
        """One event, judged. What is no message is passed without its data: its id and its pause are of use."""
        onward: bytes | None = b""
        if event.data and event.kind in ("", "message"):
            onward, back = talk.conversation.take(SERVER, event.data)
            if back is not None:
                await self._say(talk, remote, request, back)
        if onward is not None and (onward or event.id is not None or event.retry):
            for one in onward.split(b"\n"):
                await answer.write(encode(StreamEvent(event.kind if one else "", one, event.id, event.retry)))

    async def _say(self, talk: _Talk, remote: Remote, request: web.Request, message: bytes) -> None:
        """Answer the server, for the agent: what it asked was refused."""
        headers = _onward(request.headers, remote) | {"content-type": _JSON, "accept": f"{_JSON}, {_STREAM}"}
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with self._upstream("POST", talk.endpoint or remote.url, headers, message):
                pass

    async def _old_stream(
        self, request: web.Request, reply: aiohttp.ClientResponse, name: str, remote: Remote
    ) -> web.StreamResponse:
        """The stream of 2024-11-05: its first event says where messages are to be sent; refusals come by it as well."""
        queue: asyncio.Queue[bytes] = asyncio.Queue(_MOST_QUEUED)
        talk = _Talk(self._open(name, "sse"), queue)
        key = os.urandom(12).hex()
        answer = web.StreamResponse(headers={"Cache-Control": "no-store"})
        answer.content_type = _STREAM
        await answer.prepare(request)
        refusals = asyncio.create_task(_drain(queue, answer))
        try:
            async for event in _events(reply, talk.conversation):
                if event.kind != "endpoint":
                    await self._pass(event, answer, talk, remote, request)
                elif not talk.endpoint:
                    talk.endpoint = urljoin(remote.url, event.data.decode("utf-8", "replace"))
                    if _origin(talk.endpoint) != _origin(remote.url):
                        talk.conversation.broken(SERVER, "it wants its messages sent to another place")
                        break
                    self._keep((name, "/" + key), talk)
                    await answer.write(encode(StreamEvent("endpoint", f"/{name}/{key}".encode())))
        finally:
            refusals.cancel()
            self._talks.pop((name, "/" + key), None)
        return answer

    @contextlib.asynccontextmanager
    async def _upstream(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._client is None:
            raise OSError("not begun")
        async with self._client.request(method, url, headers=headers, data=body, allow_redirects=False) as reply:
            yield reply


async def _taken(conversation: Conversation, body: bytes, asked: str | int | None) -> tuple[bytes | None, bytes | None]:
    """What becomes of a message of the agent; a request may be held until a person has answered."""
    later: asyncio.Future[tuple[bytes | None, bytes | None]] = asyncio.get_running_loop().create_future()
    onward, back = conversation.take(CLIENT, body, lambda *decided: None if later.done() else later.set_result(decided))
    if onward is None and back is None and asked is not None:
        try:
            return await later
        except asyncio.CancelledError:  # who asked has hung up
            conversation.let_go(asked)
            raise
    return onward, back


async def _let_in(line: socket.socket, server: web.Server) -> None:
    loop = asyncio.get_running_loop()
    spoke: asyncio.Future[None] = loop.create_future()
    line.setblocking(False)
    loop.add_reader(line, _say_so, spoke)
    try:
        await asyncio.wait_for(spoke, _SILENT_S)
    except TimeoutError:
        line.close()
        return
    finally:
        loop.remove_reader(line)
    try:
        await loop.connect_accepted_socket(server, line)
    except OSError:
        line.close()


def _say_so(spoke: asyncio.Future[None]) -> None:
    if not spoke.done():
        spoke.set_result(None)


async def _drain(queue: asyncio.Queue[bytes], answer: web.StreamResponse) -> None:
    while True:
        await answer.write(encode(StreamEvent("message", await queue.get())))


async def _events(reply: aiohttp.ClientResponse, conversation: Conversation) -> AsyncIterator[StreamEvent]:
    events = Events(LONGEST)
    try:
        async for chunk in reply.content.iter_any():
            for event in events.feed(chunk):
                yield event
    except EventTooLong as error:
        conversation.broken(SERVER, str(error))


async def _read(reply: aiohttp.ClientResponse) -> bytes | None:
    """The body; None: it is too long."""
    found = bytearray()
    async for chunk in reply.content.iter_any():
        found += chunk
        if len(found) > LONGEST:
            return None
    return bytes(found)


async def _refused(request: web.Request, why: str) -> web.Response:
    """A client that asks something is told in its own words; others by the status."""
    try:
        asked = messages.read(await request.read()).id
    except (NotCanonical, web.HTTPRequestEntityTooLarge):
        asked = None
    return web.Response(status=403, text=why + "\n") if asked is None else _error(asked, BLOCKED, why)


def _declared(name: str) -> str:
    """A server's name without its number in the address."""
    return name.partition("-")[2] or name


def _no_login(error: McpguardError) -> web.Response:
    """Not as 401: clients would begin a login with an address that has none."""
    return web.Response(status=403, text="\n".join(error.lines()) + "\n")


def _error(id: str | int | None, code: int, text: str, *, status: int = 200) -> web.Response:
    body = messages.write({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": text}})
    return web.Response(status=status, body=body, content_type=_JSON)


def _onward(headers: Mapping[str, str], remote: Remote) -> dict[str, str]:
    """Headers for the server: the protocol's own, and those of its configuration, which win."""
    kept = {name.lower(): value for name, value in headers.items()}
    chosen = {name: value for name, value in kept.items() if name in _ONWARD or name.startswith(_ONWARD_BEGINNING)}
    return chosen | {name.lower(): value for name, value in remote.headers.items()}


def _twice(headers: CIMultiDictProxy[str]) -> str:
    """A header that goes on and stands more than once: we would look at the first, and the server might at the last."""
    for name in headers:
        goes_on = name.lower() in _ONWARD or name.lower().startswith(_ONWARD_BEGINNING)
        if goes_on and len(headers.getall(name)) > 1:
            return name
    return ""


def _back(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() in _BACK}


def _mismatch(headers: Mapping[str, str], message: messages.Message) -> str:
    """Since 2026-07-28 headers repeat what the message says; servers may believe either, so both have to say the same."""
    method, name = headers.get("Mcp-Method"), headers.get("Mcp-Name")
    if method is not None and method != message.method:
        return "Mcp-Method is not the method of the message"
    if name is None:
        return ""
    said: Any = message.params.get("uri") if message.method.startswith("resources/") else message.params.get("name")
    return "" if _plain(name) == said else "Mcp-Name is not what the message names"


def _plain(value: str) -> str | None:
    if not (value.startswith("=?base64?") and value.endswith("?=")):
        return value
    try:
        return base64.b64decode(value[9:-2], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
