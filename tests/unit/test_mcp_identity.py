"""An identity names what is really executed: another program, script, word, package or variable is another identity."""

from __future__ import annotations

import os
import random
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from mcp_files import npx_installed, write

from mcpguard.catalogue import identity, scripts, shells, sums, wrappers
from mcpguard.catalogue import package as packages
from mcpguard.catalogue.identity import Identity, unknown_runner

DIGEST = "a" * 64
COMMIT = "0123456789" * 4
TOKEN = "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2  # put together, so that no scanner takes this file for a leak


def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    write(path, text).chmod(0o755)
    return path


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """A folder for PATH, with the programs that tests start nowhere."""
    for name in ("node", "npx", "server", "python3", "docker"):
        program(tmp_path / "bin" / name, f"binary {name}")
    return tmp_path / "bin"


def of(folder: Path, command: str, *args: str, cwd: Path | None = None, **env: str) -> Identity:
    return identity.of(command, args, {"PATH": str(folder), **env}, str(cwd or folder.parent))


def code(found: Identity) -> list[tuple[str, str]]:
    return [(one.role, Path(one.path).name) for one in found.code]


def test_the_same_command_has_the_same_digest_and_everything_that_changes_what_runs_another(bin_folder: Path) -> None:
    script = write(bin_folder.parent / "x.js", "1")
    first = of(bin_folder, "node", "x.js", "--port", "1")
    assert first.digest == of(bin_folder, "node", "x.js", "--port", "1").digest
    assert first.digest.startswith("sha256:") and len(first.digest) == 71
    others = [
        of(bin_folder, "node", "x.js", "--port", "2"),
        of(bin_folder, "node", "x.js", "--port 1"),
        of(bin_folder, "./bin/node", "x.js", "--port", "1", NODE_OPTIONS="--require ./y.js"),
        of(bin_folder, "node", "x.js", "--port", "1", NODE_OPTIONS="--require ./y.js"),
        of(bin_folder, "node", "x.js", "--port", "1", LD_PRELOAD="/x.so"),
    ]
    script.write_text("2")
    others.append(of(bin_folder, "node", "x.js", "--port", "1"))
    program(bin_folder / "node", "another binary").chmod(0o775)  # no system's: its bytes count
    others.append(of(bin_folder, "node", "x.js", "--port", "1"))
    assert len({first.digest, *(other.digest for other in others)}) == len(others) + 1


def test_a_program_earlier_in_path_is_another(bin_folder: Path, tmp_path: Path) -> None:
    program(tmp_path / "evil" / "server", "binary server")
    changed = of(bin_folder, "server", PATH=f"{tmp_path / 'evil'}:{bin_folder}")
    assert changed.program == str(tmp_path / "evil" / "server")
    assert changed.digest != of(bin_folder, "server").digest


def test_links_are_followed_and_the_way_there_counts(bin_folder: Path) -> None:
    (bin_folder / "link").symlink_to("server")
    found = of(bin_folder, "link")
    assert (found.program, found.found) == (str(bin_folder / "server"), str(bin_folder / "link"))
    assert found.digest != of(bin_folder, "server").digest


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("x.js",), ["x.js"]),
        (("x",), ["x.js"]),
        (("--inspect", "x.js", "y.js"), ["x.js"]),
        (("-r", "./y.js", "x.js"), ["y.js", "x.js"]),
        (("--require=./y.js", "x.js"), ["y.js", "x.js"]),
        (("--import", "tsx", "x.js"), ["x.js"]),
        (("--", "x.js"), ["x.js"]),
        (("folder",), ["index.js"]),
        (("-e", "x.js"), []),
    ],
)
def test_the_script_of_node(bin_folder: Path, args: tuple[str, ...], expected: list[str]) -> None:
    for name in ("x.js", "y.js", "folder/index.js"):
        write(bin_folder.parent / name, name)
    found = of(bin_folder, "node", *args)
    assert [name for role, name in code(found) if role in ("script", "loaded")] == expected
    assert all(len(one.sha256) == 64 for one in found.code if one.role in ("script", "loaded"))


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("x.py",), ["x.py"]),
        (("-u", "x.py", "-m", "mod"), ["x.py"]),
        (("-m", "mod"), ["mod.py"]),
        (("-um", "mod"), ["mod.py"]),
        (("-Im", "mod"), []),
        (("-W", "ignore", "-X", "dev", "-mpack.sub"), ["__main__.py", "__init__.py"]),
        (("-c", "x.py"), []),
        (("folder",), ["__main__.py"]),
    ],
)
def test_the_script_of_python(bin_folder: Path, args: tuple[str, ...], expected: list[str]) -> None:
    for name in ("x.py", "mod.py", "pack/sub/__main__.py", "pack/sub/__init__.py", "folder/__main__.py"):
        write(bin_folder.parent / name, name)
    assert [name for role, name in code(of(bin_folder, "python3", *args)) if role == "script"] == expected


def test_a_module_of_a_virtual_environment_is_found(tmp_path: Path) -> None:
    found = identity.of(sys.executable, ["-m", "pytest"], dict(os.environ), str(tmp_path))
    assert ("script", "__main__.py") in code(found)
    assert not found.notes


def test_a_module_that_is_not_found_is_said(bin_folder: Path) -> None:
    assert of(bin_folder, "python3", "-m", "nowhere").notes == ("the file of the module nowhere was not found",)


def test_wrappers_and_first_lines_lead_to_what_runs(bin_folder: Path) -> None:
    write(bin_folder.parent / "x.js", "1")
    program(bin_folder / "env", "binary env")
    program(bin_folder / "tool", "#!/usr/bin/env -S node --x\n")
    wrapped = of(bin_folder, "env", "-i", "A=b", "node", "x.js")
    assert ("script", "x.js") in code(wrapped) and ("program", "env") in code(wrapped)
    assert ("interpreter", "node") in code(of(bin_folder, "tool"))
    assert ("script", "x.js") in code(of(bin_folder, "env", "-", "A=b", "node", "x.js"))
    for odd in (("-", "-i"), ("-", "-")):  # to env the second is a program
        assert any(one.sha256 == identity.MISSING for one in of(bin_folder, "env", *odd, "node", "x.js").code)


def test_code_in_the_words_of_other_programs_counts(bin_folder: Path) -> None:
    program(bin_folder / "uv", "binary uv")
    write(bin_folder.parent / "project/server.py", "1")
    found = of(bin_folder, "uv", "--directory", str(bin_folder.parent / "project"), "run", "server.py")
    assert ("script", "server.py") in code(found)


def test_a_runner_takes_what_lies_in_the_folder_it_starts_in(bin_folder: Path) -> None:
    """`npx` runs the project's own package of that name, and fetches from the registry that the project's `.npmrc` names."""
    project = bin_folder.parent / "home/project"
    inner = project / "inner"
    inner.mkdir(parents=True)
    seen = [npx(bin_folder, inner).digest]
    write(project / ".npmrc", "save-exact=true\n")
    write(bin_folder.parent / "home/.npmrc", "registry=https://mine.example\n")
    assert npx(bin_folder, inner).digest == seen[0]
    write(project / ".npmrc", "save-exact=true\n@a:registry=https://evil.example\n")
    seen.append(npx(bin_folder, inner).digest)
    write(project / "node_modules/@a/b/package.json", "{}")
    seen.append(npx(bin_folder, inner).digest)
    program(project / "node_modules/.bin/b", "1")
    seen.append(npx(bin_folder, inner).digest)
    program(project / "node_modules/.bin/b", "2")
    seen.append(npx(bin_folder, inner).digest)
    assert len(set(seen)) == 5
    assert [role for role, _ in code(npx(bin_folder, inner))][-3:] == ["local package", "local package", "settings"]
    assert npx(bin_folder, project.parent).digest == seen[0]


def npx(bin_folder: Path, cwd: Path) -> Identity:
    return of(bin_folder, "npx", "-y", "@a/b@1.0.0", cwd=cwd, HOME=str(bin_folder.parent / "home"))


def test_what_npx_installed_is_known_whole(bin_folder: Path) -> None:
    """With all that its modules may find; a range or a name alone is what lies there, and another when that changes."""
    home = bin_folder.parent / "home"
    cwd = home / "project"
    missing = npx(bin_folder, cwd)
    assert ("modules", "node_modules") in code(missing) and "npx -y --cache" in missing.notes[0]
    script = npx_installed(home, "@a/b@1.0.0", "@a/b", "1.0.0")
    modules = script.parents[3]
    found = npx(bin_folder, cwd)
    assert found.installed is not None and found.installed.words == (str(script),)
    assert ("script", "x.js") in code(found) and found.facts()["installed"] == "1.0.0" and not found.notes
    seen = {missing.digest, found.digest}
    write(modules / "other/index.js", "2")
    seen.add(npx(bin_folder, cwd).digest)
    (modules / "other/index.js").chmod(0o755)
    seen.add(npx(bin_folder, cwd).digest)
    (modules / ".bin").mkdir()
    (modules / ".bin/x").symlink_to("../@a/b/dist/x.js")
    seen.add(npx(bin_folder, cwd).digest)
    write(home / ".npm/_npx/node_modules/optional/index.js", "planted where modules look for what they can do without")
    seen.add(npx(bin_folder, cwd).digest)
    write(home / ".npm/node_modules/optional/index.js", "the same")
    seen.add(npx(bin_folder, cwd).digest)
    assert len(seen) == 7
    (modules / "other/out").symlink_to(home / "project")
    assert any(one.sha256 == identity.MISSING for one in npx(bin_folder, cwd).code)
    (modules / "other/out").unlink()
    (home / "second name").hardlink_to(modules / "other/index.js")
    assert any(one.sha256 == identity.MISSING for one in npx(bin_folder, cwd).code)
    (home / "second name").unlink()
    npx_installed(home, "@a/b@1.0.0", "@a/b", "1.0.1")
    other = npx(bin_folder, cwd)
    assert other.installed is not None and not other.installed.words, "not the version that was asked for"


@pytest.mark.parametrize(
    ("words", "wanted", "programs", "runs"),
    [
        (("a",), "a", {"x": "dist/x.js"}, ()),
        (("-y", "a@latest", "-v", "--", "b"), "a@latest", {"x": "dist/x.js"}, ("-v", "--", "b")),
        (("--yes", "--", "a@^1", "b"), "a@^1", "dist/x.js", ("b",)),
        (("-q", "a"), "a", {"y": "y.js", "a": "dist/x.js"}, ()),
        (("-p", "a", "x", "1"), "a", {"y": "y.js", "x": "dist/x.js"}, ("1",)),
        (("--package=a", "a"), "a", "dist/x.js", ()),
        (("a",), "a", {"y": "y.js", "x": "dist/x.js"}, None),
        (("-p", "a", "sh"), "a", {"x": "dist/x.js"}, None),
        (("a",), "a", {"x": "../../outside.js"}, None),
    ],
)
def test_npx_takes_the_program_that_it_would_take(
    bin_folder: Path, words: tuple[str, ...], wanted: str, programs: object, runs: tuple[str, ...] | None
) -> None:
    home = bin_folder.parent / "home"
    script = npx_installed(home, wanted, "a", "1.0.0", bin=programs)  # type: ignore[arg-type]
    program(home / ".npm/outside.js")
    found = of(bin_folder, "npx", *words, HOME=str(home)).installed
    assert found is not None and found.words == (() if runs is None else (str(script), *runs))


@pytest.mark.parametrize(
    "words",
    [
        ("--prefix", "/srv", "a"),
        ("-c", "a"),
        ("./a",),
        ("a.tgz",),
        ("github:a/b",),
        ("a@npm:b",),
        ("https://x.example/a",),
    ],
)
def test_what_only_the_runner_knows_is_left_to_it(bin_folder: Path, words: tuple[str, ...]) -> None:
    assert of(bin_folder, "npx", *words, HOME="/nowhere").installed is None


def test_what_uv_installed_is_started_in_place_of_uvx(bin_folder: Path) -> None:
    home = bin_folder.parent / "home"
    program(bin_folder / "uvx", "binary uvx")
    program(bin_folder / "uv", "binary uv")

    def uvx(*words: str, runner: str = "uvx") -> Identity:
        return of(bin_folder, runner, *words, HOME=str(home))

    missing = uvx("my.server==1.0")
    assert missing.installed is not None and missing.installed.fetch.endswith(
        "--link-mode copy --compile-bytecode my-server==1.0"
    )
    folder = home / ".local/share/uv/tools/my-server"
    script = program(folder / "bin/my.server", "#!/bin/sh\n")
    site = folder / "lib/python3.12/site-packages"
    write(site / "my_server-1.0.dist-info/RECORD", "x,sha256=1,1")
    module = write(site / "other.py", "1")
    found = uvx("my.server==1.0", "--flag")
    assert found.installed is not None and found.installed.words == (str(script), "--flag")
    for same in (("my.server",), ("my.server@1.0",), ("--from", "my-server==1.0", "my.server")):
        known = uvx(*same).installed
        assert known is not None and known.words == (str(script),) and known.version == "1.0"
    assert uvx("tool", "run", "my.server", runner="uv").installed is not None
    compiled = write(site / "__pycache__/other.cpython-312.pyc", "what Python would take in place of other.py")
    assert uvx("my.server==1.0", "--flag").digest != found.digest
    compiled.unlink()
    compiled.parent.rmdir()
    assert uvx("my.server==1.0", "--flag").digest == found.digest
    module.write_text("2")
    assert uvx("my.server==1.0", "--flag").digest != found.digest
    (home / "in the cache").hardlink_to(module)
    shared = uvx("my.server==1.0").installed
    assert shared is not None and not shared.words, "sessions may write the other name of that file"
    (home / "in the cache").unlink()
    newer = uvx("my.server==1.1").installed
    assert newer is not None and not newer.words
    for more in (("--with", "b", "my.server"), ("-p", "3.12", "my.server"), ("my.server[x]",)):
        there, absent = uvx(*more).installed, uvx(*more[:-1], more[-1].replace("my", "your")).installed
        assert there is not None and there.words == (str(script),)
        assert absent is not None and shlex.split(absent.fetch)[7:] == [*more[:-1], more[-1].replace("my.", "your-")]
    for left in (
        ("--with-requirements", "r.txt", "my.server"),
        ("--from", "git+https://x.example/a", "a"),
        ("--from", ".", "a"),
    ):
        found = uvx(*left)
        assert found.installed is None and unknown_runner(found) == "uvx"


def test_several_packages_are_found_where_npx_puts_them(bin_folder: Path) -> None:
    """Its folder is named by all of them, in the order of a dictionary; the program is that of the one package that has it."""
    home = bin_folder.parent / "home"
    text = "a_b@1.0.0\na-b\na@1\na1"
    script = npx_installed(home, text, "a-b", "2.0.0", bin={"serve": "dist/x.js"})
    for name, version in (("a_b", "1.0.0"), ("a", "1.1.0"), ("a1", "0.1.0")):
        npx_installed(home, text, name, version, bin={name: "dist/x.js"})
    words = ("-p", "a1", "--package=a-b", "-p", "a@1", "-p", "a_b@1.0.0", "serve", "--flag")
    found = of(bin_folder, "npx", *words, HOME=str(home))
    assert (
        found.installed is not None and found.installed.words == (str(script), "--flag") and not unknown_runner(found)
    )
    assert "a_b 1.0.0" in found.installed.version and "-p a-b -p a@1" in found.installed.fetch
    npx_installed(home, text, "a", "1.1.0", bin={"a": "dist/x.js", "serve": "dist/x.js"})
    both = of(bin_folder, "npx", *words, HOME=str(home)).installed
    assert both is not None and not both.words, "two have it, and nobody knows which one would be taken"
    npx_installed(home, text, "a", "1.1.0", bin={"a": "dist/x.js"})
    npx_installed(home, text, "a_b", "1.0.1", bin={"a_b": "dist/x.js"})
    other = of(bin_folder, "npx", *words, HOME=str(home)).installed
    assert other is not None and not other.words, "not the version that was asked for"


@pytest.mark.parametrize(
    ("command", "runs"),
    [
        (("npm", "exec", "a"), ()),
        (("npm", "x", "--yes", "--", "a", "--flag"), ("--flag",)),
        (("npm", "exec", "a", "b", "--", "--flag"), ("b", "--flag")),
        (("npm", "exec", "--package=a", "--", "x", "1"), ("1",)),
        (("npm", "exec", "--package", "a", "x"), ()),
        (("sh", "-c", "npx -y a 'b c'"), ("b c",)),
        (("bash", "-c", "exec npm exec -- a"), ()),
        (("env", "A=b", "sh", "-c", "npx a"), ()),
    ],
)
def test_other_ways_to_write_npx_are_the_same(
    bin_folder: Path, command: tuple[str, ...], runs: tuple[str, ...]
) -> None:
    home = bin_folder.parent / "home"
    for name in ("npm", "sh", "bash", "env"):
        program(bin_folder / name, f"binary {name}")
    absent = of(bin_folder, *command, HOME=str(home)).installed
    assert absent is not None and not absent.words and absent.fetch.endswith("-p a true")
    script = npx_installed(home, "a", "a", "1.0.0", bin={"x": "dist/x.js"})
    found = of(bin_folder, *command, HOME=str(home))
    assert found.installed is not None and found.installed.words == (str(script), *runs) and not unknown_runner(found)
    assert any(code.role == "modules" for code in found.code)


@pytest.mark.parametrize(
    ("command", "runner"),
    [
        ("npm exec -p a x", "npm"),  # npm's own -p is another one
        ("npm exec a --flag", "npm"),
        ("npx -c a", "npx"),
        ("npx github:a/b", "npx"),
        ("pipx run a==1.0", "pipx"),
        ("bunx a@1.0.0", "bunx"),
        ("pnpm dlx a@1.0.0", "pnpm"),
        ("yarn dlx a@1.0.0", "yarn"),
        ("uv tool run --with-editable . a", "uv"),
        ("timeout 60 npx -y a", "npx"),
        ("nice -n x /usr/bin/npx a", "npx"),
        ("env -C /x uvx a", "uvx"),
        ("uv --allow-insecure-host h tool run a", "uv"),
        ("uv -q tool run a", "uv"),  # what is behind it is counted from the first word
        ("timeout 60 uv --option v tool run a", "uv"),
        ("timeout 60 npm --loglevel silent exec a", "npm"),
        ("timeout 60 npm exe a", "npm"),
        ("timeout 60 bun --cwd /x x a", "bun"),
        ("timeout 60 /srv/node_modules/.bin/npx a", "npx"),
        ("timeout 60 /home/u/.asdf/shims/npx -y a", "npx"),
        ("timeout 60 /home/u/.local/share/pnpm/pnpm dlx a", "pnpm"),
        ("timeout 60 /opt/uv/uv tool run a", "uv"),
        (("sh", "-c", "cd /x && ~/.pyenv/shims/pipx run a"), "pipx"),
        (("proxy", "--stdio=npx -y a"), "npx"),
        (("node", "absent.js", "--cmd=uvx a"), "uvx"),
        (("sh", "-c", "X=npx; $X -y a"), "npx"),
        (("bash", "-c", "npm {exec,a}"), "npm"),
        (("proxy", "--root=/srv/uv", "serve"), ""),
        ("npm init -y a", "npm"),
        ("npm ini a", "npm"),
        ("yarn create a", "yarn"),
        ("bun create a", "bun"),
        ("pnpm -C /x dlx a", "pnpm"),
        ("npm --prefix run exec a", "npm"),
        ("node /usr/lib/node_modules/npm/bin/npx-cli.js -y a", "npx"),
        ("node /srv/npx-cli.js a", "npx"),
        ("node /usr/lib/node_modules/npm exec a", "npm"),
        ("node .yarn/releases/yarn-4.1.0.cjs dlx a", "yarn"),
        ("python3 pipx.pyz run a", "pipx"),
        (("sh", "-c", "pnpm -C /x dlx a"), "pnpm"),
        (("sh", "-c", "npm 2>/dev/null exec a"), "npm"),
        (("sh", "-c", "npm init -y a"), "npm"),
        (("sh", "-c", "npm --x \\; exec a"), "npm"),
        (("sh", "-c", '"$0" -y a', "npx"), "npx"),
        (("sh", "-c", "'u'v --x y tool run a"), "uv"),
        (("sh", "-c", "cd /srv; np\\x -y a"), "npx"),
        (("sh", "-c", "cd /srv; n\\\npx -y a"), "npx"),
        (("sh", "-c", "npx${IFS}-y a"), "npx"),
        (("python3", "-c", "import os; os.execvp('npx', ['npx', 'a'])"), "npx"),
        ("python3 -m pipx run a", "pipx"),
        (("sh", "-c", "cd /srv && npx -y a"), "npx"),
        (("sh", "-c", "npx a; echo"), "npx"),
        (("sh", "-c", "npx a $X"), "npx"),
        (("sh", "-c", "A=b npx a"), "npx"),
        (("sh", "-c", "$(which uvx) a"), "uvx"),
        (("bash", "-lc", "npx a"), "npx"),
        (("sh", "-c", "npx a", "more"), "npx"),
        (("sh", "-c", "exec npm --silent exec a"), "npm"),
        (("sh", "-c", "npx 'a"), "npx"),
        ("node absent.js /home/u/npx", "npx"),
        ("uv run --with mcp server.py", "uv"),
        ("uv run --with=mcp==1.0 server.py", "uv"),
        ("uv --directory run run -q --with-editable . server.py", "uv"),
        ("uv --directory /x run --extra y -w a server.py", "uv"),
        ("uv run --quiet https://a.example/server.py", "uv"),
        ("uv run --env-file .env https://a.example/server.py", "uv"),
        ("timeout 60 uv run --with a server.py", "uv"),
        (("bash", "-c", "cd /x && uv run --with a server.py"), "uv"),
        ("uv run --index-url https://a.example/simple server.py", "uv"),
        ("uv run server.py --with a", "uv"),  # no project is there
        ("uv version", ""),
        ("npm start", "npm"),
        ("npm run serve", "npm"),
        ("npm run exec", "npm"),
        ("npm --silent run-script x", "npm"),
        ("npm sto", "npm"),
        ("npm version", ""),
        ("yarn serve", "yarn"),
        ("yarn run serve", "yarn"),
        ("bun run serve", "bun"),
        ("poetry run server", "poetry"),
        ("poetry -C /srv run server", "poetry"),
        ("pdm run server", "pdm"),
        ("deno task serve", "deno"),
        ("deno -q task serve", "deno"),
        (("sh", "-c", "cd /srv && uv sync && exec .venv/bin/server"), "uv"),
        (("sh", "-c", "npm install && exec node x.js"), "npm"),
        ("npm --prefix /srv/npm start", "npm"),
        ("uv --directory /srv/uv run server.py", "uv"),
        ("bun run /srv/x.ts", ""),
        ("timeout 60 pnpm --dir /srv start", "pnpm"),
        ("node /srv/lib/uv-index.js", ""),
        (("sh", "-c", "npm run build && exec node x.js"), "npm"),
        ("sh -c /srv/server", ""),
        ("pnpm start", "pnpm"),
        ("server --manager pnpm", ""),
        ("docker run a npx b", ""),
        ("go run example.com/a/b@latest", "go"),
        ("go run -mod mod example.com/a@v1.2.3 --flag", "go"),
        (("sh", "-c", "cd /srv && go run example.com/a@v1"), "go"),
        ("timeout 60 /usr/local/go/bin/go run example.com/a@v1", "go"),
        ("deno run -A jsr:@a/b", "deno"),
        ("deno run -A https://a.example/server.ts", "deno"),
        (("sh", "-c", "exec deno run npm:a"), "deno"),
        ("deno -A https://a.example/server.ts", "deno"),
        ("deno serve https://a.example/server.ts", "deno"),
        (("sh", "-c", "deno run -c ./deno.json jsr:@a/b"), "deno"),
        ("go run -exec ./wrapper example.com/a@v1", "go"),
        (("sh", "-c", "deno task serve https://a.example"), "deno"),
        ("go run ./cmd/server user@host", ""),
        ("go run main.go a@v1", ""),
        ("deno run -A server.ts https://a.example", ""),
        ("server --lang go run", ""),
    ],
)
def test_what_only_a_runner_knows_is_told_from_the_rest(
    bin_folder: Path, command: str | tuple[str, ...], runner: str
) -> None:
    words = tuple(command.split()) if isinstance(command, str) else command
    assert unknown_runner(of(bin_folder, *words, HOME="/nowhere")) == runner


_ONLY_THE_SHELL_KNOWS = [
    *("$R -y a", '"$R" -y a', 'R=n; $R"px" a', "n${X}px -y a", "n'p'$X a", "''\"\"$R", "e${X}val a", "${A:-b} a"),
    *(
        "cd x; $R",
        "a;\n$R",
        "a &&\\\n$R",
        "a\n\n  $R b",
        "a #x\n$R",
        "a && (b; $R)",
        "{ $R a; }",
        "x(){ $R; }; x",
        "a <($R)",
    ),
    *(
        "if $R; then x; fi",
        "if [ a ]; then\n$R\nfi",
        "case a in a) $R;; esac",
        "! $R",
        "time $R",
        "true | $R a",
        "[ -f x ] && $R",
    ),
    *("exec $R a", "exec -a n $R", "timeout 60 $R a", "env -i A=b $R", "xargs -n 1 $R", "sudo -u me $R", 'A=1 "$B" c'),
    *(
        "`echo a` b",
        "$(echo a) b",
        'echo "$($R a)"',
        'echo "$(A=1 $R a)"',
        "echo `A=1 $R`",
        'a "`$R`"',
        "A=$($R) b",
        "echo ${A:-$($R)}",
    ),
    *(
        "eval a",
        "ev\\al a",
        "'eval' a",
        ". ./f; node x",
        "source a && b",
        "~/x/*/b a",
        "/opt/n?x a",
        "$'\\x6epx' a",
        "trap a EXIT",
    ),
]
_THE_TEXT_SAYS = [
    *(
        "node x.js",
        'cd /srv && exec node x.js "$ROOT"',
        "A=$(cat key) node x.js",
        "A=`cat k` node `pwd`/x.js",
        "exec nice -n 10 node $A",
    ),
    *(
        'exec node "$(dirname x)/$Y/s.js" $Z',
        "if true; then node x.js; fi",
        "node -e 'a;$b'",
        "for x in 1 2; do node $x; done",
    ),
    *('A=${K:-x} exec env B="$C" timeout 60 node x.js > /dev/null 2>&1', "env -u X node $A", "/srv/server --a {b,c} *"),
    *(
        "[ -f x ] && node x.js",
        'test -n "$A" || exit 1; exec node $A',
        "node 'it'\\''s' $x",
        "> log 2>&1 node $R",
        "echo eval; node \\$R",
    ),
]


@pytest.mark.parametrize("text", _ONLY_THE_SHELL_KNOWS)
def test_what_only_a_shell_knows_is_not_known(bin_folder: Path, text: str) -> None:
    program(bin_folder / "env", "binary env")
    for words in (
        ("sh", "-c"),
        ("/bin/bash", "-euxo", "pipefail", "-c"),
        ("env", "A=b", "zsh", "-lc"),
        ("timeout", "9", "sh", "-c"),
    ):
        assert unknown_runner(of(bin_folder, *words, text)) in ("sh", "bash", "zsh"), words
        assert unknown_runner(of(bin_folder, *words, text, "more", "words")), words
    assert unknown_runner(of(bin_folder, "busybox", "ash", "-c", text)) == "ash"
    assert unknown_runner(of(bin_folder, "/opt/fish/bin/fish", "-c", text)) == "fish"


@pytest.mark.parametrize("text", _THE_TEXT_SAYS)
def test_what_a_shells_text_says_is_known(bin_folder: Path, text: str) -> None:
    assert not unknown_runner(of(bin_folder, "sh", "-c", text))


_PIECES = (
    *(
        "$R",
        "$R",
        "${R}",
        " ",
        " ",
        " ",
        ";",
        '"',
        "'",
        "(",
        ")",
        "$(",
        "`",
        "a",
        "|",
        "&&",
        "\n",
        "\\",
        "if ",
        "then ",
        "fi",
        "{ ",
        "}",
    ),
    *(
        ";}",
        "A=",
        "exec ",
        "eval ",
        "<",
        "> f",
        "# ",
        "[ ",
        "case x in ",
        "x)",
        ";;",
        "esac",
        "!",
        "time ",
        "f() ",
        "$((",
        "))",
    ),
    *(
        "1",
        "<<E\n",
        "\nE\n",
        "true",
        ";&",
        "for i in ",
        "; do ",
        "; done",
        "${A:-",
        "command ",
        "env ",
        "=",
        "*",
        "[[ ",
        " ]]",
        '$"',
        "$'",
    ),
)


def test_no_text_that_says_what_it_executes_executes_what_a_variable_holds(tmp_path: Path) -> None:
    """A real shell, and texts that chance puts together."""
    hit = tmp_path / "hit"
    marker = program(tmp_path / "marker", f"#!/bin/sh\n: > {hit}\n")
    chance = random.Random(7)
    told = executed = 0
    for _ in range(1500):
        text = "".join(chance.choices(_PIECES, k=chance.randint(2, 9)))
        says = shells.is_told(text)
        if "$R" not in text or not (says or executed < 5):
            continue
        variables = {"PATH": "/usr/bin:/bin", "R": str(marker)}
        subprocess.run(
            ["/bin/sh", "-c", text], env=variables, cwd=tmp_path, capture_output=True, check=False, timeout=60
        )
        told, executed = told + says, executed + hit.exists()
        assert not (says and hit.exists()), text
        hit.unlink(missing_ok=True)
    assert told > 50 and executed >= 5, "the control: of those that do not say it some do"


def test_a_variable_of_its_configuration_that_names_a_runner_is_one(bin_folder: Path) -> None:
    def said(text: str, **variables: str) -> str:
        declared = {f"variable {name}": value for name, value in variables.items()}
        return unknown_runner(identity.of("sh", ("-c", text), {"PATH": str(bin_folder)}, "/", declared))

    assert said("proxy --stdio $R a", R="npx") == "npx" and said('proxy "${R}" a', R="/usr/bin/uvx -q") == "uvx"
    assert not said("proxy --stdio $ROOT a", R="npx", ROOT="/srv") and not said("proxy $R", R="/srv/npx/data")


def test_a_script_that_names_packages_for_uv_cannot_be_approved(bin_folder: Path) -> None:
    program(bin_folder / "uv", "binary uv")
    script = write(bin_folder.parent / "x.py", "print(1)\n")
    plain = of(bin_folder, "uv", "run", "x.py")
    assert all(one.sha256 != identity.MISSING for one in plain.code)
    assert "uv run --directory DIR" in identity.in_place_of("uv", plain)
    script.write_text('#!/usr/bin/env python3\n# /// script\n# dependencies = ["mcp"]\n# ///\nprint(1)\n')
    found = of(bin_folder, "uv", "run", "x.py")
    assert ("modules", identity.MISSING) in [(one.role, one.sha256) for one in found.code]
    assert any("uv fetches whenever it starts" in note for note in found.notes)
    assert "uv pip install --python DIR -r" in identity.in_place_of("uv", found)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (
            "uv run --with mcp[cli] mcp run /srv/server.py",
            "declare it as: uvx --from 'mcp[cli]' mcp run /srv/server.py",
        ),
        (
            "uv run --frozen --python 3.12 --with a[b,c]==1.2,d fastmcp run x.py",
            "declare it as: uvx --python 3.12 --with d --from 'a[b,c]==1.2' fastmcp run x.py",
        ),
        ("uv run --with a --with fastmcp>=2 fastmcp run x.py", "--with a --from 'fastmcp>=2' fastmcp run x.py"),
        (
            "uv run --with a==1 python x.py",
            "uv venv DIR && uv pip install --python DIR a==1; then declare it as: DIR/bin/python x.py",
        ),
        ("uv run --directory /srv --with a x.py", "uv add --project DIR"),
        ("uvx --from git+https://a.example/b b-server --flag", "uv tool install git+https://a.example/b; then"),
        (
            "uvx --from git+https://a.example/b b-server --flag",
            "`command -v b-server` says, with its words behind it: --flag",
        ),
        ("pipx run a==1.0 --flag", "pipx install a==1.0; then declare the path that `command -v a` says"),
        ("bunx a@1.0.0 --flag", "declare it as: npx -y a@1.0.0 --flag"),
        ("pnpm --package=a dlx b", "declare it as `npx -y NAME@VERSION`"),
        ("pnpm dlx --package=a b", "declare it as: npx -y -p a b"),
        ("yarn dlx a", "declare it as: npx -y a"),
        ("npx github:a/b", "npm install -g github:a/b; then"),
        ("timeout 60 npx -y a", "declare it as: npx -y a"),
        ("timeout 60 uvx --from a b --flag", "declare it as: uvx --from a b --flag"),
        (("bash", "-lc", "cd /srv && K=v npx -y '@a/b' --x"), "declare it as: npx -y @a/b --x; what the shell does"),
        (("sh", "-c", "npx -y a $(x)"), "declare it as `npx -y NAME@VERSION`"),
        (("sh", "-c", "npx -y a; b"), "declare it as `npx -y NAME@VERSION`"),
        (("bash", "-c", "source .venv/bin/activate && python x.py"), "the path DIR/bin/python"),
        (
            "go run example.com/a/b/v2@latest x",
            "go install example.com/a/b/v2@latest; then declare the path that `command -v b`",
        ),
        ("deno run -A jsr:@a/b x", "deno compile -A -o FILE jsr:@a/b; then declare it as: FILE x"),
        ("deno run -A npm:@a/b@1.0.0 x", "declare it as: npx -y @a/b@1.0.0 x"),
    ],
)
def test_who_declares_what_only_a_runner_knows_is_told_what_to_declare(
    bin_folder: Path, command: str | tuple[str, ...], says: str
) -> None:
    words = tuple(command.split()) if isinstance(command, str) else command
    program(bin_folder / "uvx", "binary uvx")
    found = of(bin_folder, *words, HOME="/nowhere")
    said = identity.in_place_of(unknown_runner(found), found)
    assert says in said
    if said.startswith("declare it as: ") and ";" not in said:
        instead = of(bin_folder, *shlex.split(said.removeprefix("declare it as: ")), HOME="/nowhere")
        assert not unknown_runner(instead), "that can be approved, once it is installed"


def test_a_secret_is_in_no_advice(bin_folder: Path) -> None:
    said = identity.in_place_of("bunx", of(bin_folder, "bunx", "a@1.0.0", "--token", TOKEN))
    assert "npx -y a@1.0.0 --token" in said and TOKEN not in said


def test_what_a_shells_text_has_executed_counts_with_its_scripts(bin_folder: Path) -> None:
    """Also behind `cd`, `env` and another shell, in each way to write it; the control is a text that names nothing of it."""
    for name in ("sh", "bash", "env", "find", "xargs"):
        program(bin_folder / name, f"binary {name}")
    project = bin_folder.parent / "project"
    script = write(project / "x.js", "1")
    tool = program(project / "run", "#!/bin/sh\n")
    home = {"HOME": str(bin_folder.parent), "DIR": str(project)}

    def read(text: str, shell: str = "sh") -> Identity:
        return of(bin_folder, shell, "-c", text, **home)

    texts = [
        f"cd {project} && exec node x.js",
        f"cd {project}; A=b exec env B=c node --enable-source-maps ./x >/tmp/log 2>&1",
        f"node {project}/x.js | tee log",
        "cd project; if [ -f x.js ]; then node x.js; fi",
        "cd ~/project && node 'x.js'",
        'cd "$DIR" && node x.js',
        'node "${DIR}/x.js" "$(pwd)"',
        'echo "$(node ~/project/x.js)"',
        f'sh -c "cd {project} && node x.js"',
        f"(cd {project} && true); node x.js",
        f"timeout 60 node {project}/x.js",
    ]
    before = [read(text) for text in texts]
    for text, found in zip(texts, before, strict=True):
        assert ("script", "x.js") in code(found) and ("program", "node") in code(found), (text, found)
        assert all(one.sha256 != identity.MISSING for one in found.code), (text, found)
        assert not unknown_runner(found)
    control, own = read("node -e 1"), read(f"cd {project} && ./run")
    script.write_text("2")
    assert [one.digest for one in before if one.digest == read(" ".join(one.args[1:])).digest] == []
    assert control.digest == read("node -e 1").digest and own.digest == read(f"cd {project} && ./run").digest
    tool.write_text("#!/bin/sh\nevil\n")
    assert own.digest != read(f"cd {project} && ./run").digest


@pytest.mark.parametrize(
    "text",
    [
        "find . -name x -exec node {} +",
        "find . -execdir $X {} ;",
        "/usr/bin/find . -ok node {} ;",
        "echo x.js | xargs node",
        "/usr/bin/xargs node < list",
        "parallel node ::: a.js",
        "env -S 'node x.js'",
        "/usr/bin/env -iS 'node x.js'",
        "env -C /srv node x.js",
        "env --split-string='node x.js'",
        "/usr/bin/env $(cat x)",
        "/usr/bin/timeout 9 $X",
        "busybox $X",
        "sh -c 'eval x'",
        "sh -c \"sh -c 'find . -exec x {} +'\"",
        'cd "$(cat x)" && node x.js',
        "cd - && node x.js",
        "cd $X && node x.js",
        "PATH=$X:$PATH node x.js",
        "node absent.js",
        "node $X",
        "exec node `cat x`",
        "./absent",
    ],
)
def test_what_a_text_hands_to_others_cannot_be_approved(bin_folder: Path, text: str) -> None:
    for name in ("sh", "env", "find", "xargs"):
        program(bin_folder / name, f"binary {name}")
    write(bin_folder.parent / "x.js", "1")
    found = of(bin_folder, "sh", "-c", text)
    assert unknown_runner(found) == "sh" or any(one.sha256 == identity.MISSING for one in found.code), found
    assert found.notes


@pytest.mark.parametrize(
    "words", ["find . -exec node x.js ;", "xargs node x.js", "node --run start", "env find . -ok x"]
)
def test_programs_that_have_others_executed_cannot_be_approved(bin_folder: Path, words: str) -> None:
    for name in ("env", "find", "xargs"):
        program(bin_folder / name, f"binary {name}")
    write(bin_folder.parent / "x.js", "1")
    assert any(one.sha256 == identity.MISSING for one in of(bin_folder, *words.split()).code)
    assert all(one.sha256 != identity.MISSING for one in of(bin_folder, "find", ".", "-name", "x.js").code), (
        "the control"
    )


def test_programs_are_found_where_a_text_says(bin_folder: Path) -> None:
    program(bin_folder / "sh", "binary sh")
    program(bin_folder.parent / "other/node", "binary other")
    other = str(bin_folder.parent / "other")
    for text in (f"PATH={other}:$PATH node -e 1", f"export PATH='{other}'; node -e 1", f'PATH="{other}"; node -e 1'):
        found = of(bin_folder, "sh", "-c", text)
        assert f"{other}/node" in [one.path for one in found.code], found
    assert f"{other}/node" not in [one.path for one in of(bin_folder, "sh", "-c", "node -e 1").code]


@pytest.mark.parametrize(("name", "file"), [("bun", "bunfig.toml"), ("deno", "deno.json"), ("tsx", "tsconfig.json")])
def test_what_says_what_is_loaded_beside_a_script_counts(bin_folder: Path, name: str, file: str) -> None:
    program(bin_folder / name, f"binary {name}")
    write(bin_folder.parent / "in/x.ts", "1")
    words, where = (name, "run", "./x.ts") if name != "tsx" else (name, "x.ts"), bin_folder.parent / "in"
    before = of(bin_folder, *words, cwd=where)
    assert not unknown_runner(before)
    settings = write(bin_folder.parent / file, "1")
    added = of(bin_folder, *words, cwd=where)
    settings.write_text("2")
    assert len({before.digest, added.digest, of(bin_folder, *words, cwd=where).digest}) == 3


def test_more_words_than_a_gate_takes_are_not_looked_at(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of thousands could name a file in thousands of folders, and every list of servers would wait for that."""
    write(bin_folder.parent / "x.py", "1")
    found = of(bin_folder, "server", *["x.py"] * 256)
    assert ("script", "x.py") in code(found) and not found.notes
    monkeypatch.setattr(scripts, "find", None)
    found = of(bin_folder, "server", *["x.py"] * 257)
    assert [one.sha256 for one in found.code] == [identity.MISSING] and "more than 256 words" in found.notes[0]


@pytest.mark.parametrize(
    ("text", "runner"), [("npm z ", "npm"), ("uv x y -x ", "uv"), ("go run -x ", "go"), ("\n", "")]
)
def test_very_many_words_do_not_hold_up_who_looks_at_them(text: str, runner: str) -> None:
    """A repository may declare what it likes, and with the square of so much this would not end."""
    assert packages.mentioned(["sh", "-c", text * 100_000]) == runner
    assert packages.mentioned(["sh", "-c", text * 10]) == ""


def test_a_known_script_has_its_own_words(bin_folder: Path) -> None:
    """It is part of what was approved; a launcher among such scripts is known by what it is told to start."""
    write(bin_folder.parent / "x.js", "1")
    write(bin_folder.parent / "x.py", "1")
    program(bin_folder / "env", "binary env")
    own = ("--allow", "git npx"), ("/home/u/.local/bin/uvx",), ("--allow=npx", "--allow=git")
    for script in (
        ("node", "x.js"),
        ("node", "--", "x"),
        ("env", "A=b", "python3", "-u", "x.py"),
        ("python3", "-m", "x"),
    ):
        for words in own:
            assert not unknown_runner(of(bin_folder, *script, *words)), (script, words)
        for words in (("-q", "npx", "-y", "a"), ("--stdio", "npx -y a"), ("uv", "--x", "y", "tool", "run", "a")):
            assert unknown_runner(of(bin_folder, *script, *words)), (script, words)
    assert unknown_runner(of(bin_folder, "node", "absent.js", *own[0])) == "npx", "nobody knows that one"
    assert unknown_runner(of(bin_folder, "server", *own[0])) == "npx", "any program may start what it is told"


@pytest.mark.parametrize("option", ["--redirect-warnings", "--diagnostic_dir", "--title", "--tls-keylog"])
def test_the_value_of_an_option_of_node_is_not_its_script(bin_folder: Path, option: str) -> None:
    write(bin_folder.parent / "x.js", "1")
    write(bin_folder.parent / "evil.js", "1")
    assert ("script", "evil.js") in code(of(bin_folder, "node", option, "./x.js", "./evil.js"))
    for switch in (f"{option}=./evil.js", "--no-warnings", "--enable_source_maps"):
        assert code(of(bin_folder, "node", switch, "./x.js", "./evil.js"))[1:] == [("script", "x.js")]


def test_a_link_to_a_runner_is_one(bin_folder: Path) -> None:
    program(bin_folder.parent / "lib/node_modules/npm/bin/npx-cli.js", "binary npx")
    program(bin_folder.parent / "lib/node_modules/npm/bin/npm-cli.js", "binary npm")
    program(bin_folder / "env", "binary env")
    (bin_folder / "mine").symlink_to("../lib/node_modules/npm/bin/npx-cli.js")
    (bin_folder / "my-npm").symlink_to("../lib/node_modules/npm/bin/npm-cli.js")
    for words in (("mine", "a"), ("env", "mine", "a"), ("node", "bin/mine", "a")):
        assert unknown_runner(of(bin_folder, *words)) == "npx", words
    assert unknown_runner(of(bin_folder, "my-npm", "exec", "a", "npm")) == "npm"
    assert unknown_runner(of(bin_folder, "my-npm", "run", "exec")) == "npm"
    assert not unknown_runner(of(bin_folder, "my-npm", "version"))
    (bin_folder / "other").symlink_to("server")
    assert not unknown_runner(of(bin_folder, "other", "a"))


@pytest.mark.parametrize(
    ("args", "runner"),
    [
        (["--root=FOLDER/uv", "run"], "uv"),
        (["--root", "FOLDER/uv", "run"], "uv"),
        (["FOLDER/npx", "serve"], "npx"),
        (["--allow", "FOLDER/npm,FOLDER/yarn", "--mode", "run"], "npm"),
        (["--db=sqlite:FOLDER/npx", "x"], "npx"),
        (["--run=x:FOLDER/npx:/usr/bin/npx", "x"], "npx!"),
        (["--docs=https://docs.example/yarn", "serve"], ""),
        (["--repo", "https://github.com/npm/npx", "--toolsets=run"], ""),
        (["--repo", "git+ssh://git@github.com/oven-sh/bunx", "x"], ""),
        (["--cache", "FOLDER/pnpm/", "start"], ""),
        (["--image", "docker", "run"], ""),
        (["--lang", "deno", "--mode=run"], ""),
        (["--dirs", "FOLDER/bunx:FOLDER/npx", "all"], "npx"),
        (["--run", "file:///usr/bin/npx", "-y", "a"], "npx!"),
        (["--run=/usr/bin/npx", "-y", "a"], "npx!"),
        (["--run", "uv", "run"], "uv!"),
        (["--run", "node", "FOLDER/node_modules/npm", "exec"], "npm!"),
        (["--run", "python3", "RUN/uv", "run"], "uv!"),
        (["--run", "FOLDER/missing/uv", "run"], "uv!"),
    ],
)
def test_a_folder_that_is_named_like_a_runner_is_none(bin_folder: Path, args: list[str], runner: str) -> None:
    """Where a folder is, is seen at each start; `!` marks what stays the runner's."""
    home = bin_folder.parent
    given = [arg.replace("FOLDER", str(home)).replace("RUN", str(home / "run")) for arg in args]
    program(bin_folder / "server", "binary")
    write(home / "run/uv/__main__.py", "1")
    (home / "node_modules/npm").mkdir(parents=True, exist_ok=True)
    stays, expected = runner.endswith("!"), runner.rstrip("!")
    assert unknown_runner(of(bin_folder, "server", *given)) == expected, "where nothing is there, it may be one"
    for name in ("uv", "npx", "npm", "yarn", "pnpm", "bunx"):
        (home / name).mkdir(exist_ok=True)
    assert unknown_runner(of(bin_folder, "server", *given)) == (expected if stays else "")


@pytest.mark.parametrize(
    "command",
    [
        ("env", "-u", "npx", "--", "-u", "good"),
        ("env", "-u", "PATH", "node", "x.js"),  # it would look for node elsewhere
        ("env", "-uPATH", "node", "x.js"),
        ("env", "--unset=HOME", "npx", "good", "./evil"),
        ("env", "-u", "A=b", "node", "x.js"),
        ("env", "-u", "-i", "node", "x.js"),
        ("env", "-iu", "X", "node", "x.js"),
        ("env", "-uX", "-S", "./evil", "node", "x.js"),
        ("env", "-u", "X", "-S./evil", "node", "x.js"),
        ("env", "--split-string=./evil", "node", "x.js"),
        ("env", "--uns", "X", "node", "x.js"),
        ("env", "--chdir=/tmp", "node", "x.js"),
        ("env", "-u"),
        ("env", "-u", "X"),
        ("env", "-C", "node", "x.js"),
        ("env", "-S", "./evil"),
        ("time", "-o", "npx", "good", "./evil"),
        ("nice", "-n", "node", "x.js"),
        ("nice", "-n", "5", "-n"),
        ("nice", "-n", "5\n", "node", "x.js"),
        ("nice", "-n", "\u0665", "node", "x.js"),
        ("stdbuf", "-o", "node", "x.js"),
        ("nice", "A=b", "node", "x.js"),  # that is a program of this name
        ("env", "A=b", "-i", "node", "x.js"),  # and so is -i here
        ("nohup", "--anything", "node", "x.js"),
        ("timeout", "node", "x.js"),
        ("timeout", "-s", "60", "node", "x.js"),  # 60 is the signal, and node no duration
        ("timeout", "60", "-k", "5"),  # that is a program
        ("timeout", "-p", "5", "node", "x.js"),
        ("ionice", "-c", "node", "x.js"),
        ("ionice", "-p", "1", "node", "x.js"),
        ("taskset", "-p", "1", "node"),
        ("taskset", "node", "x.js"),
        ("chrt", "-b", "node", "x.js"),
        ("chrt", "-d", "-T", "5", "0", "node", "x.js"),
        (*["env"] * 9, "./evil"),
    ],
)
def test_a_wrapper_with_words_that_nobody_knows_cannot_be_approved(bin_folder: Path, command: tuple[str, ...]) -> None:
    home = bin_folder.parent
    write(home / "x.js", "1")
    program(home / "evil", "1")
    script = npx_installed(home, "good", "good", "1.0.0")
    for name in ("env", "time", "nice", "stdbuf", "nohup", "timeout", "ionice", "taskset", "chrt"):
        program(bin_folder / name, f"binary {name}")
    found = of(bin_folder, *command, HOME=str(home))
    assert (found.installed, found.package) == (None, None) and found.notes
    assert any(one.sha256 == identity.MISSING for one in found.code)
    for wrapper in (
        ("env", "-i", "--", "A=b", "c.d-e="),
        ("nice", "-10"),
        ("nice", "-n", "10"),
        ("nice", "-n-5"),
        ("nice", "--adjustment", "5"),
        ("env", "-u", "X", "-uY", "--unset", "Z", "--unset=W", "-i", "A=b"),
        ("env", "-u", "node", "nice", "-n", "+3"),
        ("time", "-p"),
        ("stdbuf", "-oL"),
        ("stdbuf", "-o", "L", "--error", "0", "-i4K"),
        ("nohup", "--"),
        ("env", "-", "nice"),
        ("timeout", "60"),
        ("timeout", "-k", "5", "-sTERM", "--foreground", "--", "1.5h"),
        ("ionice", "-c3"),
        ("ionice", "-c", "best-effort", "-n", "7", "-t"),
        ("taskset", "0x3"),
        ("taskset", "-ac", "0-3,5"),
        ("chrt", "-b", "0"),
        ("nice", "timeout", "60", "ionice", "-c3"),
    ):
        known = of(bin_folder, *wrapper, "npx", "good", "./evil", HOME=str(home))
        assert known.installed is not None and known.installed.words == (str(script), "./evil")
        assert all(one.sha256 != identity.MISSING for one in known.code)
        assert ("script", "x.js") in code(of(bin_folder, *wrapper, "node", "x.js"))


@pytest.mark.parametrize(
    ("words", "then"),
    [
        (["-i"], {"PATH": "p"}),
        (["-vi", "A=c"], {"PATH": "p", "A": "c"}),
        (["-", "A=c"], {"PATH": "p", "A": "c"}),
        (["-u", "A"], {"PATH": "p", "B": "b"}),
        (["-uA", "--unset", "B", "A="], {"PATH": "p", "A": ""}),
        (["--unset=A", "--", "B=c=d"], {"PATH": "p", "B": "c=d"}),
        (["--", "--unset=A"], {"PATH": "p", "A": "a", "B": "b", "--unset": "A"}),
        (["-v"], {"PATH": "p", "A": "a", "B": "b"}),
    ],
)
def test_a_command_behind_env_has_the_environment_that_env_gives_it(words: list[str], then: dict[str, str]) -> None:
    environment = {"PATH": "p", "A": "a", "B": "b"}
    wrappers.change(environment, "env", words)
    assert environment == then
    given = subprocess.run(
        ["/usr/bin/env", *words, "/usr/bin/env"],
        env={"PATH": "p", "A": "a", "B": "b"},
        capture_output=True,
        text=True,
        check=True,
    )
    printed = dict(line.split("=", 1) for line in given.stdout.splitlines())
    assert {"PATH": "p", **printed} == then


def test_what_is_missing_is_said_and_is_another_identity_when_it_appears(bin_folder: Path) -> None:
    missing = of(bin_folder, "nothing")
    assert (missing.program, missing.notes) == ("", ("no program nothing was found",))
    without = of(bin_folder, "node", "x.js")
    write(bin_folder.parent / "x.js", "1")
    assert without.notes and without.digest != of(bin_folder, "node", "x.js").digest


def test_scripts_that_are_pipes_or_endless_do_not_hold_anybody_up(bin_folder: Path) -> None:
    os.mkfifo(bin_folder.parent / "x.js")
    assert of(bin_folder, "node", "x.js").notes
    for path in ("/dev/zero", "/proc/self/pagemap", "/proc/kcore", "/proc/self/mem", "/proc/self/maps"):
        assert of(bin_folder, "node", path).notes, path
    assert of(bin_folder, "node", "/proc/kmsg").digest  # which may just have no line to give
    (bin_folder.parent / "loop.js").symlink_to("loop.js")
    assert of(bin_folder, "node", "loop.js").notes
    assert of(bin_folder, "no\0de", "a\0b", "\ud800").digest


def test_secrets_are_in_the_digest_and_not_in_what_is_shown(bin_folder: Path) -> None:
    first = of(bin_folder, "server", "--api-key", "hunter22", f"--header=Bearer {TOKEN}")
    second = of(bin_folder, "server", "--api-key", "hunter23", f"--header=Bearer {TOKEN}")
    assert first.facts() == second.facts()
    assert "hunter" not in str(first.facts()) and TOKEN not in str(first.facts())
    assert first.digest != second.digest


def test_a_secret_at_the_edge_of_what_is_shown_is_not_cut_in_half() -> None:
    for before in (*range(960, 1000), *range(4056, 4097)):
        assert "ghp_" not in identity.brief("x" * before + " " + TOKEN + "y" * 100)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://A.Example/mcp?x=1#y", "https://a.example:443"),
        ("http://user:secret@localhost:80/", "http://localhost:80"),
        ("https://a.example.:443", "https://a.example:443"),
        ("http://[::1]:8080/x", "http://[::1]:8080"),
        ("ws://a.example", "ws://a.example:80"),
        ("file:///etc/passwd", ""),
        ("https://${HOST}/", ""),
        ("https://a\u0430.example/", ""),
        ("https://a:99999/", ""),
        ("", ""),
    ],
)
def test_origins(url: str, origin: str) -> None:
    assert identity.origin(url) == origin
    found = identity.of_remote(url)
    assert found.origin == origin or found.origin.startswith("unreadable:")
    assert found.digest != identity.of_remote("https://other.example").digest


@pytest.mark.parametrize(
    ("words", "package"),
    [
        ("npx -y @a/b@1.2.3 /x", "npx @a/b 1.2.3"),
        ("npx @a/b", "npx @a/b unpinned"),
        ("npx -y a@latest", "npx a unpinned (latest)"),
        ("npx a@^1.2.3", "npx a unpinned (^1.2.3)"),
        ("npx a@1", "npx a unpinned (1)"),
        ("npx --package=a@1.0.0 -p b -- c", "npx b unpinned"),
        ("npx github:a/b", "npx github:a/b unpinned"),
        (f"npx github:a/b#{COMMIT}", f"npx github:a/b {COMMIT}"),
        ("npx -y ./here", "npx ./here local"),
        ("npm exec -y a@2.0.0", "npm a 2.0.0"),
        ("npm run start", "None"),
        ("pnpm dlx a@1.0.0", "pnpm a 1.0.0"),
        ("yarn dlx a", "yarn a unpinned"),
        ("bunx a@1.0.0", "bunx a 1.0.0"),
        ("bun x a@1.0.0", "bun a 1.0.0"),
        ("uvx mcp-server-git==1.2.3 --repository .", "uvx mcp-server-git 1.2.3"),
        ("uvx mcp-server-git@1.2.3", "uvx mcp-server-git 1.2.3"),
        ("uvx --python 3.12 a>=1", "uvx a unpinned (>=1)"),
        ("uvx a[b]==2.0", "uvx a[b] 2.0"),
        (f"uvx --from git+https://host/x/y@{COMMIT} y", f"uvx git+https://host/x/y {COMMIT}"),
        ("uvx --from git+https://host/x/y@main y", "uvx git+https://host/x/y@main unpinned"),
        ("uv tool run a==1.0", "uv a 1.0"),
        ("uv run server.py", "None"),
        ("pipx run --spec a==1.0 b", "pipx a 1.0"),
        ("docker run -i --rm -e A -v /:/x host:5000/a/b c", "docker host:5000/a/b unpinned"),
        ("docker run host:5000/a:1.2", "docker host:5000/a unpinned (1.2)"),
        (f"podman run a@sha256:{DIGEST}", f"podman a sha256:{DIGEST}"),
        (f"docker run a:1@sha256:{DIGEST}", f"docker a sha256:{DIGEST}"),
        ("docker --context x run a", "docker a unpinned"),
        ("docker exec a b", "None"),
        ("/usr/bin/npx a@1.0.0", "npx a 1.0.0"),
        ("node a@1.0.0", "None"),
        ("npx", "None"),
        ("npx -y", "None"),
    ],
)
def test_what_package_runners_are_asked_for(words: str, package: str) -> None:
    program_, *args = words.split()
    assert str(packages.of(program_, args)) == package


def test_files_are_read_once_and_together_are_no_larger_than_one_may_be(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks the gate chooses the words, and everybody else waits while it reads what they name."""
    read: list[str] = []
    sum_of = sums.of_file

    def counted(path: Path) -> str:
        read.append(path.name)
        return sum_of(path)

    monkeypatch.setattr(sums, "of_file", counted)
    monkeypatch.setattr(identity, "MAX_CODE", 1000)
    for name in ("a.js", "b.js", "c.js"):
        write(tmp_path / name, "/" * 400)
    words = [*("-r", "./a.js", "-r", "./b.js", "-r", "./a.js"), str(tmp_path / "a.js")]
    found = of(bin_folder, "node", *words)
    assert sorted(name for name in read if name != "node") == ["a.js", "b.js"]
    assert not found.notes and all(one.sha256 != identity.MISSING for one in found.code)
    found = of(bin_folder, "node", "-r", "./b.js", "-r", "./c.js", *words)
    assert "together" in found.notes[0] and [one.sha256 for one in found.code].count(identity.MISSING) >= 1
