"""What a server is told to start as, when its catalogue says that it may."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from events_help import OPEN_POLICY, make_policy
from mcp_files import npx_installed, write

from mcpguard.catalogue import approved, identity, starting
from mcpguard.catalogue.server import STDIO, Server
from mcpguard.errors import HostError
from mcpguard.events.store import Store
from mcpguard.gate import containers
from mcpguard.gate.admission import Unvetted
from mcpguard.gate.ledger import Ledger
from mcpguard.gate.servers import Servers
from mcpguard.gate.words import by_place, words_of
from mcpguard.session.gate import plain

PYTHON = "/usr/bin/python3"
EMPTY = (
    '{"rules": [], "classes": [], "untrusted": [], "after_taint": "allow", "flow": null, "gate": true, '
    '"confined": [], "servers": null, "all_clients": null}'
)


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Servers:
    return made(tmp_path, monkeypatch, EMPTY)


def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: str) -> Servers:
    """With one server `s`; and `keyed`, whose settings name a variable that the agent has, one that it has not, and a text."""
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path / "guard"))
    (tmp_path / "good").mkdir()
    (tmp_path / "good/rel.py").write_text("print('good')")
    monkeypatch.chdir(tmp_path / "good")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TERM": "dumb"}
    server = Server("s", "", "", "", STDIO, command=PYTHON, args=("rel.py", "--flag", "rel.py.txt"))
    found = starting.identify(server, environment, Path.cwd())
    assert found is not None
    approved.approve("s", "test", found, ())
    variables = {"KNOWN": "${TERM}", "KEY": "${API_KEY}", "WRITTEN": "text"}
    keyed = Server("keyed", "", "user", "", STDIO, command="/bin/cat", env=variables)
    found = starting.identify(keyed, environment, Path.cwd())
    assert found is not None
    approved.approve("keyed", "test", found, ())
    monkeypatch.setenv("API_KEY", "canary")
    store = Store.open(tmp_path / "events.db")
    session = store.start_session(make_policy(*OPEN_POLICY), command=("a",), tier="3", coverage=(), now_ns=1)
    facts = {
        "session": session,
        "environment": environment,
        "workspace": str(tmp_path / "good"),
        "mcp": rules,
        "servers": [plain(keyed)],
        "tables": "",
        "engines": {},
        "confined": [],
        "web": None,
        "again": False,
    }
    return Servers(facts, Ledger(store, session))


def test_a_script_is_started_by_its_whole_path(servers: Servers, tmp_path: Path) -> None:
    admitted = servers.admit("s", [PYTHON, "rel.py", "--flag", "rel.py.txt"], os.getpid())
    script = str(tmp_path / "good/rel.py")
    assert admitted.argv == (PYTHON, script, "--flag", "rel.py.txt")
    assert all(os.fsencode(script) in form.argv for form in admitted.forms)


def elf(tmp_path: Path, name: str, *, folder: str = "bin") -> str:
    place = tmp_path / folder / name
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(b"\x7fELF" + name.encode())
    place.chmod(0o755)
    return str(place)


def placed(tmp_path: Path, *command: str, then: str = "") -> tuple[str, tuple[str, ...]]:
    """With what a command is started. PATH is `tmp_path`/first and `tmp_path`/bin; `then` is put first after the look."""
    environment = {"PATH": f"{tmp_path}/first:{tmp_path}/bin", "HOME": str(tmp_path)}
    found = identity.of(command[0], command[1:], environment, str(tmp_path))
    if then:
        elf(tmp_path, then, folder="first")
    return by_place("s", command, found, environment, str(tmp_path))


def test_what_another_program_would_look_for_is_named_by_its_place(tmp_path: Path) -> None:
    """Nobody looks at what `nice` executes, so it does not search PATH once more."""
    good, env, nice = (elf(tmp_path, name) for name in ("good", "env", "nice"))
    script = tmp_path / "bin/script"
    script.touch(0o755)
    assert placed(tmp_path, "good", "good") == (good, ("good", "good"))
    assert placed(tmp_path, "nice", "-n", "3", "good", "good") == (nice, ("nice", "-n", "3", good, "good"))
    assert placed(tmp_path, "env", "-i", "A=b", "nice", "good") == (env, ("env", "-i", "A=b", nice, good))
    assert placed(tmp_path, "env", f"PATH={tmp_path}/bin", "good")[1][2] == good
    for line, before in (("env good", ()), ("env -S good --x", ("--x",)), ("env -Sgood -y", ("-y",))):
        script.write_text(f"#!/usr/bin/{line}\n")
        assert placed(tmp_path, "script", "word") == (good, (good, *before, str(script), "word")), line
        assert placed(tmp_path, "nice", "script") == (nice, ("nice", good, *before, str(script))), line
    for line in ("env -S A=b good", "env -S -i good", "env good --x", "env -S 'good'", "env"):
        script.write_text(f"#!/usr/bin/{line}\n")
        assert placed(tmp_path, "script", "word") == (str(script), ("script", "word")), line


@pytest.mark.parametrize("command", [("nice", "good"), ("env", "A=b", "nice", "good"), ("script",)])
def test_one_that_was_put_before_it_since_does_not_start(command: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("good", "env", "nice"):
        elf(tmp_path, name)
    script = tmp_path / "bin/script"
    script.write_text("#!/usr/bin/env good\n")
    script.chmod(0o755)
    placed(tmp_path, *command, then="another")
    with pytest.raises(HostError, match="s was not started") as refused:
        placed(tmp_path, *command, then="good")
    assert "good is not what was approved" in str(refused.value.why)


@pytest.mark.parametrize(
    ("named", "starts"), [('["s"]', True), ('["t", "?"]', True), ('["keyed"]', False), ("[]", False)]
)
def test_an_approved_server_starts_where_the_profile_names_it(
    named: str, starts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = made(tmp_path, monkeypatch, EMPTY.replace('"servers": null', f'"servers": {named}'))
    words = [PYTHON, "rel.py", "--flag", "rel.py.txt"]
    if starts:
        assert servers.admit("s", words, os.getpid()).program == PYTHON
    else:
        with pytest.raises(Unvetted, match="does not start in this profile"):
            servers.admit("s", words, os.getpid())


def test_what_the_profile_names_has_to_be_approved_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers = made(tmp_path, monkeypatch, EMPTY.replace('"servers": null', '"servers": ["*"]'))
    with pytest.raises(Unvetted, match="is not approved"):
        servers.admit("t", [PYTHON, "rel.py"], os.getpid())


def test_the_same_words_in_another_folder_are_another_server(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil/rel.py").write_text("print('evil')")
    monkeypatch.chdir(tmp_path / "evil")
    with pytest.raises(Unvetted, match="is not what was approved"):
        servers.admit("s", [PYTHON, "rel.py", "--flag", "rel.py.txt"], os.getpid())


def test_a_server_gets_no_variable_that_the_agent_has_not(servers: Servers) -> None:
    """It is in the tree, where every process may read what it got. The gate itself knows the key."""
    admitted = servers.admit("keyed", ["whatever"], os.getpid())
    assert {name: admitted.environment[name] for name in ("KNOWN", "KEY", "WRITTEN")} == {
        "KNOWN": "dumb",
        "KEY": "${API_KEY}",
        "WRITTEN": "text",
    }
    assert "API_KEY" not in admitted.environment


# --- what programs take from the folder that they start in ------------------------------------------------------------------


def started(tmp_path: Path, *command: str, writable: str = "", env: dict[str, str] | None = None) -> tuple[str, ...]:
    """The words with which a command is started in `tmp_path`/work; programs are found in `tmp_path`/bin."""
    (tmp_path / "work").mkdir(exist_ok=True)
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(tmp_path), **(env or {})}
    found = identity.of(command[0], command[1:], environment, str(tmp_path / "work"))
    place = str(tmp_path / writable) + "/"
    may_write = (lambda path: f"{path}/".startswith(place)) if writable else (lambda path: False)
    return words_of("s", found, str(tmp_path / "work"), environment, may_write)


def program(tmp_path: Path, name: str) -> str:
    place = tmp_path / "bin" / name
    place.parent.mkdir(exist_ok=True)
    place.write_text("#!/bin/sh\n")
    place.chmod(0o755)
    return name


@pytest.mark.parametrize(
    ("given", "then"),
    [
        (("npm", "start"), ("npm", "start")),
        (("python3.12", "-m", "json.tool"), ("python3.12", "-P", "-m", "json.tool")),
        (("env", "python3.12", "-um", "json.tool"), ("env", "python3.12", "-P", "-um", "json.tool")),
        (
            ("python3.12", "-W", "ignore", "-X", "dev", "-m", "json.tool"),
            ("python3.12", "-P", "-W", "ignore", "-X", "dev", "-m", "json.tool"),
        ),
        (("python3.12", "-W", "ignore", "/a.py"), ("python3.12", "-W", "ignore", "/a.py")),
        (("python3.12", "-c", "1"), ("python3.12", "-P", "-c", "1")),
        (("python3.12", "-Im", "json.tool"), ("python3.12", "-Im", "json.tool")),
        (("python3.12", "/a.py", "-m", "x"), ("python3.12", "/a.py", "-m", "x")),
        (("python3.10", "-m", "json.tool"), ("python3.10", "-m", "json.tool")),
    ],
)
def test_runners_are_told_to_leave_their_folder(given: tuple[str, ...], then: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("npx", "npm", "uvx", "bunx", "python3.12", "python3.10"):
        program(tmp_path, name)
    assert started(tmp_path, *given) == then


@pytest.mark.parametrize(
    "words",
    [
        ("-u", "PYTHONSAFEPATH"),
        ("-uPYTHONSAFEPATH",),
        ("--unset=PYTHONSAFEPATH",),
        ("-i",),
        ("-",),
        ("PYTHONSAFEPATH=",),
    ],
)
def test_env_takes_nothing_away_that_keeps_python_from_its_folder(words: tuple[str, ...], tmp_path: Path) -> None:
    program(tmp_path, "python3.12")
    module, safe = ("python3.12", "-m", "json.tool"), {"PYTHONSAFEPATH": "1"}
    assert started(tmp_path, *module, env=safe) == module
    assert started(tmp_path, "env", *words, *module, env=safe) == ("env", *words, "python3.12", "-P", "-m", "json.tool")
    (tmp_path / "work" / "own.py").write_text("1")
    own = ("python3.12", "-m", "own")
    with pytest.raises(HostError, match="was not started"):
        started(tmp_path, "env", *words, *own, env=safe, writable="work")


@pytest.mark.parametrize(
    "command",
    [
        ("npx", "--prefix", ".", "a@1.0.0"),
        ("npx", "local"),
        ("bunx", "a@1.0.0"),
        ("pnpm", "dlx", "a@1.0.0"),
        ("yarn", "dlx", "a@1.0.0"),
        ("uvx", "--from", "./local", "a"),
        ("python3.10", "-m", "json.tool"),
        ("python3.12", "-m", "mine"),
        ("python3.12", "mine.py"),
        ("./own",),
        ("npm", "start"),
        ("npm", "run", "serve"),
        ("bun", "/srv/a.ts"),
        ("deno", "run", "-A", "/srv/a.ts"),
        ("tsx", "/srv/a.ts"),
        ("env", "A=b", "ts-node", "/srv/a.ts"),
    ],
)
def test_what_cannot_be_told_starts_only_where_the_session_may_not_write(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    programs = (
        "npx",
        "npm",
        "uvx",
        "bunx",
        "bun",
        "deno",
        "tsx",
        "ts-node",
        "pnpm",
        "yarn",
        "python3.12",
        "python3.10",
    )
    for name in programs:
        program(tmp_path, name)
    work = tmp_path / "work"
    (work / "node_modules/local").mkdir(parents=True)
    (work / "node_modules/local/package.json").write_text("{}")
    (work / "local").mkdir()
    (work / "mine.py").write_text("")
    (work / "own").write_text("#!/bin/sh\n")
    (work / "own").chmod(0o755)
    assert started(tmp_path, *command)
    with pytest.raises(HostError) as refused:
        started(tmp_path, *command, writable="work")
    assert refused.value.code == "mcp.writable"


def test_what_a_runner_has_installed_is_started_without_it(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "npx")
    with monkeypatch.context() as patch:
        patch.setattr(servers, "_environment", {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(tmp_path)})
        declared = Server("n", "", "", "", STDIO, command="npx", args=("-y", "a@1.0.0", "--b"))
        patch.setattr(servers, "_declared", {"n": declared})
        found = starting.identify(declared, servers._environment, Path.cwd())
        assert found is not None
        approved.approve("n", "test", found, ())
        with pytest.raises(Unvetted) as refused:
            servers.admit("n", ["npx"], os.getpid())
        assert refused.value.code == "mcp.not-installed"
        assert f"npx -y --cache {tmp_path}/.npm -p a@1.0.0 true, then mcpguard mcp approve n" in refused.value.do
        script = npx_installed(tmp_path, "a@1.0.0", "a", "1.0.0")
        with pytest.raises(Unvetted, match="not what was approved"):
            servers.admit("n", ["npx"], os.getpid())
        found = starting.identify(declared, servers._environment, Path.cwd())
        assert found is not None
        approved.approve("n", "test", found, ())
        admitted = servers.admit("n", ["npx"], os.getpid())
        assert (admitted.program, admitted.argv) == (str(script), (str(script), "--b"))
        assert [form.argv[0] for form in admitted.forms] == [os.fsencode(script), b"/bin/sh"]
    assert started(tmp_path, "env", "A=b", "npx", "a@1.0.0", "x") == ("env", "A=b", str(script), "x")
    assert started(tmp_path, "env", "-u", "npx", "a@1.0.0", "./x") == ("env", "-u", "npx", "a@1.0.0", "./x")
    odd = npx_installed(tmp_path, "c", "c", "1.0.0", bin="dist/=.js")
    odd.rename(odd.with_name("=.js"))
    assert started(tmp_path, "npx", "c", "./x")[0].endswith("=.js")
    with pytest.raises(HostError, match="was not started"):
        started(tmp_path, "env", "npx", "c", "./x")  # env would take the script for a variable, and start ./x
    with pytest.raises(HostError, match="was not started") as kept:
        started(tmp_path, "npx", "-y", "a@1.0.0", writable=".npm")
    assert kept.value.code == "mcp.writable"


def test_nothing_beside_what_is_installed_may_be_changed(tmp_path: Path) -> None:
    """What Node finds in folders above, and Python beside the script that it starts with, is no part of what was approved."""
    for runner in ("npx", "uvx"):
        write(tmp_path / "bin" / runner, "binary").chmod(0o755)
    npx_installed(tmp_path, "a@1.0.0", "a", "1.0.0")
    tool = tmp_path / "tools/b"
    script = write(tool / "bin/b", "#!/bin/sh\n")
    script.chmod(0o755)
    write(tool / "lib/python3.12/site-packages/b-1.0.dist-info/RECORD", "")
    uvx = {"UV_TOOL_DIR": str(tmp_path / "tools")}
    assert started(tmp_path, "uvx", "b", writable="work", env=uvx) == (str(script),)
    assert started(tmp_path, "npx", "a@1.0.0", writable="work")[0].endswith("x.js")
    for place in ("tools/b/bin", "tools/b"):
        with pytest.raises(HostError, match="was not started"):
            started(tmp_path, "uvx", "b", writable=place, env=uvx)
    for place in (".npm/node_modules", "node_modules", ".node_modules", ".node_libraries"):
        with pytest.raises(HostError, match="was not started"):
            started(tmp_path, "npx", "a@1.0.0", writable=place)


# --- containers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digest", ["", f"@sha256:{'1' * 64}"])
def test_another_image_is_another_server(digest: str, tmp_path: Path) -> None:
    """By its name, and by its digest where it has one."""
    environment = {"PATH": f"{tmp_path}/bin"}
    program(tmp_path, "docker")
    words = ["run", "-i", "--rm", f"a{digest}"]
    one = identity.of("docker", words, environment, "/")
    assert one.package is not None and one.package.pinned == bool(digest)
    others = [[*words[:-1], f"a@sha256:{'2' * 64}"], [*words[:-1], f"b{digest}"]]
    assert one.digest not in {identity.of("docker", other, environment, "/").digest for other in others}
    assert any("outside of every session" in note for note in one.notes)


@pytest.mark.parametrize(
    "command", [("docker", "run", "-i", "a"), ("docker", "compose", "run", "a"), ("nerdctl", "run", "a")]
)
def test_a_container_whose_engine_is_closed_says_so(command: tuple[str, ...], tmp_path: Path) -> None:
    engine = str(tmp_path / "docker.sock")
    found = identity.of(command[0], command[1:], {}, "/")
    containers.refuse("s", found, {}, {engine: False})  # there is none: the program says so itself
    Path(engine).touch()
    containers.refuse("s", found, {}, {engine: True})
    containers.refuse(
        "s", found, {"DOCKER_HOST": "tcp://127.0.0.1:1"}, {engine: False}
    )  # that is for the network rules
    containers.refuse("s", identity.of("npx", ["docker"], {}, "/"), {}, {engine: False})
    with pytest.raises(HostError) as refused:
        containers.refuse("s", found, {}, {engine: False})
    assert refused.value.code == "mcp.container" and engine in refused.value.why
