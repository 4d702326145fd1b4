"""What the built-in profile `mcp-read-only` leaves of MCP servers, by what is known of their tools."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from profile_tools import AGENTS

from mcpguard.mcp import classes
from mcpguard.mcp.judge import Judge, Judgement, Taint
from mcpguard.mcp.messages import read, write
from mcpguard.mcp.policy import McpPolicy, compile_rules
from mcpguard.profile.load import load

VARIABLES = {"home": "/home/u", "workspace": "/project", "tmp": "/tmp"}
FILES = sorted(Path(classes.__file__).with_name("classes").glob("*.json"))
KNOWN = {path.stem: json.loads(path.read_bytes())["tools"] for path in FILES}


@pytest.fixture(autouse=True)
def profiles(mcpguard_home: Path) -> Path:
    folder = mcpguard_home / "config/profiles"
    folder.mkdir(parents=True)
    return folder


def joined(profiles: Path, parents: Iterable[str], more: str = "") -> McpPolicy:
    """What a profile of the user's own says that extends these."""
    (profiles / "own.yaml").write_text(f"name: own\nextends: [{', '.join(parents)}]\n{more}")
    return compile_rules(load("own").mcp, VARIABLES)


def judged(policy: McpPolicy, tools: Any, name: str, **arguments: object) -> Judgement:
    params = {"name": name, "arguments": arguments}
    message = read(write({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}))
    return Judge(policy, "s", tools, {}, Taint({}), lambda path: path).from_client(message)


@pytest.mark.parametrize("agent", AGENTS)
def test_of_every_known_server_what_reads_passes_and_nothing_else(agent: str, profiles: Path) -> None:
    control = joined(profiles, [agent])
    for parents in itertools.permutations([agent, "mcp-read-only"]):
        policy = joined(profiles, parents)
        for server, tools in KNOWN.items():
            for name in tools:
                found = classes.classes_of(tools, name, {})
                assert judged(control, tools, name).allowed, (server, name)
                passes = judged(policy, tools, name).allowed
                assert passes is ("read" in found and not found & {"write", "destructive"}), (server, name)


AWS: dict[str, tuple[object, ...]] = {
    "passes": (
        "aws ec2 describe-instances --region eu-west-1",
        "aws s3 ls",
        ["aws s3api list-buckets", "aws iam get-user"],
    ),
    "changes something": (
        "aws ec2 run-instances --image-id ami-1",
        "aws s3api create-bucket --bucket b",
        ["aws s3api list-buckets", "aws s3api create-bucket --bucket b"],
    ),
    "deletes, overwrites or runs something": (
        "aws s3 rm s3://b --recursive",
        ["aws s3api list-buckets", "aws s3api delete-bucket --bucket b"],
    ),
    "hands out": (
        "aws secretsmanager get-secret-value --secret-id s",
        ["aws s3api list-buckets", "aws ssm get-parameter --name n --with-decryption"],
    ),
    "nobody described": ([], None, 5, [["aws s3 ls"]]),
}


@pytest.mark.parametrize(("says", "command"), [(says, one) for says, several in AWS.items() for one in several])
def test_of_the_aws_server_what_describes_and_lists_passes(says: str, command: object, profiles: Path) -> None:
    tools = KNOWN["aws-api"]
    assert judged(joined(profiles, ["claude-code"]), tools, "call_aws", cli_command=command).allowed
    found = judged(joined(profiles, ["claude-code", "mcp-read-only"]), tools, "call_aws", cli_command=command)
    assert found.allowed is (says == "passes"), found
    if says != "passes":
        assert says in found.reason and found.origin and found.origin.file == "builtin:mcp-read-only.yaml"


def test_a_tool_that_nobody_described_passes_once_the_user_says_that_it_reads(profiles: Path) -> None:
    parents = ["codex", "mcp-read-only"]
    found = judged(joined(profiles, parents), {}, "get_thing")
    assert not found.allowed and "nobody described" in found.reason
    said = joined(profiles, parents, "mcp: {classes: {read: ['s/get_*'], open: ['s/get_url']}}\n")
    assert judged(said, {}, "get_thing").allowed and judged(said, {}, "get_url").allowed
    assert not judged(said, {}, "set_thing").allowed


def test_it_opens_nothing(profiles: Path) -> None:
    """No server, and no profile without a word on servers, is opened by joining it."""
    alone = joined(profiles, ["default", "mcp-read-only"])
    assert alone.gate and not joined(profiles, ["default"]).gate
    assert not judged(alone, KNOWN["filesystem"], "read_file").allowed
    narrow = joined(profiles, ["default", "mcp-read-only"], "mcp: {allow: [other]}\n")
    assert not judged(narrow, KNOWN["filesystem"], "read_file").allowed
    profile = load("mcp-read-only")
    assert not (profile.files or profile.network or profile.sockets or profile.environment_keep or profile.command)


@pytest.mark.parametrize("more", ["allow: ['s/write_file']", "ask: ['s/@write']", "allow: ['*/@write']"])
def test_no_other_rule_opens_what_it_denies(more: str, profiles: Path) -> None:
    policy = joined(profiles, ["claude-code", "mcp-read-only"], f"mcp: {{{more}}}\n")
    found = judged(policy, KNOWN["filesystem"], "write_file")
    assert not found.allowed and not found.ask


def test_a_difference_that_would_be_written_into_a_file_is_a_change() -> None:
    """Older versions of the server hand the target to git as it is."""
    tools = classes.of_package("mcp-server-git")
    assert classes.classes_of(tools, "git_diff", {"target": "main"}) == {"read"}
    assert "write" in classes.classes_of(tools, "git_diff", {"target": "--output=x"})
