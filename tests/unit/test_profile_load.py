"""Profiles are found, joined with their parents, and refused when they could hide what they do."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from profile_tools import ADA, BUILTIN, JOINED, KEPT, TMP, WORKSPACE, policy_of

import mcpguard
from mcpguard.errors import HostError, McpguardError, ProfileError, UsageError
from mcpguard.policy.compile import compile_policy
from mcpguard.profile import store, trust
from mcpguard.profile.effective import difference, effective
from mcpguard.profile.load import inspect, load
from mcpguard.session.policy import trial


@pytest.fixture(autouse=True)
def profiles(mcpguard_home: Path) -> Path:
    folder = mcpguard_home / "config" / "profiles"
    folder.mkdir(parents=True)
    return folder


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def refusal(name: str | Path, workspace: Path | None = None) -> McpguardError:
    with pytest.raises(McpguardError) as caught:
        load(str(name), workspace=str(workspace) if workspace else None)
    return caught.value


def test_parents_are_merged_in_as_a_union(profiles: Path) -> None:
    write(profiles, "a", "files: {read: [/a], deny: [/x]}\nenvironment: {remove: [A]}\nsystem: {io_uring: true}\n")
    write(profiles, "b", "files: {read: [/b]}\nnetwork: {allow: [b.example]}\nsockets: {allow: ['@b']}\n")
    write(profiles, "c", "extends: [a, b]\nfiles: {read: [/c]}\n")
    profile = load("c")
    assert {rule.pattern for rule in profile.files} == {"/a", "/b", "/c", "/x"}
    assert [rule.target for rule in profile.network] == ["b.example"]
    assert [rule.pattern for rule in profile.sockets] == ["@b"]
    assert profile.environment_remove == ("A",)
    assert profile.system.io_uring
    assert profile.ancestors == ("a", "b", "c")


@pytest.mark.parametrize(
    ("modes", "found"),
    [(["off"], "off"), (["off", "check"], "check"), (["check", "require", "off"], "require"), ([], None)],
)
def test_of_several_ways_to_look_at_names_the_strictest_counts(
    profiles: Path, modes: list[str], found: str | None
) -> None:
    for number, mode in enumerate(modes):
        write(profiles, f"p{number}", f"network: {{sni: {mode}}}\n")
    write(
        profiles,
        "c",
        f"extends: [{', '.join(f'p{number}' for number in range(len(modes)))}]\n" if modes else "files: {}\n",
    )
    assert load("c").sni == found


@pytest.mark.parametrize(
    ("lists", "found", "shown"),
    [
        (["[a]", "['b*']"], ["a", "b*"], ["mcp servers a", "mcp servers b*"]),
        (["[a]", None], ["a"], ["mcp servers a"]),
        (["[a]", "[]"], ["a"], ["mcp servers a"]),
        (["[]", None], [], ["mcp servers []"]),
        ([None, None], None, []),
    ],
)
def test_of_lists_of_servers_all_names_count_together_and_none_is_another_list_than_no_list(
    profiles: Path, lists: list[str | None], found: list[str] | None, shown: list[str]
) -> None:
    for number, one in enumerate(lists):
        write(profiles, f"p{number}", "mcp: {gate: true}\n" if one is None else f"mcp: {{servers: {one}}}\n")
    write(profiles, "c", "extends: [p0, p1]\n")
    named = load("c").mcp.servers
    assert (None if named is None else [one.server for one in named]) == found
    assert [line.text for line in effective(load("c")) if line.text.startswith("mcp servers")] == shown


@pytest.mark.parametrize(
    ("words", "place", "shown"),
    [
        (["all", None], "p0.yaml:2", ["mcp clients all"]),
        (["agents", "all"], "p1.yaml:2", ["mcp clients agents", "mcp clients all"]),
        (["all", "all"], "p0.yaml:2", ["mcp clients all", "mcp clients all"]),
        (["agents", None], "", ["mcp clients agents"]),
        ([None, None], "", []),
    ],
)
def test_where_one_says_that_all_clients_count_they_do(
    profiles: Path, words: list[str | None], place: str, shown: list[str]
) -> None:
    for number, word in enumerate(words):
        write(profiles, f"p{number}", f"mcp:\n  {'gate: true' if word is None else f'clients: {word}'}\n")
    write(profiles, "c", "extends: [p1, p0]\n")
    found = load("c").mcp.all_clients
    assert (found.place.rpartition("/")[2] if found else "") == place
    assert [line.text for line in effective(load("c")) if line.text.startswith("mcp clients")] == shown


def test_a_rule_from_a_parent_keeps_the_place_in_the_parent(profiles: Path) -> None:
    path = write(profiles, "a", "files:\n  read:\n    - /a\n")
    write(profiles, "b", "extends: [a]\n")
    assert load("b").files[0].origin.place == f"{path}:3"


def test_a_parent_reached_on_two_ways_counts_once(profiles: Path) -> None:
    write(profiles, "top", "files: {read: [/t]}\n")
    write(profiles, "left", "extends: [top]\n")
    write(profiles, "right", "extends: [top]\n")
    write(profiles, "bottom", "extends: [left, right]\n")
    assert len(load("bottom").files) == 1


def test_the_order_of_extends_changes_nothing(profiles: Path) -> None:
    for name in "abc":
        write(profiles, name, f"files: {{read: [/{name}], deny: [/{name}/x]}}\nnetwork: {{allow: [{name}.example]}}\n")
    seen = set()
    for order in itertools.permutations("abc"):
        write(profiles, "child", f"extends: [{', '.join(order)}]\n")
        policy = compile_policy(
            load("child"), user=ADA, workspace=WORKSPACE, tmp=TMP, resolve=lambda path: None, own_paths=("/own",)
        )
        seen.add((policy.digest, policy.tables, policy.rules))
    assert len(seen) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.permutations(["/a", "~/b", "{workspace}/c*", "**/d", "/a/e"]), st.permutations(["h.example", "10.0.0.0/8"]))
def test_the_order_of_lines_changes_nothing_that_the_kernel_sees(
    profiles: Path, files: list[str], hosts: list[str]
) -> None:
    def digest(patterns: list[str], targets: list[str]) -> str:
        listed = ", ".join(f"'{pattern}'" for pattern in patterns)
        write(
            profiles,
            "p",
            f"files: {{deny: [{listed}], write: [{listed}]}}\nnetwork: {{allow: [{', '.join(targets)}]}}\n",
        )
        return compile_policy(load("p"), user=ADA, workspace=WORKSPACE, tmp=TMP, resolve=lambda path: None).digest

    assert digest(files, hosts) == digest(sorted(files), sorted(hosts))


def test_the_command_is_the_profiles_own_else_its_parents(profiles: Path) -> None:
    write(profiles, "a", "command: [one]\n")
    write(profiles, "b", "extends: [a]\n")
    write(profiles, "c", "extends: [a]\ncommand: [two]\n")
    assert load("b").command == ("one",)
    assert load("c").command == ("two",)


def test_parents_with_different_commands_need_a_word_from_the_child(profiles: Path) -> None:
    write(profiles, "a", "command: [one]\n")
    write(profiles, "b", "command: [two]\n")
    path = write(profiles, "c", "name: c\nextends: [a, b]\n")
    error = refusal("c")
    assert (error.code, error.what.startswith(f"{path}:2: ")) == ("profile.command-conflict", True)


def test_a_variable_has_the_profiles_own_value_else_its_parents(profiles: Path) -> None:
    write(profiles, "top", "environment: {set: {A: top, B: top}}\n")
    write(profiles, "left", "extends: [top]\nenvironment: {set: {A: left}}\n")
    write(profiles, "right", "extends: [top]\n")
    write(profiles, "own", "extends: [left, right]\nenvironment: {set: {A: own}}\n")
    assert load("left").environment_set == (("A", "left"), ("B", "top"))
    assert load("own").environment_set == (("A", "own"), ("B", "top"))


def test_parents_that_set_a_variable_differently_need_a_word_from_the_child(profiles: Path) -> None:
    write(profiles, "a", "environment: {set: {A: one}}\n")
    write(profiles, "b", "environment: {set: {A: two}}\n")
    path = write(profiles, "c", "name: c\nextends: [a, b]\n")
    error = refusal("c")
    assert (error.code, error.what.startswith(f"{path}:2: ")) == ("profile.set-conflict", True)
    assert error.what.endswith("a and b set A to different values")


def test_a_circle_is_refused_at_the_line_that_closes_it(profiles: Path) -> None:
    write(profiles, "a", "extends: [b]\n")
    path = write(profiles, "b", "name: b\nextends: [a]\n")
    error = refusal("a")
    assert (error.code, error.what.startswith(f"{path}:2: ")) == ("profile.cycle", True)
    assert "a -> b -> a" in error.why


def test_a_profile_that_extends_itself_is_a_circle(profiles: Path) -> None:
    write(profiles, "a", "extends: [a]\n")
    assert refusal("a").code == "profile.cycle"


def test_an_unknown_parent_is_refused_with_its_line_and_the_name_that_was_meant(profiles: Path) -> None:
    path = write(profiles, "a", "name: a\nextends:\n  - bse\n")
    error = refusal("a")
    assert (error.code, error.do) == ("profile.unknown-parent", 'did you mean "base"?')
    assert error.what.startswith(f"{path}:3: ")


def test_a_mistake_in_a_parent_names_the_parents_file(profiles: Path) -> None:
    path = write(profiles, "a", "fles: {}\n")
    write(profiles, "b", "extends: [a]\n")
    assert refusal("b").what.startswith(f"{path}:1: ")


def test_mistakes_of_all_files_are_found_together(profiles: Path) -> None:
    write(profiles, "a", "fles: {}\n")
    write(profiles, "b", "extends: [a, nobody]\n")
    _, errors = inspect("b")
    assert sorted(error.code for error in errors) == ["profile.unknown-key", "profile.unknown-parent"]


def test_an_unknown_name_is_a_misuse_with_a_suggestion() -> None:
    error = refusal("cladue-code")
    assert isinstance(error, UsageError)
    assert error.do == 'did you mean "claude-code"?'


@pytest.mark.parametrize("name", ["", "..", "base\n", "ba se", "~"])
def test_a_name_cannot_lead_out_of_the_profile_folders(name: str) -> None:
    assert refusal(name).code == "usage.unknown-profile"


def test_a_file_under_another_name_than_it_says_is_refused(profiles: Path) -> None:
    write(profiles, "a", "name: b\n")
    assert refusal("a").code == "profile.name-mismatch"


def test_an_own_profile_adds_to_the_built_in_one_of_its_name(profiles: Path) -> None:
    write(profiles, "claude-code", "extends: [claude-code]\nnetwork: {allow: [docs.example:443]}\n")
    profile = load("claude-code")
    assert profile.command == ("claude",)
    assert {"docs.example:443", "api.anthropic.com:443"} <= {rule.target for rule in profile.network}


def test_an_own_profile_cannot_quietly_take_a_built_in_ones_place(profiles: Path) -> None:
    write(profiles, "base", "files: {read: [/]}\n")
    assert refusal("base").code == "profile.shadows-builtin"
    assert refusal("claude-code").code == "profile.shadows-builtin"


def test_what_is_added_to_base_reaches_every_profile_on_top_of_it(profiles: Path) -> None:
    write(profiles, "base", "extends: [base]\nfiles: {deny: [/srv/secret]}\n")
    assert "/srv/secret" in {rule.pattern for rule in load("claude-code").files}


def test_a_path_is_the_users_word(tmp_path: Path) -> None:
    path = write(tmp_path, "mine", "name: other\nextends: [base]\n")
    assert load(str(path)).name == "other"


def test_a_profile_inside_the_workspace_is_refused_until_its_bytes_are_trusted(tmp_path: Path) -> None:
    workspace = tmp_path / "project"
    workspace.mkdir()
    path = write(workspace, "agent", "files: {write: [/]}\n")
    error = refusal(path, workspace)
    assert error.code == "profile.untrusted"
    assert f"mcpguard profile trust {path}" in error.do
    trust.trust(path, path.read_bytes())
    assert load(str(path), workspace=str(workspace)).files
    path.write_text("files: {write: [/, /home]}\n")
    assert refusal(path, workspace).code == "profile.untrusted"


def test_a_link_does_not_carry_a_profile_out_of_the_workspace(tmp_path: Path, profiles: Path) -> None:
    workspace = tmp_path / "project"
    workspace.mkdir()
    inside = write(workspace, "agent", "files: {write: [/]}\n")
    (profiles / "agent.yaml").symlink_to(inside)
    (tmp_path / "outside.yaml").symlink_to(inside)
    assert refusal("agent", workspace).code == "profile.untrusted"
    assert refusal(tmp_path / "outside.yaml", workspace).code == "profile.untrusted"


def test_own_profiles_are_trusted_when_the_home_is_the_workspace(tmp_path: Path, profiles: Path) -> None:
    write(profiles, "mine", "extends: [base]\n")
    assert load("mine", workspace=str(tmp_path)).name == "mine"


def test_a_broken_record_of_trust_trusts_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "agent", "name: agent\n")
    trust.trust(path, path.read_bytes())
    trust.trust_file().write_text("{")
    assert trust.trusted() == {}
    assert refusal(path, tmp_path).code == "profile.untrusted"


def test_replacing_a_file_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    blocked = write(tmp_path, "blocked", "")
    with pytest.raises(HostError) as caught:
        store.replace(blocked / "a.yaml", b"x")
    assert caught.value.code == "profile.not-written"


def test_replacing_leaves_no_other_file_behind(tmp_path: Path) -> None:
    store.replace(tmp_path / "new" / "a.yaml", b"one")
    store.replace(tmp_path / "new" / "a.yaml", b"two")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "new").iterdir()] == [("a.yaml", b"two")]


def test_shipped_profiles_are_read_from_the_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "mcpguard"
    inside = package / "data" / "profiles"
    inside.mkdir(parents=True)
    write(inside, "only", "# only: one\nname: only\n")
    monkeypatch.setattr(mcpguard, "__file__", str(package / "__init__.py"))
    assert [entry.source for entry in store.entries()] == ["builtin:only.yaml"]


@pytest.mark.parametrize("name", [*BUILTIN, *KEPT, *JOINED])
def test_every_built_in_profile_loads_and_compiles(name: str) -> None:
    policy = policy_of(name)
    assert policy.profile == name
    assert all(rule.file.startswith("builtin:") and rule.line > 0 for rule in policy.rules[1:])


def test_the_shipped_profiles_are_these_and_each_says_what_it_is_for() -> None:
    shipped = [entry for entry in store.entries() if entry.builtin]
    assert sorted(entry.name for entry in shipped) == sorted([*BUILTIN, *KEPT, *JOINED])
    for entry in shipped:
        assert entry.path.read_text().startswith(f"# {entry.name}: ")
        assert load(entry.name).description


def test_a_pattern_that_cannot_be_compiled_is_found_with_its_line(profiles: Path) -> None:
    path = write(
        profiles, "a", "files:\n  read: ['usr', /etc]\n  deny: ['~bob/x']\nnetwork:\n  allow: ['*.com', ok.example]\n"
    )
    found = [error.what.split(": ")[0] for error in trial(load("a"))]
    assert found == [f"{path}:2", f"{path}:3", f"{path}:5"]


def test_the_difference_of_two_profiles_is_in_rules_and_not_in_places(profiles: Path) -> None:
    write(profiles, "a", "files: {read: [/a, /b]}\n")
    write(profiles, "b", "# moved\nfiles:\n  read: [/b]\nnetwork: {allow: [h.example]}\n")
    assert difference(load("a"), load("b")) == (["file read /a"], ["network allow h.example"])


def test_errors_are_told_apart_by_who_can_act(profiles: Path) -> None:
    write(profiles, "a", "x: 1\n")
    assert isinstance(refusal("a"), ProfileError)


def test_a_profile_of_ones_own_may_except_what_built_in_rules_deny(profiles: Path) -> None:
    write(
        profiles, "default", "extends: [default]\nfiles:\n  except:\n    - {path: ~/.npmrc, because: no token in it}\n"
    )
    (found,) = load("default").exceptions
    assert (found.path, found.because, found.origin.text) == ("~/.npmrc", "no token in it", "except ~/.npmrc")
    assert difference(load("base"), load("default"))[1][:1] != []
    assert "file except ~/.npmrc" in difference(load("base"), load("default"))[1]


def test_no_parent_excepts_anything(profiles: Path) -> None:
    write(profiles, "base", "extends: [base]\nfiles: {except: [~/.npmrc]}\n")
    write(profiles, "mine", "extends: [default]\nfiles: {read: [~/.npmrc]}\n")
    assert load("base").exceptions
    assert load("mine").exceptions == () and load("default").exceptions == ()
    assert "file except ~/.npmrc" not in difference(load("default"), load("mine"))[1]


def test_a_profile_elsewhere_excepts_nothing_not_even_a_trusted_one(tmp_path: Path, profiles: Path) -> None:
    text = "name: theirs\nextends: [base]\nfiles:\n  except: [~/.npmrc]\n"
    outside = write(tmp_path, "theirs", text)
    workspace = tmp_path / "ws"
    workspace.mkdir()
    inside = write(workspace, "theirs", text)
    trust.trust(inside, inside.read_bytes())
    for path in (outside, inside):
        refused = refusal(path, workspace)
        assert refused.code == "profile.except-not-own" and f"{path}:4" in refused.what


@pytest.mark.parametrize("path", ["~/.ssh/*", "~/.npmr?", "~/.aws/[ab]", "**/.env"])
def test_an_exception_is_one_path(path: str, profiles: Path) -> None:
    write(profiles, "default", f"extends: [default]\nfiles: {{except: ['{path}']}}\n")
    (problem,) = trial(load("default"))
    assert problem.code == "policy.except"
