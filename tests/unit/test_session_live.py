"""Rules for a session that runs: none is said to hold that a denial wins over."""

from __future__ import annotations

from typing import Any

import pytest

from mcpguard.errors import UsageError
from mcpguard.model.plan import FilesPlan, MaskEntry, MountStep
from mcpguard.model.policy import Policy, User
from mcpguard.model.values import replace
from mcpguard.policy.compile import compile_policy, extend_policy
from mcpguard.profile.amend import Addition
from mcpguard.profile.parse import parse
from mcpguard.session.coverage import Offer
from mcpguard.session.live import Live, _insist_it_opens, rule_of

WRITTEN = """\
name: p
files:
  deny: [/srv/keys, "/srv/logs/*.key"]
network:
  deny: [10.0.0.0, 10.9.0.0/16, 10.8.0.0/17, "10.8.128.0/17:1-99", "10.8.128.0/17:100-65535", "[::1]:80", "host.a.example:80"]
sockets:
  deny: [/run/control, "/srv/agent-*", "@bus-*"]
"""


def held(section: str, key: str, value: str) -> Policy:
    """A policy that has the rule as well; raises when a denial wins over it."""
    policy = compile_policy(
        parse(WRITTEN, "p.yaml", name="p").profile,
        user=User(1, 1, (), "u", "/home/u"),
        workspace="/home/u/project",
        tmp="/tmp",
        resolve=lambda _: None,
    )
    rule = rule_of(Addition(section, key, value))
    assert rule is not None
    rule = replace(rule, origin=replace(rule.origin, line=1))
    kind = section
    extended = extend_policy(policy, **{kind: [rule]})  # type: ignore[arg-type]
    _insist_it_opens(extended, rule)
    return extended


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("sockets", "allow", "/run/control/**"),
        ("sockets", "allow", "/run/control/*"),
        ("sockets", "allow", "/run/control/s*"),
        ("sockets", "allow", "/run/control"),
        ("sockets", "allow", "/srv/agent-1*"),
        ("sockets", "allow", "@bus-*"),
        ("sockets", "allow", "@bus-1*"),
        ("sockets", "allow", "@bus-1"),
        ("sockets", "own", "/run/control/**"),
        ("files", "read", "/srv/keys/**"),
        ("files", "read", "/srv/keys/a*"),
        ("files", "write", "/srv/keys/*/new"),
        ("files", "read", "/srv/logs/a*.key"),
    ],
)
def test_a_rule_whose_every_name_is_denied_is_refused(section: str, key: str, value: str) -> None:
    with pytest.raises(UsageError, match="refuses it on purpose"):
        held(section, key, value)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("sockets", "allow", "/run/**"),
        ("sockets", "allow", "/run/con*"),
        ("sockets", "allow", "@bus*"),
        ("sockets", "allow", "@other-*"),
        ("files", "read", "/srv/**"),
        ("files", "read", "/srv/k*"),
        ("files", "read", "/srv/logs/*"),
    ],
)
def test_a_rule_that_opens_something_beside_what_is_denied_is_taken(section: str, key: str, value: str) -> None:
    assert held(section, key, value).rules[-1].text.endswith(value)


@pytest.mark.parametrize(
    "target",
    [
        "10.0.0.0",
        "10.0.0.0:443/tcp",
        "10.9.0.0/16",
        "10.9.3.0/24:80",
        "10.8.0.0/16:1-65535",
        "10.8.200.0/24:50-150",
        "10.8.0.0/15:1-65535",
        "10.8.0.0/15",
        "[::1]:80",
        "host.a.example:80",
    ],
)
def test_a_destination_that_is_denied_as_a_whole_is_refused(target: str) -> None:
    with pytest.raises(UsageError):
        held("network", "allow", target)


@pytest.mark.parametrize(
    "target",
    [
        "10.0.0.0/8",
        "10.0.0.0/31",
        "10.7.0.0/16:443",
        "localhost:80",
        "[::1]:79-80",
        "*.a.example:80",
        "host.a.example:80-81",
    ],
)
def test_a_destination_of_which_something_is_left_is_taken(target: str) -> None:
    held("network", "allow", target)


PLAN = FilesPlan(
    (),
    (
        MountStep("rw", "/", True),
        MountStep("ro", "/home/u/locked", True),
        MountStep("rw", "/home/u/locked/open", True),
        MountStep("noexec", "/home/u/data", True),
        MountStep("mask", "/home/u/keys", True, entries=(MaskEntry("open", "keep", False),)),
    ),
    wide=True,
)


@pytest.mark.parametrize(
    ("key", "value", "tier", "fixed", "why"),
    [
        ("read", "~/notes", 2, "", ""),
        ("write", "~/notes", 2, "", ""),
        ("execute", "/opt/tool", 2, "", ""),
        ("read", "~/locked/a", 2, "", ""),
        ("write", "~/locked/a", 2, "", "/home/u/locked is read-only"),
        ("write", "~/locked/open/a", 2, "", ""),
        ("execute", "~/data/tool", 2, "", "/home/u/data is without programs"),
        ("read", "~/data/tool", 2, "", ""),
        ("read", "~/keys/open", 2, "", ""),
        ("read", "~/keys/later", 2, "", "/home/u/keys is hidden"),
        ("read", "~/keys/*.pub", 2, "", "/home/u/keys is hidden"),
        ("read", "/dev/sound", 2, "", "commands to devices"),
        ("write", "/dev/shm/a", 2, "", ""),
        ("read", "/dev/sound", 1, "", ""),
        ("read", "~/notes", 2, "this kernel preempts at will", "fixed when the session begins: this kernel preempts"),
        ("read", "~/notes", 3, "Landlock cannot be widened", "in tier 3 landlock"),
    ],
)
def test_a_file_waits_where_landlock_or_a_mount_keeps_it(key: str, value: str, tier: int, fixed: str, why: str) -> None:
    policy = compile_policy(
        parse("name: p\n", "p.yaml", name="p").profile,
        user=User(1, 1, (), "u", "/home/u"),
        workspace="/home/u/project",
        tmp="/tmp",
        resolve=lambda _: None,
    )
    offer = Offer(tier, {}, "voluntary", unix_hook=True, files_fixed=fixed)
    nobody: Any = None
    plan = PLAN if tier > 1 else FilesPlan((), ())
    live = Live(policy, offer, plan, nobody, nobody, nobody, nobody, nobody)
    rule = rule_of(Addition("files", key, value))
    assert rule is not None
    said = live._not_now(rule)
    assert (why in said) if why else said == ""
