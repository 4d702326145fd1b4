"""A server of MCP that an agent's account brings: no file declares it, and nobody approved it."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from agent_run import Agent
from test_mcp_agents import KINDS, PROFILE, started

pytestmark = [pytest.mark.kernel, pytest.mark.agent, pytest.mark.timeout(300)]

# Writes down each method that it is asked for, and has one tool.
ACCOUNT = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOOL = {"name": "send", "description": "sends", "inputSchema": {"type": "object"}}
TOOL["_meta"] = {"connector_id": "c1", "connector_name": "Mail"}

class Account(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = json.loads(text) if text.startswith(b"{") else {}
        method = asked.get("method", "")
        with open(sys.argv[1], "a") as heard:
            heard.write(f"{method}\\n" if method else "")
        results = {
            "initialize": {"capabilities": {"tools": {}}, "serverInfo": {"name": "apps", "version": "1"}},
            "tools/list": {"tools": [TOOL]},
            "tools/call": {"content": [{"type": "text", "text": "SENT"}]},
        }
        result = results.get(method, {})
        if method == "initialize":
            result["protocolVersion"] = asked["params"]["protocolVersion"]
        answer = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result} if "id" in asked else {}).encode()
        told = method and "id" not in asked
        answer = b"" if told else answer
        self.send_response(202 if told else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_DELETE = do_PUT = do_POST

    def log_message(self, *words):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Account)
print(server.server_port, flush=True)
server.serve_forever()
"""


def token(claims: object) -> str:
    parts = (json.dumps(one).encode() for one in ({"alg": "RS256", "typ": "JWT"}, claims))
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (*parts, b"signature"))


def sign_in(home: Path) -> None:
    now = int(time.time())
    account = {"chatgpt_account_id": "a", "chatgpt_plan_type": "plus", "chatgpt_user_id": "u", "user_id": "u"}
    one = token({"exp": now + 86_400, "iat": now, "email": "a@b.c", "https://api.openai.com/auth": account})
    tokens = {"id_token": one, "access_token": one, "refresh_token": "r", "account_id": "a"}
    refreshed = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
    signed = {"auth_mode": "chatgpt", "OPENAI_API_KEY": None, "tokens": tokens, "last_refresh": refreshed}
    (home / ".codex/auth.json").write_text(json.dumps(signed))


@contextmanager
def account(driven: Agent, heard: Path) -> Iterator[int]:
    """Its port, in the network of the agent."""
    words = [*driven.sandbox.prefix, sys.executable, "-c", ACCOUNT, str(heard)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.terminate()


def test_codex_does_not_use_the_one_of_its_account() -> None:
    kind = KINDS["codex"]
    with started(kind) as driven:
        world, heard = driven.world, driven.world.root / "heard-account"
        with account(driven, heard) as port:
            settings = kind.declare(world, f"http://127.0.0.1:{driven.model_port}", {}, {})
            settings.write_text(f'chatgpt_base_url = "http://127.0.0.1:{port}/backend-api/"\n{settings.read_text()}')
            sign_in(world.home)
            words = kind.words("<<call mcp__codex_apps__mail__send {}>>")
            free = driven.sandbox.control(words)
            assert "SENT" in free.out and "tools/call" in heard.read_text(), free
            heard.write_text("")
            driven.sandbox.write_profile("gated", PROFILE.format(profile="codex", keep="[]"))
            options = ["-w", str(world.project)]
            for one in (driven.model_port, port):
                options += ["--net", f"127.0.0.1:{one}"]
            finished = driven.sandbox.mcpguard("run", "-p", "gated", *options, "--", *words)
            assert finished.code == 0 and "DONE" in finished.out and "SENT" not in finished.out, finished
            assert heard.read_text() == "", "it was reached"
