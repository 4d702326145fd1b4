"""`why` gives the answer that a run would give."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from events_help import ALL, make_policy

from mcpguard.model.access import Access, Effect, Verdict
from mcpguard.model.policy import PROTO_TCP, PROTO_UDP, NameEntry, Policy
from mcpguard.model.profile import SniMode
from mcpguard.model.rule import Origin
from mcpguard.session import explain as explain_module
from mcpguard.session.explain import explain

# Above the highest PID that Linux gives.
NO_PROCESS = 4_194_305


@pytest.fixture
def policy() -> Policy:
    return make_policy((Effect.ALLOW, Access.READ, "/proc"), (Effect.DENY, ALL, "/proc/keys"))


@pytest.mark.parametrize("what", ["environ", "mem", "maps", "root", "root/etc/passwd", "cwd", "fd", "fd/3", "exe"])
def test_what_a_process_outside_keeps_to_itself_is_denied_by_the_system(policy: Policy, what: str) -> None:
    for pid in (os.getppid(), 1, NO_PROCESS):
        found = explain(policy, "read", f"/proc/{pid}/{what}")
        assert found.verdict is Verdict.DENY
        assert found.rule is not None and found.rule.text == "system: no look into processes outside"
        assert found.object == f"/proc/{pid}/{what}"
        assert "outside the session" in found.detail


@pytest.mark.parametrize("path", ["/proc/self/environ", "/proc/1/status", "/proc/meminfo"])
def test_the_rest_of_proc_is_decided_by_the_profile(policy: Policy, path: str) -> None:
    found = explain(policy, "read", path)
    assert (found.verdict, found.rule, found.detail) == (Verdict.ALLOW, policy.rules[1], "")


def test_a_rule_of_the_profile_that_denies_comes_before_the_system() -> None:
    policy = make_policy((Effect.ALLOW, ALL, "/ws"))
    assert explain(policy, "read", "/proc/1/environ").rule is None


def test_a_way_that_cannot_be_read_is_judged_as_written(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> str:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.path.realpath", refuse)
    assert explain(policy, "read", "/proc/keys").verdict is Verdict.DENY


def test_a_name_server_is_judged_as_an_address_and_what_happens_to_questions_is_told(policy: Policy) -> None:
    named = replace(policy, names=(NameEntry("example.com", 443, 443, PROTO_TCP, Effect.ALLOW, 1),))
    found = explain(named, "connect", "192.0.2.53:53/udp")
    assert found.verdict is Verdict.DENY
    assert "resolver of the session's own" in found.detail
    assert "resolver" not in explain(named, "connect", "192.0.2.53:54/udp").detail


@pytest.mark.parametrize(
    ("addresses", "verdict"),
    [
        (["10.0.0.7"], Verdict.DENY),
        (["169.254.169.254", "fd00::1"], Verdict.DENY),
        (["10.0.0.7", "203.0.113.7"], Verdict.ALLOW),
        (["203.0.113.7"], Verdict.ALLOW),
        ([], Verdict.ALLOW),
    ],
)
def test_a_name_that_leads_only_inside_is_told_closed(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, addresses: list[str], verdict: Verdict
) -> None:
    monkeypatch.setattr(explain_module, "_addresses", lambda _host: addresses)
    named = replace(policy, names=(NameEntry("example.com", 443, 443, PROTO_TCP, Effect.ALLOW, 1),))
    found = explain(named, "connect", "example.com:443")
    assert found.verdict is verdict
    assert ("never opens that" in found.detail) == (verdict is Verdict.DENY)


@pytest.mark.parametrize(
    ("mode", "protocols", "target", "verdict"),
    [
        (SniMode.CHECK, 3, "example.com:443/udp", Verdict.DENY),
        (SniMode.CHECK, 3, "example.com:123/udp", Verdict.ALLOW),
        (SniMode.CHECK, PROTO_UDP, "example.com:443/udp", Verdict.ALLOW),
        (SniMode.REQUIRE, 3, "example.com:123/udp", Verdict.DENY),
        (SniMode.OFF, 3, "example.com:443/udp", Verdict.ALLOW),
        (SniMode.REQUIRE, 3, "example.com:443", Verdict.ALLOW),
    ],
)
def test_datagrams_that_hide_their_host_are_told_closed(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, mode: SniMode, protocols: int, target: str, verdict: Verdict
) -> None:
    monkeypatch.setattr(explain_module, "_addresses", lambda _host: [])
    named = replace(policy, names=(NameEntry("example.com", 0, 65535, protocols, Effect.ALLOW, 1),), sni=mode)
    found = explain(named, "connect", target)
    assert found.verdict is verdict
    assert ("QUIC" in found.detail) is (verdict is Verdict.DENY)


@pytest.mark.parametrize("target", ["127.0.0.1:80", "127.9.9.9", "[::1]:80", "::1", "localhost:80", "0.0.0.0:80"])
def test_every_address_of_this_host_carries_the_note_on_own_listeners(policy: Policy, target: str) -> None:
    assert "session itself listens" in explain(policy, "connect", target).detail


def test_an_address_elsewhere_carries_no_such_note(policy: Policy) -> None:
    assert "itself listens" not in explain(policy, "connect", "192.0.2.1:80").detail


def test_a_rule_on_a_link_to_the_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    policy = make_policy((Effect.ALLOW, ALL, f"{tmp_path}/real"))
    policy = replace(policy, rules=(policy.rules[0], Origin("test", "test.yaml", 11, f"execute {tmp_path}/link")))
    found = explain(policy, "execute", f"{tmp_path}/real/tool")
    assert (found.verdict, found.detail) == (Verdict.ALLOW, f"{tmp_path}/link is a link to {tmp_path}/real")
