"""What the shipped profiles promise, path by path, for somebody whose home is empty."""

from __future__ import annotations

import fnmatch
import itertools

import pytest
from profile_tools import AGENTS, BUILTIN, listed, place, policy_of

from mcpguard.model.access import Access, Effect, Verdict
from mcpguard.model.policy import PROTO_UDP
from mcpguard.policy.decide import decide_connect, decide_file, decide_listen, decide_name, decide_unix

pytestmark = pytest.mark.usefixtures("mcpguard_home")

SECRETS = listed("secrets")

PERSISTENCE = listed("persistence")

STATE = {agent: listed(f"state-{agent}") for agent in AGENTS}

HONEST_READS = listed("honest-reads")

HONEST_WRITES = listed("honest-writes")


def verdict(profile: str, access: Access, path: str) -> Verdict:
    return decide_file(policy_of(profile), place(path), access)[0]


@pytest.mark.parametrize("profile", BUILTIN)
def test_credentials_are_never_read_and_never_written(profile: str) -> None:
    policy = policy_of(profile)
    open_ = [
        (path, access)
        for path in SECRETS
        for access in (Access.READ, Access.WRITE, Access.EXECUTE)
        if decide_file(policy, place(path), access)[0] is not Verdict.DENY
    ]
    assert open_ == []


@pytest.mark.parametrize("profile", BUILTIN)
def test_persistence_points_are_never_written_existing_or_not(profile: str) -> None:
    policy = policy_of(profile)
    open_ = [path for path in PERSISTENCE if decide_file(policy, place(path), Access.WRITE)[0] is not Verdict.DENY]
    assert open_ == []


@pytest.mark.parametrize("profile", BUILTIN)
def test_honest_programs_find_what_they_need(profile: str) -> None:
    policy = policy_of(profile)
    closed = [path for path in HONEST_READS if decide_file(policy, place(path), Access.READ)[0] is not Verdict.ALLOW]
    closed += [path for path in HONEST_WRITES if decide_file(policy, place(path), Access.WRITE)[0] is not Verdict.ALLOW]
    assert closed == []


@pytest.mark.parametrize("profile", AGENTS)
def test_an_agents_own_state_is_writable_with_lock_and_temporary_siblings(profile: str) -> None:
    closed = [path for path in STATE[profile] if verdict(profile, Access.WRITE, path) is not Verdict.ALLOW]
    assert closed == []


@pytest.mark.parametrize(("profile", "other"), [(a, b) for a in AGENTS for b in AGENTS if a != b])
def test_an_agent_does_not_reach_another_agents_state(profile: str, other: str) -> None:
    open_ = [
        path for path in STATE[other] if path.startswith("~") and verdict(profile, Access.READ, path) is Verdict.ALLOW
    ]
    assert open_ == []


@pytest.mark.parametrize("profile", BUILTIN)
def test_files_of_the_home_that_no_rule_names_stay_closed(profile: str) -> None:
    for path in (
        "~",
        "~/notes.txt",
        "~/other-project/src/a.py",
        "~/.config/unknown/token",
        "/root/x",
        "/home/bob/x",
        "/srv/x",
    ):
        assert verdict(profile, Access.READ, path) is Verdict.DENY


@pytest.mark.parametrize("profile", BUILTIN)
@pytest.mark.parametrize("address", listed("metadata-addresses"))
def test_metadata_addresses_are_denied_by_name_of_rule(profile: str, address: str) -> None:
    policy = policy_of(profile)
    for port in (80, 443):
        answer = decide_connect(policy, address, port)
        assert answer.verdict is Verdict.DENY
        assert answer.rule
    assert decide_connect(policy, address, 53, PROTO_UDP).rule


@pytest.mark.parametrize("profile", BUILTIN)
def test_the_metadata_host_name_is_denied(profile: str) -> None:
    answer = decide_name(policy_of(profile), "metadata.google.internal", 80)
    assert (answer.verdict, bool(answer.rule)) == (Verdict.DENY, True)


@pytest.mark.parametrize("profile", BUILTIN)
def test_destinations_that_no_rule_names_are_refused(profile: str) -> None:
    policy = policy_of(profile)
    assert decide_connect(policy, "203.0.113.9", 443).verdict is Verdict.DENY
    assert decide_connect(policy, "127.0.0.1", 5432).verdict is Verdict.DENY
    assert decide_name(policy, "collector.example", 443).verdict is Verdict.DENY


@pytest.mark.parametrize(
    ("profile", "host"),
    [
        ("claude-code", "api.anthropic.com"),
        ("codex", "api.openai.com"),
        ("codex", "chatgpt.com"),
        ("gemini-cli", "generativelanguage.googleapis.com"),
        ("opencode", "models.opencode.ai"),
        ("qwen-code", "dashscope.aliyuncs.com"),
        ("dev-tools", "pypi.org"),
    ],
)
def test_an_agent_reaches_its_model_over_tls_only(profile: str, host: str) -> None:
    policy = policy_of(profile)
    assert decide_name(policy, host, 443).verdict is Verdict.ALLOW
    assert decide_name(policy, host, 80).verdict is Verdict.DENY


@pytest.mark.parametrize("profile", BUILTIN)
def test_servers_of_an_account_that_nobody_approved_are_not_reached(profile: str) -> None:
    assert decide_name(policy_of(profile), "mcp-proxy.anthropic.com", 443).verdict is Verdict.DENY


@pytest.mark.parametrize("profile", BUILTIN)
def test_no_built_in_profile_names_a_host_with_a_wildcard(profile: str) -> None:
    assert [entry.pattern for entry in policy_of(profile).names if "*" in entry.pattern] == []


@pytest.mark.parametrize("profile", [name for name in BUILTIN if name != "base"])
def test_servers_under_test_listen_on_this_host_only(profile: str) -> None:
    policy = policy_of(profile)
    assert decide_listen(policy, "127.0.0.1", 8000).verdict is Verdict.ALLOW
    assert decide_listen(policy, "::1", 0).verdict is Verdict.ALLOW
    assert decide_listen(policy, "0.0.0.0", 8000).verdict is Verdict.DENY


@pytest.mark.parametrize("profile", BUILTIN)
@pytest.mark.parametrize("socket", listed("foreign-sockets"))
def test_sockets_of_programs_outside_the_tree_are_refused(profile: str, socket: str) -> None:
    assert decide_unix(policy_of(profile), place(socket), foreign=True).verdict is Verdict.DENY


@pytest.mark.parametrize("socket", ["{workspace}/a.sock", "{tmp}/pymp-abc/listener-1"])
def test_sockets_of_the_tree_itself_are_reached_and_those_of_others_in_the_same_place_are_not(socket: str) -> None:
    assert decide_unix(policy_of("dev-tools"), place(socket)).verdict is Verdict.ALLOW
    assert decide_unix(policy_of("dev-tools"), place(socket), foreign=True).verdict is Verdict.DENY


def test_name_services_are_reached() -> None:
    socket = "/run/systemd/userdb/io.systemd.NameServiceSwitch"
    assert decide_unix(policy_of("dev-tools"), socket, foreign=True).verdict is Verdict.ALLOW


def inherited(profile: str, name: str) -> bool:
    policy = policy_of(profile)
    removed = any(fnmatch.fnmatchcase(name, pattern) for pattern in policy.environment_remove)
    return not removed or any(fnmatch.fnmatchcase(name, pattern) for pattern in policy.environment_keep)


@pytest.mark.parametrize("profile", BUILTIN)
@pytest.mark.parametrize("name", listed("secret-variables"))
def test_secrets_and_loaders_are_not_inherited(profile: str, name: str) -> None:
    assert not inherited(profile, name)


@pytest.mark.parametrize("name", listed("ordinary-variables"))
def test_ordinary_variables_are_inherited(name: str) -> None:
    assert inherited("default", name)


@pytest.mark.parametrize(
    ("profile", "own", "foreign"),
    [
        ("claude-code", "ANTHROPIC_API_KEY", "OPENAI_API_KEY"),
        ("codex", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"),
        ("gemini-cli", "GEMINI_API_KEY", "OPENAI_API_KEY"),
        ("opencode", "OPENCODE_API_KEY", "DASHSCOPE_API_KEY"),
        ("qwen-code", "DASHSCOPE_API_KEY", "ANTHROPIC_API_KEY"),
    ],
)
def test_an_agent_inherits_its_own_key_and_no_other(profile: str, own: str, foreign: str) -> None:
    assert inherited(profile, own)
    assert not inherited(profile, foreign)


def test_ssh_shows_its_public_half_only() -> None:
    for path in ("~/.ssh/known_hosts", "~/.ssh/config", "~/.ssh/id_ed25519.pub"):
        assert verdict("dev-tools", Access.READ, path) is Verdict.ALLOW
        assert verdict("dev-tools", Access.WRITE, path) is Verdict.DENY


def test_programs_start_from_the_system_the_workspace_and_language_managers_only() -> None:
    for path in (
        "/usr/bin/git",
        "{workspace}/run.sh",
        "{tmp}/go-build1/a",
        "~/.nvm/versions/node/v22/bin/node",
        "~/.local/bin/a",
    ):
        assert verdict("dev-tools", Access.EXECUTE, path) is Verdict.ALLOW
    for path in ("/dev/shm/a", "~/a", "~/.cache/pip/a", "/etc/a.sh", "/srv/a"):
        assert verdict("dev-tools", Access.EXECUTE, path) is Verdict.DENY


def test_no_built_in_profile_opens_user_namespaces_or_io_uring() -> None:
    assert not any(policy_of(name).system.user_namespaces or policy_of(name).system.io_uring for name in BUILTIN)


@pytest.mark.parametrize(
    ("agent", "folder"),
    [
        ("claude-code", "~/.claude"),
        ("codex", "~/.codex"),
        ("gemini-cli", "~/.gemini"),
        ("opencode", "~/.config/opencode"),
        ("opencode", "~/.local/share/opencode"),
        ("opencode", "~/.local/state/opencode"),
        ("opencode", "~/.cache/opencode"),
        ("qwen-code", "~/.qwen"),
    ],
)
def test_an_agents_own_folder_is_made_for_its_first_run(agent: str, folder: str) -> None:
    assert place(folder) in policy_of(agent).folders


def test_a_profile_without_an_agent_makes_caches_only() -> None:
    assert policy_of("base").folders == ()
    made = {folder.removeprefix("/home/ada/").split("/")[0] for folder in policy_of("default").folders}
    assert made == {".cache", ".npm"}


def test_the_profile_for_kept_servers_opens_the_project_and_programs_alone() -> None:
    """Rules of the agent's profile hold besides: this one has no denials of its own, so all that it opens counts."""
    opened = policy_of("mcp-server").paths
    assert {rule.effect for rule in opened} == {Effect.ALLOW}
    for path in (
        "{workspace}/src/app.py",
        "~/.npm/_npx/1f/node_modules/x/index.js",
        "~/.nvm/versions/node/v22/bin/node",
    ):
        assert verdict("mcp-server", Access.READ, path) is Verdict.ALLOW
        assert verdict("mcp-server", Access.WRITE, path) is Verdict.DENY
    others = [one for one in (*SECRETS, *PERSISTENCE, *itertools.chain(*STATE.values())) if "{workspace}" not in one]
    # Where tools of Python keep the passwords of their registries.
    others += ["~/.local/share/uv/credentials/credentials.toml", "~/notes.txt", "~/.npm/_logs/x", "{tmp}/x"]
    assert len(others) > 50
    assert [one for one in others if verdict("mcp-server", Access.READ, one) is not Verdict.DENY] == []
    assert verdict("mcp-server", Access.EXECUTE, "{workspace}/tool") is Verdict.DENY
    policy = policy_of("mcp-server")
    assert not policy.names and decide_connect(policy, "127.0.0.1", 80).verdict is Verdict.DENY
    assert decide_listen(policy, "127.0.0.1", 8000).verdict is Verdict.DENY


def test_the_one_for_servers_that_work_on_the_project_opens_that_and_the_settings_of_git_besides() -> None:
    for path in ("{workspace}/src/app.py", "{workspace}/.git/HEAD"):
        assert verdict("mcp-server-workspace", Access.WRITE, path) is Verdict.ALLOW
    assert verdict("mcp-server-workspace", Access.READ, "~/.gitconfig") is Verdict.ALLOW
    for path in ("~/.gitconfig", "~/.npm/_npx/1f/node_modules/x/index.js", "~/notes.txt", "{tmp}/x"):
        assert verdict("mcp-server-workspace", Access.WRITE, path) is Verdict.DENY
    for path in ("~/.git-credentials", "~/.ssh/id_ed25519", "~/notes.txt", "~/.claude.json"):
        assert verdict("mcp-server-workspace", Access.READ, path) is Verdict.DENY
    assert not policy_of("mcp-server-workspace").names
