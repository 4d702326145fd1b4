"""The real AWS API server with a real agent and `mcp-read-only`: what describes and lists reaches AWS, nothing else does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from agent_run import WAIT
from harness import Finished, Json
from mcp_box import Box
from test_mcp_agents import results_of, started, written
from test_mcp_all_servers import CLAUDE
from test_mcp_runners import VARIABLES, uv_installs, with_uv
from test_mcp_servers import old_era

from mcpguard.mcp import classes

pytestmark = [pytest.mark.kernel, pytest.mark.agent, pytest.mark.timeout(600)]

NAME = "awslabs.aws-api-mcp-server"
PACKAGE = f"{NAME}==1.5.6"
AGENT = replace(CLAUDE, command=("claude", "-p", "--allowedTools", "Bash,mcp__aws", "--"))
PROFILE = """\
name: gated
extends: [claude-code, mcp-read-only]
environment:
  keep: [ANTHROPIC_BASE_URL, UV_CACHE_DIR, UV_OFFLINE, UV_PYTHON]
"""
REFERENCE = "servicereference.us-east-1.amazonaws.com"
# It answers commands with nothing but an error of its own, and writes down what it was asked for. It is the proxy as well by
# which the server gets the list without which it does not start; that is empty here.
AWS = """
import contextlib, ssl, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

heard, certificate, key = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)

class Aws(BaseHTTPRequestHandler):
    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode(errors="replace")
        told = self.headers.get("X-Amz-Target") or parse_qs(body).get("Action", [""])[0] or f"{self.command} {self.path}"
        with open(heard, "a") as file:
            file.write(told + "\\n")
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

    def do_CONNECT(self):
        self.send_response(200)
        self.end_headers()
        # What it asks somebody else trusts others.
        with contextlib.suppress(OSError), context.wrap_socket(self.connection, server_side=True) as inside:
            inside.recv(1 << 16)
            inside.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\n[]")
        self.close_connection = True

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Aws)
print(server.server_port, flush=True)
server.serve_forever()
"""
LOOK = "aws s3api list-buckets"
# What each command, or several of them in one call, asks AWS for.
READS: list[tuple[object, tuple[str, ...]]] = [
    ("aws ec2 describe-instances --filters 'Name=tag:Name,Values=a b' --region eu-west-1", ("DescribeInstances",)),
    ([LOOK, "aws iam list-users"], ("GET /", "ListUsers")),
]
CHANGES: list[tuple[object, tuple[str, ...]]] = [
    ("aws ec2 run-instances --image-id ami-12345678 --instance-type t3.micro --count 1", ("RunInstances",)),
    ("aws s3api create-bucket --bucket made-by-an-agent", ("PUT /made-by-an-agent",)),
    ("aws ec2 terminate-instances --instance-ids i-12345678", ("TerminateInstances",)),
    ("aws --query list ec2 terminate-instances --instance-ids i-12345678", ("TerminateInstances",)),
    ([LOOK, "aws s3api delete-bucket --bucket somebodys"], ("GET /", "DELETE /somebodys")),
    ("aws secretsmanager get-secret-value --secret-id key", ("secretsmanager.GetSecretValue",)),
    ("aws lambda get-function --function-name f", ("GET /2015-03-31/functions/f",)),
    ("aws ec2 get-console-screenshot --instance-id i-12345678 --wake", ("GetConsoleScreenshot",)),
]
ALL = [*READS, *CHANGES]


@contextmanager
def aws(prefix: Sequence[str], folder: Path) -> Iterator[int]:
    """AWS, as far as these commands ask it, by its port on loopback; its files are in a folder."""
    (folder / "heard").touch()
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=aws"]
    made += [
        "-addext",
        f"subjectAltName=DNS:{REFERENCE}",
        "-keyout",
        str(folder / "key"),
        "-out",
        str(folder / "ca.pem"),
    ]
    subprocess.run(made, check=True, capture_output=True)
    command = [*prefix, sys.executable, "-c", AWS, *(str(folder / name) for name in ("heard", "ca.pem", "key"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.terminate()


@dataclass
class Story:
    """One world with the server, and what its agent did with it without mcpguard and with it.

    Attributes:
        box: of the world.
        variables: that the server has.
        python: of what uv installed.
        told: what `mcpguard mcp WORD` said.
        direct, through: what each call gave, without and with mcpguard.
        asked, passed: what AWS was asked for.
        events: calls on record.
    """

    box: Box
    variables: dict[str, str]
    python: Path
    told: dict[str, Finished]
    direct: list[str]
    through: list[str]
    asked: list[str]
    passed: list[str]
    events: list[Json]


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    with started(AGENT) as driven, aws(driven.sandbox.prefix, driven.world.tmp) as port:
        world, heard = driven.world, driven.world.tmp / "heard"
        box = Box(driven.sandbox)
        box.inside.write_profile("gated", PROFILE)
        box.inside.variables |= {**VARIABLES, "UV_OFFLINE": "1"}
        with_uv(box)
        # As docs/mcp.md says: a home of its own, and its keys as variables.
        own = world.project / ".aws-home"
        own.mkdir()
        variables = {
            "HOME": str(own),
            "XDG_DATA_HOME": str(world.home / ".local/share"),
            "FASTMCP_ENV_FILE": str(own / "none"),
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "of-nobody",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "HTTPS_PROXY": f"http://127.0.0.1:{port}",
            "REQUESTS_CA_BUNDLE": str(world.tmp / "ca.pem"),
        }
        declared = {"command": "uvx", "args": [PACKAGE], "env": variables}
        written(world.home / ".claude.json", {"mcpServers": {"aws": declared}})
        told = {"first": box.inside.mcpguard("mcp", "approve", "--yes", "aws")}
        uv_installs(box, ["uv", "tool", "install", "--link-mode", "copy", "--compile-bytecode", PACKAGE])
        told["approve"] = box.inside.mcpguard("mcp", "approve", "--yes", "aws", timeout=200)
        for words in (("show", "aws"), ("list", "--format", "json")):
            told[words[0]] = box.inside.mcpguard("mcp", *words, timeout=200)
        made = [WAIT, *(("mcp__aws__call_aws", {"cli_command": command}) for command, _ in ALL)]
        words = AGENT.words(" ".join(f"<<call {tool} {json.dumps(arguments)}>>" for tool, arguments in made))
        direct = results_of(driven.sandbox.control(words, timeout=200))
        asked = heard.read_text().splitlines()
        heard.write_text("")
        nets = [word for one in (driven.model_port, port) for word in ("--net", f"127.0.0.1:{one}")]
        finished = driven.sandbox.mcpguard(
            "run", "-p", "gated", "-w", str(world.project), *nets, "--", *words, timeout=200
        )
        assert finished.code == 0, finished
        events = [event for event in box.mcp_events() if event["mcp"].get("method") == "tools/call"]
        through = results_of(finished)
        (python,) = world.home.glob(".local/share/uv/tools/*/bin/python")
        assert len(direct) == len(through) == len(made), (direct, through)
        yield Story(
            box, variables, python, told, direct[1:], through[1:], asked, heard.read_text().splitlines(), events
        )


def test_without_mcpguard_every_command_reaches_aws(story: Story) -> None:
    assert story.asked == [one for _, asks in ALL for one in asks], story.direct


def test_what_describes_and_lists_reaches_aws_and_the_answer_is_the_servers_own(story: Story) -> None:
    assert story.passed == [one for _, asks in READS for one in asks], story.through
    number = len(READS)
    assert story.through[:number] == story.direct[:number]
    assert all("error" in one and "blocked by policy" not in one for one in story.through[:number]), story.through


def test_what_creates_deletes_and_runs_is_refused_and_found_in_the_log(story: Story) -> None:
    refused = story.through[len(READS) :]
    for (command, _), result in zip(CHANGES, refused, strict=True):
        found = re.search(r"mcpguard log --call (\S+)\)", result)
        assert found and "blocked by policy: call_aws: " in result and "mcp-read-only" in result, (command, result)
        (event,) = story.box.inside.events(None, "--call", found[1])
        assert (event["verdict"], event["op"], event["mcp"]["tool"]) == ("deny", "request", "call_aws")
        assert event["rule"]["file"] == "builtin:mcp-read-only.yaml", event
    shown = [(one["op"], one["verdict"]) for one in story.events]
    assert shown == [("request", "allow"), ("response", "allow")] * len(READS) + [("request", "deny")] * len(CHANGES)


def test_what_is_said_of_it_before_it_is_approved(story: Story) -> None:
    first, approved, shown = (story.told[word] for word in ("first", "approve", "show"))
    install = "uv tool install --reinstall --link-mode copy --compile-bytecode awslabs-aws-api-mcp-server==1.5.6"
    assert first.code == 1 and f"First: {install}" in first.err, first
    assert approved.code == 0, approved
    for told in (approved, shown):
        assert f"package      uvx {NAME} 1.5.6" in told.out and "installed    1.5.6" in told.out
        assert "extends: [claude-code, mcp-read-only] refuses what changes anything" in told.out
        assert 'mcp: {deny: ["aws/@destructive"]} refuses what deletes' in told.out
        assert "of-nobody" not in told.out and "AWS_SECRET_ACCESS_KEY=" in told.out
    (row,) = (
        json.loads(story.told["list"].out)
        if story.told["list"].out.startswith("[")
        else [json.loads(line) for line in story.told["list"].out.splitlines()]
    )
    assert (row["name"], row["state"], row["identity"]["package"]) == ("aws", "approved", f"uvx {NAME} 1.5.6")


def test_every_tool_of_it_and_every_argument_of_a_command_is_known(story: Story) -> None:
    """Another name, or another shape, of the argument that holds the command would leave its class unknown."""
    inside = story.box.inside
    variables = {**inside.world.environment(), **story.variables, "EXPERIMENTAL_AGENT_SCRIPTS": "true"}
    with subprocess.Popen(
        [*inside.prefix, str(story.python), "-m", "awslabs.aws_api_mcp_server.server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=story.variables["HOME"],
        env=variables,
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write("\n".join(old_era()) + "\n")
        server.stdin.flush()
        listed = next(line for line in server.stdout if json.loads(line).get("id") == "list")
        server.kill()
    tools = {tool["name"]: tool for tool in json.loads(listed)["result"]["tools"]}
    known = classes.of_package(NAME)
    assert set(tools) == set(known)
    assert set(tools["call_aws"]["inputSchema"]["properties"]) == {"cli_command", "max_results"}
    shape = tools["call_aws"]["inputSchema"]["properties"]["cli_command"]
    assert [one["type"] for one in shape["anyOf"]] == ["string", "array"]


# By the models that the server brings: each command that it would take, whether it writes what comes into a file here, how
# it asks AWS, and what of the answer bears the name of a secret or is an address that is signed. Those that are no operation
# of a service do something of their own.
EVERY = """
import json, re
from awscli.clidriver import create_clidriver

NAMED = re.compile("password$|passphrase$|secret$|secretkey$|secretaccesskey$|privatekey$|presharedkey$|streamkey$|authkey$"
    "|activation(code|key)$|credentials?$|authenticationmaterial$|(download|authorization)ur[il]$"
    "|(access|auth|session|security|join|device|oauth|unit|registration|billing|callback|import|export|gateway|grafana|hec)token$"
    "|(secret|id|refresh)token$|presigned|signedurl|signedconnection", re.I)
SIGNED = re.compile("pre-?signed (amazon )?(s3 )?ur[il]|ur[li] (is|is only) (valid|available) for", re.I)

def secrets(shape, inside):
    if shape is None or shape.name in inside:
        return set()
    if shape.type_name == "structure":
        found = set()
        for name, one in shape.members.items():
            signed = re.search("ur[il]|location|link", name, re.I) and SIGNED.search(one.documentation)
            if one.type_name in ("string", "blob") and (signed or NAMED.search(name)):
                found.add(name)
            found |= secrets(one, inside | {shape.name})
        return found
    inner = {"list": "member", "map": "value"}.get(shape.type_name)
    return secrets(getattr(shape, inner), inside) if inner else set()

found = []
for service, command in create_clidriver()._get_command_table().items():
    table = command._get_command_table() if hasattr(command, "_get_command_table") else command.subcommand_table
    for name, operation in table.items():
        model = getattr(operation, "_operation_model", None)
        told = model and [model.has_streaming_output, model.http.get("method"), sorted(secrets(model.output_shape, set()))]
        found.append([f"aws {service} {name}", told])
print(json.dumps(found))
"""
# Of their own, and read.
LOOKED_AT = {
    *("aws s3 ls", "aws configure list", "aws configservice get-status", "aws datapipeline list-runs"),
    *("aws emr describe-cluster", "aws history list"),
}


# Looked at, by service: what bears such a name and holds none.
NO_SECRETS = {
    # The name, the role or the place of one.
    "apigateway": {"authorizerCredentials", "credentials"},
    "appmesh": {"privateKey"},
    "codebuild": {"credential"},
    "ec2": {"SqlServerCredentials"},
    "kendra": {"Credentials"},
    "mediaconvert": {"CertificateSecret"},
    "mediapackage": {"CdnIdentifierSecret"},
    "mediapackage-vod": {"CdnIdentifierSecret"},
    # Used up by the time that somebody looks (a cluster that was connected).
    "eks": {"activationCode"},
    # Not in the answer, or in asterisks.
    "appstream": {"AccountPassword"},
    "codepipeline": {"SecretToken"},
    "datasync": {"Password"},
    "docdb": {"MasterUserPassword"},
    "elbv2": {"ClientSecret"},
    "fsx": {"DomainJoinServiceAccountSecret", "FsxAdminPassword"},
    "lightsail": {"masterUserPassword"},
    "neptune": {"MasterUserPassword"},
    "rds": {"MasterUserPassword"},
    "redshift": {"MasterUserPassword"},
    "securityhub": {"Credential", "MasterUserPassword", "PreSharedKey"},
    # Where a person goes to sign in, or looks at a logo.
    "bedrock-agentcore-control": {"authorizationUrl"},
    "iotsitewise": {"url"},
    "qbusiness": {"authorizationUrl"},
}


@pytest.fixture(scope="module")
def every(story: Story) -> list[tuple[str, list[Any] | None]]:
    """Each command of the server, as `EVERY` tells it."""
    environment = {**story.box.inside.world.environment(), "AWS_REGION": "us-east-1"}
    command = [str(story.python), "-c", EVERY]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=True)
    found: list[tuple[str, list[Any] | None]] = json.loads(done.stdout)
    assert len(found) > 15_000
    return found


def of(command: str) -> frozenset[str]:
    return classes.classes_of(classes.of_package(NAME), "call_aws", {"cli_command": f"{command} --name x"})


def test_no_command_that_counts_as_reading_writes_a_file_or_asks_for_a_change(
    every: list[tuple[str, list[Any] | None]],
) -> None:
    reads = {command: told for command, told in every if "read" in of(command)}
    assert len(reads) > 7_000
    assert {command for command, told in reads.items() if told is None} == LOOKED_AT
    assert {told[1] for told in reads.values() if told} == {"GET", "HEAD", "POST"}
    assert [command for command, told in reads.items() if told and told[0]] == []
    writes = [command for command, told in every if told and told[1] in ("PUT", "DELETE", "PATCH")]
    assert len(writes) > 2_000 and not [command for command in writes if "write" not in of(command)]


def test_no_command_that_counts_as_reading_hands_out_a_secret(every: list[tuple[str, list[Any] | None]]) -> None:
    named: dict[str, set[str]] = {}
    for command, told in every:
        if told and told[2] and "read" in of(command):
            named.setdefault(command.split()[1], set()).update(told[2])
    both = sorted({*named, *NO_SECRETS})
    assert {one: (named.get(one), NO_SECRETS.get(one)) for one in both if named.get(one) != NO_SECRETS.get(one)} == {}
    held = [command for command, told in every if told and told[2] and of(command) == {"open"}]
    assert len(held) > 140
