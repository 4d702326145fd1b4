"""Rules for MCP in a policy: kept with it, part of its digest, and never silently off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mcpguard.errors import HostError, ProfileError
from mcpguard.mcp.policy import load
from mcpguard.model.plan import FilesPlan
from mcpguard.model.policy import Policy
from mcpguard.profile.parse import parse
from mcpguard.session import policy_cache
from mcpguard.session.coverage import Offer, insist, of_policy
from mcpguard.session.policy import compile_for, trial

PLAIN = "name: x\nfiles: {read: [/usr]}\n"
RULES = PLAIN + "mcp:\n  allow:\n  - tool: fs/write\n    where: {path: {inside: '{workspace}'}}\n"


def policy(text: str, workspace: Path) -> Policy:
    return compile_for(parse(text, "x.yaml", name="x").profile, str(workspace))


def test_rules_are_in_the_policy_with_their_variables_and_in_its_digest(tmp_path: Path) -> None:
    held = policy(RULES, tmp_path)
    (rule,) = load(json.loads(held.mcp)).rules
    assert rule.where[0].values == (str(tmp_path),)
    assert rule.origin.place == "x.yaml:5"
    assert policy(PLAIN, tmp_path).mcp == ""
    digests = {policy(text, tmp_path).digest for text in (PLAIN, RULES, RULES.replace("fs/write", "fs/read"))}
    assert len(digests) == 3


def test_they_are_kept_with_a_policy(tmp_path: Path) -> None:
    held = policy(RULES, tmp_path)
    policy_cache.save(tmp_path, "k", held, policy_cache.Asked())
    assert policy_cache.load(tmp_path, "k") == held


def test_whose_servers_count_is_told_to_the_session_with_its_place(tmp_path: Path) -> None:
    every = load(json.loads(policy(PLAIN + "mcp:\n  gate: true\n  clients: all\n", tmp_path).mcp)).all_clients
    assert every is not None and (every.place, every.text) == ("x.yaml:5", "mcp clients all")
    assert load(json.loads(policy(PLAIN + "mcp: {gate: true, clients: agents}\n", tmp_path).mcp)).all_clients is None
    with pytest.raises(ProfileError, match=r'x.yaml:3: "some" is not what mcp.clients can be'):
        parse(PLAIN + "mcp: {gate: true, clients: some}\n", "x.yaml", name="x")


@pytest.mark.parametrize("rules", ["  allow: [fs]\n", "  clients: all\n"])
def test_a_run_that_could_not_hold_them_does_not_start(rules: str, tmp_path: Path) -> None:
    offer = Offer(3, {}, "voluntary", unix_hook=True)
    insist(of_policy(policy(PLAIN, tmp_path), FilesPlan((), ()), offer), best_effort=False)
    holds = of_policy(policy(f"{PLAIN}mcp:\n{rules}", tmp_path), FilesPlan((), ()), offer)
    with pytest.raises(HostError, match="mcp rules cannot be enforced"):
        insist(holds, best_effort=False)
    insist(holds, best_effort=True)


def test_check_finds_every_rule_that_means_nothing() -> None:
    allowed = "allow: ['/a', fs], deny: ['fs/@x'], confine: {/c: kept}, servers: [/d, fs]"
    text = f"name: x\nmcp: {{{allowed}, flow: {{untrusted: ['/b']}}}}\n"
    found = [error.what for error in trial(parse(text, "x.yaml", name="x").profile)]
    assert len(found) == 5
    assert all(what.startswith("x.yaml:2: ") for what in found)
