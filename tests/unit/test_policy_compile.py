"""Profile to policy: symlinks, our own files, numbering, digest, and the answers in Python."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.errors import PolicyError
from mcpguard.model.access import Access, Effect, Verdict
from mcpguard.model.policy import PROTO_TCP, PROTO_UDP, Policy, User
from mcpguard.model.profile import Profile, SystemSwitches
from mcpguard.model.rule import FileException, FileRule, NetDirection, NetRule, Origin, SocketRule
from mcpguard.policy.compile import OWN_REASON, compile_policy
from mcpguard.policy.decide import (
    Answer,
    decide_connect,
    decide_file,
    decide_listen,
    decide_name,
    decide_unix,
)
from mcpguard.policy.links import Links, read_link

READ, WRITE, EXECUTE = Access.READ, Access.WRITE, Access.EXECUTE
ALL = READ | WRITE | EXECUTE
USER = User(1000, 1000, (1000, 27), "u", "/home/u")


def origin(text: str) -> Origin:
    return Origin("p", "p.yaml", sum(text.encode()) % 90 + 1, text)


def read(pattern: str) -> FileRule:
    return FileRule(Effect.ALLOW, READ, pattern, origin(pattern))


def write(pattern: str) -> FileRule:
    return FileRule(Effect.ALLOW, READ | WRITE, pattern, origin(pattern))


def deny(pattern: str, *exceptions: str) -> FileRule:
    return FileRule(Effect.DENY, ALL, pattern, origin(pattern), exceptions, because="private")


def readonly(pattern: str) -> FileRule:
    return FileRule(Effect.READONLY, WRITE, pattern, origin(pattern))


def connect(target: str, effect: Effect = Effect.ALLOW) -> NetRule:
    return NetRule(effect, NetDirection.CONNECT, target, origin(target))


def listen(target: str) -> NetRule:
    return NetRule(Effect.ALLOW, NetDirection.LISTEN, target, origin(target))


def socket(pattern: str, effect: Effect = Effect.ALLOW) -> SocketRule:
    return SocketRule(effect, pattern, origin(pattern))


def compiled(
    *files: FileRule,
    network: Sequence[NetRule] = (),
    sockets: Sequence[SocketRule] = (),
    links: Mapping[str, str] | None = None,
    workspace: str = "/home/u/p",
    **more: Any,
) -> Policy:
    profile = Profile("p", "p.yaml", files=files, network=tuple(network), sockets=tuple(sockets))
    resolve: Callable[[str], str | None] = (links or {}).get
    return compile_policy(profile, user=USER, workspace=workspace, tmp="/tmp/x", resolve=resolve, **more)


def allowed(policy: Policy, path: str, access: Access = READ) -> bool:
    return decide_file(policy, path, access)[0] is Verdict.ALLOW


def test_the_default_is_rule_zero_and_refuses() -> None:
    policy = compiled()
    assert policy.rules[0].text == "no rule allows it"
    assert decide_file(policy, "/etc/passwd", READ) == (Verdict.DENY, (0,))


def test_a_denial_names_the_rule_as_it_was_written_with_its_reason() -> None:
    policy = compiled(read("~"), deny("~/.ssh", "~/.ssh/*.pub"))
    verdict, (rule,) = decide_file(policy, "/home/u/.ssh/id", READ | WRITE)
    assert verdict is Verdict.DENY
    assert policy.rules[rule].text == "~/.ssh"
    assert policy.reasons[rule] == "private"
    assert allowed(policy, "/home/u/.ssh/id.pub")


def test_a_switch_lets_a_program_map_the_ids_of_its_own_namespace_and_a_denial_still_wins() -> None:
    maps = [f"/proc/4711/{name}" for name in ("uid_map", "gid_map", "setgroups")]
    profile = Profile("p", "p.yaml", files=(read("/proc"),))
    switched = replace(profile, system=SystemSwitches(user_namespaces=True))
    closed = replace(switched, files=(deny("/proc/*/uid_map"),))

    def writable(one: Profile) -> list[bool]:
        policy = compile_policy(one, user=USER, workspace="/home/u/p", tmp="/tmp/x", resolve=lambda _: None)
        assert not allowed(policy, "/proc/4711/oom_score_adj", WRITE)
        return [allowed(policy, path, WRITE) for path in maps]

    assert writable(profile) == [False] * 3
    assert writable(switched) == [True] * 3
    assert writable(closed) == [False, True, True]


def test_a_workspace_with_glob_characters_is_taken_literally() -> None:
    policy = compiled(write("{workspace}"), workspace="/home/u/[a]*")
    assert allowed(policy, "/home/u/[a]*/f", WRITE)
    assert not allowed(policy, "/home/u/a/f", WRITE)
    assert not allowed(policy, "/home/u/[a]x/f", WRITE)


def test_a_rule_on_a_symlink_also_holds_at_the_real_place() -> None:
    policy = compiled(read("/lib/x"), deny("~/.aws/*.key"), links={"/lib": "usr/lib", "/home/u/.aws": "/data/aws"})
    assert allowed(policy, "/usr/lib/x/y")
    assert {rule.pattern for rule in policy.paths} == {"/lib/x", "/usr/lib/x", "/home/u/.aws/*.key", "/data/aws/*.key"}


def test_every_hop_and_every_parent_step_of_a_symlink_is_followed() -> None:
    links = {"/a": "b/../c", "/c/d": "/e", "/e": "f"}
    assert allowed(compiled(read("/a/d"), links=links), "/f")


def test_an_allow_does_not_follow_a_symlink_that_the_agent_could_have_planted() -> None:
    links = {"/home/u/p/data": "/home/u/secret", "/home/u/.tool": "/home/u", "/tmp/x/l": "/etc"}
    policy = compiled(
        write("{workspace}"), write("{tmp}"), write("~/.tool"), read("{workspace}/data"), read("{tmp}/l"), links=links
    )
    for path in ("/home/u/secret", "/home/u/other", "/etc/shadow"):
        assert not allowed(policy, path), path
    assert allowed(policy, "/home/u/.tool/state", WRITE)


def test_an_allow_does_not_follow_a_second_hop_that_the_agent_could_have_planted() -> None:
    links = {"/home/u/.gitconfig": "p/dotfiles/gitconfig", "/home/u/p/dotfiles/gitconfig": "/home/u/secret"}
    policy = compiled(write("{workspace}"), read("~/.gitconfig"), links=links)
    assert not allowed(policy, "/home/u/secret")


def test_a_symlink_inside_a_tree_made_writable_through_another_symlink_is_not_followed() -> None:
    links = {"/var/run": "/run", "/run/tool/l": "/etc"}
    policy = compiled(write("/var/run/tool"), read("/var/run/tool/l"), links=links)
    assert allowed(policy, "/run/tool/f", WRITE)
    assert not allowed(policy, "/etc/shadow")


def test_an_exception_does_not_follow_a_planted_symlink() -> None:
    links = {"/home/u/.ssh/config": "/home/u/p/c", "/home/u/p/c": "/home/u/.ssh/id"}
    policy = compiled(read("~"), write("{workspace}"), deny("~/.ssh", "~/.ssh/config"), links=links)
    assert not allowed(policy, "/home/u/.ssh/id")


def test_a_deny_follows_a_symlink_wherever_it_lies() -> None:
    policy = compiled(write("{workspace}"), read("/k"), deny("{workspace}/key"), links={"/home/u/p/key": "/k"})
    assert not allowed(policy, "/k")


def test_exceptions_of_a_symlinked_directory_hold_at_the_real_place() -> None:
    policy = compiled(read("/data"), deny("~/.ssh", "~/.ssh/config"), links={"/home/u/.ssh": "/data/ssh"})
    assert allowed(policy, "/data/ssh/config")
    assert not allowed(policy, "/data/ssh/id")


def test_a_symlink_that_leads_every_process_elsewhere_is_not_followed() -> None:
    links = {"/dev/fd": "/proc/self/fd", "/proc/self": "4711"}
    assert {rule.pattern for rule in compiled(read("/dev/fd"), links=links).paths} == {"/dev/fd", "/proc/self/fd"}


def test_the_links_of_a_real_file_system_are_followed_to_the_end(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "one").symlink_to("two/../two")
    (tmp_path / "two").symlink_to(tmp_path / "real")
    links = Links(read_link)
    assert links.follow(f"{tmp_path}/one/missing", lambda _: True) == f"{(tmp_path / 'real').resolve()}/missing"
    assert links.follow(f"{tmp_path}/one", lambda place: not place.endswith("/two")) is None


def test_symlinks_in_a_circle_end() -> None:
    policy = compiled(read("/a/x"), deny("/b"), links={"/a": "/b", "/b": "/a"})
    assert not allowed(policy, "/b/x")


def test_nothing_in_a_profile_lets_the_tree_write_our_own_files() -> None:
    policy = compiled(write("/"), own_paths=["/home/u/.config/mcpguard", "/opt/mg[1]"])
    for path in ("/home/u/.config/mcpguard/profiles/p.yaml", "/opt/mg[1]/x"):
        verdict, (rule,) = decide_file(policy, path, WRITE)
        assert verdict is Verdict.DENY
        assert policy.reasons[rule] == OWN_REASON
        assert allowed(policy, path, READ)


@pytest.mark.parametrize(("workspace", "links"), [("/", {}), ("/p/q", {"/p": "/", "/q": "."})])
def test_the_whole_file_system_is_no_workspace(workspace: str, links: dict[str, str]) -> None:
    with pytest.raises(PolicyError) as caught:
        compiled(workspace=workspace, links=links)
    assert caught.value.code == "policy.workspace-root"


@pytest.mark.parametrize("workspace", ["", "p", "/a/../b"])
def test_a_workspace_that_is_not_absolute_is_refused(workspace: str) -> None:
    with pytest.raises(PolicyError) as caught:
        compiled(workspace=workspace)
    assert caught.value.code == "policy.workspace"


def test_a_workspace_that_is_a_symlink_is_refused_with_the_real_place() -> None:
    with pytest.raises(PolicyError) as caught:
        compiled(workspace="/home/u/p", links={"/home/u/p": "/home/u"})
    assert caught.value.code == "policy.workspace-link"
    assert "-w /home/u" in caught.value.do


def test_a_workspace_below_a_symlink_becomes_the_real_place() -> None:
    policy = compiled(write("{workspace}"), workspace="/home/u/p", links={"/home": "/data/home"})
    assert policy.workspace == "/data/home/u/p"
    assert allowed(policy, "/data/home/u/p/f", WRITE)


def test_a_bad_pattern_is_reported_at_its_place() -> None:
    with pytest.raises(PolicyError, match=r"^p\.yaml:\d+: "):
        compiled(read("relative"))


@pytest.mark.parametrize("pattern", ["@", "@*", "@a*b", "relative"])
def test_a_bad_socket_is_reported_at_its_place(pattern: str) -> None:
    with pytest.raises(PolicyError, match=r"^p\.yaml:\d+: "):
        compiled(sockets=[socket(pattern)])


FILES = [
    read("/usr"),
    write("{workspace}"),
    deny("~/.ssh", "~/.ssh/*.pub", "~/.ssh/config"),
    deny("**/.env*"),
    readonly("{workspace}/.git"),
]
NETWORK = [connect("a.example:443"), connect("10.0.0.0/8"), connect("10.0.0.1", Effect.DENY), listen("*:80")]
SOCKETS = [socket("{workspace}/**"), socket("@bus*"), socket("/run/x", Effect.DENY)]


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False))
def test_order_and_repetition_of_rules_change_neither_digest_nor_policy(chance: random.Random) -> None:
    files, network, sockets = list(FILES) + FILES[:2], list(NETWORK) + NETWORK[1:], list(SOCKETS)
    for rules in (files, network, sockets):
        chance.shuffle(rules)
    shuffled = compiled(*files, network=network, sockets=sockets)
    assert shuffled == compiled(*FILES, network=NETWORK, sockets=SOCKETS)


def test_the_digest_is_about_what_the_policy_does_not_where_it_was_written() -> None:
    moved = [replace(rule, origin=replace(rule.origin, line=rule.origin.line + 100)) for rule in FILES]
    policy = compiled(*FILES, network=NETWORK)
    assert compiled(*moved, network=NETWORK).digest == policy.digest
    changed = [
        compiled(*FILES[1:], network=NETWORK),
        compiled(*FILES, network=NETWORK[1:]),
        compiled(*FILES, network=NETWORK, sockets=SOCKETS),
        compiled(*FILES, network=NETWORK, audit=True),
        compiled(*FILES, network=NETWORK, workspace="/home/u/q"),
        compiled(*FILES, network=NETWORK, own_paths=["/opt/x"]),
        compiled(*FILES, network=NETWORK, extra_files=[read("/opt")]),
    ]
    assert len({policy.digest, *(other.digest for other in changed)}) == len(changed) + 1


def test_rules_of_the_command_line_count_like_those_of_the_profile() -> None:
    policy = compiled(
        extra_files=[read("/opt")], extra_network=[connect("10.0.0.1:80")], extra_sockets=[socket("/run/s")]
    )
    assert allowed(policy, "/opt/x")
    assert decide_connect(policy, "10.0.0.1", 80).verdict is Verdict.ALLOW
    assert decide_unix(policy, "/run/s").verdict is Verdict.ALLOW


def test_all_asked_accesses_must_be_allowed_and_those_refused_are_named() -> None:
    policy = compiled(write("{workspace}"), readonly("{workspace}/.git"))
    verdict, rules = decide_file(policy, "/home/u/p/.git/config", READ | WRITE)
    assert (verdict, [policy.rules[rule].text for rule in rules]) == (Verdict.DENY, ["{workspace}/.git"])
    with pytest.raises(ValueError, match="no access"):
        decide_file(policy, "/x", Access.NONE)


def test_audit_lets_through_what_no_rule_allows_and_refuses_what_a_rule_denies() -> None:
    policy = compiled(deny("/k"), network=[connect("10.0.0.1", Effect.DENY)], audit=True)
    assert decide_file(policy, "/x", READ)[0] is Verdict.AUDIT
    assert decide_file(policy, "/k", READ)[0] is Verdict.DENY
    assert decide_connect(policy, "10.0.0.1", 80).verdict is Verdict.DENY
    assert decide_connect(policy, "10.0.0.2", 80) == Answer(Verdict.AUDIT, 0)


def test_an_address_is_allowed_by_range_port_and_protocol_and_deny_wins() -> None:
    policy = compiled(network=[connect("10.0.0.0/8:1-100/tcp"), connect("10.0.0.1", Effect.DENY)])
    assert decide_connect(policy, "10.9.9.9", 80).verdict is Verdict.ALLOW
    assert decide_connect(policy, "::ffff:10.9.9.9", 80).verdict is Verdict.ALLOW
    assert decide_connect(policy, "10.9.9.9", 101) == Answer(Verdict.DENY, 0)
    assert decide_connect(policy, "10.9.9.9", 80, PROTO_UDP) == Answer(Verdict.DENY, 0)
    refused = decide_connect(policy, "10.0.0.1", 80)
    assert policy.rules[refused.rule].text == "10.0.0.1"


def test_the_unspecified_address_is_judged_as_the_host_itself() -> None:
    policy = compiled(network=[connect("localhost:3000")])
    for address in ("127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "::ffff:0.0.0.0"):
        assert decide_connect(policy, address, 3000).verdict is Verdict.ALLOW, address
        assert decide_connect(policy, address, 3001).verdict is Verdict.DENY, address


def test_listening_needs_its_own_rule() -> None:
    policy = compiled(network=[connect("127.0.0.1"), listen("localhost:8000-8010")])
    assert decide_listen(policy, "127.0.0.1", 8000).verdict is Verdict.ALLOW
    assert decide_listen(policy, "127.0.0.1", 0).verdict is Verdict.DENY
    assert decide_listen(policy, "0.0.0.0", 8000).verdict is Verdict.DENY


def test_a_name_is_judged_by_its_rules_and_deny_wins() -> None:
    policy = compiled(network=[connect("*.a.example:443/tcp"), connect("bad.a.example", Effect.DENY)])
    assert decide_name(policy, "x.A.example.", 443).verdict is Verdict.ALLOW
    assert decide_name(policy, "x.a.example", 443, PROTO_UDP).verdict is Verdict.DENY
    assert decide_name(policy, "a.example", 443) == Answer(Verdict.DENY, 0)
    refused = decide_name(policy, "bad.a.example", 443)
    assert policy.rules[refused.rule].text == "bad.a.example"


def test_localhost_and_addresses_are_judged_as_addresses() -> None:
    policy = compiled(network=[connect("localhost:80"), connect("10.0.0.1:80")])
    assert decide_name(policy, "LOCALHOST", 80).verdict is Verdict.ALLOW
    assert decide_name(policy, "10.0.0.1", 80, PROTO_TCP).verdict is Verdict.ALLOW


def test_a_unix_socket_needs_a_socket_rule_whatever_the_file_rules_allow() -> None:
    policy = compiled(write("/"), sockets=[socket("{workspace}/**"), socket("{workspace}/no", Effect.DENY)])
    assert decide_unix(policy, "/home/u/p/s").verdict is Verdict.ALLOW
    assert decide_unix(policy, "/home/u/p/no/s").verdict is Verdict.DENY
    assert decide_unix(policy, "/run/docker.sock") == Answer(Verdict.DENY, 0)


def test_an_own_rule_opens_nothing_that_others_made() -> None:
    rules = [replace(socket("{workspace}/**"), own=True), socket("{workspace}/theirs")]
    policy = compiled(sockets=rules)
    mine = decide_unix(policy, "/home/u/p/s")
    assert mine.verdict is Verdict.ALLOW
    assert policy.reasons[mine.rule] == "only what the session itself made there"
    assert decide_unix(policy, "/home/u/p/s", foreign=True) == Answer(Verdict.DENY, 0)
    assert decide_unix(policy, "/home/u/p/theirs", foreign=True).verdict is Verdict.ALLOW
    assert compiled(sockets=[replace(rule, own=False) for rule in rules]).digest != policy.digest


def test_an_own_rule_names_a_path() -> None:
    with pytest.raises(PolicyError) as refused:
        compiled(sockets=[replace(socket("@mine"), own=True)])
    assert "need no rule" in refused.value.why


def test_a_file_deny_closes_a_socket_below_it() -> None:
    policy = compiled(deny("{workspace}/private"), sockets=[socket("{workspace}/**")])
    refused = decide_unix(policy, "/home/u/p/private/s")
    assert refused.verdict is Verdict.DENY
    assert policy.rules[refused.rule].text == "{workspace}/private"


def test_abstract_sockets_match_by_whole_name_or_beginning() -> None:
    policy = compiled(sockets=[socket("@one"), socket("@two*"), socket("@two-x", Effect.DENY)])
    verdicts = [decide_unix(policy, name).verdict for name in ("@one", "@one2", "@two", "@two-y", "@two-x", "@")]
    allow, refuse = Verdict.ALLOW, Verdict.DENY
    assert verdicts == [allow, refuse, allow, allow, refuse, refuse]


def test_a_socket_allow_does_not_follow_a_planted_symlink_and_a_deny_does() -> None:
    links = {"/home/u/p/s": "/run/docker.sock"}
    planted = compiled(write("{workspace}"), sockets=[socket("{workspace}/s")], links=links)
    assert decide_unix(planted, "/run/docker.sock").verdict is Verdict.DENY
    both = [socket("/run"), socket("{workspace}/s", Effect.DENY)]
    assert decide_unix(compiled(sockets=both, links=links), "/run/docker.sock").rule != 0


@pytest.mark.parametrize(
    ("pattern", "folders"),
    [
        ("~/.agent/", ("/home/u/.agent",)),
        ("{home}/.agent/", ("/home/u/.agent",)),
        ("/home/u/.agent/", ("/home/u/.agent",)),
        ("~/.config/agent/", ("/home/u/.config", "/home/u/.config/agent")),
        ("~/.local/share/a/b/", ("/home/u/.local", "/home/u/.local/share", "/home/u/.local/share/a/b")),
        ("~/.agent", ()),
        ("~/.agent*/", ()),
        ("~/", ()),
        ("/", ()),
        ("{workspace}/own/", ()),
        ("{tmp}/own/", ()),
        ("/opt/agent/", ()),
        ("/home/user2/.agent/", ()),
    ],
)
def test_a_closing_slash_after_write_names_a_folder_of_the_home(pattern: str, folders: tuple[str, ...]) -> None:
    assert compiled(write(pattern)).folders == folders


def test_a_closing_slash_elsewhere_means_nothing() -> None:
    policy = compiled(read("~/.a/"), deny("~/.b/"), readonly("~/.c/"))
    assert policy.folders == ()
    assert {path.pattern for path in policy.paths} == {"/home/u/.a", "/home/u/.b", "/home/u/.c"}


@pytest.mark.parametrize("rule", [deny("~/.agent"), readonly("~/.agent"), deny("~/.agent/state/"), readonly("/home/u")])
def test_no_folder_is_made_where_a_rule_refuses_it(rule: FileRule) -> None:
    assert "/home/u/.agent/state" not in compiled(write("~/.agent/state/"), rule).folders


def test_no_folder_is_made_in_our_own_place_or_when_the_home_is_the_workspace() -> None:
    assert compiled(write("~/.config/mcpguard/x/"), own_paths=["/home/u/.config/mcpguard"]).folders == ()
    assert compiled(write("~/.agent/"), workspace="/home/u").folders == ()


def test_folders_count_in_the_digest() -> None:
    assert compiled(write("~/.agent/")).digest != compiled(write("~/.agent")).digest


# What came with mcpguard: its denials can be excepted from, by a profile of one's own.


def shipped(rule: FileRule) -> FileRule:
    return replace(rule, origin=Origin("base", "builtin:base.yaml", rule.origin.line, rule.origin.text))


def excepting(exceptions: Sequence[str], *files: FileRule, links: Mapping[str, str] | None = None) -> Policy:
    left = tuple(FileException(path, origin(f"except {path}")) for path in exceptions)
    profile = Profile("p", "p.yaml", files=files, exceptions=left)
    own = ["/home/u/.config/mcpguard"]
    return compile_policy(
        profile, user=USER, workspace="/home/u/p", tmp="/tmp/x", resolve=(links or {}).get, own_paths=own
    )


def verdict(policy: Policy, path: str, access: Access = READ) -> Verdict:
    return decide_file(policy, path, access)[0]


def test_an_exception_takes_one_path_out_of_a_built_in_denial_and_opens_nothing_itself() -> None:
    rules = (shipped(deny("~/.ssh", "~/.ssh/config")), shipped(deny("/home/u/**/id_*")))
    assert verdict(excepting(["~/.ssh/id_ci"], *rules), "/home/u/.ssh/id_ci") is Verdict.DENY
    policy = excepting(["~/.ssh/id_ci"], *rules, read("~"))
    assert verdict(policy, "/home/u/.ssh/id_ci") is Verdict.ALLOW
    assert verdict(policy, "/home/u/.ssh/id_ci", WRITE) is Verdict.DENY
    for other in ("/home/u/.ssh", "/home/u/.ssh/id_ci2", "/home/u/.ssh/id", "/home/u/x/id_ci"):
        assert verdict(policy, other) is Verdict.DENY


def test_an_exception_takes_nothing_from_rules_of_ones_own_readonly_rules_and_our_own_files() -> None:
    policy = excepting(
        ["~/.npmrc", "~/.bashrc", "~/.config/mcpguard"],
        shipped(deny("~/.npmrc")),
        deny("~/.npmrc"),
        shipped(readonly("~/.bashrc")),
        write("~"),
    )
    assert verdict(policy, "/home/u/.npmrc") is Verdict.DENY
    assert verdict(policy, "/home/u/.bashrc", WRITE) is Verdict.DENY
    assert verdict(policy, "/home/u/.config/mcpguard/profiles/p.yaml", WRITE) is Verdict.DENY


@pytest.mark.parametrize("wide", ["~", "/", "/home", "{workspace}", "{tmp}", "~/.config"])
def test_a_folder_above_what_is_denied_excepts_nothing(wide: str) -> None:
    rules = (
        shipped(deny("~/.ssh")),
        shipped(deny("~/.config/gh")),
        shipped(deny("{workspace}/**/.env*")),
        shipped(deny("{tmp}/krb5cc_*")),
        read("/"),
    )
    policy = excepting([wide], *rules)
    for path in ("/home/u/.ssh/id", "/home/u/.config/gh/hosts", "/home/u/p/a/.env", "/tmp/x/krb5cc_0"):
        assert verdict(policy, path) is Verdict.DENY


def test_an_exception_holds_where_the_folder_really_is() -> None:
    rules = (shipped(deny("~/.ssh")), read("/"))
    policy = excepting(["~/.ssh/id_ci"], *rules, links={"/home/u/.ssh": "/data/ssh"})
    for folder in ("/home/u/.ssh", "/data/ssh"):
        assert verdict(policy, f"{folder}/id_ci") is Verdict.ALLOW
        assert verdict(policy, f"{folder}/id") is Verdict.DENY


def test_an_exception_from_a_built_in_denial_does_not_follow_a_planted_symlink() -> None:
    rules = (shipped(deny("~/.ssh")), shipped(deny("{workspace}/.env")), read("/"), write("{workspace}"))
    policy = excepting(["{workspace}/.env"], *rules, links={"/home/u/p/.env": "/home/u/.ssh/id"})
    assert verdict(policy, "/home/u/.ssh/id") is Verdict.DENY


_NAMES = st.sampled_from(["a", "b", ".env", "id_x"])
_FOLDERS = st.lists(_NAMES, min_size=1, max_size=3).map(lambda names: "/home/u/" + "/".join(names))
_PATTERNS = st.one_of(_FOLDERS, _NAMES.map(lambda name: f"/home/u/**/{name}"), st.just("/home/u/*/b"))


@settings(deadline=None, max_examples=150)
@given(st.lists(_PATTERNS, max_size=4), st.lists(_FOLDERS, max_size=3), st.lists(_FOLDERS, min_size=1, max_size=6))
def test_exceptions_change_nothing_but_what_they_name(denied: list[str], excepted: list[str], asked: list[str]) -> None:
    rules = [*(shipped(deny(pattern)) for pattern in denied), read("/home/u")]
    before, after = excepting([], *rules), excepting(excepted, *rules)
    for path in asked:
        named = any(path == one or path.startswith(one + "/") for one in excepted)
        if verdict(before, path) is Verdict.ALLOW or not named:
            assert verdict(after, path) is verdict(before, path)
        if path in excepted:
            assert verdict(after, path) is Verdict.ALLOW


def test_values_of_variables_are_filled_in_once() -> None:
    def policy(**values: str) -> Policy:
        profile = Profile("p", "p.yaml", environment_set=tuple(values.items()))
        return compile_policy(profile, user=USER, workspace="/ws/{home}", tmp="/t", resolve=lambda _: None)

    found = policy(A="{workspace}:{tmp}/x:{home}", B="{other}")
    assert found.environment_set == (("A", "/ws/{home}:/t/x:/home/u"), ("B", "{other}"))
    assert found.digest != policy(A="{workspace}:{tmp}/x:{home}").digest
