"""What runs in a project is what was approved: what `uv run` would execute is, and what a manifest says is not asked again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mcp_files import write

from mcpguard.catalogue import approved, identity
from mcpguard.catalogue.identity import MISSING, Identity, in_place_of, unknown_runner
from mcpguard.gate.words import words_of


def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    write(path, text).chmod(0o755)
    return path


class Project:
    """A project of uv's, with an environment that has a program of its own and one of a package."""

    def __init__(self, root: Path) -> None:
        self.bin, self.root = root / "bin", root / "home/project"
        for name in ("uv", "npm", "pnpm", "yarn", "bun", "deno", "poetry", "env", "node"):
            program(self.bin / name, f"binary {name}")
        self.base = program(root / "python/bin/python3.12", "binary python")
        self.base.chmod(0o775)  # no system's
        self.script = write(self.root / "server.py", "1")
        self.manifest = write(
            self.root / "pyproject.toml", '[project]\nname = "mine"\n[project.scripts]\nmine = "mine:main"\n'
        )
        self.lock = write(self.root / "uv.lock", "version = 1\n")
        self.venv = self.root / ".venv"
        self.site = self.venv / "lib/python3.12/site-packages"
        self.module = write(self.root / "src/mine/__init__.py", "def main(): pass\n")
        self.made()

    def made(self) -> None:
        """The environment, as `uv sync` makes it."""
        write(self.venv / "pyvenv.cfg", f"home = {self.base.parent}\n")
        (self.venv / "bin").mkdir(exist_ok=True)
        (self.venv / "bin/python").unlink(missing_ok=True)
        (self.venv / "bin/python").symlink_to(self.base)
        write(self.site / "dep.py", "1")
        write(self.site / "mine.pth", f"{self.root}/src")
        for name, module in (("mine", "mine"), ("dep", "dep")):
            program(
                self.venv / "bin" / name, f"#!{self.venv}/bin/python\nimport sys\nfrom {module} import main\nmain()\n"
            )

    def of(self, *words: str, cwd: Path | None = None, **env: str) -> Identity:
        variables = {"PATH": f"{self.bin}:/usr/bin", "HOME": str(self.root.parent), **env}
        return identity.of(words[0], words[1:], variables, str(cwd or self.root))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def missing(found: Identity) -> bool:
    return any(one.sha256 == MISSING for one in found.code)


@pytest.mark.parametrize(
    ("words", "executed"),
    [
        ("uv run server.py --x", "python ROOT/server.py --x"),
        ("uv --directory ROOT run server.py", "python ROOT/server.py"),
        ("uv run --directory=ROOT -q --frozen -- server.py", "python ROOT/server.py"),
        ("uv --project ROOT run ROOT/server.py", "python ROOT/server.py"),
        ("uv run python server.py", "python server.py"),
        ("uv run python3 -u server.py", "python -u server.py"),
        ("uv run -m mine --x", "python -m mine --x"),
        ("uv run mine --x", "mine --x"),
        ("uv run --no-dev --extra a dep run server.py", "dep run server.py"),
    ],
)
def test_uv_run_is_what_it_would_execute(project: Project, words: str, executed: str) -> None:
    found = project.of(*words.replace("ROOT", str(project.root)).split())
    assert found.installed is not None and not unknown_runner(found) and not missing(found), found.notes
    first, *rest = executed.replace("ROOT", str(project.root)).split()
    assert found.installed.words == (f"{project.venv}/bin/{first}", *rest)
    assert found.installed.folder == str(project.root) and found.installed.environment == str(project.venv)
    assert ("modules", str(project.site)) in [(one.role, one.path) for one in found.code]
    # The gate starts that, and nothing else.
    started = words_of("s", found, "/", {"PATH": "/usr/bin"}, lambda path: False)
    assert tuple(word for word in started if word != "-P") == found.installed.words
    behind_env = project.of("env", "A=b", *words.replace("ROOT", str(project.root)).split())
    assert words_of("s", behind_env, "/", {}, lambda path: False) == ("env", "A=b", *started)


CHANGES = {
    "script": lambda one: one.script.write_text("2"),
    "package": lambda one: (one.site / "dep.py").write_text("2"),
    "another package": lambda one: write(one.site / "json.py", "2"),
    "compiled": lambda one: write(one.site / "__pycache__/dep.cpython-312.pyc", "2"),
    "pth": lambda one: (one.site / "mine.pth").write_text("import evil\n"),
    "home": lambda one: (one.venv / "pyvenv.cfg").write_text("home = /evil/bin\n"),
    "base": lambda one: one.base.write_text("another"),
    "other python": lambda one: ((one.venv / "bin/python").unlink(), program(one.venv / "bin/python", "evil")),
    "a nearer project": lambda one: write(one.root / "in/pyproject.toml", ""),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_changes_what_uv_run_would_execute_is_another_server(project: Project, what: str) -> None:
    where = project.root / "in"
    where.mkdir()
    words = ("uv", "run", "../server.py")
    before = project.of(*words, cwd=where)
    assert not missing(before) and before.digest == project.of(*words, cwd=where).digest
    CHANGES[what](project)
    after = project.of(*words, cwd=where)
    assert after.digest != before.digest
    assert "a part that is not shown" not in approved.differences(before.facts(), after.facts())[0]


def test_of_a_program_of_the_project_the_module_that_it_begins_with_counts(project: Project) -> None:
    own, other = project.of("uv", "run", "mine"), project.of("uv", "run", "dep")
    assert ("script", str(project.module)) in [(one.role, one.path) for one in own.code]
    project.module.write_text("evil")
    assert project.of("uv", "run", "mine").digest != own.digest
    assert project.of("uv", "run", "dep").digest == other.digest, "the control"
    program(project.venv / "bin/dep", f"#!{project.venv}/bin/python\nevil\n")
    assert project.of("uv", "run", "dep").digest != other.digest


def test_what_the_manifest_and_the_lock_say_changes_nothing_of_what_is_executed(project: Project) -> None:
    """uv would build and fetch by them; the gate does not start uv."""
    before = project.of("uv", "run", "mine")
    project.manifest.write_text('[project]\nname = "mine"\n[project.scripts]\nmine = "evil:main"\n')
    project.lock.write_text("evil")
    after = project.of("uv", "run", "mine")
    assert after.digest == before.digest and after.installed == before.installed


@pytest.mark.parametrize("way", ["none", "shared", "linked", "two"])
def test_without_an_environment_of_its_own_it_is_said_what_makes_it(project: Project, way: str) -> None:
    if way == "none":
        shutil.rmtree(project.venv)
    elif way == "shared":
        (project.root / "cache").hardlink_to(project.site / "dep.py")
    elif way == "linked":
        (project.site / "out").symlink_to(project.root)
    else:
        write(project.venv / "lib/python3.11/site-packages/x.py", "")
    found = project.of("uv", "run", "--extra", "a b", "server.py")
    assert found.installed is not None and not found.installed.words and missing(found)
    assert f"uv sync --project {project.root} --extra 'a b' --reinstall --link-mode copy" in " ".join(found.notes)


@pytest.mark.parametrize(
    "words",
    [
        "uv run --with a server.py",
        "uv run --isolated server.py",
        "uv run --active server.py",
        "uv run --no-project server.py",
        "uv run --env-file .env server.py",
        "uv run --index https://a.example server.py",
        "uv run https://a.example/server.py",
        "uv run -",
        "uv run python",
        "uv run --directory a --directory b server.py",
        "uv run ../bin/evil",
        "uv run",
        "uv -q --config-file x run server.py",
        "strace uv run server.py",
    ],
)
def test_what_only_uv_knows_of_a_project_does_not_start(project: Project, words: str) -> None:
    found = project.of(*words.split())
    assert unknown_runner(found) == "uv", found
    assert in_place_of("uv", found)


def test_an_environment_behind_a_link_could_be_another_one_at_any_time(project: Project) -> None:
    project.venv.rename(project.root / "made")
    project.venv.symlink_to("made")
    assert unknown_runner(project.of("uv", "run", "server.py")) == "uv"
    project.venv.unlink()
    (project.root / "made").rename(project.venv)
    assert not unknown_runner(project.of("uv", "run", "server.py")), "the control"


@pytest.mark.parametrize("name", ["UV_PROJECT", "UV_ENV_FILE", "UV_NO_PROJECT", "UV_ISOLATED"])
def test_variables_that_lead_uv_elsewhere_leave_it_unknown(project: Project, name: str) -> None:
    assert unknown_runner(project.of("uv", "run", "server.py", **{name: "1"})) == "uv"
    moved = project.of("uv", "run", "server.py", UV_PROJECT_ENVIRONMENT="other")
    assert moved.installed is not None and moved.installed.modules == ((f"{project.root}/other", ""),)


def test_a_part_of_a_workspace_has_the_environment_of_that(project: Project) -> None:
    part = write(project.root / "parts/a/pyproject.toml", '[project]\nname = "a"\n').parent
    assert not project.of("uv", "run", "mine", cwd=part).installed.words  # type: ignore[union-attr]
    project.manifest.write_text('[tool.uv.workspace]\nmembers = ["parts/*"]\n')
    found = project.of("uv", "run", "mine", cwd=part).installed
    assert found is not None and found.words == (f"{project.venv}/bin/mine",) and found.folder == str(part)


def test_the_gate_starts_nothing_of_an_environment_that_the_session_may_change(project: Project) -> None:
    from mcpguard.errors import HostError

    found = project.of("uv", "run", "-m", "mine")
    for writable in (project.site, project.venv, project.venv / "bin", project.module):
        with pytest.raises(HostError):
            words_of("s", found, "/", {}, lambda path, writable=writable: path.startswith(f"{writable}"))
    # Python would look in that folder first; what a session may write there is left out.
    words = words_of("s", found, "/", {}, lambda path: Path(path).parent == project.root)
    assert words == (f"{project.venv}/bin/python", "-P", "-m", "mine")


SCRIPTS = {
    "start": "node dist/index.js",
    "dev": "tsx src/index.ts --stdio",
    "built": "tsc && node dist/index.js",
    "secret": "node x.js --token ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2,
    "prestart": "tsc",
    "var": "A=b node x.js",
}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("npm start", "declare it as: node dist/index.js, with ROOT as its folder"),
        ("npm start", "first, outside of the session: npm run prestart in ROOT"),
        ("npm run start -- --x", "declare it as: node dist/index.js --x, with ROOT"),
        ("npm --prefix ROOT --silent run start", "declare it as: node dist/index.js, with ROOT"),
        ("npm run --silent dev", "declare it as: ROOT/node_modules/.bin/tsx src/index.ts --stdio, with ROOT"),
        ("npm run built", "do outside of the session what `built` in ROOT/package.json does before"),
        ("npm run var", "it says: A=b node x.js"),
        ("npm run absent", "declare it as `npx -y NAME@VERSION`"),
        ("pnpm dev", "declare it as: ROOT/node_modules/.bin/tsx"),
        ("yarn start", "declare it as: node dist/index.js"),
        ("bun run start", "declare it as: node dist/index.js"),
        ("deno task serve", "declare it as: deno run -A server.ts, with ROOT"),
        ("deno task serve", "first, outside of the session: deno task build in ROOT"),
        ("poetry run mine --x", "the path that `poetry run which mine` says there, with its words behind it: --x"),
        (
            "poetry -C /srv run mine",
            "poetry -C /srv install; then declare the path that `poetry -C /srv run which mine`",
        ),
    ],
)
def test_who_declares_a_script_of_a_project_is_told_what_it_executes(project: Project, words: str, says: str) -> None:
    write(project.root / "package.json", json.dumps({"scripts": SCRIPTS}))
    tasks = {"serve": {"command": "deno run -A server.ts", "dependencies": ["build"]}}
    write(project.root / "deno.json", json.dumps({"tasks": tasks}))
    program(project.root / "node_modules/.bin/tsx")
    found = project.of(*words.replace("ROOT", str(project.root)).split())
    said = in_place_of(unknown_runner(found), found)
    assert says.replace("ROOT", str(project.root)) in said


def test_no_secret_of_a_script_is_told(project: Project) -> None:
    write(project.root / "package.json", json.dumps({"scripts": SCRIPTS}))
    found = project.of("npm", "run", "secret")
    said = in_place_of(unknown_runner(found), found)
    assert "node x.js --token" in said and "a1B2c3D4e5" not in said


def test_a_script_that_a_link_leads_to_is_started_without_the_link(project: Project) -> None:
    """Whoever may write where the link is could lead it elsewhere, after it was looked at."""
    link = project.root / "link.js"
    link.symlink_to(write(project.root / "real.js", "1"))
    for words in (("node", "link.js"), ("node", str(link)), ("node", "-r", "./link.js", "link.js", "link.js.txt")):
        started = words_of("s", project.of(*words), str(project.root), {}, lambda path: False)
        assert "link.js" not in [Path(word).name for word in started] and str(project.root / "real.js") in started
    (project.root / "server-link.py").symlink_to(project.script)
    started = words_of("s", project.of("uv", "run", "server-link.py"), "/", {}, lambda path: False)
    assert started == (f"{project.venv}/bin/python", str(project.script))


@pytest.mark.parametrize(
    "text",
    [
        "cd {} && python3 -m mine",
        "cd {}; exec tsx ./x.ts",
        "cd /usr; cd {}; deno run -A x.ts",
        'sh -c "cd {} && bun ./x.ts"',
    ],
)
def test_a_shells_text_starts_nothing_that_looks_in_a_folder_of_the_session_first(project: Project, text: str) -> None:
    from mcpguard.errors import HostError

    for name in ("sh", "python3", "tsx"):
        program(project.bin / name, f"binary {name}")
    for name in ("x.ts", "mine.py"):
        write(project.root / name, "1")
    words = ("sh", "-c", text.format(project.root))
    found = project.of(*words, cwd=project.root / ".venv")
    environment = {"PATH": str(project.bin), "HOME": str(project.root.parent)}

    def start(may_write: bool) -> tuple[str, ...]:
        """Where nothing that is there can be changed, but more can be added."""
        added = str(project.root / "mcpguard-any-name")
        return words_of("s", found, f"{project.root}/.venv", environment, lambda path: may_write and path == added)

    assert start(may_write=False) == words, "the control"
    with pytest.raises(HostError) as refused:
        start(may_write=True)
    assert str(project.root) in refused.value.why
